//! Contrast of views (Chen et al. 2020, arXiv:2002.05709): a view shall lie nearer to the other
//! view of its image than to any view of the batch's other images.

use rayon::prelude::*;
use tributary_shared::objective::SimClr;

use super::views::WHOLE_VIEWS as VIEWS;
use super::{Judged, Learner, Views, each_shard, sum};
use crate::model::{Gradient, HeadOf, Input, Leaves, Level, Values};
use crate::trainer::Control;
use crate::trainer::session::{TrainError, check_stop};

/// All projections first, without a graph; the loss's derivative by each; then each shard's own
/// pass with that derivative (Gao et al. 2021, arXiv:2101.06983). Memory is one shard's, the numbers
/// are those of one graph over the whole batch.
pub(super) fn gradient(
    learner: &Learner<'_>,
    simclr: &SimClr,
    values: &Values,
    views: &Views<'_>,
    batch: &[usize],
    control: &Control,
) -> Result<Gradient, TrainError> {
    let model = learner.model;
    let head = |leaves: &Leaves<'_>, features| model.head(leaves, features);
    let (head, level): (&HeadOf<'_>, _) = (&head, Level::Features);
    let values = &model.place(values);
    let images = learner.images_of_shard(VIEWS);
    let projections = each_shard(batch, images, control, |number, shard| {
        let rows = learner.whole_rows(views, shard)?;
        let input = Input::Patches { rows: &rows, images: shard.len() * VIEWS };
        let mut dropout = learner.dropout(views, batch, number);
        Ok(model.through(values, input, level, &mut dropout, head))
    })?;
    let SimClr { projection, temperature, .. } = *simclr;
    let judged = nt_xent(&projections.concat(), projection, temperature, control)?;
    let of_shard = images * VIEWS * simclr.projection;
    let parts = each_shard(batch, images, control, |number, shard| {
        // Once more, unless they were read ahead: a batch's pictures are many more numbers than a
        // shard's.
        let rows = learner.whole_rows(views, shard)?;
        let input = Input::Patches { rows: &rows, images: shard.len() * VIEWS };
        let start = number * of_shard;
        let known = &judged.by_output[start..(start + of_shard).min(judged.by_output.len())];
        let mut dropout = learner.dropout(views, batch, number);
        let loss = |_: &[f32]| (0.0, known.to_vec());
        Ok(model.gradient_through(values, input, level, &mut dropout, head, loss))
    })?;
    let mut whole = sum(parts)?;
    whole.loss = judged.loss;
    Ok(whole)
}

/// The normalised temperature-scaled cross-entropy of projections `[images, 2, width]`: the mean
/// over all views i, with j the other view of the same image, of
/// -log(exp(cos(i, j) / t) / sum over k other than i of exp(cos(i, k) / t)).
///
/// Row by row on all threads, each row's sums in order: the same bits on any number. The views'
/// scores of each other are computed twice rather than kept, for they are many. An error when
/// stopped.
pub fn nt_xent(
    projections: &[f32],
    width: usize,
    temperature: f64,
    control: &Control,
) -> Result<Judged, TrainError> {
    let views: Vec<Vec<f64>> =
        projections.chunks(width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
    let lengths: Vec<f64> = views.iter().map(|row| dot(row, row).sqrt().max(1e-12)).collect();
    let units: Vec<Vec<f64>> = views
        .iter()
        .zip(&lengths)
        .map(|(row, length)| row.iter().map(|x| x / length).collect())
        .collect();
    let count = units.len();
    let score = |i: usize, k: usize| dot(&units[i], &units[k]) / temperature;
    let contrast = |i: usize| {
        check_stop(control)?;
        let scores: Vec<f64> = (0..count).map(|k| score(i, k)).collect();
        let rest = || (0..count).filter(|k| *k != i).map(|k| scores[k]);
        let highest = rest().fold(f64::NEG_INFINITY, f64::max);
        let log_total = highest + rest().map(|s| (s - highest).exp()).sum::<f64>().ln();
        Ok(Contrast { log_total, loss: log_total - scores[i ^ 1] })
    };
    let contrasts: Vec<Contrast> =
        (0..count).into_par_iter().map(contrast).collect::<Result<_, TrainError>>()?;
    let by_view = |i: usize| {
        check_stop(control)?;
        // The loss's derivative by the unit vector: of its own contrast and of all others'.
        let mut by_unit = vec![0.0; width];
        for k in (0..count).filter(|k| *k != i) {
            let score = score(i, k);
            let shares = [i, k].map(|row| (score - contrasts[row].log_total).exp());
            let share = shares[0] + shares[1] - 2.0 * f64::from(u8::from(k == i ^ 1));
            let by_cosine = share / (count as f64 * temperature);
            by_unit.iter_mut().zip(&units[k]).for_each(|(d, u)| *d += by_cosine * u);
        }
        let along = dot(&by_unit, &units[i]);
        let of = |(d, u): (&f64, &f64)| ((d - along * u) / lengths[i]) as f32;
        Ok(by_unit.iter().zip(&units[i]).map(of).collect())
    };
    let by_output: Vec<Vec<f32>> =
        (0..count).into_par_iter().map(by_view).collect::<Result<_, TrainError>>()?;
    let loss = contrasts.iter().map(|contrast| contrast.loss).sum::<f64>() / count as f64;
    Ok(Judged { loss, by_output: by_output.concat() })
}

/// One view beside all others.
struct Contrast {
    /// Logarithm of the sum of the others' exponentiated scores.
    log_total: f64,
    loss: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
