//! A batch in pieces: how large they are, and how what they give is put together.

use rayon::prelude::*;

use super::session::{TrainError, check_stop};
use super::{Control, Meter, Phase, Progress};
use crate::model::{Backbone, Compute, Gradient, Shard, Values};

/// Images that the device likes to have computed in one piece.
pub(super) fn shard_images(backbone: &Backbone, compute: &Compute) -> usize {
    let Shard { images_max, work_max } = compute.shard();
    let work = backbone.parameters() * backbone.architecture().tokens();
    (work_max / work).clamp(1, images_max)
}

/// Gives a row for each of a shard's cases.
pub(super) type OfShard<'a> = dyn Fn(&[usize]) -> Result<Vec<Vec<f32>>, TrainError> + Sync + 'a;

/// One row of `of_shard` a case, in the order of `cases`.
pub(super) fn map_shards(
    cases: &[usize],
    shard_images: usize,
    phase: Phase,
    (control, progress): (&Control, &mut dyn FnMut(Progress)),
    of_shard: &OfShard<'_>,
) -> Result<Vec<Vec<f32>>, TrainError> {
    // Between groups progress is told; inside one, shards keep every thread busy.
    let group_images = shard_images * 2 * rayon::current_num_threads();
    let mut meter = Meter::new(phase, cases.len().div_ceil(group_images) as u64);
    let mut all = Vec::with_capacity(cases.len());
    for group in cases.chunks(group_images) {
        let shards: Vec<&[usize]> = group.chunks(shard_images).collect();
        let unless_stopped = |shard: &[usize]| check_stop(control).and_then(|()| of_shard(shard));
        let parts: Result<Vec<_>, _> = shards.into_par_iter().map(unless_stopped).collect();
        all.extend(parts?.into_iter().flatten());
        progress(meter.advance(group.len(), None));
    }
    Ok(all)
}

/// `flat` as `rows` rows.
pub(super) fn cut(flat: &[f32], rows: usize) -> Vec<Vec<f32>> {
    flat.chunks(flat.len() / rows).map(<[f32]>::to_vec).collect()
}

/// Gradients added in order; `None` of none.
pub(super) fn sum(parts: Vec<Gradient>) -> Option<Gradient> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next()?;
    for part in parts {
        whole.loss += part.loss;
        add(&mut whole.values, &part.values);
    }
    Some(whole)
}

/// Adds `part` to `sum`.
pub(super) fn add(sum: &mut Values, part: &[Vec<f32>]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
}
