//! A segmentation's truth: an 8-bit grey picture whose levels are class indices.

use std::path::Path;

use super::frame::Frame;
use super::pixels::Picture;
use super::{DataError, ImageProblem, InputSpec, image_file};

/// The level of a pixel of which the mask says nothing; losses and metrics leave it out.
pub const UNMARKED: u8 = 255;

/// Whether each pixel of the mask at `path`, on the grid of `input`, is marked: any level but 0.
pub fn marked(path: &Path, input: &InputSpec) -> Result<Vec<bool>, DataError> {
    let levels = usize::from(u8::MAX) + 1;
    Ok(read(path, levels, input)?.into_iter().map(|level| level > 0).collect())
}

/// The mask at `path`, its nearest pixels on the grid of `input`, where its image's are.
pub(super) fn read(path: &Path, classes: usize, input: &InputSpec) -> Result<Vec<u8>, DataError> {
    let (levels, (width, height)) = decode(path, classes)?;
    let side = input.image_size;
    let frame = Frame::of((width, height), side as u32, input.crop_pct);
    let row = |y: usize| frame.nearest(1, y, height) * width as usize;
    let column = |x: usize| frame.nearest(0, x, width);
    Ok((0..side * side).map(|i| levels[row(i / side) + column(i % side)]).collect())
}

/// An error where the mask at `path` cannot be read or names other classes.
pub(super) fn check(path: &Path, classes: usize) -> Result<(), DataError> {
    decode(path, classes).map(|_| ())
}

/// For each class, whether a pixel of the mask at `path` is of it.
pub(super) fn classes_shown(path: &Path, classes: usize) -> Result<Vec<bool>, DataError> {
    let mut shown = vec![false; classes];
    for level in decode(path, classes)?.0 {
        if let Some(shown) = shown.get_mut(usize::from(level)) {
            *shown = true;
        }
    }
    Ok(shown)
}

/// Every level, all of them classes or [`UNMARKED`], and width and height.
fn decode(path: &Path, classes: usize) -> Result<(Vec<u8>, (u32, u32)), DataError> {
    let refused = |problem| DataError::Image { path: path.display().to_string(), problem };
    let Picture::Grey(grey) = image_file::decode(path)? else {
        return Err(refused(ImageProblem::MaskColours));
    };
    let dimensions = grey.dimensions();
    let levels = grey.into_raw();
    let stray = levels.iter().find(|level| usize::from(**level) >= classes && **level != UNMARKED);
    if let Some(level) = stray {
        return Err(refused(ImageProblem::MaskClass { level: *level, classes }));
    }
    Ok((levels, dimensions))
}
