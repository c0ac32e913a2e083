//! Self-distillation without labels (Caron et al. 2021, arXiv:2104.14294): the student's view of
//! an image must be sorted as the teacher sorts another view of it. The teacher is the student's
//! moving average; its outputs are centred and sharpened, so that one answer for everything does
//! not pay. Small parts are seen at a smaller size: the student knows them by fewer patches.

use burn::tensor::Tensor;
use tributary_shared::objective::Dino;

use super::views::WHOLE_VIEWS as GLOBAL_VIEWS;
use super::{Judged, Learner, Views, each_shard, sum};
use crate::model::{Dropout, Gradient, HeadOf, Input, Leaves, Level, Values};
use crate::trainer::Control;
use crate::trainer::session::TrainError;

/// The slowly following model.
pub(super) struct Teacher {
    values: Values,
    momentum: f32,
    centre: Option<Vec<f64>>,
    centre_momentum: f64,
}

impl Teacher {
    pub(super) fn new(dino: &Dino, values: &Values) -> Self {
        Self {
            values: values.clone(),
            momentum: dino.teacher_momentum as f32,
            centre: None,
            centre_momentum: dino.centre_momentum,
        }
    }

    /// After a step of the student.
    pub(super) fn follow(&mut self, student: &Values) {
        let kept = self.momentum;
        for (own, new) in self.values.iter_mut().flatten().zip(student.iter().flatten()) {
            *own = kept * *own + (1.0 - kept) * new;
        }
    }

    /// Moves the centre towards the mean of a batch's outputs; gives the centre of this step.
    fn centre(&mut self, outputs: &[Vec<f32>], prototypes: usize) -> Vec<f64> {
        let mut mean = vec![0.0; prototypes];
        let mut rows = 0.0;
        for row in outputs.iter().flat_map(|outputs| outputs.chunks(prototypes)) {
            rows += 1.0;
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x));
        }
        mean.iter_mut().for_each(|m| *m /= rows);
        let now = self.centre.take().unwrap_or_else(|| mean.clone());
        let kept = self.centre_momentum;
        let next = now.iter().zip(&mean).map(|(c, m)| kept * c + (1.0 - kept) * m).collect();
        self.centre = Some(next);
        now
    }
}

pub(super) fn gradient(
    learner: &Learner<'_>,
    dino: &Dino,
    values: &Values,
    views: &Views<'_>,
    batch: &[usize],
    teacher: &mut Teacher,
    control: &Control,
) -> Result<Gradient, TrainError> {
    let model = learner.model;
    let head = |leaves: &Leaves<'_>, features| {
        sorted(leaves, dino.prototypes, model.head(leaves, features))
    };
    let (head, level): (&HeadOf<'_>, _) = (&head, Level::Features);
    let images = learner.images_of_shard(GLOBAL_VIEWS + dino.local_views);
    let (values, taught) = (&model.place(values), &model.place(&teacher.values));
    let outputs = each_shard(batch, images, control, |_, shard| {
        let rows = learner.whole_rows(views, shard)?;
        let input = Input::Patches { rows: &rows, images: shard.len() * GLOBAL_VIEWS };
        Ok(model.through(taught, input, level, &mut Dropout::off(), head))
    })?;
    let centre = teacher.centre(&outputs, dino.prototypes);
    let side = dino.local_side(model.architecture()) / model.architecture().patch_size;
    let parts = each_shard(batch, images, control, |number, shard| {
        let mut dropout = learner.dropout(views, batch, number);
        let share = shard.len() as f64 / batch.len() as f64;
        let targets = Targets::of(dino, &outputs[number], &centre);
        // Views are judged one by one: those of one size pass together.
        let mut pass = |input: Input<'_>, judge: &dyn Fn(&[f32]) -> Judged| {
            let loss = |student: &[f32]| {
                let Judged { loss, by_output } = judge(student);
                (share * loss, by_output.into_iter().map(|d| share as f32 * d).collect())
            };
            model.gradient_through(values, input, level, &mut dropout, head, loss)
        };
        // Once more, unless they were read ahead: a batch's pictures are many more numbers than a
        // shard's.
        let rows = learner.whole_rows(views, shard)?;
        let input = Input::Patches { rows: &rows, images: shard.len() * GLOBAL_VIEWS };
        let mut passes = vec![pass(input, &|student| targets.judge_global(student))];
        if dino.local_views > 0 {
            let rows = learner.part_rows(views, shard)?;
            let input =
                Input::Smaller { rows: &rows, images: shard.len() * dino.local_views, side };
            passes.push(pass(input, &|student| targets.judge_local(student)));
        }
        sum(passes)
    })?;
    sum(parts)
}

/// Cosines of projections `[views, 1, projection]` with the prototypes, `[views, 1, prototypes]`.
fn sorted(leaves: &Leaves<'_>, prototypes: usize, projections: Tensor<3>) -> Tensor<3> {
    let projection = projections.dims()[2];
    let table = leaves.take("head.prototypes.weight").reshape([prototypes, projection]);
    unit(projections).matmul(unit(table).transpose().unsqueeze_dim(0))
}

/// Rows of length one.
fn unit<const D: usize>(rows: Tensor<D>) -> Tensor<D> {
    let lengths = rows.clone().square().sum_dim(D - 1).add_scalar(1e-12).sqrt();
    rows / lengths
}

/// The mean cross-entropy, over images and over pairs of a global view of the teacher's and
/// another view of the student's, of softmax((teacher - centre) / teacher temperature) and
/// softmax(student / student temperature); its derivative by the student's outputs.
///
/// `teacher` is `[images, 2, prototypes]`; `student` is the same followed by
/// `[images, local views, prototypes]`.
pub fn dino_loss(dino: &Dino, student: &[f32], teacher: &[f32], centre: &[f64]) -> Judged {
    let targets = Targets::of(dino, teacher, centre);
    let (global, local) = student.split_at(teacher.len());
    let (mut judged, local) = (targets.judge_global(global), targets.judge_local(local));
    judged.loss += local.loss;
    judged.by_output.extend(local.by_output);
    judged
}

/// What the teacher says of a shard's global views.
struct Targets<'a> {
    dino: &'a Dino,
    /// One row a view, image after image.
    rows: Vec<Vec<f64>>,
    /// Pairs that the loss is the mean over.
    pairs: f64,
}

impl<'a> Targets<'a> {
    fn of(dino: &'a Dino, teacher: &[f32], centre: &[f64]) -> Self {
        let target = |row: &[f32]| {
            let centred = row.iter().zip(centre).map(|(x, c)| f64::from(*x) - c);
            softmax(centred, dino.teacher_temperature).0
        };
        let rows: Vec<Vec<f64>> = teacher.chunks(dino.prototypes).map(target).collect();
        let pairs = (rows.len() * (GLOBAL_VIEWS - 1 + dino.local_views)) as f64;
        Self { dino, rows, pairs }
    }

    /// The part of the loss that the student's global views have; a view is not compared with the
    /// teacher's look at the very same picture.
    fn judge_global(&self, student: &[f32]) -> Judged {
        self.judge(student, |at| {
            let first = at - at % GLOBAL_VIEWS;
            (first..first + GLOBAL_VIEWS).filter(move |from| *from != at)
        })
    }

    /// The part of the loss that the student's local views have.
    fn judge_local(&self, student: &[f32]) -> Judged {
        self.judge(student, |at| {
            let first = at / self.dino.local_views * GLOBAL_VIEWS;
            first..first + GLOBAL_VIEWS
        })
    }

    /// `against` names the teacher's rows that the student's row at a place is compared with.
    fn judge<I: Iterator<Item = usize>>(
        &self,
        student: &[f32],
        against: impl Fn(usize) -> I,
    ) -> Judged {
        let Dino { prototypes, student_temperature, .. } = *self.dino;
        let mut judged = Judged { loss: 0.0, by_output: Vec::with_capacity(student.len()) };
        for (at, row) in student.chunks(prototypes).enumerate() {
            let (said, logarithms) =
                softmax(row.iter().map(|x| f64::from(*x)), student_temperature);
            let mut by_row = vec![0.0; prototypes];
            for from in against(at) {
                for (k, target) in self.rows[from].iter().enumerate() {
                    judged.loss -= target * logarithms[k] / self.pairs;
                    by_row[k] += (said[k] - target) / (student_temperature * self.pairs);
                }
            }
            judged.by_output.extend(by_row.into_iter().map(|d| d as f32));
        }
        judged
    }
}

/// Shares and their logarithms.
fn softmax(row: impl Iterator<Item = f64>, temperature: f64) -> (Vec<f64>, Vec<f64>) {
    let scores: Vec<f64> = row.map(|x| x / temperature).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
    let logarithms: Vec<f64> = scores.iter().map(|s| s - highest - total.ln()).collect();
    (logarithms.iter().map(|l| l.exp()).collect(), logarithms)
}
