//! A step's images on their way into the model, and the truth they are compared with.

use std::borrow::Cow;

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use tributary_shared::augment::Augment;

use super::ahead::Ahead;
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
    /// What was read of its cases before it began; none of them where absent.
    pub(super) ahead: Option<&'a Ahead<Read>>,
}

impl<'a> Step<'a> {
    /// One that looks at everything as it is.
    pub(super) fn plain(source: &'a Source<'a>, weighing: &'a Weighing) -> Self {
        Self { source, weighing, draws: Draws::default(), ahead: None }
    }

    fn read(&self, case: usize) -> Option<&Read> {
        self.ahead?.get(case)
    }

    /// Appends the patches of a case's image, as the step's draws change it.
    pub(super) fn patches(
        &self,
        model: &AdaptedVit,
        case: usize,
        rows: &mut Vec<f32>,
    ) -> Result<(), TrainError> {
        match self.read(case) {
            Some(Read { entering: Rows::Patches(known), .. }) => {
                rows.extend_from_slice(known);
                Ok(())
            }
            Some(Read { entering: Rows::Prefix(_), .. }) | None => {
                patches(model, self.source.dataset(), case, &self.draws, rows)
            }
        }
    }

    /// The prefix of a case, where one was kept and read.
    pub(super) fn prefix(&self, case: usize) -> Option<&[f32]> {
        match &self.read(case)?.entering {
            Rows::Prefix(known) => Some(known),
            Rows::Patches(_) => None,
        }
    }

    /// The truth of each unit; a mask changes as its image does.
    pub(super) fn truths(&self, units: &[Unit]) -> Result<Vec<Truth<'_>>, TrainError> {
        let of = |unit: &Unit| {
            let case = unit.first();
            Ok(match self.read(case).and_then(|read| read.mask.as_deref()) {
                Some(mask) => Truth::Mask(Cow::Borrowed(mask)),
                None => truth(self.source.dataset(), case, &self.draws)?,
            })
        };
        units.iter().map(of).collect()
    }
}

/// What a step needs of a case, read before the step began.
pub(super) struct Read {
    /// Its patches, or its kept prefix.
    pub(super) entering: Rows,
    /// Of a segmentation.
    pub(super) mask: Option<Vec<u8>>,
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
    Mask(Cow<'a, [u8]>),
}

/// The truths of `units`, nothing drawn.
pub(super) fn truths<'a>(
    dataset: &'a Dataset,
    units: &[Unit],
) -> Result<Vec<Truth<'a>>, TrainError> {
    units.iter().map(|unit| truth(dataset, unit.first(), &Draws::default())).collect()
}

fn truth<'a>(
    dataset: &'a Dataset,
    case: usize,
    draws: &Draws<'_>,
) -> Result<Truth<'a>, TrainError> {
    Ok(match mask(dataset, case, draws)? {
        Some(mask) => Truth::Mask(Cow::Owned(mask)),
        None => Truth::Label(&dataset.cases()[case].label),
    })
}

/// The mask of a case that has one, changed as its image is.
pub(super) fn mask(
    dataset: &Dataset,
    case: usize,
    draws: &Draws<'_>,
) -> Result<Option<Vec<u8>>, TrainError> {
    let described = &dataset.cases()[case];
    if !matches!(described.label, Label::Mask { .. }) {
        return Ok(None);
    }
    let mut mask = dataset.mask(case)?;
    if let Some(variation) = draws.variation(described) {
        variation.mask(dataset.input().image_size, &mut mask);
    }
    Ok(Some(mask))
}

/// Appends the patches of a case's image, as `draws` changes it.
pub(super) fn patches(
    model: &AdaptedVit,
    dataset: &Dataset,
    case: usize,
    draws: &Draws<'_>,
    rows: &mut Vec<f32>,
) -> Result<(), TrainError> {
    let mut image = vec![0.0; dataset.input().numbers()];
    match draws.variation(&dataset.cases()[case]) {
        Some(variation) => dataset.varied_pixels(case, &variation, &mut image)?,
        None => dataset.pixels(case, &mut image)?,
    }
    model.patchify(&image, rows);
    Ok(())
}

/// The patches of `cases`, image after image, nothing drawn.
pub(super) fn image_rows(
    model: &AdaptedVit,
    dataset: &Dataset,
    cases: &[usize],
) -> Result<Vec<f32>, TrainError> {
    let mut rows = Vec::with_capacity(dataset.input().numbers() * cases.len());
    for case in cases {
        patches(model, dataset, *case, &Draws::default(), &mut rows)?;
    }
    Ok(rows)
}
