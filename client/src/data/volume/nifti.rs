//! NIfTI-1 files (`.nii`, `.nii.gz`).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use nifti::{InMemNiftiVolume, NiftiHeader, NiftiType};
use tributary_shared::dataset::Window;
use tributary_shared::outcome::chain;

use super::{Grid, Orientation, VOXELS_MAX, Volume, VolumeProblem};
use crate::data::window::Curve;

/// Bytes of a NIfTI-1 header.
const HEADER_BYTES: u64 = 348;
/// Most bytes between header and voxels (extensions).
const EXTENSIONS_BYTES_MAX: u64 = 64 << 20;

/// How the voxels of the file at `path` lie; none of them is read.
pub(in crate::data) fn grid(path: &Path) -> Result<Grid, VolumeProblem> {
    Header::read(&mut unpacked(path)?).map(|header| header.grid)
}

/// The whole volume at `path`.
pub(in crate::data) fn open(path: &Path, window: Window) -> Result<Volume, VolumeProblem> {
    let mut reader = unpacked(path)?;
    let header = Header::read(&mut reader)?;
    let skip = (f64::from(header.inner.vox_offset) as u64).saturating_sub(HEADER_BYTES);
    if skip > EXTENSIONS_BYTES_MAX {
        let detail = format!("{skip} bytes of extensions");
        return Err(VolumeProblem::Format { detail });
    }
    let skipped = std::io::copy(&mut (&mut reader).take(skip), &mut std::io::sink());
    if skipped.map_err(|error| format(&error))? < skip {
        return Err(VolumeProblem::Truncated);
    }
    let stored = InMemNiftiVolume::from_reader(reader, &header.inner).map_err(|error| {
        if let nifti::NiftiError::IncompatibleLength(..) = error {
            return VolumeProblem::Truncated;
        }
        format(&error)
    })?;
    let voxels = scaled(stored, &header.inner)?;
    let (low, high) = (header.inner.cal_min, header.inner.cal_max);
    let curve = match window {
        Window::Given { centre, width } => Curve::Linear { centre, width },
        Window::File if high > low && low.is_finite() && high.is_finite() => {
            Curve::Range { black: f64::from(low), white: f64::from(high) }
        }
        Window::File => Curve::percentile(&voxels, 0.5, 99.5),
        Window::MinMax | Window::Percentile { .. } => {
            Curve::of_values(window, &voxels).unwrap_or(Curve::min_max(&voxels))
        }
    };
    Ok(Volume { voxels, grid: header.grid, curve })
}

/// What a header says.
struct Header {
    inner: NiftiHeader,
    grid: Grid,
}

impl Header {
    fn read(reader: &mut impl Read) -> Result<Self, VolumeProblem> {
        let mut head = Vec::new();
        let read = reader.take(HEADER_BYTES).read_to_end(&mut head);
        read.map_err(|error| format(&error))?;
        if (head.len() as u64) < HEADER_BYTES {
            return Err(VolumeProblem::Truncated);
        }
        let inner = NiftiHeader::from_reader(head.as_slice()).map_err(|error| format(&error))?;
        if &inner.magic == b"ni1\0" {
            return Err(VolumeProblem::Pair);
        }
        let dim = inner.dim().map_err(|error| format(&error))?;
        // A fourth dimension of one is how some programs save a volume.
        let voxels = dim.iter().try_fold(1u64, |product, n| product.checked_mul(u64::from(*n)));
        let shape = match dim {
            [x, y, z, rest @ ..] if rest.iter().all(|n| *n == 1) => [*x, *y, *z].map(usize::from),
            _ => return Err(shape_problem(dim)),
        };
        if voxels.is_none_or(|voxels| voxels == 0 || voxels > VOXELS_MAX) {
            return Err(shape_problem(dim));
        }
        // The reader believes `bitpix`; a file of a few bytes could make it fill any memory.
        let expected = bits(inner.data_type().map_err(|error| format(&error))?)?;
        if i32::from(inner.bitpix) != expected {
            let detail = format!("bitpix is {}, its data type has {expected}", inner.bitpix);
            return Err(VolumeProblem::Format { detail });
        }
        let orientation = Orientation::of(&affine(&inner))?;
        Ok(Self { inner, grid: Grid { shape, orientation } })
    }
}

/// Bits of a voxel, for the types that are read.
fn bits(kind: NiftiType) -> Result<i32, VolumeProblem> {
    Ok(match kind {
        NiftiType::Uint8 | NiftiType::Int8 => 8,
        NiftiType::Uint16 | NiftiType::Int16 => 16,
        NiftiType::Uint32 | NiftiType::Int32 | NiftiType::Float32 => 32,
        NiftiType::Uint64 | NiftiType::Int64 | NiftiType::Float64 => 64,
        other @ (NiftiType::Float128
        | NiftiType::Complex64
        | NiftiType::Complex128
        | NiftiType::Complex256
        | NiftiType::Rgb24
        | NiftiType::Rgba32) => {
            return Err(VolumeProblem::Voxels { found: format!("{other:?}") });
        }
    })
}

fn shape_problem(dim: &[u16]) -> VolumeProblem {
    VolumeProblem::Shape { shape: format!("{dim:?}"), max: VOXELS_MAX }
}

/// Raw or through gzip, told by the first bytes.
fn unpacked(path: &Path) -> Result<Box<dyn Read>, VolumeProblem> {
    let open = || File::open(path).map(BufReader::new).map_err(|error| format(&error));
    let mut magic = [0; 2];
    let packed = open()?.read_exact(&mut magic).is_ok() && magic == [0x1F, 0x8B];
    // What is read of it is bounded by the header and by VOXELS_MAX, however it unpacks.
    Ok(if packed { Box::new(MultiGzDecoder::new(open()?)) } else { Box::new(open()?) })
}

fn format(error: &dyn std::error::Error) -> VolumeProblem {
    VolumeProblem::Format { detail: chain(error) }
}

fn scaled(stored: InMemNiftiVolume, header: &NiftiHeader) -> Result<Vec<f32>, VolumeProblem> {
    macro_rules! widened {
        ($kind:ty, $wide:expr) => {
            stored
                .into_nifti_typed_data::<$kind>()
                .map_err(|error| format(&error))?
                .into_iter()
                .map($wide)
                .map(|value| scale(value, header))
                .collect()
        };
    }
    let kind = header.data_type().map_err(|error| format(&error))?;
    Ok(match kind {
        NiftiType::Uint8 => widened!(u8, f64::from),
        NiftiType::Int8 => widened!(i8, f64::from),
        NiftiType::Uint16 => widened!(u16, f64::from),
        NiftiType::Int16 => widened!(i16, f64::from),
        NiftiType::Uint32 => widened!(u32, f64::from),
        NiftiType::Int32 => widened!(i32, f64::from),
        NiftiType::Uint64 => widened!(u64, |value| value as f64),
        NiftiType::Int64 => widened!(i64, |value| value as f64),
        NiftiType::Float32 => widened!(f32, f64::from),
        NiftiType::Float64 => widened!(f64, std::convert::identity),
        other @ (NiftiType::Float128
        | NiftiType::Complex64
        | NiftiType::Complex128
        | NiftiType::Complex256
        | NiftiType::Rgb24
        | NiftiType::Rgba32) => {
            return Err(VolumeProblem::Voxels { found: format!("{other:?}") });
        }
    })
}

/// A slope of zero, or of no number, means none (NIfTI-1 standard).
fn scale(value: f64, header: &NiftiHeader) -> f32 {
    let (slope, intercept) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    let scaled = if slope == 0.0 || !slope.is_finite() || !intercept.is_finite() {
        value
    } else {
        value * slope + intercept
    };
    scaled as f32
}

/// The 3x3 part of index-to-RAS, by rows: the sform, else the qform, else the spacing alone, as
/// nibabel chooses.
fn affine(header: &NiftiHeader) -> [[f64; 3]; 3] {
    let row = |row: [f32; 4]| [row[0], row[1], row[2]].map(f64::from);
    if header.sform_code > 0 {
        return [row(header.srow_x), row(header.srow_y), row(header.srow_z)];
    }
    let [x, y, z] = [1, 2, 3].map(|axis| f64::from(header.pixdim[axis]));
    if header.qform_code <= 0 {
        // nibabel's fallback runs from right to left.
        return [[-x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, z]];
    }
    let [b, c, d] = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
    let a = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
    let z = if header.pixdim[0] < 0.0 { -z } else { z };
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    rotation.map(|row| [row[0] * x, row[1] * y, row[2] * z])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A12d. Failed before: 4,095 bytes a voxel were reserved, and complex voxels refused only when read.
    #[test]
    fn a_header_whose_bits_are_not_those_of_its_type_is_refused_before_a_voxel_is_read() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nifti/ras.nii");
        let whole = std::fs::read(fixture).unwrap();
        let head = |datatype: i16, bitpix: i16| {
            let mut bytes = whole[..HEADER_BYTES as usize].to_vec();
            // Of NIfTI-1: `datatype` at byte 70, `bitpix` at 72.
            bytes[70..72].copy_from_slice(&datatype.to_le_bytes());
            bytes[72..74].copy_from_slice(&bitpix.to_le_bytes());
            Header::read(&mut bytes.as_slice()).map(|header| header.grid.shape)
        };
        head(4, 16).unwrap();
        for (datatype, bitpix) in [(4, 32_760), (4, 8), (16, 64), (2, 0), (2, -8)] {
            let refused = head(datatype, bitpix).unwrap_err().to_string();
            assert!(refused.contains("bitpix"), "{datatype} {bitpix}: {refused}");
        }
        assert!(matches!(head(32, 64), Err(VolumeProblem::Voxels { .. })), "complex");
    }
}
