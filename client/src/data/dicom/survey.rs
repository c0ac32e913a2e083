//! Survey of a DICOM file before it is read. The reader reserves what an element declares, and calls
//! itself for every level of nested sequences: so each declared length is compared with the bytes
//! that are left, and the depth is bounded, at no cost of memory (PS3.5 7.1, PS3.10 7.1).

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use dicom_core::VR;
use dicom_encoding::transfer_syntax::{Codec, TransferSyntax};
use dicom_object::Tag;
use dicom_parser::dataset::LazyDataToken;
use dicom_parser::dataset::lazy_read::LazyDataSetReader;
use dicom_parser::{DynStatefulDecoder, StatefulDecode};
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};

use super::{DECODE_MIB_MAX, DicomProblem, FILE_BYTES_MAX, HEADER_BYTES_MAX, PIXEL_DATA, format};

/// Most sequences within each other. Structured reports have about a dozen.
const DEPTH_MAX: u32 = 64;
/// Most elements and items, each of which takes some hundred bytes of memory.
const ELEMENTS_MAX: u32 = 1_000_000;
/// A deflated data set may hold so many times its packed size, and one picture more.
const UNPACKED_TIMES_MAX: u64 = 4;
/// Bytes before the letters `DICM`.
const PREAMBLE_BYTES: u64 = 128;
/// Group of the file meta information.
const META_GROUP: u16 = 0x0002;
const TRANSFER_SYNTAX: Tag = Tag(META_GROUP, 0x0010);
/// Says whether samples are signed (PS3.3 C.7.6.3).
const PIXEL_REPRESENTATION: Tag = Tag(0x0028, 0x0103);
/// Longest transfer syntax UID, bytes.
const UID_BYTES_MAX: u64 = 64;
/// Value representations with a length of two bytes (PS3.5 table 7.1-2). All others, unknown ones included, have four.
const SHORT: [&[u8; 2]; 21] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
];

/// A file whose data set was surveyed.
pub(super) struct Surveyed {
    /// UID of its transfer syntax.
    syntax: String,
    /// Byte at which its data set begins.
    begin: u64,
}

impl Surveyed {
    /// The file at `path` for the reader, at most `bytes_max` bytes of its data set. File meta information made here takes
    /// the place of the file's own: the reader sees the transfer syntax and the data set that were surveyed, however it
    /// would have read the original.
    pub(super) fn open(&self, path: &Path, bytes_max: u64) -> io::Result<impl Read + use<>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.begin))?;
        // The reader warns where these two are missing; nothing here uses them.
        let (class, instance) = ("1.2.840.10008.5.1.4.1.1.7", "1.2");
        let mut elements = Vec::new();
        for (element, uid) in [(2u16, class), (3, instance), (0x10, &self.syntax)] {
            let padded = uid.len().next_multiple_of(2) as u16;
            elements.extend(META_GROUP.to_le_bytes());
            elements.extend(element.to_le_bytes());
            elements.extend(b"UI");
            elements.extend(padded.to_le_bytes());
            elements.extend(uid.bytes());
            elements.resize(elements.len() + usize::from(padded) - uid.len(), 0);
        }
        let mut head = vec![0; PREAMBLE_BYTES as usize];
        head.extend(b"DICM\x02\0\0\0UL\x04\0");
        head.extend((elements.len() as u32).to_le_bytes());
        head.extend(elements);
        Ok(Cursor::new(head).chain(file.take(bytes_max)))
    }
}

/// Surveys the file at `path`, up to its pixels where `header_only`.
pub(super) fn survey(path: &Path, header_only: bool) -> Result<Surveyed, DicomProblem> {
    let open = || File::open(path).map_err(|e| format(&e));
    let file = open()?;
    let bytes = file.metadata().map_err(|e| format(&e))?.len();
    let mut file = BufReader::new(file);
    let uid = meta(&mut file, bytes)?;
    let unread = || malformed(&format!("transfer syntax `{uid}` is not read here"));
    let syntax = TransferSyntaxRegistry.get(&uid).ok_or_else(unread)?;
    let begin = file.stream_position().map_err(|e| format(&e))?;
    match syntax.codec() {
        Codec::None | Codec::EncapsulatedPixelData(..) => {
            walk(file, syntax, bytes.saturating_sub(begin), header_only)?;
        }
        // Packed as a whole: what it holds is counted first.
        Codec::Dataset(Some(adapter)) => {
            let max = bytes.saturating_mul(UNPACKED_TIMES_MAX).saturating_add(DECODE_MIB_MAX << 20);
            let max = max.min(FILE_BYTES_MAX);
            let mut unpacked = adapter.adapt_reader(Box::new(file)).take(max + 1);
            let bytes = io::copy(&mut unpacked, &mut io::sink()).map_err(|e| format(&e))?;
            if bytes > max {
                return Err(DicomProblem::Unpacked { max });
            }
            let mut file = BufReader::new(open()?);
            file.seek(SeekFrom::Start(begin)).map_err(|e| format(&e))?;
            walk(adapter.adapt_reader(Box::new(file)), syntax, bytes, header_only)?;
        }
        Codec::Dataset(None) => return Err(unread()),
    }
    Ok(Surveyed { syntax: uid, begin })
}

fn malformed(detail: &str) -> DicomProblem {
    DicomProblem::Format { detail: detail.to_owned() }
}

/// Walks over the `bytes` of a data set.
fn walk(
    set: impl Read,
    syntax: &TransferSyntax,
    bytes: u64,
    header_only: bool,
) -> Result<(), DicomProblem> {
    let decoder = DynStatefulDecoder::new_with_ts(set, syntax, 0).map_err(|e| format(&e))?;
    let mut reader = LazyDataSetReader::new(decoder);
    let (mut depth, mut items, mut elements) = (0u32, 0u32, 0u32);
    let (mut in_pixels, mut table_is_next) = (false, false);
    while let Some(token) = reader.advance() {
        let token = token.map_err(|e| format(&e))?;
        elements += u32::from(is_kept(&token));
        if elements > ELEMENTS_MAX {
            return Err(DicomProblem::Elements { max: ELEMENTS_MAX });
        }
        match token {
            // An icon within a sequence has pixels too, and elements may follow it.
            LazyDataToken::ElementHeader(header)
                if header_only && depth == 0 && header.tag == PIXEL_DATA =>
            {
                return Ok(());
            }
            LazyDataToken::PixelSequenceStart if header_only && depth == 0 => return Ok(()),
            LazyDataToken::ElementHeader(header) => {
                in_pixels |= depth == 0 && header.tag == PIXEL_DATA;
            }
            LazyDataToken::SequenceStart { .. } | LazyDataToken::PixelSequenceStart => {
                table_is_next = matches!(token, LazyDataToken::PixelSequenceStart);
                in_pixels |= depth == 0 && table_is_next;
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(DicomProblem::Depth { max: DEPTH_MAX });
                }
            }
            LazyDataToken::ItemStart { .. } => items += 1,
            // The reader ignores a delimiter outside of an item; the survey would take it for the end of one.
            LazyDataToken::ItemEnd => {
                items = items
                    .checked_sub(1)
                    .ok_or_else(|| malformed("an item delimiter outside of an item"))?;
                // An empty offset table has no value.
                table_is_next = false;
            }
            LazyDataToken::SequenceEnd => {
                let outer = depth.checked_sub(1);
                depth =
                    outer.ok_or_else(|| malformed("a sequence delimiter outside of a sequence"))?;
            }
            LazyDataToken::LazyValue { header, decoder } => {
                fits(header.tag, header.len.0, bytes.saturating_sub(decoder.position()))?;
                let end = decoder.position().saturating_add(u64::from(header.len.0));
                if end != bytes {
                    divides(header.tag, header.len.0, value_bytes(header.vr))?;
                }
                if !in_pixels && end > HEADER_BYTES_MAX {
                    return Err(DicomProblem::Header { max: HEADER_BYTES_MAX });
                }
                if header.tag == PIXEL_REPRESENTATION {
                    // By its value the decoder chooses representations of later elements, and so does the reader's.
                    decoder.read_value_preserved(&header).map_err(|e| format(&e))?;
                } else {
                    decoder.skip_bytes(header.len.0).map_err(|e| format(&e))?;
                }
            }
            LazyDataToken::LazyItemValue { len, decoder } => {
                fits(PIXEL_DATA, len, bytes.saturating_sub(decoder.position()))?;
                // The offset table comes first, in words of four bytes.
                if std::mem::take(&mut table_is_next) {
                    divides(PIXEL_DATA, len, 4)?;
                }
                decoder.skip_bytes(len).map_err(|e| format(&e))?;
            }
            // The enum may grow.
            _ => {}
        }
    }
    Ok(())
}

/// True for a token of which the reader keeps an element or an item.
fn is_kept<D>(token: &LazyDataToken<D>) -> bool {
    matches!(
        token,
        LazyDataToken::ElementHeader(_)
            | LazyDataToken::SequenceStart { .. }
            | LazyDataToken::ItemStart { .. }
    )
}

/// Bytes of each value of the representation `vr` (PS3.5 6.2), 1 where its values have no one size.
fn value_bytes(vr: VR) -> u32 {
    match vr {
        VR::OW | VR::SS | VR::US => 2,
        VR::AT | VR::FL | VR::OF | VR::OL | VR::SL | VR::UL => 4,
        VR::FD | VR::OD | VR::OV | VR::SV | VR::UV => 8,
        VR::AE | VR::AS | VR::CS | VR::DA | VR::DS | VR::DT | VR::IS | VR::LO | VR::LT | VR::OB => {
            1
        }
        VR::PN | VR::SH | VR::SQ | VR::ST | VR::TM | VR::UC | VR::UI | VR::UN | VR::UR | VR::UT => {
            1
        }
    }
}

/// Refuses a length that is no multiple of `value`, the bytes of a value: the reader takes whole values and would read the
/// rest as the next element.
fn divides(tag: Tag, declared: u32, value: u32) -> Result<(), DicomProblem> {
    if declared.is_multiple_of(value) {
        Ok(())
    } else {
        Err(DicomProblem::Values { tag, declared, value })
    }
}

fn fits(tag: Tag, declared: u32, left: u64) -> Result<(), DicomProblem> {
    let declared = u64::from(declared);
    if declared > left { Err(DicomProblem::Length { tag, declared, left }) } else { Ok(()) }
}

/// Reads the file meta information and leaves `file` behind it; gives the transfer syntax.
fn meta(file: &mut BufReader<File>, bytes: u64) -> Result<String, DicomProblem> {
    for at in [PREAMBLE_BYTES, 0] {
        file.seek(SeekFrom::Start(at)).map_err(|e| format(&e))?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_ok() && &magic == b"DICM" {
            return read_meta(file, bytes);
        }
    }
    Err(malformed("not a DICOM file: the letters DICM stand neither at byte 128 nor at byte 0"))
}

fn read_meta(file: &mut BufReader<File>, bytes: u64) -> Result<String, DicomProblem> {
    let (tag, length) = element(file, bytes)?;
    if tag != Tag(META_GROUP, 0) || length != 4 {
        return Err(malformed(
            "its file meta information does not begin with its length (0002,0000)",
        ));
    }
    let mut length = [0; 4];
    file.read_exact(&mut length).map_err(|e| format(&e))?;
    let begin = file.stream_position().map_err(|e| format(&e))?;
    let end = begin.saturating_add(u64::from(u32::from_le_bytes(length)));
    fits(tag, u32::from_le_bytes(length), bytes.saturating_sub(begin))?;
    let mut syntax = None;
    while file.stream_position().map_err(|e| format(&e))? < end {
        let (tag, length) = element(file, bytes)?;
        if tag == TRANSFER_SYNTAX && length <= UID_BYTES_MAX {
            let mut uid = Vec::new();
            file.by_ref().take(length).read_to_end(&mut uid).map_err(|e| format(&e))?;
            let uid = String::from_utf8_lossy(&uid);
            syntax = Some(uid.trim_end_matches(['\0', ' ']).to_owned());
        } else {
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            file.seek_relative(length).map_err(|e| format(&e))?;
        }
    }
    syntax.ok_or_else(|| malformed("it names no transfer syntax (0002,0010)"))
}

/// Header of the next element of the meta information (explicit VR, little endian): tag and length,
/// which the file holds.
fn element(file: &mut BufReader<File>, bytes: u64) -> Result<(Tag, u64), DicomProblem> {
    let mut head = [0; 8];
    file.read_exact(&mut head).map_err(|e| format(&e))?;
    let [g0, g1, e0, e1, v0, v1, l0, l1] = head;
    let tag = Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
    let length = if SHORT.contains(&&[v0, v1]) {
        u32::from(u16::from_le_bytes([l0, l1]))
    } else {
        let mut long = [0; 4];
        file.read_exact(&mut long).map_err(|e| format(&e))?;
        u32::from_le_bytes(long)
    };
    let at = file.stream_position().map_err(|e| format(&e))?;
    fits(tag, length, bytes.saturating_sub(at))?;
    Ok((tag, u64::from(length)))
}
