//! The levels of a tiled TIFF.

use std::io::{Read, Seek, SeekFrom};

use image::{Rgb, RgbImage};
use tiff::ColorType;
use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::SlideProblem;
use crate::data::compressed::{self, JpegChunks};

/// Most directories of a file that are looked at.
const DIRECTORIES_MAX: usize = 64;
/// Most bytes of one decoded or stored tile.
const TILE_BYTES_MAX: usize = 64 << 20;
/// Least side of a tile, pixels: the standard wants multiples of 16, and smaller tiles are many calls for few pixels.
const TILE_SIDE_MIN: u32 = 16;
/// Most pixels of a level's tiles, in pixels of the level and of one tile: the last tile of a row or column reaches over
/// the edge, and its decoder unpacks that too.
const PADDING_MAX: u64 = 4;
/// Most bytes of one tag; the offsets of four million tiles.
const TAG_BYTES_MAX: usize = 32 << 20;
/// Longest description read.
const DESCRIPTION_BYTES_MAX: usize = 1 << 20;
/// How far a level's ratio of sides may be from the finest one's.
const RATIO_TOLERANCE: f64 = 0.02;

/// One resolution.
struct Level {
    /// Which directory of the file.
    directory: usize,
    width: u32,
    height: u32,
    tile: (u32, u32),
    /// JPEG tiles whose colours the decoder leaves as luma and chroma.
    luma_chroma: bool,
}

/// A file's levels, finest first.
pub(super) struct Pyramid<R: Read + Seek> {
    decoder: Decoder<R>,
    levels: Vec<Level>,
    /// The directory that the decoder stands at.
    current: usize,
    /// Its JPEG streams, once one of them was asked for.
    streams: Option<JpegChunks>,
    file_bytes: u64,
    mpp: Option<f64>,
}

fn format(error: &tiff::TiffError) -> SlideProblem {
    let ends_early = matches!(
        error,
        tiff::TiffError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof
    );
    let detail = match ends_early {
        true => "the file ends early; copy it again".to_owned(),
        // What it holds is in its own words already.
        false => error.to_string(),
    };
    SlideProblem::Format { detail }
}

impl<R: Read + Seek> Pyramid<R> {
    /// Reads the directories, and no pixel. Labels and overviews of the glass, which are not tiled
    /// or have another ratio of sides, are no levels.
    pub(super) fn read(mut reader: R) -> Result<Self, SlideProblem> {
        let io = |error: std::io::Error| format(&error.into());
        let file_bytes = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut limits = Limits::default();
        limits.decoding_buffer_size = TILE_BYTES_MAX;
        limits.intermediate_buffer_size = TILE_BYTES_MAX;
        limits.ifd_value_size = TAG_BYTES_MAX;
        let mut decoder = Decoder::new(reader).map_err(|e| format(&e))?.with_limits(limits);
        let mut levels: Vec<Level> = Vec::new();
        let mut mpp = None;
        let mut current = 0;
        loop {
            if let Some(level) = level(&mut decoder, current)? {
                compressed::chunks(&mut decoder, file_bytes).map_err(|e| format(&e))?;
                if levels.is_empty() {
                    mpp = resolution(&mut decoder);
                }
                if levels.first().is_none_or(|finest| finest.resembles(&level)) {
                    levels.push(level);
                }
            }
            if !decoder.more_images() || current + 1 == DIRECTORIES_MAX {
                break;
            }
            decoder.next_image().map_err(|e| format(&e))?;
            current += 1;
        }
        levels.sort_by_key(|level| std::cmp::Reverse(level.width));
        if levels.len() < 2 || levels[0].width == levels[levels.len() - 1].width {
            return Err(SlideProblem::Levels { levels: levels.len() });
        }
        Ok(Self { decoder, levels, current, streams: None, file_bytes, mpp })
    }

    /// Micrometres a pixel of the finest level, if the file says it.
    pub(super) fn mpp(&self) -> Option<f64> {
        self.mpp
    }

    /// Width and height of each level.
    pub(super) fn dimensions(&self) -> Vec<(u32, u32)> {
        self.levels.iter().map(|level| (level.width, level.height)).collect()
    }

    /// Decodes the tiles of a level that touch the rectangle from `corner` to `end` (both inside it),
    /// one after another, and hands over each with its own corner.
    pub(super) fn each_tile(
        &mut self,
        level: usize,
        corner: [u32; 2],
        end: [u32; 2],
        take: &mut impl FnMut([u32; 2], &RgbImage),
    ) -> Result<(), SlideProblem> {
        let Level { directory, width, tile: (w, h), luma_chroma, .. } = self.levels[level];
        if self.current != directory {
            self.decoder.seek_to_image(directory).map_err(|e| format(&e))?;
            self.current = directory;
            self.streams = None;
        }
        if self.streams.is_none() {
            let streams = JpegChunks::of(&mut self.decoder, TILE_BYTES_MAX as u64, self.file_bytes);
            self.streams = streams.map_err(|e| format(&e))?;
        }
        let across = width.div_ceil(w);
        for row in corner[1] / h..=end[1] / h {
            for column in corner[0] / w..=end[0] / w {
                // At most the number of tile offsets, which the decoder has compared.
                let index = row * across + column;
                if let Some(streams) = &self.streams {
                    let checked = streams.check(self.decoder.inner(), index as usize);
                    checked.map_err(|e| format(&e))?;
                }
                let decoded = self.decoder.read_chunk(index).map_err(|e| format(&e))?;
                let DecodingResult::U8(mut bytes) = decoded else {
                    return Err(SlideProblem::Format { detail: "not 8 bits a sample".to_owned() });
                };
                let (tile_width, tile_height) = self.decoder.chunk_data_dimensions(index);
                if luma_chroma {
                    bytes.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = rgb(*pixel));
                }
                let tile = RgbImage::from_raw(tile_width, tile_height, bytes);
                let tile = tile.ok_or_else(|| SlideProblem::Format {
                    detail: "a tile holds fewer pixels than it should".to_owned(),
                })?;
                take([column * w, row * h], &tile);
            }
        }
        Ok(())
    }
}

impl Level {
    fn resembles(&self, other: &Self) -> bool {
        let ratio = |level: &Self| f64::from(level.width) / f64::from(level.height);
        (ratio(self) / ratio(other) - 1.0).abs() < RATIO_TOLERANCE
            // Rounding counts for more, the smaller a level is.
            || (ratio(self) * f64::from(other.height) - f64::from(other.width)).abs() <= 2.0
    }
}

/// The directory that the decoder stands at, if it is a level.
fn level<R: Read + Seek>(
    decoder: &mut Decoder<R>,
    directory: usize,
) -> Result<Option<Level>, SlideProblem> {
    if decoder.get_chunk_type() != ChunkType::Tile {
        return Ok(None);
    }
    let (width, height) = decoder.dimensions().map_err(|e| format(&e))?;
    let compression: Option<u32> =
        decoder.find_tag_unsigned(Tag::Compression).map_err(|e| format(&e))?;
    // Nothing, LZW, JPEG and deflate, by its two numbers.
    let found = match compression.unwrap_or(1) {
        1 | 5 | 7 | 8 | 32_946 => None,
        33_003 | 33_005 | 34_712 => Some("JPEG 2000".to_owned()),
        other => Some(format!("of compression {other}")),
    };
    if let Some(found) = found {
        return Err(SlideProblem::Compression { found });
    }
    let luma_chroma = match decoder.colortype() {
        Ok(ColorType::RGB(8)) => false,
        Ok(ColorType::YCbCr(8)) if compression == Some(7) => true,
        // Masks and probability maps lie beside the levels of some files.
        Ok(_) | Err(_) => return Ok(None),
    };
    let tile = decoder.chunk_dimensions();
    let (w, h) = (u64::from(tile.0), u64::from(tile.1));
    let least = u64::from(TILE_SIDE_MIN);
    let tile_bytes = (w * h).saturating_mul(3);
    if w < least || h < least || tile_bytes > TILE_BYTES_MAX as u64 || width == 0 || height == 0 {
        let detail = format!("tiles of {w} x {h} pixels");
        return Err(SlideProblem::Format { detail });
    }
    let tiles = u64::from(width).div_ceil(w) * u64::from(height).div_ceil(h);
    let pixels = u64::from(width) * u64::from(height);
    if tiles.saturating_mul(w * h) > pixels.saturating_add(w * h).saturating_mul(PADDING_MAX) {
        let detail = format!("{tiles} tiles of {w} x {h} pixels for {width} x {height} pixels");
        return Err(SlideProblem::Format { detail });
    }
    Ok(Some(Level { directory, width, height, tile, luma_chroma }))
}

/// Micrometres a pixel: Aperio's `MPP = 0.25` in the description, else the resolution tags.
fn resolution<R: Read + Seek>(decoder: &mut Decoder<R>) -> Option<f64> {
    let described = decoder.get_tag_ascii_string(Tag::ImageDescription).ok();
    let described = described.filter(|text| text.len() <= DESCRIPTION_BYTES_MAX).and_then(|text| {
        let fields = text.split('|').filter_map(|field| field.split_once('='));
        let mpp = fields.filter(|(key, _)| key.trim() == "MPP").map(|(_, value)| value.trim());
        mpp.filter_map(|value| value.parse::<f64>().ok()).next()
    });
    let tagged = || {
        let per_unit = decoder.find_tag(Tag::XResolution).ok()??;
        let tiff::decoder::ifd::Value::Rational(n, d) = per_unit else { return None };
        let unit: Option<u16> = decoder.find_tag_unsigned(Tag::ResolutionUnit).ok()?;
        let micrometres = match unit {
            Some(2) | None => 25_400.0,
            Some(3) => 10_000.0,
            Some(_) => return None,
        };
        Some(micrometres * f64::from(d) / f64::from(n))
    };
    // 72 or 96 dots an inch is what programs write that know nothing: no microscope.
    let real = |mpp: &f64| (0.01..=100.0).contains(mpp);
    described.filter(real).or_else(tagged).filter(real)
}

/// JFIF's colours (ITU-T T.871).
fn rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb]
        .map(|level| level.round().clamp(0.0, 255.0) as u8)
}

/// A pixel's saturation (of HSV), 0 to 255.
pub(super) fn saturation(Rgb(pixel): Rgb<u8>) -> u8 {
    let (most, least) = pixel.iter().fold((0, 255), |(most, least), level| {
        (u32::from(*level).max(most), u32::from(*level).min(least))
    });
    ((most - least) * 255).checked_div(most).map_or(0, |share| share as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory of a deflated RGB picture, whose tiles all lie at the file's beginning.
    fn tiff(width: u32, height: u32, side: u32, tile_bytes: u32) -> Vec<u8> {
        let tiles = width.div_ceil(side) * height.div_ceil(side);
        let (short, long) = (3u16, 4u16);
        let (bits, offsets) = (8, 14);
        let (lengths, directory) = (offsets + 4 * tiles, offsets + 8 * tiles);
        let fields = [
            (256u16, long, 1, width),
            (257, long, 1, height),
            (258, short, 3, bits),
            (259, short, 1, 8),
            (262, short, 1, 2),
            (277, short, 1, 3),
            (322, long, 1, side),
            (323, long, 1, side),
            (324, long, tiles, offsets),
            (325, long, tiles, lengths),
        ];
        let mut bytes =
            [b"II\x2A\0".as_slice(), &directory.to_le_bytes(), &[8, 0, 8, 0, 8, 0]].concat();
        bytes.extend(8u32.to_le_bytes().repeat(tiles as usize));
        bytes.extend(tile_bytes.to_le_bytes().repeat(tiles as usize));
        bytes.extend((fields.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in fields {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> String {
        let read = Pyramid::read(std::io::Cursor::new(bytes));
        read.err().map(|problem| problem.to_string()).unwrap_or_default()
    }

    /// Failed before: a level of 16 pixels across was decoded in tiles of 4096 a side, for hours.
    #[test]
    fn tiles_that_hold_far_more_than_their_level_are_refused() {
        let told = refusal(tiff(16, 1 << 24, 4096, 16));
        assert!(told.contains("4096 tiles of 4096 x 4096 pixels for 16 x 16777216"), "{told}");
        let told = refusal(tiff(16, 16, 4096, 16));
        assert!(!told.contains("pixels for"), "one tile may be larger than its level: {told}");
    }

    /// Failed before: the bytes of the largest tile that can be named overflowed 64 bits.
    #[test]
    fn a_tile_of_the_largest_side_is_refused() {
        let told = refusal(tiff(16, 16, u32::MAX, 16));
        assert!(told.contains("tiles of 4294967295 x 4294967295 pixels"), "{told}");
    }

    /// Failed before: the same bytes were decoded for each of the tiles that name them.
    #[test]
    fn tiles_that_name_the_same_bytes_many_times_are_refused() {
        let told = refusal(tiff(1024, 1024, 64, 4096));
        assert!(told.contains("256 strips or tiles take 1048576 of its"), "{told}");
    }

    #[test]
    fn colours_are_jfifs() {
        assert_eq!(rgb([128, 128, 128]), [128; 3]);
        // Pure red of T.871: Y 76.245, Cb 84.97, Cr 255.5.
        for (found, expected) in rgb([76, 85, 255]).into_iter().zip([254u8, 0, 0]) {
            assert!(found.abs_diff(expected) <= 1, "{found} {expected}");
        }
        assert_eq!(
            [[0, 0, 0], [9, 9, 9], [200, 100, 150]].map(|p| saturation(Rgb(p))),
            [0, 0, 127]
        );
    }
}
