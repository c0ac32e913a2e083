//! Small TIFFs, each a picture and a slide of two levels: byte orders, compressions, tiles.

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ExtendedColorType, ImageFormat, RgbImage};
use tiff::encoder::compression::{CompressionAlgorithm as _, Deflate, Lzw, Packbits};

use super::{Done, keep};

const NONE: u32 = 1;
const LZW: u32 = 5;
const JPEG: u32 = 7;
const DEFLATE: u32 = 8;
const OLD_DEFLATE: u32 = 32_946;
const PACKBITS: u32 = 32_773;
const RGB: u32 = 2;
const LUMA_CHROMA: u32 = 6;

/// One file.
#[derive(Clone, Copy)]
struct Kind {
    /// BigTIFF, with offsets of 64 bits.
    big: bool,
    big_endian: bool,
    compression: u32,
    photometric: u32,
    samples: u32,
    bits: u32,
    /// Of one tile, pixels; `None` for strips of that many rows.
    tile: (Option<u32>, u32),
    /// Each sample in tiles of its own.
    apart: bool,
    /// Differences to the pixel before.
    predictor: bool,
}

const TILES: Kind = Kind {
    big: false,
    big_endian: false,
    compression: NONE,
    photometric: RGB,
    samples: 3,
    bits: 8,
    tile: (Some(16), 16),
    apart: false,
    predictor: false,
};

/// A value of a directory: numbers of 16, 32 or 64 bits, or bytes.
enum Value {
    Shorts(Vec<u32>),
    Longs(Vec<u64>),
    Bytes(Vec<u8>),
}

struct Writer {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(kind: Kind) -> Self {
        let mut writer = Self { kind, bytes: Vec::new() };
        writer.bytes.extend(if kind.big_endian { b"MM" } else { b"II" });
        if kind.big {
            [43, 8, 0].iter().for_each(|number| writer.number(*number, 2));
        } else {
            writer.number(42, 2);
        }
        // The place of the first directory.
        writer.number(0, writer.word());
        writer
    }

    /// Bytes of an offset.
    fn word(&self) -> usize {
        if self.kind.big { 8 } else { 4 }
    }

    fn spelt(&self, number: u64, bytes: usize) -> Vec<u8> {
        let little = &number.to_le_bytes()[..bytes];
        match self.kind.big_endian {
            true => little.iter().rev().copied().collect(),
            false => little.to_vec(),
        }
    }

    fn number(&mut self, number: u64, bytes: usize) {
        let spelt = self.spelt(number, bytes);
        self.bytes.extend(spelt);
    }

    /// Writes a directory whose place stands at `link`; gives the place of its own link.
    fn directory(&mut self, link: usize, fields: &[(u16, Value)]) -> usize {
        let word = self.word();
        let mut values = Vec::new();
        for (_, value) in fields {
            let (kind, count, bytes) = match value {
                Value::Shorts(numbers) => {
                    let bytes = numbers.iter().flat_map(|n| self.spelt(u64::from(*n), 2));
                    (3u64, numbers.len(), bytes.collect::<Vec<u8>>())
                }
                Value::Longs(numbers) => {
                    let bytes = numbers.iter().flat_map(|n| self.spelt(*n, word));
                    (if self.kind.big { 16 } else { 4 }, numbers.len(), bytes.collect())
                }
                Value::Bytes(bytes) => (7, bytes.len(), bytes.clone()),
            };
            values.push((kind, count as u64, bytes));
        }
        for (_, _, bytes) in &mut values {
            if bytes.len() > word {
                let place = self.bytes.len() as u64;
                self.bytes.extend(std::mem::replace(bytes, self.spelt(place, word)));
            }
            bytes.resize(word, 0);
        }
        let place = self.spelt(self.bytes.len() as u64, word);
        self.bytes[link..link + word].copy_from_slice(&place);
        self.number(fields.len() as u64, if self.kind.big { 8 } else { 2 });
        for ((tag, _), (kind, count, bytes)) in fields.iter().zip(values) {
            self.number(u64::from(*tag), 2);
            self.number(kind, 2);
            self.number(count, word);
            self.bytes.extend(bytes);
        }
        self.number(0, word);
        self.bytes.len() - word
    }
}

/// A JPEG stream as its tables, and without them.
fn parted(stream: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rest, mut at) = (vec![0xFF, 0xD8], vec![0xFF, 0xD8], 2);
    while let Some([0xFF, marker, high, low]) = stream.get(at..at + 4).and_then(|b| b.first_chunk())
    {
        let end = at + 2 + usize::from(u16::from_be_bytes([*high, *low]));
        match marker {
            0xDB | 0xC4 => tables.extend(&stream[at..end]),
            0xDA => break,
            _ => rest.extend(&stream[at..end]),
        }
        at = end;
    }
    tables.extend([0xFF, 0xD9]);
    rest.extend(&stream[at..]);
    (tables, rest)
}

fn packed(kind: Kind, bytes: &[u8], (width, height): (u32, u32)) -> std::io::Result<Vec<u8>> {
    let mut packed = Vec::new();
    match kind.compression {
        LZW => drop(Lzw.write_to(&mut packed, bytes)?),
        DEFLATE | OLD_DEFLATE => drop(Deflate::default().write_to(&mut packed, bytes)?),
        PACKBITS => drop(Packbits.write_to(&mut packed, bytes)?),
        JPEG => {
            let colour =
                if kind.samples == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
            JpegEncoder::new_with_quality(&mut packed, 60)
                .encode(bytes, width, height, colour)
                .map_err(std::io::Error::other)?;
        }
        _ => packed.extend(bytes),
    }
    Ok(packed)
}

/// Byte `at` of a chunk: tissue, and stripes of glass.
fn dyed(at: usize, samples: usize) -> u8 {
    let tissue = [190, 70, 150];
    if (at / samples / 8).is_multiple_of(3) { 235 } else { tissue[at % samples] }
}

/// One level of `side` pixels a side.
fn level(writer: &mut Writer, link: usize, side: u32) -> std::io::Result<usize> {
    let kind = writer.kind;
    let (width, height) = (kind.tile.0.unwrap_or(side), kind.tile.1);
    let planes = if kind.apart { kind.samples } else { 1 };
    let chunks = side.div_ceil(width) * side.div_ceil(height) * planes;
    let bits = u64::from(width) * u64::from(kind.samples / planes * kind.bits);
    let row = bits.div_ceil(8) as usize;
    let (mut places, mut lengths, mut tables) = (Vec::new(), Vec::new(), None);
    for _ in 0..chunks {
        let plain: Vec<u8> = (0..row * height as usize)
            .map(|at| dyed(at, (kind.samples / planes) as usize))
            .collect();
        let mut bytes = packed(kind, &plain, (width, height))?;
        if kind.compression == JPEG {
            let (apart, rest) = parted(&bytes);
            (tables, bytes) = (Some(apart), rest);
        }
        places.push(writer.bytes.len() as u64);
        lengths.push(bytes.len() as u64);
        writer.bytes.extend(bytes);
    }
    let short = |number| Value::Shorts(vec![number]);
    let mut fields = vec![
        (256, short(side)),
        (257, short(side)),
        (258, Value::Shorts(vec![kind.bits; kind.samples as usize])),
        (259, short(kind.compression)),
        (262, short(kind.photometric)),
        (277, short(kind.samples)),
    ];
    match kind.tile.0 {
        None => {
            fields.insert(5, (273, Value::Longs(places)));
            fields.extend([(278, short(height)), (279, Value::Longs(lengths))]);
        }
        Some(_) => fields.extend([
            (322, short(width)),
            (323, short(height)),
            (324, Value::Longs(places)),
            (325, Value::Longs(lengths)),
        ]),
    }
    fields.extend(tables.map(|tables| (347, Value::Bytes(tables))));
    fields.extend(kind.apart.then(|| (284, short(2))));
    fields.extend(kind.predictor.then(|| (317, short(2))));
    if kind.photometric == 3 {
        let colours = (0..3 << kind.bits).map(|at| at * 97 % 65_536).collect();
        fields.push((320, Value::Shorts(colours)));
    }
    fields.sort_by_key(|(tag, _)| *tag);
    Ok(writer.directory(link, &fields))
}

fn file(kind: Kind) -> std::io::Result<Vec<u8>> {
    let mut writer = Writer::new(kind);
    let first = writer.bytes.len() - writer.word();
    let next = level(&mut writer, first, 80)?;
    level(&mut writer, next, 40)?;
    Ok(writer.bytes)
}

/// Writes all of them.
pub(super) fn write() -> Done {
    let jpeg = Kind { compression: JPEG, photometric: LUMA_CHROMA, ..TILES };
    let grey = Kind { photometric: 1, samples: 1, ..TILES };
    let kinds = [
        ("odd-tiles.tif", Kind { tile: (Some(17), 19), ..TILES }),
        ("wide-tiles.tif", Kind { tile: (Some(48), 16), ..TILES }),
        (
            "lzw-tiles.tif",
            Kind { compression: LZW, tile: (Some(20), 20), predictor: true, ..TILES },
        ),
        ("deflate-tiles.tif", Kind { compression: DEFLATE, big_endian: true, ..TILES }),
        ("old-deflate-tiles.tif", Kind { compression: OLD_DEFLATE, tile: (Some(24), 40), ..TILES }),
        ("packbits-tiles.tif", Kind { compression: PACKBITS, ..TILES }),
        ("packbits-strips.tif", Kind { compression: PACKBITS, tile: (None, 7), ..TILES }),
        ("lzw-strips.tif", Kind { compression: LZW, tile: (None, 7), big_endian: true, ..TILES }),
        ("jpeg-tiles.tif", jpeg),
        ("jpeg-odd-tiles.tif", Kind { tile: (Some(24), 17), ..jpeg }),
        ("jpeg-grey.tif", Kind { compression: JPEG, ..grey }),
        ("big.tif", Kind { big: true, ..TILES }),
        (
            "big-lzw.tif",
            Kind { big: true, big_endian: true, compression: LZW, tile: (Some(20), 20), ..TILES },
        ),
        ("big-jpeg.tif", Kind { big: true, ..jpeg }),
        ("apart.tif", Kind { apart: true, ..TILES }),
        ("apart-lzw.tif", Kind { apart: true, compression: LZW, predictor: true, ..TILES }),
        ("white-is-zero.tif", Kind { photometric: 0, ..grey }),
        ("one-bit.tif", Kind { bits: 1, ..grey }),
        ("palette.tif", Kind { photometric: 3, bits: 4, ..grey }),
        ("deep.tif", Kind { bits: 16, predictor: true, compression: LZW, ..grey }),
    ];
    for (name, kind) in kinds {
        keep("tiff", name, &file(kind)?)?;
    }
    // One tile that is larger than anything.
    let mut vast = file(Kind { tile: (Some(80), 80), ..TILES })?;
    for (tag, value) in [(322u16, u32::MAX), (323, u32::MAX)] {
        let field = [tag.to_le_bytes(), [3, 0]].concat();
        for at in 0..vast.len() - 12 {
            if vast[at..].starts_with(&field) {
                vast[at + 2] = 4;
                vast[at + 8..at + 12].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    keep("tiff", "vast-tile.tif", &vast)?;
    let picture =
        DynamicImage::from(RgbImage::from_fn(9, 7, |x, y| [x as u8, y as u8, 200].into()));
    let mut plain = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut plain, ImageFormat::Tiff)?;
    keep("tiff", "plain.tif", plain.get_ref())?;
    keep("tiff", "cut.tif", &plain.get_ref()[..20])
}
