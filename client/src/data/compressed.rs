//! Checks of the size in the header of a compressed picture, before it is decoded: the decoders reserve
//! memory by that size, whatever the file around the stream says (ITU-T T.81 B.2.2, T.800 A.5.1).

use std::io::{Read, Seek, SeekFrom};

use tiff::TiffResult;
use tiff::decoder::{ChunkType, Decoder};
use tiff::tags::Tag;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

/// Start of a JPEG 2000 codestream and its size marker.
const SOC_SIZ: [u8; 4] = [0xFF, 0x4F, 0xFF, 0x51];
/// JPEG as TIFF's tag `Compression` names it (TIFF Technical Note 2).
const TIFF_JPEG: u32 = 7;
/// Most bytes of the tables that all of a file's streams share: four of each kind take 2,500.
const TABLES_BYTES_MAX: usize = 64 << 10;
/// Most bytes of all strips or tiles together, in sizes of the file: writers let empty ones name the same bytes.
const OVERLAP_MAX: u64 = 4;

/// Samples (width x height x components) of a clean JPEG or JPEG 2000 stream; of several frame headers
/// the largest. `None` where the stream says none, or hides it behind bytes that decoders skip: this
/// spares a decoder's process (`isolate`) the work, and does not take its place.
pub(super) fn samples(stream: &[u8]) -> Option<u64> {
    if stream.starts_with(&[0xFF, 0xD8]) {
        return segments(stream).filter_map(|(marker, segment)| frame(marker, segment)).max();
    }
    // SOC and SIZ stand at the beginning, or behind the boxes of a JP2 file. Other streams, such as RLE, may hold the
    // same bytes by chance.
    if !stream.starts_with(&SOC_SIZ) && stream.get(4..8) != Some(b"jP  ") {
        return None;
    }
    let siz = stream.windows(4).position(|bytes| bytes == SOC_SIZ)?;
    let siz = stream.get(siz + 4..)?;
    let word = |at: usize| {
        let bytes = siz.get(at..)?.first_chunk::<4>()?;
        Some(u64::from(u32::from_be_bytes(*bytes)))
    };
    let components = u64::from(u16::from_be_bytes(*siz.get(36..)?.first_chunk::<2>()?));
    let width = word(4)?.saturating_sub(word(12)?);
    let height = word(8)?.saturating_sub(word(16)?);
    Some(width.saturating_mul(height).saturating_mul(components))
}

/// The marker segments of a JPEG stream up to its first scan: each marker, and what follows its length.
fn segments(stream: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = stream.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            let [0xFF, marker, ..] = *rest else { return None };
            match marker {
                // Fill bytes, and markers without a segment.
                0xFF => rest = &rest[1..],
                0x01 | 0xD0..=0xD7 => rest = &rest[2..],
                // The end, or the first scan.
                0xD9 | 0xDA => return None,
                _ => {
                    let length = u16::from_be_bytes(*rest.get(2..)?.first_chunk::<2>()?);
                    let segment = rest.get(4..)?;
                    rest = rest.get(2 + usize::from(length)..).unwrap_or_default();
                    return Some((marker, segment));
                }
            }
        }
    })
}

/// Samples of a frame header; C4, C8 and CC are tables.
fn frame(marker: u8, segment: &[u8]) -> Option<u64> {
    let is_frame = matches!(marker, 0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xF7);
    let [_, h0, h1, w0, w1, components] = *segment.first_chunk::<6>().filter(|_| is_frame)?;
    let side = |high, low| u64::from(u16::from_be_bytes([high, low]));
    Some(side(w0, w1) * side(h0, h1) * u64::from(components))
}

/// Places and bounds of the JPEG streams of one TIFF directory.
pub(super) struct JpegChunks {
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    /// The tables that all streams share (`JPEGTables`), without their end marker.
    tables: Option<Vec<u8>>,
    /// Width and height of a strip or tile.
    sides: (u32, u32),
    /// Most bytes of one stream.
    bytes_max: u64,
}

impl JpegChunks {
    /// Those of the directory that the decoder stands at; `None` where it is not compressed with JPEG.
    /// A strip or tile of more than `bytes_max` bytes is refused by [`Self::check`].
    ///
    /// # Errors
    /// The directory cannot be read, or its streams take more than [`OVERLAP_MAX`] times the file's
    /// `file_bytes`: then many strips or tiles name the same bytes.
    pub(super) fn of<R: Read + Seek>(
        decoder: &mut Decoder<R>,
        bytes_max: u64,
        file_bytes: u64,
    ) -> TiffResult<Option<Self>> {
        if decoder.find_tag_unsigned::<u32>(Tag::Compression)? != Some(TIFF_JPEG) {
            return Ok(None);
        }
        let tables = match decoder.find_tag(Tag::JPEGTables)? {
            Some(_) => {
                let tables = decoder.get_tag_u8_vec(Tag::JPEGTables)?;
                if !(2..=TABLES_BYTES_MAX).contains(&tables.len()) {
                    return Err(damaged(&format!("JPEG tables of {} bytes", tables.len())));
                }
                Some(tables[..tables.len() - 2].to_vec())
            }
            None => None,
        };
        let (offsets, lengths) = chunks(decoder, file_bytes)?;
        let sides = decoder.chunk_dimensions();
        Ok(Some(Self { offsets, lengths, tables, sides, bytes_max }))
    }

    /// Number of strips or tiles.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Compares the size in the JPEG header of strip or tile `index` with the directory's. The header is
    /// read by the decoder itself, so that both see the same one.
    pub(super) fn check<R: Read + Seek>(&self, file: &mut R, index: usize) -> TiffResult<()> {
        let (Some(offset), Some(length)) = (self.offsets.get(index), self.lengths.get(index))
        else {
            return Err(damaged("a tile is missing"));
        };
        if *length > self.bytes_max {
            return Err(damaged(&format!("a tile of {length} bytes")));
        }
        let mut stream = self.tables.clone().unwrap_or_default();
        // The stream's own start marker is left out behind the tables.
        let skipped = if self.tables.is_some() { 2 } else { 0 };
        file.seek(SeekFrom::Start(offset.saturating_add(skipped)))?;
        file.take(*length).read_to_end(&mut stream)?;
        let mut decoder = JpegDecoder::new(ZCursor::new(&stream));
        // What it cannot read it refuses again, and says so.
        if decoder.decode_headers().is_err() {
            return Ok(());
        }
        let found = decoder.dimensions().unwrap_or_default();
        let (width, height) = self.sides;
        if found.0 > width as usize || found.1 > height as usize {
            let (w, h) = found;
            return Err(damaged(&format!(
                "the JPEG header of a tile of {width} x {height} pixels says {w} x {h}"
            )));
        }
        Ok(())
    }
}

/// Offsets and lengths of the strips or tiles of the directory that the decoder stands at.
///
/// # Errors
/// As [`JpegChunks::of`].
pub(super) fn chunks<R: Read + Seek>(
    decoder: &mut Decoder<R>,
    file_bytes: u64,
) -> TiffResult<(Vec<u64>, Vec<u64>)> {
    let (offsets, lengths) = match decoder.get_chunk_type() {
        ChunkType::Tile => (Tag::TileOffsets, Tag::TileByteCounts),
        ChunkType::Strip => (Tag::StripOffsets, Tag::StripByteCounts),
    };
    let (offsets, lengths) = (decoder.get_tag_u64_vec(offsets)?, decoder.get_tag_u64_vec(lengths)?);
    let all = lengths.iter().fold(0u64, |all, length| all.saturating_add(*length));
    if all > file_bytes.saturating_mul(OVERLAP_MAX) {
        let count = lengths.len();
        return Err(damaged(&format!(
            "{count} strips or tiles take {all} of its {file_bytes} bytes"
        )));
    }
    Ok((offsets, lengths))
}

fn damaged(detail: &str) -> tiff::TiffError {
    std::io::Error::new(std::io::ErrorKind::InvalidData, detail.to_owned()).into()
}
