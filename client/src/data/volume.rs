//! Volumes, turned to one orientation and cut into slices or patches.

mod nifti;
mod patches;

use image::{GrayImage, RgbImage};
use tributary_shared::dataset::{Plane, Window};

pub(super) use self::nifti::{grid, open};
use super::medium::{Facts, Part};
use super::pixels::Picture;
use super::window::Curve;
use crate::config::reading::{Frames, Reading, Slices};

/// Most voxels of one volume; each takes four bytes.
const VOXELS_MAX: u64 = 256 << 20;

/// What is wrong with a volume.
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
    /// A stride too small for the volume.
    #[error("gives {patches} patches; at most {max} are read, so write a larger stride")]
    Patches {
        /// How many.
        patches: u64,
        /// The bound.
        max: u64,
    },
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

/// How many voxels a volume has, and how they lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Grid {
    shape: [usize; 3],
    orientation: Orientation,
}

impl Grid {
    /// `[depth, height, width]` voxels of an array that says nothing of the patient: the first axis
    /// is taken to run from feet to head, and a slice of it looks as it is stored. A voxel counts
    /// as one millimetre.
    pub(super) fn stored([depth, height, width]: [usize; 3]) -> Result<Self, VolumeProblem> {
        let sides = [width, height, depth];
        let voxels = sides.iter().try_fold(1u64, |product, n| product.checked_mul(*n as u64));
        if voxels.is_none_or(|voxels| voxels == 0 || voxels > VOXELS_MAX) {
            let shape = format!("{:?}", [depth, height, width]);
            return Err(VolumeProblem::Shape { shape, max: VOXELS_MAX });
        }
        let flipped = [true, true, false];
        let orientation = Orientation { axis: [0, 1, 2], flipped, spacing_mm: [1.0; 3] };
        Ok(Self { shape: sides, orientation })
    }

    /// The pictures that are cases.
    pub(super) fn parts(&self, reading: &Reading) -> Result<Vec<Part>, VolumeProblem> {
        match &reading.patches {
            Some(patches) => Ok((0..self.patch_count(patches)? as u32).map(Part::Patch).collect()),
            None => Ok(self.slices(&reading.slices).into_iter().map(Part::Slice).collect()),
        }
    }

    /// What is known of those pictures.
    pub(super) fn facts(&self, reading: &Reading) -> Facts {
        let (plane, spacing) = match &reading.patches {
            Some(patches) => (None, self.patch_spacing(patches)),
            None => {
                let across = (0..3).filter(|axis| *axis != through(reading.slices.plane));
                let spacing = across.map(|axis| self.orientation.spacing_mm[axis]);
                (Some(reading.slices.plane), spacing.fold(0.0, f64::max))
            }
        };
        Facts { modality: None, plane, spacing_mm: Some(spacing), inverted: false }
    }

    /// Voxels along a RAS+ axis.
    fn length(&self, ras: usize) -> usize {
        self.shape[self.orientation.axis[ras]]
    }

    /// Slices from low to high RAS+ coordinates.
    fn slices(&self, slices: &Slices) -> Vec<u32> {
        let depth = self.length(through(slices.plane)) as u32;
        match slices.take {
            Frames::All => (0..depth).step_by(step(slices, &self.orientation)).collect(),
            Frames::Middle => vec![depth / 2],
        }
    }
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
    /// In the order of the file, its first axis fastest.
    voxels: Vec<f32>,
    grid: Grid,
    curve: Curve,
}

impl Volume {
    /// A volume of 8-bit levels in the order of [`Grid::stored`], shown as they are unless `window`
    /// says otherwise.
    pub(super) fn of_levels(grid: Grid, levels: &[u8], window: Window) -> Self {
        let voxels: Vec<f32> = levels.iter().map(|level| f32::from(*level)).collect();
        let curve = match window {
            Window::File => Curve::Range { black: 0.0, white: 255.0 },
            Window::Given { centre, width } => Curve::Linear { centre, width },
            Window::MinMax | Window::Percentile { .. } => {
                Curve::of_values(window, &voxels).unwrap_or(Curve::min_max(&voxels))
            }
        };
        Self { voxels, grid, curve }
    }

    /// The picture of one part.
    pub(super) fn picture(&self, reading: &Reading, part: Part) -> Picture {
        match (part, &reading.patches) {
            (Part::Patch(at), Some(patches)) => self.patch(patches, at),
            (Part::Slice(at) | Part::Patch(at) | Part::Frame(at), _) => {
                self.slice(&reading.slices, at)
            }
            (Part::Whole | Part::Tile(_), _) => self.slice(&reading.slices, 0),
        }
    }

    /// One slice as radiologists look at it: the patient's right on the left of axial and coronal
    /// pictures, the front at the top of axial ones, the head at the top of the others, the front
    /// on the left of sagittal ones.
    fn slice(&self, slices: &Slices, at: u32) -> Picture {
        let through = through(slices.plane);
        let last = self.grid.length(through) - 1;
        let at = (at as usize).min(last);
        let step = step(slices, &self.grid.orientation);
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

    fn levels(&self, through: usize, at: usize) -> (u32, u32, Vec<u8>) {
        // Columns and rows both run against RAS+: to the left or back, to the back or feet.
        let (across, down) = match through {
            0 => (1, 2),
            1 => (0, 2),
            _ => (0, 1),
        };
        let (width, height) = (self.grid.length(across), self.grid.length(down));
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
        let Grid { shape, orientation } = &self.grid;
        let mut file = [0; 3];
        for (axis, index) in ras.into_iter().enumerate() {
            let along = orientation.axis[axis];
            let flipped = orientation.flipped[axis];
            file[along] = if flipped { shape[along] - 1 - index } else { index };
        }
        self.voxels[file[0] + shape[0] * (file[1] + shape[1] * file[2])]
    }
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
