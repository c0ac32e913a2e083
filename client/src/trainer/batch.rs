//! A step's images on their way into the model, and the truth they are compared with.

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use tributary_shared::augment::Augment;

use super::loss::Weighing;
use super::session::{TrainError, stream};
use super::units::Unit;
use crate::data::augment::Variation;
use crate::data::{Case, Dataset, Label};
use crate::model::{AdaptedVit, Dropout, Input};

/// Where a batch's model inputs come from.
pub(super) enum Source<'a> {
    /// Images.
    Images(&'a Dataset),
    /// Pooled features of the backbone, one row a case of the data set, where they were computed.
    Prefix(&'a Dataset, &'a [Vec<f32>]),
}

impl Source<'_> {
    pub(super) fn dataset(&self) -> &Dataset {
        let (Self::Images(dataset) | Self::Prefix(dataset, _)) = self;
        dataset
    }
}

/// Model inputs of some cases, row after row.
pub(super) enum Rows {
    Patches(Vec<f32>),
    Prefix(Vec<f32>),
}

impl Rows {
    pub(super) fn input(&self, images: usize) -> Input<'_> {
        match self {
            Self::Patches(rows) => Input::Patches { rows, images },
            Self::Prefix(rows) => Input::Prefix { rows, images },
        }
    }
}

/// One step: what it looks at, how it weighs it and which random streams it draws from.
pub(super) struct Step<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) weighing: &'a Weighing,
    pub(super) draws: Draws<'a>,
}

/// The random streams of a step.
#[derive(Clone, Copy, Default)]
pub(super) struct Draws<'a> {
    /// Prefix of the names of the round's streams, the epoch and the step; without one nothing is
    /// drawn: no dropout, images as they are, bags whole.
    pub(super) place: Option<(&'a str, u32, u64)>,
    pub(super) dropout: f64,
    pub(super) augment: Option<&'a Augment>,
}

impl Draws<'_> {
    pub(super) fn dropout(&self, shard: usize) -> Dropout {
        match self.place {
            Some((name, _, step)) => {
                Dropout::seeded(self.dropout, stream(&format!("{name}\ndropout {step} {shard}")))
            }
            None => Dropout::off(),
        }
    }

    /// Whether images are changed, so that nothing of them can be kept.
    pub(super) fn vary(&self) -> bool {
        self.place.is_some() && self.augment.is_some()
    }

    /// How a case's image is changed in this epoch.
    pub(super) fn variation(&self, case: &Case) -> Option<Variation> {
        let (name, epoch, _) = self.place?;
        let seed = stream(&format!("{name}\naugment {epoch} {}", case.id));
        self.augment.map(|augment| Variation::draw(augment, seed))
    }

    /// The cases of a unit that this epoch looks at, at most `most`, in the unit's order.
    pub(super) fn instances(&self, unit: &Unit, most: usize) -> Vec<usize> {
        let Some((name, epoch, _)) = self.place.filter(|_| unit.cases.len() > most) else {
            return unit.cases.clone();
        };
        let seed = stream(&format!("{name}\ninstances {epoch} {}", unit.first()));
        let mut cases = unit.cases.clone();
        let (drawn, _) = cases.partial_shuffle(&mut ChaCha12Rng::from_seed(seed), most);
        drawn.sort_unstable();
        drawn.to_vec()
    }
}

/// What a unit's outputs are compared with.
pub(super) enum Truth<'a> {
    Label(&'a Label),
    /// The class of each pixel, `[image_size, image_size]`.
    Mask(Vec<u8>),
}

/// The truth of each unit; a mask changes as its image does.
pub(super) fn truths<'a>(
    dataset: &'a Dataset,
    units: &[Unit],
    draws: &Draws<'_>,
) -> Result<Vec<Truth<'a>>, TrainError> {
    let of = |unit: &Unit| -> Result<Truth<'a>, TrainError> {
        let case = &dataset.cases()[unit.first()];
        if !matches!(case.label, Label::Mask { .. }) {
            return Ok(Truth::Label(&case.label));
        }
        let mut mask = dataset.mask(unit.first())?;
        if let Some(variation) = draws.variation(case) {
            variation.mask(dataset.input().image_size, &mut mask);
        }
        Ok(Truth::Mask(mask))
    };
    units.iter().map(of).collect()
}

/// The patches of `cases`, image after image, as `draws` changes them.
pub(super) fn image_rows(
    model: &AdaptedVit,
    dataset: &Dataset,
    cases: &[usize],
    draws: &Draws<'_>,
) -> Result<Vec<f32>, TrainError> {
    let mut image = vec![0.0; dataset.input().numbers()];
    let mut rows = Vec::with_capacity(image.len() * cases.len());
    for index in cases {
        match draws.variation(&dataset.cases()[*index]) {
            Some(variation) => dataset.varied_pixels(*index, &variation, &mut image)?,
            None => dataset.pixels(*index, &mut image)?,
        }
        model.patchify(&image, &mut rows);
    }
    Ok(rows)
}
