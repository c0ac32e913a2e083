//! Where a slide shows tissue: Otsu's threshold (1979, IEEE Trans. SMC 9) on the saturation of its
//! smallest level, as glass has no colour.

use image::Rgb;

use super::SlideProblem;
use super::levels::Levels;
use super::pyramid::saturation;

/// Most pixels of the smallest level.
const OVERVIEW_PIXELS_MAX: u64 = 1 << 28;
/// Most cells along a side of the mask; larger levels are averaged.
const CELLS_MAX: u32 = 2048;
/// A threshold below this tells noise from noise: such a slide is grey everywhere.
const THRESHOLD_MIN: u8 = 15;

/// Which cells of a coarse grid over the slide are tissue.
pub(super) struct Tissue {
    cells: Vec<bool>,
    across: u32,
    down: u32,
    /// Cells in a pixel of the finest level, along either axis.
    scale: [f64; 2],
}

impl Tissue {
    pub(super) fn of(levels: &mut Levels) -> Result<Self, SlideProblem> {
        let level = levels.coarsest();
        let (width, height) = levels.level_dimensions(level);
        let pixels = u64::from(width) * u64::from(height);
        if pixels > OVERVIEW_PIXELS_MAX {
            return Err(SlideProblem::Overview { pixels, max: OVERVIEW_PIXELS_MAX });
        }
        let factor = width.max(height).div_ceil(CELLS_MAX);
        let (across, down) = (width.div_ceil(factor), height.div_ceil(factor));
        // Red, green, blue and how many.
        let mut sums = vec![[0u64; 4]; across as usize * down as usize];
        levels.each_tile(level, [0, 0], [width - 1, height - 1], &mut |[left, top], tile| {
            for (x, y, Rgb([r, g, b])) in tile.enumerate_pixels() {
                let (column, row) = ((left + x) / factor, (top + y) / factor);
                let cell = &mut sums[row as usize * across as usize + column as usize];
                for (sum, more) in cell.iter_mut().zip([*r, *g, *b, 1]) {
                    *sum += u64::from(more);
                }
            }
        })?;
        let mean = |[r, g, b, count]: [u64; 4]| [r, g, b].map(|sum| (sum / count.max(1)) as u8);
        let saturations: Vec<u8> =
            sums.into_iter().map(|cell| saturation(Rgb(mean(cell)))).collect();
        let threshold = otsu(&saturations).max(THRESHOLD_MIN);
        let cells = saturations.into_iter().map(|level| level > threshold).collect();
        let (finest_width, finest_height) = levels.dimensions();
        let scale = [(width, finest_width), (height, finest_height)]
            .map(|(level, finest)| f64::from(level) / f64::from(finest) / f64::from(factor));
        Ok(Self { cells, across, down, scale })
    }

    /// The share of a square of the finest level that is tissue: of the cells whose middle lies in it,
    /// or of the one in its own middle.
    pub(super) fn share(&self, corner: [u32; 2], side: f64) -> f64 {
        let range = |axis: usize, count: u32| {
            let start = f64::from(corner[axis]) * self.scale[axis];
            let end = start + side * self.scale[axis];
            // Cell i has its middle at i + 0.5.
            let inside = (start - 0.5).ceil().max(0.0) as u32..(end - 0.5).ceil().max(0.0) as u32;
            let middle = (((start + end) / 2.0) as u32).min(count - 1);
            if inside.is_empty() { middle..middle + 1 } else { inside.start..inside.end.min(count) }
        };
        let (columns, rows) = (range(0, self.across), range(1, self.down));
        let (mut tissue, mut all) = (0u64, 0u64);
        for row in rows {
            for column in columns.clone() {
                let at = row as usize * self.across as usize + column as usize;
                tissue += u64::from(self.cells[at]);
                all += 1;
            }
        }
        tissue as f64 / all.max(1) as f64
    }
}

/// The level that parts the values so that the variance between both sides is largest; values above
/// it are the upper side.
fn otsu(values: &[u8]) -> u8 {
    let mut counts = [0u64; 256];
    for value in values {
        counts[usize::from(*value)] += 1;
    }
    let total: u64 = counts.iter().sum();
    let sum: u64 = counts.iter().zip(0u64..).map(|(count, level)| count * level).sum();
    let (mut below, mut sum_below) = (0u64, 0u64);
    let (mut best, mut threshold) = (0.0, 0);
    for (level, count) in (0u8..=255).zip(counts) {
        below += count;
        sum_below += count * u64::from(level);
        let above = total - below;
        if below == 0 || above == 0 {
            continue;
        }
        let apart = sum_below as f64 / below as f64 - (sum - sum_below) as f64 / above as f64;
        let between = below as f64 * above as f64 * apart * apart;
        if between > best {
            (best, threshold) = (between, level);
        }
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_heaps_are_parted_between_them() {
        let values: Vec<u8> =
            (0..100).map(|i| if i < 70 { 5 + i % 3 } else { 120 + i % 9 }).collect();
        let threshold = otsu(&values);
        assert!((7..120).contains(&threshold), "{threshold}");
        // Nothing to part.
        assert_eq!((otsu(&[]), otsu(&[9; 8])), (0, 0));
    }

    #[test]
    fn the_share_is_of_the_cells_inside() {
        // Left half tissue; a cell is 10 pixels.
        let cells = (0..8).flat_map(|_| (0..8).map(|column| column < 4)).collect();
        let tissue = Tissue { cells, across: 8, down: 8, scale: [0.1; 2] };
        assert_eq!(tissue.share([0, 0], 40.0), 1.0);
        assert_eq!(tissue.share([20, 10], 40.0), 0.5);
        assert_eq!(tissue.share([40, 40], 40.0), 0.0);
        // Smaller than a cell.
        assert_eq!(tissue.share([32, 3], 2.0), 1.0);
        assert_eq!(tissue.share([43, 3], 2.0), 0.0);
    }
}
