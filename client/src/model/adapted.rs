//! A frozen backbone under a trainable adapter: logits, features and gradients.

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use tributary_shared::architecture::Architecture;
use tributary_shared::contract::{AdapterContract, Lora};
use tributary_shared::layout::{Layout, TensorSpec};

use super::adapter::{Adapter, Dropout};
use super::backbone::Backbone;
use super::compute::Compute;
use super::vit::{Vit, patchify};

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

/// What enters the model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    /// Patches of `images` images, see [`patchify`].
    Patches { rows: &'a [f32], images: usize },
    /// What the backbone made of `images` images: the head is all that is left to compute.
    Features { rows: &'a [f32], images: usize },
}

/// The frozen backbone on a device, ready to take adapters of one contract.
#[derive(Debug)]
pub struct AdaptedVit {
    architecture: Architecture,
    lora: Lora,
    head_outputs: usize,
    layout: Layout,
    device: Device,
    /// Without autodiff: fused kernels, no graph.
    inference: Vit,
    /// The same tensors as untracked constants of an autodiff graph: they cost no gradient.
    training: Vit,
}

impl AdaptedVit {
    /// Puts `backbone` on the device.
    ///
    /// # Panics
    /// When `contract` is a rehearsal's, which has no model.
    pub fn new(backbone: &Backbone, contract: &AdapterContract, compute: &Compute) -> Self {
        let device = compute.device();
        let tensors: BTreeMap<&str, Tensor<1>> = backbone
            .tensors()
            .map(|(spec, values)| (spec.name.as_str(), upload(values, device)))
            .collect();
        let architecture = backbone.architecture();
        Self {
            inference: Vit::of(architecture, &mut |name| tensors[name].clone()),
            training: Vit::of(architecture, &mut |name| tensors[name].clone().autodiff()),
            architecture: architecture.clone(),
            lora: contract.lora.clone().expect("the contract of a model has its adaptation"),
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

    /// Logits `[images, head_outputs]` of patches; nothing is dropped, no graph is built.
    pub fn logits(&self, values: &[Vec<f32>], rows: &[f32], images: usize) -> Vec<f32> {
        let adapter = self.adapter(&self.leaves(values, false));
        let input = Input::Patches { rows, images };
        download(self.forward(&self.inference, &adapter, input, &mut Dropout::off()))
    }

    /// What the frozen backbone, without any adapter, gives to the head: `[images, features]`.
    pub fn features(&self, rows: &[f32], images: usize) -> Vec<f32> {
        let patches = self.patches(rows, images);
        download(self.inference.features(patches, None, &mut Dropout::off()))
    }

    /// The gradient of a loss of which `loss` knows, given the logits, its value and its derivative
    /// by each logit. The closed form of the last step spares the graph its least stable part.
    pub(crate) fn gradient(
        &self,
        values: &[Vec<f32>],
        input: Input<'_>,
        dropout: &mut Dropout,
        loss: impl FnOnce(&[f32]) -> (f64, Vec<f32>),
    ) -> Gradient {
        let leaves = self.leaves(values, true);
        let adapter = self.adapter(&leaves);
        let logits = self.forward(&self.training, &adapter, input, dropout);
        let dims = logits.dims();
        let (loss, by_logit) = loss(&download(logits.clone().inner()));
        let by_logit = Tensor::<2>::from_data(TensorData::new(by_logit, dims), &self.device);
        let mut gradients = (logits * by_logit.autodiff()).sum().backward();
        Gradient { loss, values: leaves.gradients(&self.layout, &mut gradients) }
    }

    fn forward(
        &self,
        vit: &Vit,
        adapter: &Adapter,
        input: Input<'_>,
        dropout: &mut Dropout,
    ) -> Tensor<2> {
        let features = match input {
            Input::Patches { rows, images } => {
                vit.features(self.patches(rows, images), Some(adapter), dropout)
            }
            Input::Features { rows, images } => {
                let dims = [images, self.architecture.features()];
                Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device)
            }
        };
        adapter.head.forward(features)
    }

    fn patches(&self, rows: &[f32], images: usize) -> Tensor<3> {
        let patches = self.architecture.patches();
        let dims = [images, patches, rows.len() / (images * patches)];
        Tensor::from_data(TensorData::new(rows.to_vec(), dims), &self.device)
    }

    fn leaves<'a>(&'a self, values: &[Vec<f32>], trained: bool) -> Leaves<'a> {
        Leaves::new(&self.layout, values, &self.device, trained)
    }

    fn adapter(&self, leaves: &Leaves<'_>) -> Adapter {
        let depth = self.architecture.depth;
        Adapter::of(&self.lora, depth, self.head_outputs, &mut |name| leaves.take(name))
    }
}

/// Trained values as flat leaves of a graph, by name.
pub(crate) struct Leaves<'a>(BTreeMap<&'a str, Tensor<1>>);

impl<'a> Leaves<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        values: &[Vec<f32>],
        device: &Device,
        trained: bool,
    ) -> Self {
        let leaf = |(spec, values): (&'a TensorSpec, &Vec<f32>)| {
            let tensor = upload(values, device);
            let tensor = if trained { tensor.autodiff().require_grad() } else { tensor };
            (spec.name.as_str(), tensor)
        };
        Self(layout.tensors().iter().zip(values).map(leaf).collect())
    }

    /// The leaf of a name that the layout has.
    pub(crate) fn take(&self, name: &str) -> Tensor<1> {
        self.0[name].clone()
    }

    /// The derivative by each leaf; zero where the loss does not depend on it.
    pub(crate) fn gradients(&self, layout: &Layout, gradients: &mut Gradients) -> Values {
        let of = |spec: &TensorSpec| match self.0[spec.name.as_str()].grad_remove(gradients) {
            Some(gradient) => download(gradient),
            None => vec![0.0; spec.elements()],
        };
        layout.tensors().iter().map(of).collect()
    }
}

pub(crate) fn upload(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

pub(crate) fn download<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("every tensor of the model is f32")
}
