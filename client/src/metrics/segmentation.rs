//! How far predicted and true regions overlap.

use crate::data::UNMARKED;

/// Pixel counts of each class over any number of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    // Pixels of the class in both, in the truth, in the prediction.
    counts: Vec<[u64; 3]>,
}

impl Overlap {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![[0; 3]; classes] }
    }

    /// Counts one image's marked pixels.
    ///
    /// # Panics
    /// When the slices differ in length or a class is unknown.
    pub fn add(&mut self, truth: &[u8], said: &[u8]) {
        assert_eq!(truth.len(), said.len(), "one class a pixel");
        for (truth, said) in truth.iter().zip(said) {
            if *truth == UNMARKED {
                continue;
            }
            self.counts[usize::from(*truth)][1] += 1;
            self.counts[usize::from(*said)][2] += 1;
            if truth == said {
                self.counts[usize::from(*truth)][0] += 1;
            }
        }
    }

    /// Dice coefficient (Dice 1945) of each class, 2 |both| / (|truth| + |prediction|); `None` where
    /// it is in neither.
    pub fn dice(&self) -> Vec<Option<f64>> {
        let of = |[both, truth, said]: &[u64; 3]| {
            let all = truth + said;
            (all > 0).then(|| (2 * both) as f64 / all as f64)
        };
        self.counts.iter().map(of).collect()
    }

    /// The mean Dice coefficient of the classes after the first, which is the background; `None`
    /// when none of them is anywhere.
    pub fn mean_dice(&self) -> Option<f64> {
        super::mean(self.dice().into_iter().skip(1).flatten())
    }
}
