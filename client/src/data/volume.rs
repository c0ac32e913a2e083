//! NIfTI-1 volumes (`.nii`, `.nii.gz`), turned to one orientation and cut into slices.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use image::{GrayImage, RgbImage};
use nifti::{InMemNiftiVolume, NiftiHeader, NiftiType};
use tributary_shared::dataset::{Plane, Window};
use tributary_shared::outcome::chain;

use super::medium::Facts;
use super::pixels::Picture;
use super::window::Curve;
use crate::config::reading::{Frames, Slices};

/// Most voxels of one volume; each takes four bytes.
const VOXELS_MAX: u64 = 256 << 20;
/// Bytes of a NIfTI-1 header.
const HEADER_BYTES: u64 = 348;
/// Most bytes between header and voxels (extensions).
const EXTENSIONS_BYTES_MAX: u64 = 64 << 20;

/// What is wrong with a NIfTI file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeProblem {
    /// The file cannot be taken apart.
    #[error("not readable as NIfTI: {detail}")]
    Format {
        /// What the reader said.
        detail: String,
    },
    /// Header and voxels in two files.
    #[error("a header without its voxels (.hdr/.img); save it as one .nii or .nii.gz")]
    Pair,
    /// A shape that is no volume.
    #[error("has the shape {shape}; a volume has three dimensions and at most {max} voxels")]
    Shape {
        /// Its shape.
        shape: String,
        /// Most voxels.
        max: u64,
    },
    /// Complex numbers, colours.
    #[error("holds {found}; only integers and real numbers are read")]
    Voxels {
        /// The data type.
        found: String,
    },
    /// An affine that maps the volume onto a plane or nowhere.
    #[error("its affine has no inverse; save it with a valid sform or qform")]
    Affine,
    /// Fewer voxels than the header says.
    #[error("truncated: the data ends before the volume does; copy the file again")]
    Truncated,
}

/// How the file's axes lie in the patient: RAS+ axis i runs along the file's `axis[i]`, backwards
/// where `flipped[i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Orientation {
    axis: [usize; 3],
    flipped: [bool; 3],
    spacing_mm: [f64; 3],
}

/// What a header says.
pub(super) struct Header {
    inner: NiftiHeader,
    shape: [usize; 3],
    orientation: Orientation,
}

impl Header {
    pub(super) fn open(path: &Path) -> Result<Self, VolumeProblem> {
        Self::read(&mut unpacked(path)?)
    }

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
        let orientation = Orientation::of(&affine(&inner))?;
        Ok(Self { inner, shape, orientation })
    }

    /// Voxels along the axis that runs through slices of this plane.
    fn depth(&self, plane: Plane) -> usize {
        self.shape[self.orientation.axis[through(plane)]]
    }

    /// The slices that are cases, from low to high RAS+ coordinates.
    pub(super) fn slices(&self, slices: &Slices) -> Vec<u32> {
        let depth = self.depth(slices.plane) as u32;
        let step = step(slices, &self.orientation);
        let taken = (0..depth).step_by(step);
        match slices.take {
            Frames::All => taken.collect(),
            Frames::Middle => vec![depth / 2],
        }
    }

    pub(super) fn facts(&self, plane: Plane) -> Facts {
        let across = (0..3).filter(|axis| *axis != through(plane));
        let spacing = across.map(|axis| self.orientation.spacing_mm[axis]).fold(0.0, f64::max);
        Facts { modality: None, plane: Some(plane), spacing_mm: Some(spacing), inverted: false }
    }
}

fn shape_problem(dim: &[u16]) -> VolumeProblem {
    VolumeProblem::Shape { shape: format!("{dim:?}"), max: VOXELS_MAX }
}

/// The RAS+ axis (0 right, 1 front, 2 head) that slices of `plane` follow one another on.
fn through(plane: Plane) -> usize {
    match plane {
        Plane::Sagittal => 0,
        Plane::Coronal => 1,
        Plane::Axial => 2,
    }
}

fn step(slices: &Slices, orientation: &Orientation) -> usize {
    let apart = orientation.spacing_mm[through(slices.plane)];
    let step = slices.every_mm.map_or(1.0, |every| (every / apart).round());
    // Beyond any volume a step is as good as endless.
    step.clamp(1.0, 65_536.0) as usize
}

/// A volume of modality values, slices ready to be cut.
pub(super) struct Volume {
    voxels: Vec<f32>,
    shape: [usize; 3],
    orientation: Orientation,
    curve: Curve,
}

impl Volume {
    pub(super) fn open(path: &Path, window: Window) -> Result<Self, VolumeProblem> {
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
        let Header { shape, orientation, .. } = header;
        Ok(Self { voxels, shape, orientation, curve })
    }

    /// One slice as radiologists look at it: the patient's right on the left of axial and coronal
    /// pictures, the front at the top of axial ones, the head at the top of the others, the front
    /// on the left of sagittal ones.
    pub(super) fn slice(&self, slices: &Slices, at: u32) -> Picture {
        let through = through(slices.plane);
        let last = self.length(through) - 1;
        let at = (at as usize).min(last);
        let step = step(slices, &self.orientation);
        if slices.depth == 1 {
            let (width, height, levels) = self.levels(through, at);
            return Picture::Grey(
                GrayImage::from_raw(width, height, levels).expect("as many levels as pixels"),
            );
        }
        let before = at.checked_sub(step).unwrap_or(at);
        let after = Some(at + step).filter(|after| *after <= last).unwrap_or(at);
        let (width, height, middle) = self.levels(through, at);
        let (before, after) = (self.levels(through, before).2, self.levels(through, after).2);
        let rgb = before.iter().zip(&middle).zip(&after).flat_map(|((a, b), c)| [*a, *b, *c]);
        let rgb = RgbImage::from_raw(width, height, rgb.collect());
        Picture::Rgb(rgb.expect("three levels a pixel"))
    }

    fn length(&self, ras: usize) -> usize {
        self.shape[self.orientation.axis[ras]]
    }

    fn levels(&self, through: usize, at: usize) -> (u32, u32, Vec<u8>) {
        // Columns and rows both run against RAS+: to the left or back, to the back or feet.
        let (across, down) = match through {
            0 => (1, 2),
            1 => (0, 2),
            _ => (0, 1),
        };
        let (width, height) = (self.length(across), self.length(down));
        let mut levels = Vec::with_capacity(width * height);
        let mut ras = [0; 3];
        ras[through] = at;
        for row in (0..height).rev() {
            ras[down] = row;
            for column in (0..width).rev() {
                ras[across] = column;
                levels.push(self.curve.level(f64::from(self.voxel(ras))));
            }
        }
        (width as u32, height as u32, levels)
    }

    /// The value at an index of the volume turned to RAS+.
    fn voxel(&self, ras: [usize; 3]) -> f32 {
        let mut file = [0; 3];
        for (axis, index) in ras.into_iter().enumerate() {
            let along = self.orientation.axis[axis];
            let flipped = self.orientation.flipped[axis];
            file[along] = if flipped { self.shape[along] - 1 - index } else { index };
        }
        self.voxels[file[0] + self.shape[0] * (file[1] + self.shape[1] * file[2])]
    }
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

impl Orientation {
    /// The assignment of file axes to RAS+ axes with the largest sum of direction cosines.
    fn of(affine: &[[f64; 3]; 3]) -> Result<Self, VolumeProblem> {
        const ORDERS: [[usize; 3]; 6] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let lengths = [0, 1, 2]
            .map(|axis| affine.iter().map(|row| row[axis] * row[axis]).sum::<f64>().sqrt());
        if !lengths.iter().all(|length| length.is_finite() && *length > 1e-6) {
            return Err(VolumeProblem::Affine);
        }
        let cosine = |ras: usize, file: usize| affine[ras][file] / lengths[file];
        let fit = |order: &[usize; 3]| -> f64 { (0..3).map(|r| cosine(r, order[r]).abs()).sum() };
        let axis = ORDERS.into_iter().max_by(|a, b| fit(a).total_cmp(&fit(b)));
        let axis = axis.ok_or(VolumeProblem::Affine)?;
        let along = [0, 1, 2].map(|ras| cosine(ras, axis[ras]));
        if along.iter().any(|cosine| cosine.abs() < 1e-3) {
            return Err(VolumeProblem::Affine);
        }
        let flipped = along.map(|cosine| cosine < 0.0);
        Ok(Self { axis, flipped, spacing_mm: axis.map(|file| lengths[file]) })
    }
}

#[cfg(test)]
mod tests;
