//! A frozen backbone under a trainable adapter: logits, features and gradients.

mod explained;
mod through;

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::Architecture;
use tributary_shared::contract::AdapterContract;
use tributary_shared::layout::Layout;
use tributary_shared::training::Precision;

pub(crate) use self::explained::{BlockAttention, Looked};
pub(crate) use self::through::{HeadOf, Level};
use super::adapter::{Adapter, Dropout};
use super::backbone::Backbone;
use super::compute::Compute;
use super::import::bicubic_weights;
use super::trained::{Leaves, Placed};
use super::vit::{Vit, is_mapping, patchify, typed};

/// One flat vector a tensor, in a layout's order.
pub type Values = Vec<Vec<f32>>;

/// A loss and its derivative by every trained value.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// The loss, as the caller summed it.
    pub loss: f64,
    /// Its derivative, in the layout's order.
    pub values: Values,
}

/// Losses of several images and each one's derivative by every trained value.
#[derive(Clone, Debug)]
pub struct SampleGradients {
    /// The sum of the losses, as the caller made it.
    pub loss: f64,
    images: usize,
    /// Image after image in every tensor.
    values: Values,
}

impl SampleGradients {
    /// Images that it holds the gradients of.
    pub fn images(&self) -> usize {
        self.images
    }

    /// One image's gradient, tensor after tensor in the layout's order.
    pub fn of(&self, image: usize) -> Values {
        let part = |tensor: &Vec<f32>| {
            let elements = tensor.len() / self.images;
            tensor[image * elements..(image + 1) * elements].to_vec()
        };
        self.values.iter().map(part).collect()
    }

    /// Each image's L2 norm over all tensors.
    pub fn norms(&self) -> Vec<f64> {
        let square = |image: usize| {
            let part = |tensor: &Vec<f32>| {
                let elements = tensor.len() / self.images;
                let own = &tensor[image * elements..(image + 1) * elements];
                own.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>()
            };
            self.values.iter().map(part).sum::<f64>().sqrt()
        };
        (0..self.images).map(square).collect()
    }
}

/// Why gradients are not computed image by image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSampleGradients {
    /// The adaptation trains whole weights.
    #[error(
        "per-sample gradients of kind = \"{0}\" would need one copy of every trained backbone weight for each image; use lora, houlsby, adaptformer, prompts, bitfit or head_only"
    )]
    Weights(&'static str),
    /// The loss is not a sum over single images' outputs.
    #[error(
        "a loss over bags, survival times or regions has no gradient of one image under the model's own head"
    )]
    Loss,
}

/// What of an image does not depend on the adapter and is all that the rest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// The pooled features: nothing but a head is trained on them.
    Pooled,
    /// All tokens that enter this block.
    Tokens(usize),
}

/// What enters the model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    /// Patches of `images` images, see [`patchify`].
    Patches { rows: &'a [f32], images: usize },
    /// Some patches of each image, image after image, the same number of each, and for each image
    /// their places in its grid.
    Seen { rows: &'a [f32], places: &'a [Vec<usize>] },
    /// All patches of `images` smaller images, `side` patches along a side: positions are those of
    /// the full grid, resampled.
    Smaller { rows: &'a [f32], images: usize, side: usize },
    /// What [`AdaptedVit::prefix`] made of `images` images.
    Prefix { rows: &'a [f32], images: usize },
}

impl Input<'_> {
    fn images(&self) -> usize {
        match self {
            Self::Patches { images, .. }
            | Self::Smaller { images, .. }
            | Self::Prefix { images, .. } => *images,
            Self::Seen { places, .. } => places.len(),
        }
    }
}

/// The frozen backbone on a device, ready to take adapters of one contract.
#[derive(Debug)]
pub struct AdaptedVit {
    architecture: Architecture,
    adaptation: Adaptation,
    head_outputs: usize,
    layout: Layout,
    device: Device,
    /// What the frozen maps compute with.
    dtype: DType,
    /// The frozen tensors by name, in f32, where whole weights are trained; empty otherwise.
    frozen: BTreeMap<String, Tensor<1>>,
    /// Without autodiff: fused kernels, no graph.
    inference: Vit,
    /// The same tensors as untracked constants of an autodiff graph: they cost no gradient.
    training: Vit,
}

impl AdaptedVit {
    /// Puts `backbone` on the device, to compute in f32.
    ///
    /// # Panics
    /// When `contract` is a rehearsal's, which has no model.
    pub fn new(backbone: &Backbone, contract: &AdapterContract, compute: &Compute) -> Self {
        Self::of_precision(backbone, contract, compute, Precision::F32)
    }

    /// As [`Self::new`], the frozen maps in `precision`.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn of_precision(
        backbone: &Backbone,
        contract: &AdapterContract,
        compute: &Compute,
        precision: Precision,
    ) -> Self {
        let device = compute.device();
        let tensors: BTreeMap<&str, Tensor<1>> = backbone
            .tensors()
            .map(|(spec, values)| (spec.name.as_str(), upload(values, device)))
            .collect();
        let architecture = backbone.architecture();
        let adaptation =
            contract.adaptation.clone().expect("the contract of a model has its adaptation");
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let owned = |(name, tensor): (&&str, &Tensor<1>)| ((*name).to_owned(), tensor.clone());
        let frozen = match copies_weights(&adaptation) {
            true => tensors.iter().map(owned).collect(),
            false => BTreeMap::new(),
        };
        let reduced: BTreeMap<&str, Tensor<1>> = tensors
            .into_iter()
            .map(|(name, tensor)| {
                (name, if is_mapping(name) { typed(tensor, dtype) } else { tensor })
            })
            .collect();
        Self {
            inference: Vit::of(architecture, &mut |name| reduced[name].clone()),
            training: Vit::of(architecture, &mut |name| reduced[name].clone().autodiff()),
            dtype,
            architecture: architecture.clone(),
            adaptation,
            frozen,
            head_outputs: contract.head_outputs,
            layout: contract.layout.clone(),
            device: device.clone(),
        }
    }

    /// The shape of the backbone.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The trained tensors.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Outputs of the head.
    pub fn head_outputs(&self) -> usize {
        self.head_outputs
    }

    /// Appends the patches of one image `[channels, size, size]` to `rows`.
    pub fn patchify(&self, image: &[f32], rows: &mut Vec<f32>) {
        patchify(&self.architecture, image, rows);
    }

    /// `values` on the device, for as many shards as one likes.
    pub(crate) fn place(&self, values: &[Vec<f32>]) -> Placed {
        Placed::new(&self.layout, values, &self.frozen, &self.device)
    }

    /// Logits `[images, head_outputs]` of patches; nothing is dropped, no graph is built.
    pub fn logits(&self, values: &[Vec<f32>], rows: &[f32], images: usize) -> Vec<f32> {
        self.placed_logits(&self.place(values), Input::Patches { rows, images })
    }

    /// As [`Self::logits`], of any input.
    pub(crate) fn placed_logits(&self, values: &Placed, input: Input<'_>) -> Vec<f32> {
        download(self.forward(&self.leaves(values, false), input, &mut Dropout::off(), false))
    }

    /// What the frozen backbone, without any adapter, gives to the head: `[images, features]`.
    pub fn features(&self, rows: &[f32], images: usize) -> Vec<f32> {
        download(self.pooled(self.patches(rows, images)))
    }

    fn pooled(&self, patches: Tensor<3>) -> Tensor<3> {
        let tokens = self.inference.tokens(patches);
        let all = 0..self.architecture.depth;
        self.inference.pool(self.inference.run(tokens, all, None, &mut Dropout::off()), None)
    }

    /// What a head at `level` leaves untouched; `None` when even the embedding is trained.
    pub(crate) fn prefix_of(&self, level: Level) -> Option<Prefix> {
        let pools = self.layout.tensors().iter().any(|spec| spec.name == "head.query");
        if level == Level::Features && self.adaptation == Adaptation::HeadOnly && !pools {
            return Some(Prefix::Pooled);
        }
        self.adaptation.prefix_blocks(self.architecture.depth).map(Prefix::Tokens)
    }

    /// Numbers that a prefix has of one image.
    pub(crate) fn prefix_numbers(&self, prefix: Prefix) -> usize {
        match prefix {
            Prefix::Pooled => self.architecture.features(),
            Prefix::Tokens(_) => self.architecture.tokens() * self.architecture.width,
        }
    }

    /// The prefix of `images` images, [`Self::prefix_numbers`] each.
    pub(crate) fn prefix(&self, prefix: Prefix, rows: &[f32], images: usize) -> Vec<f32> {
        match prefix {
            Prefix::Pooled => self.features(rows, images),
            Prefix::Tokens(first) => download(self.below(self.patches(rows, images), first)),
        }
    }

    /// The gradient of a loss of which `loss` knows, given the logits, its value and its derivative
    /// by each logit. The closed form of the last step spares the graph its least stable part.
    pub(crate) fn gradient(
        &self,
        values: &Placed,
        input: Input<'_>,
        dropout: &mut Dropout,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> Gradient {
        let (loss, values) = self.backward(&self.leaves(values, true), input, dropout, loss);
        Gradient { loss, values }
    }

    /// Each image's own gradient, from one backward pass: every trained tensor is a leaf of one
    /// copy an image. `loss` is as for the plain gradient, the sum over the images; dividing by
    /// their number is the caller's. Nothing is dropped.
    pub(crate) fn sample_gradients(
        &self,
        values: &Placed,
        input: Input<'_>,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> Result<SampleGradients, NoSampleGradients> {
        if copies_weights(&self.adaptation) {
            return Err(NoSampleGradients::Weights(self.adaptation.name()));
        }
        let images = input.images();
        let leaves = Leaves::per_image(&self.layout, values, images);
        let (loss, values) = self.backward(&leaves, input, &mut Dropout::off(), loss);
        Ok(SampleGradients { loss, images, values })
    }

    fn backward(
        &self,
        leaves: &Leaves<'_>,
        input: Input<'_>,
        dropout: &mut Dropout,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> (f64, Values) {
        let logits = self.forward(leaves, input, dropout, true);
        let dims = logits.dims();
        let (loss, by_logit) = loss(&download(logits.clone().inner()));
        let by_logit = Tensor::<2>::from_data(TensorData::new(by_logit, dims), &self.device);
        let mut gradients = (logits * by_logit.autodiff()).sum().backward();
        (loss, leaves.gradients(&self.layout, &mut gradients))
    }

    /// The run's head over rows `[images, 1, features]`.
    pub(crate) fn head(&self, leaves: &Leaves<'_>, features: Tensor<3>) -> Tensor<3> {
        self.adapter(leaves).outputs(features).unsqueeze_dim(1)
    }

    /// Logits; of a graph when `trained`.
    fn forward(
        &self,
        leaves: &Leaves<'_>,
        input: Input<'_>,
        dropout: &mut Dropout,
        trained: bool,
    ) -> Tensor<2> {
        let (adapter, below) = self.below_head(leaves, input, Level::Features, dropout, trained);
        adapter.outputs(below)
    }

    /// The adapter, and what its head is given; of a graph when `trained`, whose blocks below the
    /// first adapted one are constants.
    fn below_head(
        &self,
        leaves: &Leaves<'_>,
        input: Input<'_>,
        level: Level,
        dropout: &mut Dropout,
        trained: bool,
    ) -> (Adapter, Tensor<3>) {
        let adapter = self.adapter(leaves);
        let changed = self.changed(leaves, trained);
        let plain = if trained { &self.training } else { &self.inference };
        let vit = changed.as_ref().unwrap_or(plain);
        let lift = |x: Tensor<3>| if trained { x.autodiff() } else { x };
        let prefix = self.prefix_of(level);
        let entering = match (input, prefix) {
            (Input::Patches { rows, images }, None) => vit.tokens(lift(self.patches(rows, images))),
            (Input::Patches { rows, images }, Some(Prefix::Pooled)) => {
                lift(self.pooled(self.patches(rows, images)))
            }
            (Input::Patches { rows, images }, Some(Prefix::Tokens(first))) => {
                lift(self.below(self.patches(rows, images), first))
            }
            (Input::Seen { rows, places }, Some(Prefix::Tokens(first))) => {
                let (patches, places) = self.seen(rows, places);
                lift(self.inference.every(self.inference.tokens_at(patches, places), 0..first))
            }
            (Input::Seen { rows, places }, None | Some(Prefix::Pooled)) => {
                let (patches, places) = self.seen(rows, places);
                vit.tokens_at(lift(patches), places)
            }
            (Input::Smaller { rows, images, side }, Some(Prefix::Tokens(first))) => {
                let (patches, grid) = self.smaller(rows, images, side);
                let tokens = self.inference.tokens_on(patches, grid);
                lift(self.inference.every(tokens, 0..first))
            }
            (Input::Smaller { rows, images, side }, None | Some(Prefix::Pooled)) => {
                let (patches, grid) = self.smaller(rows, images, side);
                vit.tokens_on(lift(patches), lift(grid))
            }
            (Input::Prefix { rows, images }, _) => lift(self.entering(prefix, rows, images)),
        };
        let first = match prefix {
            Some(Prefix::Pooled) => return (adapter, entering),
            Some(Prefix::Tokens(first)) => first,
            None => 0,
        };
        let rest = first..self.architecture.depth;
        let below = match level {
            Level::Features => {
                let tokens = vit.run(entering, rest, Some(&adapter), dropout);
                vit.pool(tokens, Some(&adapter))
            }
            Level::Tokens => vit.patch_tokens(entering, rest, Some(&adapter), dropout),
            Level::Encoded => vit.encode(entering, rest, &adapter, dropout),
        };
        (adapter, below)
    }

    fn adapter(&self, leaves: &Leaves<'_>) -> Adapter {
        Adapter::of(&self.adaptation, self.architecture.depth, leaves)
    }

    /// A prefix as it was computed.
    fn entering(&self, prefix: Option<Prefix>, rows: &[f32], images: usize) -> Tensor<3> {
        let width = match prefix {
            Some(Prefix::Pooled) => self.architecture.features(),
            Some(Prefix::Tokens(_)) | None => self.architecture.width,
        };
        let dims = [images, rows.len() / (images * width), width];
        Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device)
    }

    /// All tokens entering block `first`, without a graph.
    fn below(&self, patches: Tensor<3>, first: usize) -> Tensor<3> {
        let tokens = self.inference.tokens(patches);
        self.inference.every(tokens, 0..first)
    }

    /// The transformer with its changed weights; `None` where there are none.
    fn changed(&self, leaves: &Leaves<'_>, trained: bool) -> Option<Vit> {
        if !copies_weights(&self.adaptation) {
            return None;
        }
        let mut source = |name: &str| {
            let frozen = || self.frozen[name].clone();
            let plain = || if trained { frozen().autodiff() } else { frozen() };
            let weight = leaves.weight(name).unwrap_or_else(plain);
            if is_mapping(name) { typed(weight, self.dtype) } else { weight }
        };
        Some(Vit::of(&self.architecture, &mut source))
    }

    /// Patches `[images, seen, numbers]` and their places `[images * seen]`.
    fn seen(&self, rows: &[f32], places: &[Vec<usize>]) -> (Tensor<3>, Tensor<1, Int>) {
        let seen = places.first().map_or(1, Vec::len);
        let dims = [places.len(), seen, rows.len() / (places.len() * seen)];
        let flat: Vec<i64> = places.iter().flatten().map(|place| *place as i64).collect();
        let places = TensorData::new(flat, [places.len() * seen]);
        let patches = Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device);
        (patches, Tensor::from_data(places, &self.device))
    }

    /// Patches `[images, side^2, numbers]` and what makes their positions of the full grid's,
    /// `[1, side^2, patches]`.
    fn smaller(&self, rows: &[f32], images: usize, side: usize) -> (Tensor<3>, Tensor<3>) {
        let patches = side * side;
        let dims = [images, patches, rows.len() / (images * patches)];
        let grid = bicubic_weights(self.architecture.side(), side);
        let grid = TensorData::new(grid, [1, patches, self.architecture.patches()]);
        let patches = Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device);
        (patches, Tensor::from_data(grid, &self.device))
    }

    fn patches(&self, rows: &[f32], images: usize) -> Tensor<3> {
        let patches = self.architecture.patches();
        let dims = [images, patches, rows.len() / (images * patches)];
        Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device)
    }

    fn leaves<'a>(&'a self, values: &Placed, trained: bool) -> Leaves<'a> {
        Leaves::new(&self.layout, values, trained)
    }
}

/// Whether whole weights are trained, so that a step needs a changed copy of them.
fn copies_weights(adaptation: &Adaptation) -> bool {
    matches!(adaptation, Adaptation::LastBlocks { .. } | Adaptation::Full)
}

pub(crate) fn upload(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

pub(crate) fn download<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("every tensor of the model is f32")
}
