//! Views of images: each drawn from a random stream of its own, so that a repeated round sees the
//! same pictures on any number of threads.

use std::ops::RangeInclusive;

use tributary_shared::augment::Augment;

use crate::data::Dataset;
use crate::data::augment::Variation;
use crate::model::AdaptedVit;
use crate::trainer::session::{TrainError, stream};

/// Images and how they are varied.
#[derive(Clone)]
pub(in crate::trainer) struct Views<'a> {
    pub(in crate::trainer) dataset: &'a Dataset,
    /// Images are seen as they are when absent.
    pub(in crate::trainer) augment: Option<&'a Augment>,
    /// Prefix of the names of the random streams.
    pub(in crate::trainer) name: &'a str,
    /// Whether a masked image is mirrored, every other time, where nothing else varies it.
    pub(in crate::trainer) mirrored: bool,
    pub(in crate::trainer) epoch: u32,
}

impl<'a> Views<'a> {
    pub(super) fn of_epoch(&self, epoch: u32) -> Self {
        Self { epoch, ..self.clone() }
    }

    pub(super) fn stream_name(&self, what: &str) -> String {
        format!("{} {what}", self.name)
    }

    pub(super) fn stream(&self, what: &str) -> [u8; 32] {
        stream(&self.stream_name(&format!("{what} {}", self.epoch)))
    }

    /// The image of a case as `view` shows it; of `area` of it, when given.
    pub(super) fn image(
        &self,
        case: usize,
        view: usize,
        area: Option<RangeInclusive<f64>>,
        image: &mut [f32],
    ) -> Result<(), TrainError> {
        let Some(augment) = self.augment else {
            return Ok(self.dataset.pixels(case, image)?);
        };
        let seed = self.stream(&format!("view {view} {}", self.dataset.cases()[case].id));
        let variation = match area {
            Some(area) => Variation::draw_part(augment, area, seed),
            None => Variation::draw(augment, seed),
        };
        Ok(self.dataset.varied_pixels(case, &variation, image)?)
    }

    /// The patches of views `views` of each case of `shard`, case after case.
    pub(super) fn rows(
        &self,
        model: &AdaptedVit,
        shard: &[usize],
        views: std::ops::Range<usize>,
        area: Option<&RangeInclusive<f64>>,
    ) -> Result<Vec<f32>, TrainError> {
        let mut image = vec![0.0; self.dataset.input().numbers()];
        let mut rows = Vec::with_capacity(image.len() * shard.len() * views.len());
        for case in shard {
            for view in views.clone() {
                self.image(*case, view, area.cloned(), &mut image)?;
                model.patchify(&image, &mut rows);
            }
        }
        Ok(rows)
    }
}
