//! What a step looks at, on its way into the model.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tributary_shared::digest::Digest;

use super::{Session, TrainError};
use crate::data::{Dataset, InputSpec};
use crate::model::Prefix;
use crate::trainer::batch::{Draws, Read, Rows, Source, Step, mask, patches};
use crate::trainer::cache::Shelf;
use crate::trainer::shards::cut;
use crate::trainer::units::Unit;

impl Session<'_> {
    /// The cases that a step looks at of each unit of its batch.
    pub(super) fn drawn(&self, batch: &[Unit], draws: &Draws<'_>) -> Vec<Vec<usize>> {
        match self.bags {
            Some(bags) => {
                batch.iter().map(|unit| draws.instances(unit, bags.instances_max)).collect()
            }
            None => batch.iter().map(|unit| vec![unit.first()]).collect(),
        }
    }

    /// All of them, one after another.
    pub(in crate::trainer) fn looked_at(&self, batch: &[Unit], draws: &Draws<'_>) -> Vec<usize> {
        self.drawn(batch, draws).concat()
    }

    /// Bytes of what [`Self::read`] gives of a case, at most.
    pub(in crate::trainer) fn read_bytes(&self, dataset: &Dataset) -> usize {
        let kept = self.shelf.as_ref().map(|(_, prefix)| self.model.prefix_numbers(*prefix));
        let InputSpec { image_size, .. } = dataset.input();
        let mask = self.stretch.map_or(0, |_| image_size.pow(2));
        4 * dataset.input().numbers().max(kept.unwrap_or(0)) + mask
    }

    /// What a step with `draws` needs of a case: what [`Self::rows`] would read, computing nothing.
    pub(in crate::trainer) fn read(
        &self,
        dataset: &Dataset,
        draws: &Draws<'_>,
        case: usize,
    ) -> Result<Read, TrainError> {
        self.timed(|| {
            let shelf = self.shelf.as_ref().filter(|_| !draws.vary());
            let kept = match shelf {
                Some((shelf, _)) => shelf.get(&dataset.content(case)?),
                None => None,
            };
            let entering = match kept {
                Some(prefix) => Rows::Prefix(prefix),
                None => {
                    let mut rows = Vec::with_capacity(dataset.input().numbers());
                    patches(&self.model, dataset, case, draws, &mut rows)?;
                    Rows::Patches(rows)
                }
            };
            Ok(Read { entering, mask: mask(dataset, case, draws)? })
        })
    }

    /// Model inputs of `cases`.
    pub(super) fn rows(&self, step: &Step<'_>, cases: &[usize]) -> Result<Rows, TrainError> {
        self.timed(|| self.rows_now(step, cases))
    }

    /// Counts the time of `reading`.
    fn timed<T>(&self, reading: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let read = reading();
        self.reading_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        read
    }

    /// Threads' time spent so far on model inputs, a prefix that had to be computed included, seconds.
    pub(in crate::trainer) fn reading_s(&self) -> f64 {
        self.reading_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    fn rows_now(&self, step: &Step<'_>, cases: &[usize]) -> Result<Rows, TrainError> {
        match (step.source, &self.shelf) {
            (Source::Prefix(_, features), _) => Ok(Rows::Prefix(rows_of(features, cases))),
            (Source::Images(_), Some(shelf)) if !step.draws.vary() => {
                Ok(Rows::Prefix(self.kept_rows(shelf, step, cases)?.concat()))
            }
            (Source::Images(dataset), _) => {
                let mut rows = Vec::with_capacity(dataset.input().numbers() * cases.len());
                for case in cases {
                    step.patches(&self.model, *case, &mut rows)?;
                }
                Ok(Rows::Patches(rows))
            }
        }
    }

    /// Each case's prefix, as the step knows it or from the shelf, where it lies there.
    pub(super) fn kept_rows(
        &self,
        (shelf, prefix): &(Shelf<'_>, Prefix),
        step: &Step<'_>,
        cases: &[usize],
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let dataset = step.source.dataset();
        let mut rows = Vec::with_capacity(cases.len());
        let mut missing = Vec::new();
        for (at, case) in cases.iter().enumerate() {
            if let Some(known) = step.prefix(*case) {
                rows.push(known.to_vec());
                continue;
            }
            let content = dataset.content(*case)?;
            let kept = shelf.get(&content);
            if kept.is_none() {
                missing.push((at, content));
            }
            rows.push(kept.unwrap_or_default());
        }
        if missing.is_empty() {
            return Ok(rows);
        }
        let mut images = Vec::with_capacity(dataset.input().numbers() * missing.len());
        for (at, _) in &missing {
            step.patches(&self.model, cases[*at], &mut images)?;
        }
        let computed = self.model.prefix(*prefix, &images, missing.len());
        let mut computed = cut(&computed, missing.len());
        let (places, contents): (Vec<usize>, Vec<Digest>) = missing.into_iter().unzip();
        shelf.put(&contents, &mut computed);
        places.into_iter().zip(computed).for_each(|(at, row)| rows[at] = row);
        Ok(rows)
    }
}

/// The rows of `cases`, one after another.
pub(super) fn rows_of(features: &[Vec<f32>], cases: &[usize]) -> Vec<f32> {
    cases.iter().flat_map(|index| features[*index].iter().copied()).collect()
}
