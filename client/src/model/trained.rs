//! Trained values as leaves of a graph: shared by all images, or one copy an image, whose
//! gradients are then the images' own (one backward pass for a whole batch of them).

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use tributary_shared::layout::{Layout, TensorSpec};

use super::adapted::{Values, download};
use super::vit::{by_rows, typed};

/// Trained values on a device, `[1, elements]` each in the layout's order; what changes a frozen
/// weight is there as the changed weight. All shards of a step share them.
pub(crate) struct Placed(Vec<Tensor<2>>);

impl Placed {
    /// `frozen` are the weights that the values of the same name change.
    pub(crate) fn new(
        layout: &Layout,
        values: &[Vec<f32>],
        frozen: &BTreeMap<String, Tensor<1>>,
        device: &Device,
    ) -> Self {
        let place = |(spec, values): (&TensorSpec, &Vec<f32>)| {
            let data = TensorData::new(values.clone(), [1, values.len()]);
            let values = Tensor::from_data(data, device);
            match frozen.get(&spec.name) {
                Some(weight) => weight.clone().unsqueeze::<2>() + values,
                None => values,
            }
        };
        Self(layout.tensors().iter().zip(values).map(place).collect())
    }
}

/// Trained values by name, each `[copies, elements]`.
pub(crate) struct Leaves<'a> {
    tensors: BTreeMap<&'a str, (&'a [usize], Tensor<2>)>,
    /// One copy an image rather than one for all.
    per_image: bool,
}

impl<'a> Leaves<'a> {
    /// One copy for all images; of a graph when `trained`.
    pub(crate) fn new(layout: &'a Layout, values: &Placed, trained: bool) -> Self {
        let place = |tensor: Tensor<2>| {
            if trained { tensor.autodiff().require_grad() } else { tensor }
        };
        Self { tensors: leaves(layout, values, place), per_image: false }
    }

    /// One copy an image, of a graph.
    pub(crate) fn per_image(layout: &'a Layout, values: &Placed, images: usize) -> Self {
        let place = |tensor: Tensor<2>| {
            let elements = tensor.dims()[1];
            tensor.expand([images, elements]).autodiff().require_grad()
        };
        Self { tensors: leaves(layout, values, place), per_image: true }
    }

    /// The flat leaf of a name that the layout has; shared leaves only.
    pub(crate) fn take(&self, name: &str) -> Tensor<1> {
        self.tensors[name].1.clone().flatten(0, 1)
    }

    /// The changed weight `name`, flat, if it is trained; shared leaves only.
    pub(crate) fn weight(&self, name: &str) -> Option<Tensor<1>> {
        self.tensors.contains_key(name).then(|| self.take(name))
    }

    /// The stored `[out, in]` as a map from `in` to `out`.
    pub(crate) fn map(&self, name: &str) -> Option<Map> {
        let (shape, leaf) = self.tensors.get(name)?;
        let (output, input) = (shape[0], shape[1]);
        Some(if self.per_image {
            let copies = leaf.dims()[0];
            Map::PerImage(leaf.clone().reshape([copies, output, input]).swap_dims(1, 2))
        } else {
            Map::Shared(leaf.clone().reshape([output, input]).transpose())
        })
    }

    /// The stored `[n]` as `[copies, 1, n]`, which adds to every token.
    pub(crate) fn row(&self, name: &str) -> Option<Tensor<3>> {
        let (_, leaf) = self.tensors.get(name)?;
        let [copies, elements] = leaf.dims();
        Some(leaf.clone().reshape([copies, 1, elements]))
    }

    /// The stored `[tokens, width]` as `[copies, tokens, width]`.
    pub(crate) fn tokens(&self, name: &str) -> Option<Tensor<3>> {
        let (shape, leaf) = self.tensors.get(name)?;
        Some(leaf.clone().reshape([leaf.dims()[0], shape[0], shape[1]]))
    }

    /// The derivative by each leaf, copy after copy; zero where the loss does not depend on it.
    pub(crate) fn gradients(&self, layout: &Layout, gradients: &mut Gradients) -> Values {
        let of = |spec: &TensorSpec| {
            let (_, leaf) = &self.tensors[spec.name.as_str()];
            match leaf.grad_remove(gradients) {
                Some(gradient) => download(gradient),
                None => vec![0.0; leaf.dims().iter().product()],
            }
        };
        layout.tensors().iter().map(of).collect()
    }
}

fn leaves<'a>(
    layout: &'a Layout,
    values: &Placed,
    place: impl Fn(Tensor<2>) -> Tensor<2>,
) -> BTreeMap<&'a str, (&'a [usize], Tensor<2>)> {
    let leaf = |(spec, values): (&'a TensorSpec, &Tensor<2>)| {
        (spec.name.as_str(), (spec.shape.as_slice(), place(values.clone())))
    };
    layout.tensors().iter().zip(&values.0).map(leaf).collect()
}

/// A trained linear map.
#[derive(Clone, Debug)]
pub(crate) enum Map {
    /// `[in, out]`.
    Shared(Tensor<2>),
    /// `[images, in, out]`.
    PerImage(Tensor<3>),
}

impl Map {
    /// `[images, tokens, in]` to `[images, tokens, out]`, in the number type of `x`.
    pub(crate) fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Shared(weight) => {
                let weight = typed(weight.clone(), x.dtype());
                by_rows(x, &weight, None)
            }
            Self::PerImage(weight) => {
                let weight = typed(weight.clone(), x.dtype());
                x.matmul(weight)
            }
        }
    }

    /// `[in, out]` as a constant; copies of one batch are all alike.
    pub(crate) fn constant(&self) -> Tensor<2> {
        match self {
            Self::Shared(weight) => weight.clone().detach(),
            Self::PerImage(weight) => weight.clone().detach().narrow(0, 0, 1).squeeze_dim(0),
        }
    }
}

/// A trained linear map with its bias.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    map: Map,
    bias: Tensor<3>,
}

impl Layer {
    /// The layer whose tensors are `name.weight` and `name.bias`, if there is one.
    pub(crate) fn of(leaves: &Leaves<'_>, name: &str) -> Option<Self> {
        let map = leaves.map(&format!("{name}.weight"))?;
        Some(Self { map, bias: leaves.row(&format!("{name}.bias"))? })
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.map.apply(x);
        let bias = typed(self.bias.clone(), y.dtype());
        y + bias
    }
}
