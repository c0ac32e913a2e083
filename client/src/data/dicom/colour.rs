//! Colour samples to RGB.

use dicom_object::{DefaultDicomObject, Tag};
use dicom_pixeldata::{DecodedPixelData, PlanarConfiguration};
use image::RgbImage;

use super::lookup::Lookup;
use super::{DicomProblem, PHOTOMETRIC, grey, text};
use crate::data::pixels::Picture;

/// Descriptor and data of the red, green and blue palette.
const PALETTE: [(Tag, Tag); 3] = [
    (Tag(0x0028, 0x1101), Tag(0x0028, 0x1201)),
    (Tag(0x0028, 0x1102), Tag(0x0028, 0x1202)),
    (Tag(0x0028, 0x1103), Tag(0x0028, 0x1203)),
];
const RLE_LOSSLESS: &str = "1.2.840.10008.1.2.5";

pub(super) fn palette(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
) -> Result<Picture, DicomProblem> {
    let mut tables = Vec::new();
    for (descriptor, data) in PALETTE {
        tables.push(Lookup::read(object, descriptor, data, "colour palette")?);
    }
    let stored = grey::stored(object, decoded)?;
    let colours = stored.iter().flat_map(|value| tables.iter().map(|table| table.level(*value)));
    finished(decoded, colours.collect())
}

pub(super) fn rgb(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
) -> Result<Picture, DicomProblem> {
    let photometric = text(object, PHOTOMETRIC);
    let bits = decoded.bits_allocated();
    if decoded.samples_per_pixel() != 3 || !matches!(bits, 8 | 16) {
        let samples = decoded.samples_per_pixel();
        return Err(DicomProblem::Layout { photometric, samples, bits });
    }
    let drop_bits = u32::from(decoded.bits_stored().clamp(8, 16)) - 8;
    let mut samples: Vec<u8> = grey::stored(object, decoded)?
        .into_iter()
        .map(|sample| (sample >> if bits == 8 { 0 } else { drop_bits }).clamp(0, 255) as u8)
        .collect();
    if decoded.planar_configuration() == PlanarConfiguration::PixelFirst {
        let plane = samples.len() / 3;
        samples = (0..3 * plane).map(|at| samples[at % 3 * plane + at / 3]).collect();
    }
    // Decoders of the JPEG family already turn to RGB; raw and run-length data are as stored.
    let syntax = object.meta().transfer_syntax();
    let as_stored = syntax == RLE_LOSSLESS || !is_encapsulated(syntax);
    match photometric.as_str() {
        "YBR_FULL" if as_stored => to_rgb(&mut samples),
        "RGB" | "YBR_FULL" | "YBR_RCT" | "YBR_ICT" => {}
        _ if !as_stored => {}
        _ => return Err(DicomProblem::Layout { photometric, samples: 3, bits }),
    }
    finished(decoded, samples)
}

fn is_encapsulated(syntax: &str) -> bool {
    // 1.2.1, 1.2.1.99 (deflated) and 1.2.2 are the uncompressed explicit ones, 1.2 the implicit.
    let uncompressed = [
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
    ];
    !uncompressed.contains(&syntax)
}

/// ITU-R BT.601, full range (PS3.3 C.7.6.3.1.2).
fn to_rgb(samples: &mut [u8]) {
    for pixel in samples.as_chunks_mut::<3>().0 {
        let [y, b, r] = pixel.map(f64::from);
        let (b, r) = (b - 128.0, r - 128.0);
        let rgb = [y + 1.402 * r, y - 0.344_136 * b - 0.714_136 * r, y + 1.772 * b];
        *pixel = rgb.map(|level| level.clamp(0.0, 255.0).round() as u8);
    }
}

fn finished(decoded: &DecodedPixelData<'_>, rgb: Vec<u8>) -> Result<Picture, DicomProblem> {
    RgbImage::from_raw(decoded.columns(), decoded.rows(), rgb).map(Picture::Rgb).ok_or_else(|| {
        DicomProblem::Pixels { detail: "another number of bytes than the picture needs".to_owned() }
    })
}
