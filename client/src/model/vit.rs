//! A plain vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm.
//!
//! Tensors are `[images, tokens, width]`. Linear weights are stored in torch's orientation
//! `[out, in]` and used through a transposed view, so that a file's bytes are the weights.

use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Tensor, activation};
use tributary_shared::architecture::{Architecture, Gelu, Pool};
use tributary_shared::contract::Target;

use super::adapter::{Adapter, Dropout};

/// Gives the flat tensor of a name.
pub(crate) type TensorSource<'a> = dyn FnMut(&str) -> Tensor<1> + 'a;

/// Weight `[in, out]` (a view of the stored `[out, in]`) and bias `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Linear {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.clone(), Some(self.bias.clone()))
    }
}

/// The linear map `name` of `out` outputs in `source`.
pub(crate) fn linear_of(source: &mut TensorSource<'_>, name: &str, out: usize) -> Linear {
    let weight = source(&format!("{name}.weight"));
    let input = weight.dims()[0] / out;
    Linear {
        weight: weight.reshape([out, input]).transpose(),
        bias: source(&format!("{name}.bias")),
    }
}

/// LayerNorm over the last axis.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl Norm {
    pub(crate) fn of(source: &mut TensorSource<'_>, name: &str, eps: f64) -> Self {
        let (weight, bias) = (source(&format!("{name}.weight")), source(&format!("{name}.bias")));
        Self { weight, bias, eps }
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        layer_norm(x, self.weight.clone(), Some(self.bias.clone()), self.eps)
    }
}

/// One transformer block.
#[derive(Clone, Debug)]
struct Block {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn of(source: &mut TensorSource<'_>, name: &str, architecture: &Architecture) -> Self {
        let Architecture { width, mlp_width, layer_norm_eps: eps, .. } = *architecture;
        Self {
            norm1: Norm::of(source, &format!("{name}.norm1"), eps),
            q: linear_of(source, &format!("{name}.attn.q"), width),
            k: linear_of(source, &format!("{name}.attn.k"), width),
            v: linear_of(source, &format!("{name}.attn.v"), width),
            proj: linear_of(source, &format!("{name}.attn.proj"), width),
            norm2: Norm::of(source, &format!("{name}.norm2"), eps),
            fc1: linear_of(source, &format!("{name}.mlp.fc1"), mlp_width),
            fc2: linear_of(source, &format!("{name}.mlp.fc2"), width),
        }
    }

    /// Tokens after the block; of the first `kept` tokens only, where the rest is not needed.
    fn forward(&self, x: Tensor<3>, kept: usize, heads: usize, maps: &mut Maps<'_>) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let [_, tokens, _] = normed.dims();
        let first = |x: Tensor<3>| if kept < tokens { x.narrow(1, 0, kept) } else { x };
        let q = maps.apply(Target::Q, &self.q, first(normed.clone()));
        let k = maps.apply(Target::K, &self.k, normed.clone());
        let v = maps.apply(Target::V, &self.v, normed);
        let mixed = attend(q, k, v, heads);
        let x = first(x) + maps.apply(Target::Proj, &self.proj, mixed);
        let hidden = maps.apply(Target::Fc1, &self.fc1, self.norm2.forward(x.clone()));
        let hidden = match maps.gelu {
            Gelu::Exact => activation::gelu(hidden),
            Gelu::Tanh => activation::gelu_approximate(hidden),
        };
        x + maps.apply(Target::Fc2, &self.fc2, hidden)
    }
}

/// Softmax attention of `heads` heads; query tokens may be fewer than key tokens.
fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let [images, kept, width] = q.dims();
    let split = |x: Tensor<3>| {
        let tokens = x.dims()[1];
        x.reshape([images, tokens, heads, width / heads]).swap_dims(1, 2)
    };
    let options = AttentionModuleOptions::default();
    let mixed = attention(split(q), split(k), split(v), None, None, options);
    mixed.swap_dims(1, 2).reshape([images, kept, width])
}

/// A block's linear maps together with what the adapter adds to them.
struct Maps<'a> {
    block: usize,
    gelu: Gelu,
    adapter: Option<&'a Adapter>,
    dropout: &'a mut Dropout,
}

impl Maps<'_> {
    fn apply(&mut self, target: Target, map: &Linear, x: Tensor<3>) -> Tensor<3> {
        let branch =
            self.adapter.and_then(|adapter| adapter.branch(self.block, target, &x, self.dropout));
        let y = map.forward(x);
        match branch {
            Some(branch) => y + branch,
            None => y,
        }
    }
}

/// Transformer blocks and the final norm.
#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    blocks: Vec<Block>,
    norm: Norm,
    heads: usize,
    gelu: Gelu,
}

impl Trunk {
    /// The trunk whose tensors' names begin with `prefix`.
    pub(crate) fn of(
        architecture: &Architecture,
        prefix: &str,
        source: &mut TensorSource<'_>,
    ) -> Self {
        let Architecture { heads, gelu, layer_norm_eps, .. } = *architecture;
        let block = |i| Block::of(source, &format!("{prefix}blocks.{i}"), architecture);
        let blocks = (0..architecture.depth).map(block).collect();
        Self {
            blocks,
            norm: Norm::of(source, &format!("{prefix}norm"), layer_norm_eps),
            heads,
            gelu,
        }
    }

    /// All tokens after the last block and the final norm.
    pub(crate) fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let all = tokens.dims()[1];
        self.adapted(tokens, all, None, &mut Dropout::off())
    }

    /// As [`Self::forward`] under an adapter, of the first `kept` tokens only.
    fn adapted(
        &self,
        mut x: Tensor<3>,
        kept: usize,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        for (i, block) in self.blocks.iter().enumerate() {
            let kept = if i + 1 == self.blocks.len() { kept } else { x.dims()[1] };
            let mut maps = Maps { block: i, gelu: self.gelu, adapter, dropout };
            x = block.forward(x, kept, self.heads, &mut maps);
        }
        self.norm.forward(x)
    }
}

/// The transformer with its tensors on a device.
#[derive(Clone, Debug)]
pub(crate) struct Vit {
    architecture: Architecture,
    patch_embed: Linear,
    cls_token: Option<Tensor<3>>,
    pos_embed: Tensor<3>,
    trunk: Trunk,
}

impl Vit {
    /// Takes every tensor of `backbone_layout` from `source`.
    pub(crate) fn of(architecture: &Architecture, source: &mut TensorSource<'_>) -> Self {
        let width = architecture.width;
        let cls_token =
            architecture.class_token.then(|| source("cls_token").reshape([1, 1, width]));
        Self {
            architecture: architecture.clone(),
            patch_embed: linear_of(source, "patch_embed", width),
            cls_token,
            pos_embed: source("pos_embed").reshape([1, architecture.tokens(), width]),
            trunk: Trunk::of(architecture, "", source),
        }
    }

    /// Patches `[images, patches, channels * patch * patch]` embedded with the rows of
    /// `positions`, without the class token.
    pub(crate) fn embed(&self, patches: Tensor<3>, positions: Tensor<3>) -> Tensor<3> {
        self.patch_embed.forward(patches) + positions
    }

    /// Puts the class token, if there is one, before embedded patches.
    pub(crate) fn with_class_token(&self, embedded: Tensor<3>) -> Tensor<3> {
        let Some(token) = &self.cls_token else { return embedded };
        let [images, _, width] = embedded.dims();
        let token = token.clone() + self.pos_embed.clone().narrow(1, 0, 1);
        Tensor::cat(vec![token.expand([images, 1, width]), embedded], 1)
    }

    /// All tokens after the last block and the final norm.
    pub(crate) fn encode(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.trunk.forward(tokens)
    }

    /// The patches' tokens after the last block and the final norm, `[images, patches, width]`.
    pub(crate) fn patch_tokens(
        &self,
        patches: Tensor<3>,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        let before = usize::from(self.cls_token.is_some());
        let count = self.architecture.patches();
        let positions = self.pos_embed.clone().narrow(1, before, count);
        let tokens = self.with_class_token(self.embed(patches, positions));
        let all = tokens.dims()[1];
        self.trunk.adapted(tokens, all, adapter, dropout).narrow(1, before, count)
    }

    /// What the head sees, `[images, width]`.
    pub(crate) fn features(
        &self,
        patches: Tensor<3>,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
    ) -> Tensor<2> {
        let before = usize::from(self.cls_token.is_some());
        let positions = self.pos_embed.clone().narrow(1, before, self.architecture.patches());
        let tokens = self.with_class_token(self.embed(patches, positions));
        let [images, all, width] = tokens.dims();
        match self.architecture.pool {
            // Of the last block only the class token is looked at: the others' queries and
            // multilayer perceptron are not computed.
            Pool::ClassToken => {
                self.trunk.adapted(tokens, 1, adapter, dropout).reshape([images, width])
            }
            Pool::Mean => {
                let tokens = self.trunk.adapted(tokens, all, adapter, dropout);
                let patches = tokens.narrow(1, before, all - before);
                patches.mean_dim(1).reshape([images, width])
            }
        }
    }
}

/// Cuts one image `[channels, size, size]` into rows of `[channels * patch * patch]`, one a patch,
/// in the element order of a convolution's weight.
pub(crate) fn patchify(architecture: &Architecture, image: &[f32], out: &mut Vec<f32>) {
    let (size, patch) = (architecture.image_size, architecture.patch_size);
    let side = size / patch;
    for row in 0..side {
        for column in 0..side {
            for channel in 0..architecture.channels {
                for y in 0..patch {
                    let start = (channel * size + row * patch + y) * size + column * patch;
                    out.extend_from_slice(&image[start..start + patch]);
                }
            }
        }
    }
}
