//! One image file, decoded under limits: an image is a stranger's program for the decoder.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use image::error::{UnsupportedError, UnsupportedErrorKind};
use image::{
    ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader,
    Limits,
};

use tiff::TiffError;
use tiff::decoder::Decoder;

use super::compressed::{self, JpegChunks};
use super::pixels::Picture;
use super::{DataError, ImageProblem};

/// Largest image file read, bytes.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;
/// Most pixels a side.
pub(super) const SIDE_MAX: u32 = 16_384;
/// Most memory that decoding one image may take, MiB.
pub(super) const DECODE_MIB_MAX: u64 = 512;

/// Reads and fully decodes the image at `path`.
pub(super) fn decode(path: &Path) -> Result<Picture, DataError> {
    let shown = || path.display().to_string();
    let bytes = read(path).map_err(|source| DataError::Read { path: shown(), source })?;
    decode_bytes(&bytes).map_err(|problem| DataError::Image { path: shown(), problem })
}

/// At most one byte more than is allowed, so that a file growing meanwhile cannot fill memory.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decode_bytes(bytes: &[u8]) -> Result<Picture, ImageProblem> {
    if bytes.is_empty() {
        return Err(ImageProblem::Empty);
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ImageProblem::TooLarge { bytes: bytes.len() as u64, max: FILE_BYTES_MAX });
    }
    // By content, not by name: hospital exports lie about extensions.
    let format = image::guess_format(bytes).map_err(|_| ImageProblem::Format)?;
    if format == ImageFormat::Jpeg {
        check_jpeg(bytes)?;
    } else if format == ImageFormat::Tiff {
        check_tiff(bytes)?;
    } else if format != ImageFormat::Png {
        return Err(ImageProblem::Format);
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder().map_err(|error| problem(&error))?;
    decoder.set_limits(limits()).map_err(|error| problem(&error))?;
    check_colour(decoder.original_color_type())?;
    if decoder.total_bytes() > DECODE_MIB_MAX << 20 {
        return Err(over_limits());
    }
    picture(DynamicImage::from_decoder(decoder).map_err(|error| problem(&error))?)
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODE_MIB_MAX << 20);
    limits
}

fn over_limits() -> ImageProblem {
    ImageProblem::Limits { side: SIDE_MAX, alloc_mib: DECODE_MIB_MAX }
}

/// Before decoding: the decoder would turn CMYK into RGB without a word.
fn check_colour(colour: ExtendedColorType) -> Result<(), ImageProblem> {
    if matches!(colour, ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16) {
        return Err(ImageProblem::Cmyk);
    }
    let deep = colour.channel_count() > 0 && bits_a_sample(colour) > 8;
    if deep { Err(ImageProblem::Depth) } else { Ok(()) }
}

fn bits_a_sample(colour: ExtendedColorType) -> u16 {
    colour.bits_per_pixel() / u16::from(colour.channel_count())
}

fn picture(decoded: DynamicImage) -> Result<Picture, ImageProblem> {
    let colour = decoded.color();
    if colour.has_alpha() {
        return Err(ImageProblem::Alpha);
    }
    if colour == ColorType::L8 {
        Ok(Picture::Grey(decoded.into_luma8()))
    } else if colour == ColorType::Rgb8 {
        Ok(Picture::Rgb(decoded.into_rgb8()))
    } else {
        Err(ImageProblem::Colour { found: format!("{colour:?}") })
    }
}

/// The decoder fills what a truncated JPEG lacks with grey and converts CMYK silently; both are
/// visible in the markers (ITU T.81, annex B).
fn check_jpeg(bytes: &[u8]) -> Result<(), ImageProblem> {
    let mut at = 2;
    loop {
        let [marker_start, marker, high, low] = *bytes
            .get(at..at + 4)
            .and_then(|b| b.first_chunk::<4>())
            .ok_or(ImageProblem::Truncated)?;
        if marker_start != 0xFF {
            return Err(ImageProblem::Damaged { detail: "a JPEG marker is missing".to_owned() });
        }
        if marker == 0xFF {
            at += 1;
            continue;
        }
        let is_frame = matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
        // Frame header: length (2), precision (1), height (2), width (2), components (1).
        if is_frame && bytes.get(at + 9) == Some(&4) {
            return Err(ImageProblem::Cmyk);
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == 0xDA {
            break;
        }
    }
    let ended =
        bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xFF, 0xD9]));
    if ended { Ok(()) } else { Err(ImageProblem::Truncated) }
}

/// Before decoding: strips and tiles that name the same bytes many times would be decoded as often,
/// and a JPEG stream in a TIFF has a size of its own, by which its decoder reserves.
fn check_tiff(bytes: &[u8]) -> Result<(), ImageProblem> {
    // What is no TIFF at all has its reason from the decoder.
    let Ok(mut decoder) = Decoder::new(Cursor::new(bytes)) else { return Ok(()) };
    let damaged = |error: TiffError| ImageProblem::Damaged { detail: error.to_string() };
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    if width.max(height) > SIDE_MAX {
        return Err(over_limits());
    }
    let file_bytes = bytes.len() as u64;
    compressed::chunks(&mut decoder, file_bytes).map_err(damaged)?;
    let streams = JpegChunks::of(&mut decoder, FILE_BYTES_MAX, file_bytes).map_err(damaged)?;
    let Some(streams) = streams else { return Ok(()) };
    let checked = (0..streams.len()).try_for_each(|at| streams.check(decoder.inner(), at));
    checked.map_err(damaged)
}

/// One line for what the decoder said.
fn problem(error: &ImageError) -> ImageProblem {
    let damaged = |error: &dyn std::error::Error| ImageProblem::Damaged {
        detail: tributary_shared::outcome::chain(error),
    };
    match error {
        ImageError::Limits(_) => over_limits(),
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => ImageProblem::Truncated,
        ImageError::Unsupported(inner) => unsupported(inner),
        ImageError::Decoding(inner) if ends_early(inner) => ImageProblem::Truncated,
        ImageError::Decoding(_)
        | ImageError::Encoding(_)
        | ImageError::Parameter(_)
        | ImageError::IoError(_) => damaged(error),
    }
}

fn unsupported(error: &UnsupportedError) -> ImageProblem {
    if let UnsupportedErrorKind::Color(colour) = error.kind() {
        return ImageProblem::Colour { found: format!("{colour:?}") };
    }
    ImageProblem::Unsupported { detail: error.to_string() }
}

/// Whether an end of file lies anywhere under a decoding error.
fn ends_early(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut inner = Some(error);
    while let Some(error) = inner {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == ErrorKind::UnexpectedEof) {
            return true;
        }
        inner = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;

    use super::*;

    /// A TIFF of one strip of 16 x 16 grey pixels, compressed with JPEG.
    fn tiff(jpeg: &[u8]) -> Vec<u8> {
        let short = 3;
        let fields: [(u16, u16, u32); 8] = [
            (256, short, 16),
            (257, short, 16),
            (258, short, 8),
            (259, short, 7),
            (262, short, 1),
            (273, 4, 8),
            (277, short, 1),
            (279, 4, jpeg.len() as u32),
        ];
        let directory = 8 + jpeg.len() as u32;
        let mut bytes = [b"II\x2A\0".as_slice(), &directory.to_le_bytes(), jpeg].concat();
        bytes.extend((fields.len() as u16).to_le_bytes());
        for (tag, kind, value) in fields {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        bytes
    }

    /// Failed before: the decoder reserved 256 MiB for the pixels that the stream says it holds.
    #[test]
    fn a_strip_whose_jpeg_says_that_it_is_larger_is_refused_before_it_is_decoded() {
        let mut jpeg = Vec::new();
        JpegEncoder::new(&mut jpeg).encode(&[90; 256], 16, 16, ExtendedColorType::L8).unwrap();
        assert!(decode_bytes(&tiff(&jpeg)).is_ok(), "as it is, it is read");
        let frame = jpeg.windows(2).position(|bytes| bytes == [0xFF, 0xC0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
        let error = decode_bytes(&tiff(&jpeg)).err().map(|error| error.to_string());
        let error = error.unwrap_or_default();
        let expected = "the JPEG header of a tile of 16 x 16 pixels says 16384 x 16384";
        assert!(error.contains(expected), "{error}");
        // Bytes that the decoder skips hide nothing.
        jpeg.splice(2..2, [0]);
        let error = decode_bytes(&tiff(&jpeg)).err().map(|error| error.to_string());
        assert!(error.unwrap_or_default().contains(expected));
    }

    /// Failed before: each strip was copied, whatever its bytes had been named for before.
    #[test]
    fn strips_that_name_the_same_bytes_many_times_are_refused() {
        let mut file = tiff(&[0xFF; 1000]);
        let length = file.len() as u32;
        let count = file.windows(2).rposition(|tag| tag == 279u16.to_le_bytes()).unwrap();
        file[count + 8..count + 12].copy_from_slice(&(5 * length).to_le_bytes());
        let error = decode_bytes(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("1 strips or tiles take"), "{error}");
    }
}
