//! Masked autoencoding (He et al. 2021, arXiv:2111.06377): most of an image's patches are hidden,
//! the model sees the rest, a small decoder guesses the hidden ones' pixels.
//!
//! One departure: for every other shard the decoder is given the class token alone. Otherwise
//! nothing asks that token to know the image, and the head, which reads it, finds little there.

use burn::tensor::{Tensor, TensorData};
use tributary_shared::architecture::Architecture;
use tributary_shared::objective::Mae;

use super::mask::{Masked, masked};
use super::{Judged, Learner, Views, each_shard, sum};
use crate::model::{
    Dropout, Gradient, Input, Leaves, Level, Placed, Trunk, Values, linear_of, positions,
};
use crate::trainer::Control;
use crate::trainer::session::TrainError;

pub(super) fn gradient(
    learner: &Learner<'_>,
    mae: &Mae,
    values: &Values,
    views: &Views<'_>,
    batch: &[usize],
    control: &Control,
) -> Result<Gradient, TrainError> {
    let model = learner.model;
    let architecture = model.architecture();
    let places = positions(architecture, mae.decoder_width);
    let values = &model.place(values);
    // The encoder computes the seen patches alone, by default a quarter.
    let images = 2 * learner.shard_images;
    let parts = each_shard(batch, images, control, |number, shard| {
        let masked = masked(learner, mae.mask_ratio, views, shard)?;
        let seen = match number % 2 == 1 && architecture.class_token {
            true => Seen::ClassToken,
            false => Seen::All,
        };
        let decoder = Decoder { mae, architecture, places: &places, masked: &masked, seen };
        let share = shard.len() as f64 / batch.len() as f64;
        Ok(decoder.gradient(learner, values, share, &mut learner.dropout(views, batch, number)))
    })?;
    sum(parts)
}

/// The mean squared error and its derivative by each guess.
fn squared_error(guess: &[f32], target: &[f32]) -> Judged {
    let count = guess.len() as f64;
    let errors = || guess.iter().zip(target).map(|(g, t)| f64::from(*g) - f64::from(*t));
    Judged {
        loss: errors().map(|e| e * e).sum::<f64>() / count,
        by_output: errors().map(|e| (2.0 * e / count) as f32).collect(),
    }
}

/// What the decoder is given of the encoded image.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    All,
    ClassToken,
}

/// From a shard's encoded tokens to its hidden patches.
pub(super) struct Decoder<'a> {
    pub(super) mae: &'a Mae,
    pub(super) architecture: &'a Architecture,
    /// Fixed positions `[position rows, decoder width]`.
    pub(super) places: &'a [f32],
    pub(super) masked: &'a Masked,
    pub(super) seen: Seen,
}

impl Decoder<'_> {
    /// `share` times the shard's mean squared error, and its gradient.
    pub(super) fn gradient(
        &self,
        learner: &Learner<'_>,
        values: &Placed,
        share: f64,
        dropout: &mut Dropout,
    ) -> Gradient {
        let Masked { patches, targets, .. } = self.masked;
        let input = Input::Seen { rows: patches, places: &self.masked.seen_places() };
        let head = |leaves: &Leaves<'_>, encoded| self.guess(leaves, encoded);
        let loss = |guess: &[f32]| {
            let Judged { loss, by_output } = squared_error(guess, targets);
            (share * loss, by_output.into_iter().map(|d| share as f32 * d).collect())
        };
        learner.model.gradient_through(values, input, Level::Encoded, dropout, &head, loss)
    }

    /// The guess of the hidden patches, `[images, hidden, numbers of a patch]`, given the tokens of
    /// the prefix and of the seen patches.
    fn guess(&self, leaves: &Leaves<'_>, encoded: Tensor<3>) -> Tensor<3> {
        let Masked { images, visible, .. } = *self.masked;
        let (hidden, width) = (self.masked.hidden(), self.mae.decoder_width);
        let device = encoded.device();
        let before = encoded.dims()[1] - visible;
        let (encoded, first) = match self.seen {
            Seen::All => (encoded, 0),
            Seen::ClassToken => (encoded.narrow(1, 0, before), visible),
        };
        // The class token's position is zero; the patches' follow their shuffled order.
        let mut places = Vec::new();
        let rows = self.masked.rows(self.places, width, first..visible + hidden);
        let of_image = rows.len() / images;
        for rows in rows.chunks(of_image) {
            places.extend(std::iter::repeat_n(0.0, before * width));
            places.extend_from_slice(rows);
        }
        let tokens = before + of_image / width;
        let places = Tensor::from_data(TensorData::new(places, [images, tokens, width]), &device);
        let source = |name: &str| leaves.take(&format!("head.decoder.{name}"));
        let embed = linear_of(&mut |name| source(name), "embed", width);
        let mask_tokens = source("mask_token").reshape([1, 1, width]);
        let mask_tokens = mask_tokens.expand([images, hidden, width]);
        let tokens = Tensor::cat(vec![embed.forward(encoded), mask_tokens], 1) + places;
        let trunk = Trunk::of(&self.mae.decoder(self.architecture), "", &mut |name| source(name));
        let decoded = trunk.forward(tokens.clone());
        let last = tokens.dims()[1] - hidden;
        let numbers = self.architecture.channels * self.architecture.patch_size.pow(2);
        let guess = linear_of(&mut |name| source(name), "guess", numbers);
        guess.forward(decoded.narrow(1, last, hidden))
    }
}
