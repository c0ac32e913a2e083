//! The size of the picture that a compressed stream says it holds, read before it is decoded: the
//! decoders reserve memory by it, whatever the file around the stream says (ITU-T T.81 B.2.2, T.800 A.5.1).

use std::io::{Read, Seek, SeekFrom};

use tiff::TiffResult;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

/// Start of a JPEG 2000 codestream and its size marker.
const SOC_SIZ: [u8; 4] = [0xFF, 0x4F, 0xFF, 0x51];
/// JPEG as TIFF's tag `Compression` names it (TIFF Technical Note 2).
const TIFF_JPEG: u32 = 7;
/// Most samples of a pixel that JPEG is used for.
const SAMPLES_MAX: u64 = 4;
/// Most bytes of the tables that all of a file's streams share: four of each kind take 2,500.
const TABLES_BYTES_MAX: usize = 64 << 10;

/// Samples (width x height x components) of a JPEG or JPEG 2000 stream; of several frame headers the
/// largest. `None` where the stream says none.
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

/// Where the JPEG streams of one TIFF directory lie, and how large each may be.
pub(super) struct JpegChunks {
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    /// Most samples of one strip or tile.
    samples_max: u64,
    /// Most bytes of one stream.
    bytes_max: u64,
}

impl JpegChunks {
    /// Those of the directory that the decoder stands at; `None` where it is not compressed with JPEG.
    /// A strip or tile of more than `bytes_max` bytes is refused by [`Self::check`].
    pub(super) fn of<R: Read + Seek>(
        decoder: &mut Decoder<R>,
        bytes_max: u64,
    ) -> TiffResult<Option<Self>> {
        if decoder.find_tag_unsigned::<u32>(Tag::Compression)? != Some(TIFF_JPEG) {
            return Ok(None);
        }
        if decoder.find_tag(Tag::JPEGTables)?.is_some() {
            let tables = decoder.get_tag_u8_vec(Tag::JPEGTables)?;
            if tables.len() > TABLES_BYTES_MAX || samples(&tables).is_some() {
                return Err(damaged("its JPEG tables hold more than tables"));
            }
        }
        let tiled = decoder.get_chunk_type() == tiff::decoder::ChunkType::Tile;
        let (offsets, lengths) = match tiled {
            true => (Tag::TileOffsets, Tag::TileByteCounts),
            false => (Tag::StripOffsets, Tag::StripByteCounts),
        };
        let (width, height) = decoder.chunk_dimensions();
        Ok(Some(Self {
            offsets: decoder.get_tag_u64_vec(offsets)?,
            lengths: decoder.get_tag_u64_vec(lengths)?,
            samples_max: u64::from(width) * u64::from(height) * SAMPLES_MAX,
            bytes_max,
        }))
    }

    /// Number of strips or tiles.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Compares the picture that strip or tile `index` says it holds with the room that the directory
    /// gives it.
    pub(super) fn check<R: Read + Seek>(&self, file: &mut R, index: usize) -> TiffResult<()> {
        let (Some(offset), Some(length)) = (self.offsets.get(index), self.lengths.get(index))
        else {
            return Err(damaged("a tile is missing"));
        };
        if *length > self.bytes_max {
            return Err(damaged(&format!("a tile of {length} bytes")));
        }
        let mut stream = Vec::new();
        file.seek(SeekFrom::Start(*offset))?;
        file.take(*length).read_to_end(&mut stream)?;
        match samples(&stream) {
            Some(samples) if samples > self.samples_max => Err(damaged(&format!(
                "a JPEG tile says that it holds {samples} samples, more than the {} of its place",
                self.samples_max
            ))),
            Some(_) | None => Ok(()),
        }
    }
}

fn damaged(detail: &str) -> tiff::TiffError {
    std::io::Error::new(std::io::ErrorKind::InvalidData, detail.to_owned()).into()
}
