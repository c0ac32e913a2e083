//! Small DICOM files of the kinds that the client's fixtures lack.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::{Done, keep};

const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
const ENCAPSULATED: &str = "1.2.840.10008.1.2.1.98";
const JPEG: &str = "1.2.840.10008.1.2.4.50";
const RLE: &str = "1.2.840.10008.1.2.5";
/// A length that is not told.
const UNDEFINED: u32 = u32::MAX;
/// Pixels a side of all pictures.
const SIDE: u16 = 8;

/// Elements, one after another.
#[derive(Clone, Copy)]
enum Spelling {
    Explicit,
    ExplicitBig,
    Implicit,
}

struct Elements {
    spelling: Spelling,
    bytes: Vec<u8>,
}

impl Elements {
    fn new(spelling: Spelling) -> Self {
        Self { spelling, bytes: Vec::new() }
    }

    fn number<const N: usize>(&mut self, little: [u8; N]) {
        let mut bytes = little;
        if matches!(self.spelling, Spelling::ExplicitBig) {
            bytes.reverse();
        }
        self.bytes.extend(bytes);
    }

    fn head(&mut self, (group, element): (u16, u16), kind: &str, length: u32) {
        self.number(group.to_le_bytes());
        self.number(element.to_le_bytes());
        if matches!(self.spelling, Spelling::Implicit) {
            return self.number(length.to_le_bytes());
        }
        self.bytes.extend(kind.as_bytes());
        if matches!(kind, "OB" | "OW" | "OV" | "SQ" | "SV" | "UN" | "UT" | "UV") {
            self.number([0, 0]);
            return self.number(length.to_le_bytes());
        }
        self.number((length as u16).to_le_bytes());
    }

    fn put(&mut self, tag: (u16, u16), kind: &str, value: &[u8]) {
        let padded = value.len().next_multiple_of(2);
        self.head(tag, kind, padded as u32);
        self.bytes.extend(value);
        if padded > value.len() {
            self.bytes.push(if matches!(kind, "OB" | "UI") { 0 } else { b' ' });
        }
    }

    fn shorts(&mut self, tag: (u16, u16), values: &[u16]) {
        self.head(tag, "US", 2 * values.len() as u32);
        values.iter().for_each(|value| self.number(value.to_le_bytes()));
    }

    /// An item of a sequence or a fragment; `None` for one whose end is marked.
    fn item(&mut self, bytes: &[u8], told: bool) {
        self.number(0xFFFEu16.to_le_bytes());
        self.number(0xE000u16.to_le_bytes());
        self.number(if told { bytes.len() as u32 } else { UNDEFINED }.to_le_bytes());
        self.bytes.extend(bytes);
        if !told {
            self.delimiter(0xE00D);
        }
    }

    fn delimiter(&mut self, element: u16) {
        self.number(0xFFFEu16.to_le_bytes());
        self.number(element.to_le_bytes());
        self.number([0; 4]);
    }
}

/// A picture's header.
#[derive(Clone, Copy)]
struct Shape {
    photometric: &'static str,
    samples: u16,
    bits: u16,
    frames: u32,
}

const GREY: Shape = Shape { photometric: "MONOCHROME2", samples: 1, bits: 8, frames: 1 };

fn header(spelling: Spelling, shape: Shape) -> Elements {
    let mut elements = Elements::new(spelling);
    elements.put((0x0008, 0x0018), "UI", b"1.2.3");
    elements.put((0x0008, 0x0060), "CS", b"OT");
    elements.put((0x0010, 0x0020), "LO", b"p");
    elements.put((0x0020, 0x000D), "UI", b"1.2");
    elements.shorts((0x0028, 0x0002), &[shape.samples]);
    elements.put((0x0028, 0x0004), "CS", shape.photometric.as_bytes());
    if shape.samples > 1 {
        elements.shorts((0x0028, 0x0006), &[0]);
    }
    if shape.frames > 1 {
        elements.put((0x0028, 0x0008), "IS", shape.frames.to_string().as_bytes());
    }
    elements.shorts((0x0028, 0x0010), &[SIDE]);
    elements.shorts((0x0028, 0x0011), &[SIDE]);
    elements.shorts((0x0028, 0x0100), &[shape.bits]);
    elements.shorts((0x0028, 0x0101), &[shape.bits]);
    elements.shorts((0x0028, 0x0102), &[shape.bits - 1]);
    elements.shorts((0x0028, 0x0103), &[0]);
    elements
}

/// A gradient.
fn plain(shape: Shape) -> Vec<u8> {
    let side = usize::from(SIDE);
    let bytes = side * side * usize::from(shape.samples) * usize::from(shape.bits / 8);
    (0..bytes * shape.frames as usize).map(|at| (at * 3) as u8).collect()
}

fn file(syntax: &str, data: &[u8]) -> Vec<u8> {
    let mut meta = Elements::new(Spelling::Explicit);
    meta.put((2, 1), "OB", &[0, 1]);
    meta.put((2, 2), "UI", b"1.2.840.10008.5.1.4.1.1.7");
    meta.put((2, 3), "UI", b"1.2.3");
    meta.put((2, 0x10), "UI", syntax.as_bytes());
    meta.put((2, 0x12), "UI", b"1.2.3.4");
    let mut group = Elements::new(Spelling::Explicit);
    group.put((2, 0), "UL", &(meta.bytes.len() as u32).to_le_bytes());
    [&[0; 128][..], b"DICM", &group.bytes, &meta.bytes, data].concat()
}

/// Pixels in fragments. `table` is the basic offset table.
fn encapsulated(mut elements: Elements, table: &[u32], fragments: &[&[u8]]) -> Vec<u8> {
    elements.head((0x7FE0, 0x0010), "OB", UNDEFINED);
    let table: Vec<u8> = table.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    elements.item(&table, true);
    for fragment in fragments {
        let mut even = fragment.to_vec();
        even.resize(fragment.len().next_multiple_of(2), 0);
        elements.item(&even, true);
    }
    elements.delimiter(0xE0DD);
    elements.bytes
}

fn jpeg(colour: ExtendedColorType) -> Result<Vec<u8>, image::ImageError> {
    let (side, mut bytes) = (u32::from(SIDE), Vec::new());
    let samples: Vec<u8> =
        (0..side * side * u32::from(colour.channel_count())).map(|at| (at * 3) as u8).collect();
    JpegEncoder::new_with_quality(&mut bytes, 60).encode(&samples, side, side, colour)?;
    Ok(bytes)
}

/// Cuts of even length, but for the last.
fn thirds(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.chunks(bytes.len().div_ceil(3).next_multiple_of(2)).collect()
}

/// Frames of a JPEG picture in several fragments, with and without a table of their places.
fn fragments() -> Done {
    let grey = jpeg(ExtendedColorType::L8)?;
    let cut = thirds(&grey);
    let frame_bytes: usize = cut.iter().map(|f| 8 + f.len().next_multiple_of(2)).sum();
    let two = Shape { frames: 2, ..GREY };
    let twice = [cut.clone(), cut.clone()].concat();
    let of = |shape| header(Spelling::Explicit, shape);
    let table = encapsulated(of(two), &[0, frame_bytes as u32], &twice);
    keep("dicom", "jpeg-fragments-table.dcm", &file(JPEG, &table))?;
    let one = encapsulated(of(GREY), &[], &cut);
    keep("dicom", "jpeg-fragments-no-table.dcm", &file(JPEG, &one))?;
    let short = encapsulated(of(two), &[], &[&grey, &grey]);
    keep("dicom", "jpeg-frames-no-table.dcm", &file(JPEG, &short))?;
    let beyond = encapsulated(of(two), &[0, 0xFFFF_FFF0], &twice);
    keep("dicom", "jpeg-table-beyond.dcm", &file(JPEG, &beyond))?;
    let mut extended = of(two);
    let numbers = |values: [usize; 2]| values.map(|value| (value as u64).to_le_bytes()).concat();
    extended.put((0x7FE0, 0x0001), "OV", &numbers([0, frame_bytes]));
    extended.put((0x7FE0, 0x0002), "OV", &numbers([grey.len(), grey.len()]));
    let extended = encapsulated(extended, &[], &[&grey, &grey]);
    keep("dicom", "jpeg-extended-table.dcm", &file(JPEG, &extended))?;
    let colours = jpeg(ExtendedColorType::Rgb8)?;
    let shape = Shape { photometric: "YBR_FULL_422", samples: 3, ..GREY };
    let colours = encapsulated(of(shape), &[0], &[&colours]);
    keep("dicom", "jpeg-colours.dcm", &file(JPEG, &colours))
}

/// Segments of one byte of each sample: runs, and bytes as they are.
fn rle(segments: u32) -> Vec<u8> {
    let pixels = u32::from(SIDE) * u32::from(SIDE);
    // Half of the pixels in one run, the others in one of literals.
    let (run, literals) = (pixels / 2, pixels / 2);
    let mut segment = vec![(257 - run) as u8, 9, (literals - 1) as u8];
    segment.extend((0..literals).map(|at| at as u8));
    segment.push(128);
    segment.resize(segment.len().next_multiple_of(2), 0);
    let mut bytes = segments.to_le_bytes().to_vec();
    for place in 0..15 {
        let offset = 64 + place * segment.len() as u32;
        bytes.extend(if place < segments { offset } else { 0 }.to_le_bytes());
    }
    bytes.extend(segment.repeat(segments as usize));
    bytes
}

fn run_lengths() -> Done {
    let deep = Shape { bits: 16, frames: 2, ..GREY };
    let frame = rle(2);
    let data = encapsulated(
        header(Spelling::Explicit, deep),
        &[0, 8 + frame.len() as u32],
        &[&frame, &frame],
    );
    keep("dicom", "rle-16.dcm", &file(RLE, &data))?;
    let colours = Shape { photometric: "RGB", samples: 3, ..GREY };
    let data = encapsulated(header(Spelling::Explicit, colours), &[], &[&rle(3)]);
    keep("dicom", "rle-colours.dcm", &file(RLE, &data))?;
    let data = encapsulated(header(Spelling::Explicit, GREY), &[], &[&plain(GREY)]);
    keep("dicom", "encapsulated.dcm", &file(ENCAPSULATED, &data))
}

fn with_pixels(mut elements: Elements, shape: Shape) -> Vec<u8> {
    elements.put((0x7FE0, 0x0010), "OW", &plain(shape));
    elements.bytes
}

/// Lookup tables: of the modality, for the display, and of a palette.
fn tables() -> Done {
    let mut table = Elements::new(Spelling::Explicit);
    table.shorts((0x0028, 0x3002), &[4, 0, 16]);
    table.shorts((0x0028, 0x3006), &[0, 100, 200, 300]);
    let mut elements = header(Spelling::Explicit, GREY);
    for tag in [(0x0028, 0x3000), (0x0028, 0x3010)] {
        elements.head(tag, "SQ", UNDEFINED);
        elements.item(&table.bytes, tag.1 == 0x3000);
        elements.delimiter(0xE0DD);
        if tag.1 == 0x3000 {
            elements.put((0x0028, 0x3001), "LO", b"x");
        }
    }
    keep("dicom", "tables.dcm", &file(EXPLICIT, &with_pixels(elements, GREY)))?;
    for (name, numbers) in
        [("table-of-65536.dcm", [65_536, 0, 16]), ("table-from-afar.dcm", [4, i64::MIN, 16])]
    {
        let mut table = Elements::new(Spelling::Explicit);
        table.put((0x0028, 0x3002), "SV", &numbers.map(i64::to_le_bytes).concat());
        table.shorts((0x0028, 0x3006), &[0, 100, 200, 300]);
        let mut elements = header(Spelling::Explicit, GREY);
        elements.head((0x0028, 0x3000), "SQ", UNDEFINED);
        elements.item(&table.bytes, true);
        elements.delimiter(0xE0DD);
        keep("dicom", name, &file(EXPLICIT, &with_pixels(elements, GREY)))?;
    }
    let shape = Shape { photometric: "PALETTE COLOR", ..GREY };
    let mut elements = header(Spelling::Explicit, shape);
    for place in 0x1101..=0x1103 {
        elements.shorts((0x0028, place), &[4, 0, 16]);
    }
    for place in 0x1201..=0x1203 {
        elements.put((0x0028, place), "OW", &[0, 0, 0, 80, 0, 160, 0, 250]);
    }
    keep("dicom", "palette.dcm", &file(EXPLICIT, &with_pixels(elements, shape)))
}

/// Writes all of them.
pub(super) fn write() -> Done {
    fragments()?;
    run_lengths()?;
    tables()?;
    let deep = Shape { bits: 16, ..GREY };
    let mut rescaled = header(Spelling::ExplicitBig, deep);
    rescaled.put((0x0028, 0x1050), "DS", b"40\\50");
    rescaled.put((0x0028, 0x1051), "DS", b"400\\1");
    rescaled.put((0x0028, 0x1052), "DS", b"-1024");
    rescaled.put((0x0028, 0x1053), "DS", b"2");
    keep("dicom", "big-endian.dcm", &file(BIG_ENDIAN, &with_pixels(rescaled, deep)))?;
    let colours = Shape { photometric: "YBR_FULL", samples: 3, ..GREY };
    let colours = with_pixels(header(Spelling::Implicit, colours), colours);
    keep("dicom", "implicit-colours.dcm", &file(IMPLICIT, &colours))?;
    let inner = with_pixels(header(Spelling::Explicit, GREY), GREY);
    // Stored blocks, so that changed bytes are still a deflated data set.
    for (name, level) in [("deflated.dcm", 6), ("deflated-stored.dcm", 0)] {
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::new(level));
        packed.write_all(&inner)?;
        keep("dicom", name, &file(DEFLATED, &packed.finish()?))?;
    }
    let mut wide = header(Spelling::Explicit, GREY);
    wide.put((0x0028, 0x0002), "UV", &(u64::MAX / 3).to_le_bytes());
    keep("dicom", "wide-samples.dcm", &file(EXPLICIT, &with_pixels(wide, GREY)))
}
