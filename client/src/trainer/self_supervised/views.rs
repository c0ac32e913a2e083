//! Views of images: each drawn from a random stream of its own, so that a repeated round sees the
//! same pictures on any number of threads.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use tributary_shared::architecture::Architecture;
use tributary_shared::augment::Augment;
use tributary_shared::objective::{Dino, Objective};

use super::Learner;
use crate::data::Dataset;
use crate::data::augment::Variation;
use crate::model::patchify;
use crate::trainer::ahead::Ahead;
use crate::trainer::session::{TrainError, stream};

/// Views of most of an image where views are compared.
pub(super) const WHOLE_VIEWS: usize = 2;

/// The pictures that an objective takes of one image, cut to patches, view after view.
#[derive(Debug, Default)]
pub(in crate::trainer) struct Pictures {
    /// Views of the image or of most of it.
    whole: Vec<f32>,
    /// Views of small parts of it.
    parts: Vec<f32>,
}

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
    /// What was read of a step's cases before it began; none of them where absent.
    pub(in crate::trainer) ahead: Option<&'a Ahead<Pictures>>,
}

impl<'a> Views<'a> {
    pub(super) fn of_epoch(&self, epoch: u32) -> Self {
        Self { epoch, ..self.clone() }
    }

    pub(super) fn with<'b>(&self, ahead: &'b Ahead<Pictures>) -> Views<'b>
    where
        'a: 'b,
    {
        Views { ahead: Some(ahead), ..self.clone() }
    }

    pub(super) fn stream_name(&self, what: &str) -> String {
        format!("{} {what}", self.name)
    }

    pub(super) fn stream(&self, what: &str) -> [u8; 32] {
        stream(&self.stream_name(&format!("{what} {}", self.epoch)))
    }

    fn view_stream(&self, case: usize, view: usize) -> [u8; 32] {
        self.stream(&format!("view {view} {}", self.dataset.cases()[case].id))
    }

    /// Whether a case's masked image is a mirrored one, and the stream that goes on to its mask.
    pub(super) fn mask(&self, case: usize) -> (bool, ChaCha12Rng) {
        let name = self.stream_name(&format!("mask {} {case}", self.epoch));
        let mut rng = ChaCha12Rng::from_seed(stream(&name));
        (rng.next_u32() & 1 == 1 && self.mirrored, rng)
    }

    /// The image of a case as `view` shows it.
    fn whole(&self, case: usize, view: usize, image: &mut [f32]) -> Result<(), TrainError> {
        match self.augment {
            Some(augment) => {
                let variation = Variation::draw(augment, self.view_stream(case, view));
                self.dataset.varied_pixels(case, &variation, image)?;
            }
            None => self.dataset.pixels(case, image)?,
        }
        if self.mirrored && self.mask(case).0 {
            image.chunks_mut(self.dataset.input().image_size).for_each(<[f32]>::reverse);
        }
        Ok(())
    }

    /// A part of a case's image, `side` pixels a side, as `view` shows it.
    fn part(
        &self,
        case: usize,
        view: usize,
        dino: &Dino,
        side: usize,
    ) -> Result<Vec<f32>, TrainError> {
        let augment = self.augment.cloned().unwrap_or_default();
        let area_max = self.augment.map_or(1.0, |augment| augment.crop_area_min);
        let area = dino.local_area_min..=area_max;
        let variation = Variation::draw_part(&augment, area, self.view_stream(case, view));
        Ok(self.dataset.varied_pixels_on(case, &variation, side)?)
    }
}

impl Learner<'_> {
    fn whole_views(&self) -> usize {
        match self.objective {
            Objective::Mae(_) => 1,
            Objective::SimClr(_) | Objective::Dino(_) => WHOLE_VIEWS,
        }
    }

    /// Bytes of [`Pictures`] of a case.
    pub(super) fn pictures_bytes(&self) -> usize {
        let architecture = self.model.architecture();
        let pixels = architecture.image_size.pow(2) * self.whole_views()
            + match self.objective {
                Objective::Dino(dino) => dino.local_side(architecture).pow(2) * dino.local_views,
                Objective::Mae(_) | Objective::SimClr(_) => 0,
            };
        4 * architecture.channels * pixels
    }

    /// Every picture that the objective takes of a case.
    pub(super) fn pictures(&self, views: &Views<'_>, case: usize) -> Result<Pictures, TrainError> {
        let mut pictures = Pictures::default();
        self.whole_of(views, case, &mut pictures.whole)?;
        self.parts_of(views, case, &mut pictures.parts)?;
        Ok(pictures)
    }

    /// The patches of whole views of each case of `shard`, case after case.
    pub(super) fn whole_rows(
        &self,
        views: &Views<'_>,
        shard: &[usize],
    ) -> Result<Vec<f32>, TrainError> {
        let mut rows = Vec::new();
        for case in shard {
            match views.ahead.and_then(|ahead| ahead.get(*case)) {
                Some(pictures) => rows.extend_from_slice(&pictures.whole),
                None => self.whole_of(views, *case, &mut rows)?,
            }
        }
        Ok(rows)
    }

    /// The patches of the small parts of each case of `shard`, case after case.
    pub(super) fn part_rows(
        &self,
        views: &Views<'_>,
        shard: &[usize],
    ) -> Result<Vec<f32>, TrainError> {
        let mut rows = Vec::new();
        for case in shard {
            match views.ahead.and_then(|ahead| ahead.get(*case)) {
                Some(pictures) => rows.extend_from_slice(&pictures.parts),
                None => self.parts_of(views, *case, &mut rows)?,
            }
        }
        Ok(rows)
    }

    fn whole_of(
        &self,
        views: &Views<'_>,
        case: usize,
        rows: &mut Vec<f32>,
    ) -> Result<(), TrainError> {
        let mut image = vec![0.0; views.dataset.input().numbers()];
        for view in 0..self.whole_views() {
            views.whole(case, view, &mut image)?;
            self.model.patchify(&image, rows);
        }
        Ok(())
    }

    fn parts_of(
        &self,
        views: &Views<'_>,
        case: usize,
        rows: &mut Vec<f32>,
    ) -> Result<(), TrainError> {
        let Objective::Dino(dino) = self.objective else { return Ok(()) };
        let image_size = dino.local_side(self.model.architecture());
        let small = Architecture { image_size, ..self.model.architecture().clone() };
        for view in WHOLE_VIEWS..WHOLE_VIEWS + dino.local_views {
            patchify(&small, &views.part(case, view, dino, image_size)?, rows);
        }
        Ok(())
    }
}
