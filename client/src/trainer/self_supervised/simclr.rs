//! Contrast of views (Chen et al. 2020, arXiv:2002.05709): a view shall lie nearer to the other
//! view of its image than to any view of the batch's other images.

use tributary_shared::objective::SimClr;

use super::{Judged, Learner, Views, each_shard, sum};
use crate::model::{Gradient, HeadOf, Input, Leaves, Level, Values};
use crate::trainer::Control;
use crate::trainer::session::TrainError;

/// Views of each image.
const VIEWS: usize = 2;

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
        let rows = views.rows(model, shard, 0..VIEWS, None)?;
        let input = Input::Patches { rows: &rows, images: shard.len() * VIEWS };
        let mut dropout = learner.dropout(views, batch, number);
        Ok(model.through(values, input, level, &mut dropout, head))
    })?;
    let judged = nt_xent(&projections.concat(), simclr.projection, simclr.temperature);
    let of_shard = images * VIEWS * simclr.projection;
    let parts = each_shard(batch, images, control, |number, shard| {
        // The same views once more: a batch's pictures are many more numbers than a shard's.
        let rows = views.rows(model, shard, 0..VIEWS, None)?;
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
pub fn nt_xent(projections: &[f32], width: usize, temperature: f64) -> Judged {
    let views: Vec<Vec<f64>> =
        projections.chunks(width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
    let lengths: Vec<f64> = views.iter().map(|row| dot(row, row).sqrt().max(1e-12)).collect();
    let units: Vec<Vec<f64>> = views
        .iter()
        .zip(&lengths)
        .map(|(row, length)| row.iter().map(|x| x / length).collect())
        .collect();
    let count = views.len();
    let mut loss = 0.0;
    // The loss's derivative by each unit vector.
    let mut by_unit = vec![vec![0.0; width]; count];
    for i in 0..count {
        let other = i ^ 1;
        let scores: Vec<f64> = units.iter().map(|u| dot(&units[i], u) / temperature).collect();
        let rest = || (0..count).filter(|k| *k != i);
        let highest = rest().map(|k| scores[k]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = rest().map(|k| (scores[k] - highest).exp()).sum();
        loss += (highest + total.ln() - scores[other]) / count as f64;
        for k in rest() {
            let share = (scores[k] - highest).exp() / total - f64::from(u8::from(k == other));
            let by_cosine = share / (count as f64 * temperature);
            for at in 0..width {
                by_unit[i][at] += by_cosine * units[k][at];
                by_unit[k][at] += by_cosine * units[i][at];
            }
        }
    }
    let by_view = |i: usize| {
        let along = dot(&by_unit[i], &units[i]);
        let length = lengths[i];
        let of = move |(d, u): (&f64, &f64)| ((d - along * u) / length) as f32;
        by_unit[i].iter().zip(&units[i]).map(of).collect::<Vec<f32>>()
    };
    Judged { loss, by_output: (0..count).flat_map(by_view).collect() }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
