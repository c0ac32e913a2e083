//! Patches: cubes of a volume, each shown by the three planes through its middle as the three
//! channels of one picture (the 2.5D of Roth et al. 2014, arXiv:1406.2639), so that a backbone for
//! pictures sees all directions.

use image::RgbImage;

use super::{Grid, Volume, VolumeProblem};
use crate::config::reading::Patches;
use crate::data::pixels::Picture;

/// Most patches of one volume.
const PATCHES_MAX: u64 = 4096;
/// Most pixels a side of a patch's picture.
const SIDE_MAX: f64 = 1024.0;

impl Grid {
    /// Cubes along a RAS+ axis.
    fn along(&self, patches: &Patches, ras: usize) -> u64 {
        let room = self.length_mm(ras) - patches.size;
        // A hair, so that lengths that divide evenly do so in floating point too.
        if room > 0.0 {
            ((room / patches.stride - 1e-6).ceil() as u64).saturating_add(1)
        } else {
            1
        }
    }

    fn length_mm(&self, ras: usize) -> f64 {
        self.length(ras) as f64 * self.orientation.spacing_mm[ras]
    }

    pub(super) fn patch_count(&self, patches: &Patches) -> Result<u64, VolumeProblem> {
        let all = (0..3).map(|ras| self.along(patches, ras)).fold(1, u64::saturating_mul);
        if all > PATCHES_MAX {
            return Err(VolumeProblem::Patches { patches: all, max: PATCHES_MAX });
        }
        Ok(all)
    }

    /// Pixels a side of a patch's picture: no voxel of the finest axis is skipped.
    fn patch_side(&self, patches: &Patches) -> u32 {
        let finest = self.orientation.spacing_mm.into_iter().fold(f64::INFINITY, f64::min);
        (patches.size / finest).round().clamp(1.0, SIDE_MAX) as u32
    }

    pub(super) fn patch_spacing(&self, patches: &Patches) -> f64 {
        patches.size / f64::from(self.patch_side(patches))
    }

    /// The middle of patch `at`, millimetres from the corner of the volume along RAS+. Axis 0 varies
    /// fastest. The last cube of an axis ends where the volume does; one that is larger than the
    /// volume lies around its middle.
    fn patch_middle(&self, patches: &Patches, at: u32) -> [f64; 3] {
        let mut left = u64::from(at);
        [0, 1, 2].map(|ras| {
            let count = self.along(patches, ras);
            let index = left % count;
            left /= count;
            let room = self.length_mm(ras) - patches.size;
            let start = if count == 1 { room / 2.0 } else { index as f64 * patches.stride };
            start.min(room.max(room / 2.0)) + patches.size / 2.0
        })
    }
}

impl Volume {
    /// Red, green and blue are the axial, the coronal and the sagittal plane through the middle of
    /// the cube, turned as slices are. Values between voxels are linear; outside it is black.
    pub(super) fn patch(&self, patches: &Patches, at: u32) -> Picture {
        let middle = self.grid.patch_middle(patches, at);
        let side = self.grid.patch_side(patches);
        let spacing = self.grid.patch_spacing(patches);
        // Both run against RAS+, as in slices.
        let off = |i: u32| (f64::from(side - 1) / 2.0 - f64::from(i)) * spacing;
        let picture = RgbImage::from_fn(side, side, |x, y| {
            let levels = [(0, 1), (0, 2), (1, 2)].map(|(across, down)| {
                let mut place = middle;
                place[across] += off(x);
                place[down] += off(y);
                self.level_at(place)
            });
            image::Rgb(levels)
        });
        Picture::Rgb(picture)
    }

    /// The level at a place, millimetres from the corner of the volume along RAS+.
    fn level_at(&self, place: [f64; 3]) -> u8 {
        let mut low = [0; 3];
        let mut share = [0.0; 3];
        for ras in 0..3 {
            // The middle of the first voxel lies half a voxel from the corner.
            let at = place[ras] / self.grid.orientation.spacing_mm[ras] - 0.5;
            let last = self.grid.length(ras) as f64 - 1.0;
            if at < -0.5 - 1e-6 || at > last + 0.5 + 1e-6 {
                return 0;
            }
            let at = at.clamp(0.0, last);
            low[ras] = at as usize;
            share[ras] = at.fract();
        }
        let mut value = 0.0;
        for corner in 0..8 {
            let mut index = low;
            let mut weight = 1.0;
            for ras in 0..3 {
                if corner >> ras & 1 == 1 {
                    index[ras] += 1;
                    weight *= share[ras];
                } else {
                    weight *= 1.0 - share[ras];
                }
            }
            // Of no weight where there is no next voxel.
            if weight > 0.0 {
                value += weight * f64::from(self.voxel(index));
            }
        }
        self.curve.level(value)
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::dataset::Window;

    use super::*;
    use crate::config::reading::Reading;
    use crate::data::medium::Part;

    /// Level 10 x + 3 y + z at index (x, y, z) along RAS+, stored as an array `[z, y, x]` whose x and
    /// y run the other way.
    fn ramp([x, y, z]: [usize; 3]) -> Volume {
        let mut levels = Vec::new();
        for k in 0..z {
            for j in (0..y).rev() {
                for i in (0..x).rev() {
                    levels.push((10 * i + 3 * j + k) as u8);
                }
            }
        }
        Volume::of_levels(Grid::stored([z, y, x]).expect("small"), &levels, Window::File)
    }

    fn patches(size: f64, stride: f64) -> Patches {
        Patches { size, stride }
    }

    /// A12g. Failed before in release builds: one too many wrapped to none, and the volume vanished uncounted.
    #[test]
    fn a_volume_of_absurd_spacing_is_refused_and_not_without_patches() {
        let mut grid = ramp([4, 4, 4]).grid;
        grid.orientation.spacing_mm = [1e30; 3];
        let refused = grid.patch_count(&patches(1.0, 1.0)).unwrap_err();
        assert!(matches!(refused, VolumeProblem::Patches { .. }), "{refused}");
    }

    #[test]
    fn a_volume_of_coordinates_shows_them_in_every_plane() {
        let volume = ramp([12, 9, 7]);
        let wanted = patches(3.0, 3.0);
        assert_eq!(volume.grid.patch_count(&wanted), Ok(4 * 3 * 3));
        for at in 0..36u32 {
            // The last cube along z starts at 4 and not at 6.
            let start = [3 * (at % 4), 3 * (at / 4 % 3), (3 * (at / 12)).min(4)];
            let [x, y, z] = start.map(|start| start + 1);
            let Picture::Rgb(picture) = volume.patch(&wanted, at) else { panic!("grey") };
            assert_eq!(picture.dimensions(), (3, 3));
            for row in 0..3 {
                for column in 0..3 {
                    // One to either side of the middle, against RAS+.
                    let of = |x, y, z| (10 * x + 3 * y + z) as u8;
                    let (c, r) = (1 - i64::from(column), 1 - i64::from(row));
                    let (x, y, z) = (i64::from(x), i64::from(y), i64::from(z));
                    let expected = [of(x + c, y + r, z), of(x + c, y, z + r), of(x, y + c, z + r)];
                    assert_eq!(picture.get_pixel(column, row).0, expected, "{at} {column},{row}");
                }
            }
        }
    }

    #[test]
    fn anisotropic_voxels_become_square_pixels_between_them() {
        let mut volume = ramp([10, 8, 5]);
        volume.grid.orientation.spacing_mm = [1.0, 2.0, 4.0];
        // Centred on the volume: 8 pixels of 1 mm; x = 1.5.., y and z in between.
        let wanted = patches(8.0, 100.0);
        assert_eq!(volume.grid.patch_count(&wanted), Ok(2 * 2 * 2));
        let Picture::Rgb(picture) = volume.patch(&wanted, 0) else { panic!("grey") };
        assert_eq!(picture.dimensions(), (8, 8));
        for (column, row) in [(2, 3), (3, 4), (5, 2)] {
            let mm = |i: u32| 7.5 - f64::from(i);
            let value =
                |x: f64, y: f64, z: f64| 10.0 * (x - 0.5) + 3.0 * (y / 2.0 - 0.5) + (z / 4.0 - 0.5);
            let expected = [
                value(mm(column), mm(row), 4.0),
                value(mm(column), 4.0, mm(row)),
                value(4.0, mm(column), mm(row)),
            ];
            for (found, expected) in picture.get_pixel(column, row).0.into_iter().zip(expected) {
                assert!((f64::from(found) - expected).abs() <= 0.5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn outside_is_black_and_a_large_patch_lies_in_the_middle() {
        let mut volume = ramp([4, 4, 4]);
        volume.voxels.iter_mut().for_each(|value| *value = 255.0);
        let wanted = patches(8.0, 1.0);
        assert_eq!(volume.grid.patch_count(&wanted), Ok(1));
        let Picture::Rgb(picture) = volume.patch(&wanted, 0) else { panic!("grey") };
        let inside = |i| (2..6).contains(&i);
        for (x, y, pixel) in picture.enumerate_pixels() {
            let level = if inside(x) && inside(y) { 255 } else { 0 };
            assert_eq!(pixel.0, [level; 3], "{x},{y}");
        }
    }

    #[test]
    fn too_many_are_refused_and_any_number_of_others_is_within() {
        let grid = Grid::stored([64, 64, 64]).expect("small");
        let refused = grid.patch_count(&patches(4.0, 1.0));
        assert_eq!(refused, Err(VolumeProblem::Patches { patches: 61 * 61 * 61, max: 4096 }));
        assert!(grid.patch_count(&patches(1e-9, 1e-9)).is_err());
        let reading = Reading { patches: Some(patches(32.0, 16.0)), ..Reading::default() };
        let parts = grid.parts(&reading).expect("27");
        assert_eq!(parts.len(), 27);
        let volume = ramp([5, 4, 3]);
        assert_eq!(volume.grid.parts(&reading).expect("one"), [Part::Patch(0)]);
        // A part that is not there is no panic.
        volume.picture(&reading, Part::Patch(9));
    }
}
