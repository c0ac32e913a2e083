//! The adapted model under a head of the caller's: for tasks whose outputs are more than a linear
//! map of one image's features.

use burn::tensor::{Tensor, TensorData};

use super::{AdaptedVit, Gradient, Input, Leaves, Placed, download};
use crate::model::Dropout;

/// What a head takes of each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// One row, `[images, 1, features]`.
    Features,
    /// The patches' tokens, `[images, patches, width]`.
    Tokens,
    /// Every token of an image's own, `[images, tokens, width]`.
    Encoded,
}

/// A head over trained leaves: from `[images, rows, width]` to outputs.
pub(crate) type HeadOf<'a> = dyn Fn(&Leaves<'_>, Tensor<3>) -> Tensor<3> + Sync + 'a;

impl AdaptedVit {
    /// What the adapted backbone gives to the head: `[images, features]`.
    pub(crate) fn adapted_features(
        &self,
        values: &Placed,
        rows: &[f32],
        images: usize,
    ) -> Vec<f32> {
        let (input, level) = (Input::Patches { rows, images }, Level::Features);
        self.through(values, input, level, &mut Dropout::off(), &|_, features| features)
    }

    /// The outputs of `head`, no graph built.
    pub(crate) fn through(
        &self,
        values: &Placed,
        input: Input<'_>,
        level: Level,
        dropout: &mut Dropout,
        head: &HeadOf<'_>,
    ) -> Vec<f32> {
        let leaves = self.leaves(values, false);
        download(head(&leaves, self.level(&leaves, input, level, dropout, false)))
    }

    /// The gradient of a loss of which `loss` knows, given the outputs of `head`, its value and its
    /// derivative by each output.
    pub(crate) fn gradient_through(
        &self,
        values: &Placed,
        input: Input<'_>,
        level: Level,
        dropout: &mut Dropout,
        head: &HeadOf<'_>,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> Gradient {
        let leaves = self.leaves(values, true);
        let below = self.level(&leaves, input, level, dropout, true);
        let outputs = head(&leaves, below);
        let (loss, by_output) = loss(&download(outputs.clone().inner()));
        let mut gradients =
            (outputs.clone() * self.constant(by_output, outputs.dims())).sum().backward();
        Gradient { loss, values: leaves.gradients(&self.layout, &mut gradients) }
    }

    /// The gradient of a loss over `head` alone, given what enters it, and the loss's derivative by
    /// each number that enters: where a batch's images meet before there is a loss.
    pub(crate) fn head_gradient(
        &self,
        values: &Placed,
        inputs: &[f32],
        dims: [usize; 3],
        head: &HeadOf<'_>,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> (Gradient, Vec<f32>) {
        let leaves = self.leaves(values, true);
        let inputs = self.plain(inputs.to_vec(), dims).autodiff().require_grad();
        let outputs = head(&leaves, inputs.clone());
        let (loss, by_output) = loss(&download(outputs.clone().inner()));
        let mut gradients =
            (outputs.clone() * self.constant(by_output, outputs.dims())).sum().backward();
        let by_input = inputs.grad_remove(&mut gradients);
        let by_input = by_input.map_or_else(|| vec![0.0; dims.iter().product()], download);
        (Gradient { loss, values: leaves.gradients(&self.layout, &mut gradients) }, by_input)
    }

    /// The outputs of `head` over what is given to it, no graph built.
    pub(crate) fn head_outputs_of(
        &self,
        values: &Placed,
        inputs: &[f32],
        dims: [usize; 3],
        head: &HeadOf<'_>,
    ) -> Vec<f32> {
        download(head(&self.leaves(values, false), self.plain(inputs.to_vec(), dims)))
    }

    fn level(
        &self,
        leaves: &Leaves<'_>,
        input: Input<'_>,
        level: Level,
        dropout: &mut Dropout,
        trained: bool,
    ) -> Tensor<3> {
        self.below_head(leaves, input, level, dropout, trained).1
    }

    fn plain(&self, values: Vec<f32>, dims: [usize; 3]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values, dims), &self.device)
    }

    fn constant(&self, values: Vec<f32>, dims: [usize; 3]) -> Tensor<3> {
        self.plain(values, dims).autodiff()
    }
}
