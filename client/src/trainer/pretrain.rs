//! Pretraining by masked autoencoding (He et al. 2021, arXiv:2111.06377): three quarters of an
//! image's patches are hidden, the backbone sees the rest, a small decoder guesses the hidden
//! ones' pixels. The decoder is thrown away.
//!
//! One departure: for every other shard the decoder is given the class token alone. Otherwise
//! nothing asks that token to know the image, and the head, which reads it, finds little there.

mod mask;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use tributary_shared::architecture::{Architecture, FinalNorm, Mlp};
use tributary_shared::layout::{Layout, TensorSpec};

use self::mask::{Masked, masked};
use super::optimizer::{AdamW, clip, learning_rate};
use super::session::{TrainError, check_stop, shuffled};
use super::shards::add;
use super::{Control, Meter, Phase, Progress};
use crate::data::Dataset;
use crate::model::{
    Backbone, Compute, Gradient, Leaves, Linear, Placed, Trunk, Values, Vit, backbone_layout,
    download, linear_of, positions, untrained,
};

/// Images of one shard; a quarter of their tokens is what the encoder computes.
const SHARD_IMAGES: usize = 16;

/// How to pretrain.
#[derive(Clone, Debug)]
pub struct Pretraining {
    /// The backbone to make.
    pub architecture: Architecture,
    /// Passes over the images.
    pub epochs: u32,
    /// Images of a step.
    pub batch_size: usize,
    /// AdamW's peak learning rate.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Share of an image's patches hidden.
    pub mask_ratio: f64,
    /// Width of the decoder's tokens; a multiple of 32, its head width.
    pub decoder_width: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Seed of weights, order, masks and flips.
    pub seed: u64,
}

/// What pretraining made.
#[derive(Debug)]
pub struct Pretrained {
    /// The backbone.
    pub backbone: Backbone,
    /// Mean loss of each epoch.
    pub losses: Vec<f64>,
}

/// Pretrains a backbone on every image of `dataset`; labels are not looked at.
pub fn pretrain(
    plan: &Pretraining,
    dataset: &Dataset,
    compute: &Compute,
    control: &Control,
    progress: &mut dyn FnMut(Progress),
) -> Result<Pretrained, TrainError> {
    let autoencoder = Autoencoder::new(plan, compute);
    let layout = &autoencoder.layout;
    let mut values: Values =
        layout.tensors().iter().map(|spec| untrained(spec, plan.seed)).collect();
    let decayed = layout.tensors().iter().map(|spec| spec.shape.len() > 1).collect();
    let mut optimizer = AdamW::new(&values, decayed, plan.weight_decay).beta2(0.95);
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let steps_of_epoch = indices.len().div_ceil(plan.batch_size) as u64;
    let steps = steps_of_epoch * u64::from(plan.epochs);
    let warmup = steps / 20;
    let mut meter = Meter::new(Phase::Training, steps);
    let mut losses = Vec::new();
    let mut step = 0;
    for epoch in 0..plan.epochs {
        let order = shuffled(&indices, &format!("{}\npretraining shuffle {epoch}", plan.seed));
        let mut loss_sum = 0.0;
        for batch in order.chunks(plan.batch_size) {
            check_stop(control)?;
            let mut gradient = autoencoder.batch(&values, dataset, batch, epoch)?;
            let norm = clip(&mut gradient.values, 1.0);
            super::local::check_finite(step + 1, gradient.loss, norm)?;
            let rate = learning_rate(plan.learning_rate, step, warmup, steps);
            optimizer.step(&mut values, &gradient.values, rate);
            step += 1;
            loss_sum += gradient.loss * batch.len() as f64;
            progress(meter.advance(batch.len(), Some(gradient.loss)));
        }
        losses.push(loss_sum / indices.len() as f64);
    }
    Ok(Pretrained { backbone: autoencoder.backbone(&values), losses })
}

/// The encoder's and the decoder's trained tensors, and their fixed positions.
struct Autoencoder<'a> {
    plan: &'a Pretraining,
    compute: &'a Compute,
    /// Encoder without `pos_embed`, and the decoder.
    layout: Layout,
    /// `[tokens, width]`.
    positions: Vec<f32>,
    /// `[tokens, decoder_width]`.
    decoder_positions: Vec<f32>,
}

impl<'a> Autoencoder<'a> {
    fn new(plan: &'a Pretraining, compute: &'a Compute) -> Self {
        let architecture = &plan.architecture;
        let mut tensors = backbone_layout(architecture).tensors().to_vec();
        tensors.retain(|spec| spec.name != "pos_embed");
        tensors.extend(decoder_layout(plan));
        Self {
            plan,
            compute,
            layout: Layout::new(tensors),
            positions: positions(architecture, architecture.width),
            decoder_positions: positions(architecture, plan.decoder_width),
        }
    }

    /// The mean loss of a batch and its gradient, shards added in order.
    fn batch(
        &self,
        values: &[Vec<f32>],
        dataset: &Dataset,
        batch: &[usize],
        epoch: u32,
    ) -> Result<Gradient, TrainError> {
        let share = 1.0 / batch.len() as f64;
        let of_shard = |(number, shard): (usize, &[usize])| -> Result<Gradient, TrainError> {
            let masked = masked(self.plan, dataset, shard, epoch)?;
            let seen = match number % 2 == 1 && self.plan.architecture.class_token {
                true => Seen::ClassToken,
                false => Seen::All,
            };
            Ok(self.gradient(values, &masked, seen, share * shard.len() as f64))
        };
        let shards: Vec<&[usize]> = batch.chunks(SHARD_IMAGES).collect();
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.into_par_iter().enumerate().map(of_shard).collect();
        let mut parts = parts?.into_iter();
        let mut whole = parts.next().ok_or(TrainError::NoCases)?;
        for part in parts {
            whole.loss += part.loss;
            add(&mut whole.values, &part.values);
        }
        Ok(whole)
    }

    /// `weight` times the mean squared error over hidden patches, and its gradient.
    fn gradient(&self, values: &[Vec<f32>], masked: &Masked, seen: Seen, weight: f64) -> Gradient {
        let values = Placed::plain(&self.layout, values, self.compute.device());
        let leaves = Leaves::new(&self.layout, &values, true);
        let guess = self.guess(&leaves, masked, seen);
        let error = guess - self.tensor(&masked.targets, masked.images, masked.hidden());
        let loss = (error.clone() * error).mean().mul_scalar(weight);
        let value = f64::from(download(loss.clone().inner())[0]);
        let mut gradients = loss.backward();
        Gradient { loss: value, values: leaves.gradients(&self.layout, &mut gradients) }
    }

    /// The decoder's guess of the hidden patches, `[images, hidden, numbers of a patch]`.
    fn guess(&self, leaves: &Leaves<'_>, masked: &Masked, seen: Seen) -> Tensor<3> {
        let Masked { images, visible, .. } = *masked;
        let (width, decoder_width) = (self.plan.architecture.width, self.plan.decoder_width);
        let (hidden, all) = (masked.hidden(), visible + masked.hidden());
        let (encoder, decoder) = self.on_device(leaves);
        let patches = self.tensor(&masked.patches, images, visible);
        let places = masked.rows(&self.positions, width, 0..visible);
        let embedded = encoder.embed(patches, self.tensor(&places, images, visible));
        let encoded = encoder.encode(encoder.with_prefix(embedded));
        let before = encoded.dims()[1] - visible;
        let (encoded, first) = match seen {
            Seen::All => (encoded, 0),
            Seen::ClassToken => (encoded.narrow(1, 0, before), visible),
        };
        // The class token's position is zero; the patches' follow their shuffled order.
        let places = masked.rows(&self.decoder_positions, decoder_width, first..all);
        let places = self.tensor(&places, images, all - first);
        let nowhere = Tensor::zeros([images, before, decoder_width], self.compute.device());
        let places = if before > 0 { Tensor::cat(vec![nowhere, places], 1) } else { places };
        let mask_tokens = decoder.mask_token.expand([images, hidden, decoder_width]);
        let tokens = Tensor::cat(vec![decoder.embed.forward(encoded), mask_tokens], 1) + places;
        let decoded = decoder.trunk.forward(tokens);
        let guessed_from = before + all - first - hidden;
        decoder.guess.forward(decoded.narrow(1, guessed_from, hidden))
    }

    fn on_device(&self, leaves: &Leaves<'_>) -> (Vit, Decoder) {
        let positions = self.tensor(&self.positions, 1, self.plan.architecture.position_rows());
        let positions = positions.flatten::<1>(0, 2).autodiff();
        let mut source = |name: &str| match name {
            "pos_embed" => positions.clone(),
            _ => leaves.take(name),
        };
        let encoder = Vit::of(&self.plan.architecture, &mut source);
        let width = self.plan.decoder_width;
        let decoder = Decoder {
            embed: linear_of(&mut source, "decoder.embed", width),
            mask_token: source("decoder.mask_token").reshape([1, 1, width]),
            trunk: Trunk::of(&decoder_architecture(self.plan), "decoder.", &mut source),
            guess: linear_of(&mut source, "decoder.guess", patch_numbers(self.plan)),
        };
        (encoder, decoder)
    }

    fn tensor(&self, rows: &[f32], images: usize, tokens: usize) -> Tensor<3> {
        let dims = [images, tokens, rows.len() / (images * tokens)];
        Tensor::from_data(TensorData::new(rows.to_vec(), dims), self.compute.device())
    }

    /// The encoder's weights; the decoder's are dropped.
    fn backbone(&self, values: &[Vec<f32>]) -> Backbone {
        let of = |spec: &TensorSpec| {
            let trained = self.layout.tensors().iter().position(|t| t.name == spec.name);
            trained.map_or_else(|| self.positions.clone(), |at| values[at].clone())
        };
        let architecture = &self.plan.architecture;
        let values = backbone_layout(architecture).tensors().iter().map(of).collect();
        Backbone::from_values(architecture.clone(), values)
    }
}

/// What the decoder is given of the encoded image.
#[derive(Clone, Copy)]
enum Seen {
    All,
    ClassToken,
}

struct Decoder {
    embed: Linear,
    mask_token: Tensor<3>,
    trunk: Trunk,
    guess: Linear,
}

fn patch_numbers(plan: &Pretraining) -> usize {
    plan.architecture.channels * plan.architecture.patch_size.pow(2)
}

/// The decoder as a transformer of its own.
fn decoder_architecture(plan: &Pretraining) -> Architecture {
    Architecture {
        width: plan.decoder_width,
        depth: plan.decoder_depth,
        heads: plan.decoder_width / 32,
        mlp_width: 4 * plan.decoder_width,
        mlp: Mlp::Gelu,
        layer_scale: false,
        final_norm: FinalNorm::Tokens,
        ..plan.architecture.clone()
    }
}

fn decoder_layout(plan: &Pretraining) -> Vec<TensorSpec> {
    let (width, numbers) = (plan.decoder_width, patch_numbers(plan));
    let mut tensors: Vec<TensorSpec> = backbone_layout(&decoder_architecture(plan))
        .tensors()
        .iter()
        .filter(|spec| spec.name.starts_with("blocks.") || spec.name.starts_with("norm."))
        .map(|spec| TensorSpec {
            name: format!("decoder.{}", spec.name),
            shape: spec.shape.clone(),
        })
        .collect();
    let mut add = |name: &str, shape: &[usize]| {
        tensors.push(TensorSpec { name: format!("decoder.{name}"), shape: shape.to_vec() });
    };
    add("embed.weight", &[width, plan.architecture.width]);
    add("embed.bias", &[width]);
    add("mask_token", &[1, 1, width]);
    add("guess.weight", &[numbers, width]);
    add("guess.bias", &[numbers]);
    tensors
}
