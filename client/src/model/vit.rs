//! A plain vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm, with the
//! options its family has: registers, LayerScale, a gated perceptron, CLIP's embedding norm.
//!
//! Tensors are `[images, tokens, width]`. Linear weights are stored in torch's orientation
//! `[out, in]` and used through a transposed view, so that a file's bytes are the weights.

use std::ops::Range;

use burn::tensor::module::linear;
use burn::tensor::{DType, Int, Tensor, activation};
use tributary_shared::adaptation::Target;
use tributary_shared::architecture::{Architecture, FinalNorm, Gelu, Mlp, Pool};

use super::adapter::{Adapter, Dropout, Sublayer};
use super::attention::{Watch, attend};
use super::fused;

/// Gives the flat tensor of a name.
pub(crate) type TensorSource<'a> = dyn FnMut(&str) -> Tensor<1> + 'a;

/// `x` with numbers of type `dtype`: itself where it has them.
pub(crate) fn typed<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// Whether the tensor of this name belongs to a map that may compute in less than f32.
pub(crate) fn is_mapping(name: &str) -> bool {
    let of_block =
        name.starts_with("blocks.") && (name.contains(".attn.") || name.contains(".mlp."));
    of_block || name.starts_with("patch_embed.")
}

/// Weight `[in, out]` (a view of the stored `[out, in]`) and bias `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Linear {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        by_rows(typed(x, self.dtype()), &self.weight, Some(self.bias.clone()))
    }

    /// What it computes with.
    pub(crate) fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Without the bias.
    pub(crate) fn product(&self, x: Tensor<3>) -> Tensor<3> {
        by_rows(typed(x, self.dtype()), &self.weight, None)
    }

    /// The bias as `[1, 1, out]`.
    pub(crate) fn bias_row(&self) -> Tensor<3> {
        self.bias.clone().unsqueeze()
    }

    /// The weight `[in, out]` as a constant.
    pub(crate) fn constant(&self) -> Tensor<2> {
        self.weight.clone().detach()
    }
}

/// `x` through `weight` `[in, out]`. All tokens are rows of one product: of a batch of products burn
/// would copy the transposed weight.
pub(super) fn by_rows<const D: usize>(
    x: Tensor<D>,
    weight: &Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [input, output] = weight.dims();
    let rows = x.reshape([dims.iter().product::<usize>() / input, input]);
    dims[D - 1] = output;
    linear(rows, weight.clone(), bias).reshape(dims)
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

/// LayerNorm over the last axis, in f32.
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
        fused::layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
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
    /// LayerScale of the attention's and of the perceptron's branch, `[1, 1, width]`.
    scales: Option<[Tensor<3>; 2]>,
}

impl Block {
    fn of(source: &mut TensorSource<'_>, name: &str, architecture: &Architecture) -> Self {
        let Architecture { width, layer_norm_eps: eps, .. } = *architecture;
        let mut scale =
            |branch: &str| source(&format!("{name}.{branch}.gamma")).reshape([1, 1, width]);
        let scales = architecture.layer_scale.then(|| [scale("ls1"), scale("ls2")]);
        Self {
            norm1: Norm::of(source, &format!("{name}.norm1"), eps),
            q: linear_of(source, &format!("{name}.attn.q"), width),
            k: linear_of(source, &format!("{name}.attn.k"), width),
            v: linear_of(source, &format!("{name}.attn.v"), width),
            proj: linear_of(source, &format!("{name}.attn.proj"), width),
            norm2: Norm::of(source, &format!("{name}.norm2"), eps),
            fc1: linear_of(source, &format!("{name}.mlp.fc1"), architecture.fc1_outputs()),
            fc2: linear_of(source, &format!("{name}.mlp.fc2"), width),
            scales,
        }
    }

    /// Tokens after the block; of the first `kept` tokens only, where the rest is not needed.
    fn forward(&self, x: Tensor<3>, kept: usize, heads: usize, maps: &mut Maps<'_>) -> Tensor<3> {
        let normed = maps.norm("norm1", &self.norm1, x.clone());
        let [_, tokens, _] = normed.dims();
        let first = |x: Tensor<3>| if kept < tokens { x.narrow(1, 0, kept) } else { x };
        let q = maps.apply(Target::Q, &self.q, first(normed.clone()));
        let k = maps.apply(Target::K, &self.k, normed.clone());
        let v = maps.apply(Target::V, &self.v, normed);
        let mixed = attend([q, k, v], heads, maps.watch.as_deref_mut());
        let mixed = maps.apply(Target::Proj, &self.proj, mixed);
        let mixed = maps.after(Sublayer::Attention, self.scaled(0, mixed));
        let x = first(x) + typed(mixed, DType::F32);
        let normed = maps.norm("norm2", &self.norm2, x.clone());
        let beside = maps.adapter.and_then(|adapter| adapter.beside(maps.block, &normed));
        let hidden = maps.apply(Target::Fc1, &self.fc1, normed);
        let hidden = maps.nonlinearity.apply(hidden);
        let hidden = maps.apply(Target::Fc2, &self.fc2, hidden);
        let hidden = maps.after(Sublayer::Mlp, self.scaled(1, hidden));
        let x = x + typed(hidden, DType::F32);
        match beside {
            Some(beside) => x + typed(beside, DType::F32),
            None => x,
        }
    }

    fn scaled(&self, branch: usize, x: Tensor<3>) -> Tensor<3> {
        match &self.scales {
            Some(scales) => typed(x, DType::F32) * scales[branch].clone(),
            None => x,
        }
    }
}

/// What stands between a perceptron's two layers.
#[derive(Clone, Copy, Debug)]
enum Nonlinearity {
    Gelu(Gelu),
    Swiglu,
}

impl Nonlinearity {
    fn of(architecture: &Architecture) -> Self {
        match architecture.mlp {
            Mlp::Gelu => Self::Gelu(architecture.gelu),
            Mlp::Swiglu => Self::Swiglu,
        }
    }

    fn apply(self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu(Gelu::Exact) => fused::gelu(hidden),
            Self::Gelu(Gelu::Tanh) => activation::gelu_approximate(hidden),
            Self::Gelu(Gelu::Quick) => {
                hidden.clone() * activation::sigmoid(hidden.mul_scalar(1.702))
            }
            Self::Swiglu => {
                let half = hidden.dims()[2] / 2;
                let gate = activation::silu(hidden.clone().narrow(2, 0, half));
                gate * hidden.narrow(2, half, half)
            }
        }
    }
}

/// A block's linear maps together with what the adapter adds to them.
struct Maps<'a> {
    block: usize,
    nonlinearity: Nonlinearity,
    /// What the maps compute with.
    dtype: DType,
    adapter: Option<&'a Adapter>,
    dropout: &'a mut Dropout,
    watch: Option<&'a mut Watch>,
}

impl Maps<'_> {
    fn apply(&mut self, target: Target, map: &Linear, x: Tensor<3>) -> Tensor<3> {
        match self.adapter {
            Some(adapter) => adapter.map(self.block, target, map, x, self.dropout),
            None => map.forward(x),
        }
    }

    fn norm(&self, module: &'static str, norm: &Norm, x: Tensor<3>) -> Tensor<3> {
        let y = typed(norm.forward(x), self.dtype);
        match self.adapter {
            Some(adapter) => adapter.shifted(self.block, module, y),
            None => y,
        }
    }

    fn after(&self, sublayer: Sublayer, h: Tensor<3>) -> Tensor<3> {
        match self.adapter {
            Some(adapter) => adapter.after(self.block, sublayer, h),
            None => h,
        }
    }
}

/// Transformer blocks and, unless what is pooled is normed instead, the final norm.
#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    blocks: Vec<Block>,
    norm: Option<Norm>,
    heads: usize,
    nonlinearity: Nonlinearity,
}

impl Trunk {
    /// The trunk whose tensors' names begin with `prefix`.
    pub(crate) fn of(
        architecture: &Architecture,
        prefix: &str,
        source: &mut TensorSource<'_>,
    ) -> Self {
        let Architecture { heads, layer_norm_eps, final_norm, .. } = *architecture;
        let block = |i| Block::of(source, &format!("{prefix}blocks.{i}"), architecture);
        let blocks = (0..architecture.depth).map(block).collect();
        let norm = (final_norm == FinalNorm::Tokens)
            .then(|| Norm::of(source, &format!("{prefix}norm"), layer_norm_eps));
        Self { blocks, norm, heads, nonlinearity: Nonlinearity::of(architecture) }
    }

    /// All tokens after the last block and the final norm.
    pub(crate) fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let all = tokens.dims()[1];
        self.normed(self.run(tokens, 0..self.blocks.len(), all, None, &mut Dropout::off(), None))
    }

    /// Tokens after `blocks` under an adapter; after the last block of the first `kept` alone.
    fn run(
        &self,
        mut x: Tensor<3>,
        blocks: Range<usize>,
        kept: usize,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
        mut watch: Option<&mut Watch>,
    ) -> Tensor<3> {
        let own = x.dims()[1];
        for i in blocks {
            if let Some(watch) = &mut watch {
                watch.enter(adapter.map_or(0, |adapter| adapter.prompts_of(i)));
            }
            if let Some(adapter) = adapter {
                x = adapter.prompted(i, own, x);
            }
            let kept = if i + 1 == self.blocks.len() { kept } else { x.dims()[1] };
            let (nonlinearity, dtype) = (self.nonlinearity, self.blocks[i].q.dtype());
            let watch = watch.as_deref_mut();
            let mut maps = Maps { block: i, nonlinearity, dtype, adapter, dropout, watch };
            x = self.blocks[i].forward(x, kept, self.heads, &mut maps);
        }
        x
    }

    fn normed(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}

/// The transformer with its tensors on a device.
#[derive(Clone, Debug)]
pub(crate) struct Vit {
    architecture: Architecture,
    patch_embed: Linear,
    /// Class token with its position, then registers, `[1, prefix, width]`.
    prefix: Option<Tensor<3>>,
    /// Of the patches, `[1, patches, width]`.
    positions: Tensor<3>,
    norm_pre: Option<Norm>,
    trunk: Trunk,
    fc_norm: Option<Norm>,
}

impl Vit {
    /// Takes every tensor of `backbone_layout` from `source`.
    pub(crate) fn of(architecture: &Architecture, source: &mut TensorSource<'_>) -> Self {
        let Architecture { width, register_tokens: registers, .. } = *architecture;
        let eps = architecture.layer_norm_eps;
        let rows = architecture.position_rows();
        let positions = source("pos_embed").reshape([1, rows, width]);
        let mut prefix = Vec::new();
        if architecture.class_token {
            let token = source("cls_token").reshape([1, 1, width]);
            prefix.push(token + positions.clone().narrow(1, 0, 1));
        }
        if registers > 0 {
            prefix.push(source("reg_tokens").reshape([1, registers, width]));
        }
        let patches = architecture.patches();
        Self {
            architecture: architecture.clone(),
            patch_embed: linear_of(source, "patch_embed", width),
            prefix: (!prefix.is_empty()).then(|| Tensor::cat(prefix, 1)),
            positions: positions.narrow(1, rows - patches, patches),
            norm_pre: architecture.embedding_norm.then(|| Norm::of(source, "norm_pre", eps)),
            trunk: Trunk::of(architecture, "", source),
            fc_norm: (architecture.final_norm == FinalNorm::Pooled)
                .then(|| Norm::of(source, "fc_norm", eps)),
        }
    }

    /// Some patches of each image, `[images, seen, channels * patch * patch]`, embedded where they
    /// stand in the image, `places` (`[images * seen]`), behind the prefix.
    pub(crate) fn tokens_at(&self, patches: Tensor<3>, places: Tensor<1, Int>) -> Tensor<3> {
        let [images, seen, _] = patches.dims();
        let table = self.positions.clone().squeeze_dim::<2>(0);
        let positions = table.select(0, places).reshape([images, seen, self.architecture.width]);
        self.embed(patches, positions)
    }

    /// All patches of smaller images, `[images, seen, channels * patch * patch]`, each at the
    /// position that `grid` (`[1, seen, patches]`) makes of the full grid's, behind the prefix.
    pub(crate) fn tokens_on(&self, patches: Tensor<3>, grid: Tensor<3>) -> Tensor<3> {
        self.embed(patches, grid.matmul(self.positions.clone()))
    }

    /// Patches at `positions` behind the prefix.
    fn embed(&self, patches: Tensor<3>, positions: Tensor<3>) -> Tensor<3> {
        self.with_prefix(typed(self.patch_embed.forward(patches), DType::F32) + positions)
    }

    /// What enters the first block: class token and registers, if there are any, before embedded
    /// patches.
    fn with_prefix(&self, embedded: Tensor<3>) -> Tensor<3> {
        let tokens = match &self.prefix {
            Some(prefix) => {
                let [images, _, width] = embedded.dims();
                let prefix = prefix.clone().expand([images, prefix.dims()[1], width]);
                Tensor::cat(vec![prefix, embedded], 1)
            }
            None => embedded,
        };
        match &self.norm_pre {
            Some(norm) => norm.forward(tokens),
            None => tokens,
        }
    }

    /// An image's own tokens after `blocks` and the final norm.
    pub(crate) fn encode(
        &self,
        tokens: Tensor<3>,
        blocks: Range<usize>,
        adapter: &Adapter,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        let own = tokens.dims()[1];
        self.trunk.normed(self.trunk.run(tokens, blocks, own, Some(adapter), dropout, None))
    }

    /// The tokens that enter the first block.
    pub(crate) fn tokens(&self, patches: Tensor<3>) -> Tensor<3> {
        self.embed(patches, self.positions.clone())
    }

    /// The patches' tokens after `blocks` and the final norm, `[images, patches, width]`.
    pub(crate) fn patch_tokens(
        &self,
        tokens: Tensor<3>,
        blocks: Range<usize>,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        let all = tokens.dims()[1];
        let tokens = self.trunk.normed(self.trunk.run(tokens, blocks, all, adapter, dropout, None));
        let (all, patches) = (tokens.dims()[1], self.architecture.patches());
        tokens.narrow(1, all - patches, patches)
    }

    /// Tokens after `blocks`. Where only the class token is looked at, the last block does not
    /// compute the others' queries and perceptron.
    pub(crate) fn run(
        &self,
        tokens: Tensor<3>,
        blocks: Range<usize>,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        let every = adapter.is_some_and(|adapter| adapter.pooling_head().is_some());
        let class_token = self.architecture.pool == Pool::ClassToken && !every;
        let kept = if class_token { 1 } else { tokens.dims()[1] };
        self.trunk.run(tokens, blocks, kept, adapter, dropout, None)
    }

    /// All tokens after every block; `watch` keeps the blocks' attention.
    pub(crate) fn watched(
        &self,
        tokens: Tensor<3>,
        adapter: Option<&Adapter>,
        dropout: &mut Dropout,
        watch: &mut Watch,
    ) -> Tensor<3> {
        let (all, blocks) = (tokens.dims()[1], 0..self.architecture.depth);
        self.trunk.run(tokens, blocks, all, adapter, dropout, Some(watch))
    }

    /// Every token after `blocks`, the last block's too.
    pub(crate) fn every(&self, tokens: Tensor<3>, blocks: Range<usize>) -> Tensor<3> {
        let all = tokens.dims()[1];
        self.trunk.run(tokens, blocks, all, None, &mut Dropout::off(), None)
    }

    /// What a head that pools by attention takes of each patch of the last block's tokens,
    /// `[images, patches, 1]`; `None` under another head.
    pub(crate) fn shares(&self, tokens: Tensor<3>, adapter: &Adapter) -> Option<Tensor<3>> {
        let (all, patches) = (tokens.dims()[1], self.architecture.patches());
        let head = adapter.pooling_head()?;
        head.shares(&self.trunk.normed(tokens).narrow(1, all - patches, patches))
    }

    /// What the head sees of the last block's tokens, `[images, 1, features]`.
    pub(crate) fn pool(&self, tokens: Tensor<3>, adapter: Option<&Adapter>) -> Tensor<3> {
        let tokens = self.trunk.normed(tokens);
        let patches = || {
            let before = self.architecture.tokens() - self.architecture.patches();
            tokens.clone().narrow(1, before, tokens.dims()[1] - before)
        };
        let attended =
            adapter.and_then(Adapter::pooling_head).and_then(|head| head.pool(&patches()));
        let pooled = match (attended, self.architecture.pool) {
            (Some(attended), _) => attended,
            (None, Pool::ClassToken) => tokens.clone().narrow(1, 0, 1),
            (None, Pool::Mean) => patches().mean_dim(1),
            (None, Pool::ClassTokenAndMean) => {
                Tensor::cat(vec![tokens.clone().narrow(1, 0, 1), patches().mean_dim(1)], 2)
            }
        };
        match &self.fc_norm {
            Some(norm) => norm.forward(pooled),
            None => pooled,
        }
    }
}

/// Cuts one image `[channels, size, size]` into rows of `[channels * patch * patch]`, one a patch,
/// in the element order of a convolution's weight.
pub(crate) fn patchify(architecture: &Architecture, image: &[f32], out: &mut Vec<f32>) {
    let (size, patch) = (architecture.image_size, architecture.patch_size);
    let side = architecture.side();
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
