//! Losses and outputs that many images make together: bags, and sets of follow-ups.

use burn::tensor::activation::softmax;
use rayon::prelude::*;
use tributary_shared::bags::Bags;
use tributary_shared::manifest::Task;

use super::reading::rows_of;
use super::{Session, TrainError, as_it_is, check_stop};
use crate::data::Dataset;
use crate::model::{Dropout, Gradient, HeadOf, Input, Leaves, Level, Placed};
use crate::trainer::batch::{Source, Step};
use crate::trainer::heads::{bag_scores, pool_bags};
use crate::trainer::shards::add;
use crate::trainer::units::Unit;
use crate::trainer::{Control, Phase, Progress};

impl Session<'_> {
    /// Whether a loss needs the features of several images at once.
    pub(super) fn gathers(&self) -> bool {
        self.bags.is_some() || matches!(self.task, Task::Survival {})
    }

    /// As [`Self::gradient`] of a loss over many images at once, in the memory of a few: all
    /// features first, without a graph; the loss's derivative by each of them; then each shard's
    /// own pass with that derivative (Gao et al. 2021, arXiv:2101.06983). The same numbers as one
    /// graph over everything would give.
    pub(super) fn gathered_gradient(
        &self,
        values: &[Vec<f32>],
        step: &Step<'_>,
        batch: &[Unit],
        control: &Control,
    ) -> Result<Gradient, TrainError> {
        let drawn = self.drawn(batch, &step.draws);
        let sizes: Vec<usize> = drawn.iter().map(Vec::len).collect();
        let cases: Vec<usize> = drawn.into_iter().flatten().collect();
        let shards: Vec<&[usize]> = cases.chunks(self.shard_images).collect();
        let values = &self.model.place(values);
        let features = match step.source {
            Source::Prefix(_, features) => rows_of(features, &cases),
            Source::Images(_) => {
                let of_shard = |(number, shard): (usize, &&[usize])| {
                    check_stop(control)?;
                    let rows = self.rows(step, shard)?;
                    let (input, mut dropout) =
                        (rows.input(shard.len()), step.draws.dropout(number));
                    Ok(self.model.through(values, input, Level::Features, &mut dropout, &as_it_is))
                };
                let parts: Result<Vec<Vec<f32>>, TrainError> =
                    shards.par_iter().enumerate().map(of_shard).collect();
                parts?.concat()
            }
        };
        let truths = step.truths(batch)?;
        let share = 1.0 / batch.len() as f64;
        let loss = |outputs: &[f32]| self.loss(step.weighing, outputs, &truths, share);
        let width = features.len() / cases.len();
        let dims = [cases.len(), 1, width];
        let head = self.gathered_head(&sizes);
        let (mut whole, by_feature) =
            self.model.head_gradient(values, &features, dims, &*head, loss);
        if let Source::Prefix(..) = step.source {
            return Ok(whole);
        }
        let derivatives: Vec<&[f32]> = by_feature.chunks(self.shard_images * width).collect();
        let of_shard = |(number, (shard, by_feature)): (usize, (&&[usize], &&[f32]))| {
            check_stop(control)?;
            let rows = self.rows(step, shard)?;
            let (input, mut dropout) = (rows.input(shard.len()), step.draws.dropout(number));
            let known = |_: &[f32]| (0.0, by_feature.to_vec());
            let level = Level::Features;
            Ok(self.model.gradient_through(values, input, level, &mut dropout, &as_it_is, known))
        };
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.par_iter().zip(&derivatives).enumerate().map(of_shard).collect();
        for part in parts? {
            add(&mut whole.values, &part.values);
        }
        Ok(whole)
    }

    /// From features to the outputs of each bag of `sizes` or, without bags, of each image.
    fn gathered_head<'s>(&'s self, sizes: &'s [usize]) -> Box<HeadOf<'s>> {
        Box::new(move |leaves: &Leaves<'_>, features| {
            let pooled = match self.bags {
                Some(bags) => pool_bags(leaves, bags, sizes, features),
                None => features,
            };
            self.model.head(leaves, pooled)
        })
    }

    /// The outputs of each unit, nothing drawn.
    pub(super) fn gathered_outputs(
        &self,
        values: &Placed,
        dataset: &Dataset,
        units: &[Unit],
        watch: (&Control, &mut dyn FnMut(Progress)),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        self.of_each_unit(values, dataset, units, watch, &|leaves, features| {
            self.gathered_head(&[features.dims()[0]])(leaves, features)
        })
    }

    /// How much each case of each unit, a bag, counts in it; each bag's sum to 1.
    pub(in crate::trainer) fn bag_shares(
        &self,
        values: &[Vec<f32>],
        bags: &Bags,
        dataset: &Dataset,
        units: &[Unit],
        watch: (&Control, &mut dyn FnMut(Progress)),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let values = &self.model.place(values);
        self.of_each_unit(values, dataset, units, watch, &|leaves, features| {
            let scores = bag_scores(leaves, bags, features);
            softmax(scores, 0).unsqueeze_dim(2)
        })
    }

    /// What `head` makes of the features of each unit's cases.
    fn of_each_unit(
        &self,
        values: &Placed,
        dataset: &Dataset,
        units: &[Unit],
        watch: (&Control, &mut dyn FnMut(Progress)),
        head: &HeadOf<'_>,
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let cases: Vec<usize> = units.iter().flat_map(|unit| unit.cases.clone()).collect();
        let of_shard = |input: Input<'_>| {
            self.model.through(values, input, Level::Features, &mut Dropout::off(), &as_it_is)
        };
        let features = self.map_cases(dataset, &cases, Phase::Evaluating, watch, &of_shard)?;
        let mut features = &features[..];
        let mut outputs = Vec::with_capacity(units.len());
        for unit in units {
            let (own, rest) = features.split_at(unit.cases.len());
            features = rest;
            let dims = [own.len(), 1, own[0].len()];
            outputs.push(self.model.head_outputs_of(values, &own.concat(), dims, head));
        }
        Ok(outputs)
    }
}
