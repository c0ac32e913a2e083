//! What the libraries call the tensors of a vision transformer.

use super::positions::Bicubic;

/// Where a source tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the canonical tensor of this name.
    Whole(String),
    /// Its thirds are a block's `attn.q`, `attn.k` and `attn.v`; `weight` or `bias`.
    Qkv(String, String),
    /// It is the first or second half of this canonical tensor.
    Half(String, usize),
    /// No part of a backbone.
    LeftOut,
    /// Nothing that a vision transformer of ours has.
    Unknown,
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    /// timm's, which are those of the original ViT, MAE, DINO and DINOv2 code.
    Timm,
    /// transformers', as version 4 and 5 write and as 5 holds them in memory.
    Transformers,
}

impl Library {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::Transformers => "transformers",
        }
    }

    /// The tensor that every vision transformer has, and by which it is found.
    const ANCHORS: [(Self, &'static str); 2] = [
        (Self::Timm, "patch_embed.proj.weight"),
        (Self::Transformers, "embeddings.patch_embeddings.projection.weight"),
    ];

    /// The transformers among `names`: what stands before their names, and whose names they are.
    pub(super) fn find<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(&'a str, Self)> {
        let anchored = |name: &'a str| {
            let found = Self::ANCHORS.iter().find_map(|(library, anchor)| {
                let prefix = name.strip_suffix(anchor)?;
                (prefix.is_empty() || prefix.ends_with('.')).then_some((prefix, *library))
            });
            found.into_iter()
        };
        names.flat_map(anchored).collect()
    }

    /// How the library fits positions to another image size.
    pub(super) fn bicubic(self, register_tokens: usize) -> Bicubic {
        match self {
            Self::Transformers if register_tokens == 0 => Bicubic::Plain,
            Self::Transformers | Self::Timm => Bicubic::Antialiased,
        }
    }
}

/// Canonical modules outside blocks, by the libraries' names.
const STEM: [(&str, &str); 8] = [
    ("patch_embed.proj", "patch_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed"),
    ("norm", "norm"),
    ("layernorm", "norm"),
    ("fc_norm", "fc_norm"),
    ("norm_pre", "norm_pre"),
    ("encoder.norm", "norm"),
    ("encoder.layernorm", "norm"),
];

/// Canonical tensors outside blocks that are no module's weight or bias.
const TOKENS: [(&str, &str); 7] = [
    ("cls_token", "cls_token"),
    ("embeddings.cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("reg_token", "reg_tokens"),
    ("register_tokens", "reg_tokens"),
    ("embeddings.register_tokens", "reg_tokens"),
];

/// Canonical modules of a block.
const BLOCK: [(&str, &str); 22] = [
    ("norm1", "norm1"),
    ("layernorm_before", "norm1"),
    ("norm2", "norm2"),
    ("layernorm_after", "norm2"),
    ("attn.q", "attn.q"),
    ("attn.k", "attn.k"),
    ("attn.v", "attn.v"),
    ("attn.proj", "attn.proj"),
    ("attention.attention.query", "attn.q"),
    ("attention.attention.key", "attn.k"),
    ("attention.attention.value", "attn.v"),
    ("attention.output.dense", "attn.proj"),
    ("attention.q_proj", "attn.q"),
    ("attention.k_proj", "attn.k"),
    ("attention.v_proj", "attn.v"),
    ("attention.o_proj", "attn.proj"),
    ("mlp.fc1", "mlp.fc1"),
    ("intermediate.dense", "mlp.fc1"),
    ("mlp.weights_in", "mlp.fc1"),
    ("mlp.w12", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("output.dense", "mlp.fc2"),
];

/// The other names of `mlp.fc2` where the perceptron is gated.
const GATED_OUTPUT: [&str; 3] = ["mlp.weights_out", "mlp.w3", "mlp.down_proj"];

/// Halves of `mlp.fc1` that some write apart.
const HALVES: [(&str, usize); 4] =
    [("mlp.fc1_g", 0), ("mlp.gate_proj", 0), ("mlp.fc1_x", 1), ("mlp.up_proj", 1)];

/// LayerScale's vectors.
const SCALES: [(&str, &str); 4] = [
    ("ls1.gamma", "ls1.gamma"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("ls2.gamma", "ls2.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
];

/// What training left beside a backbone: classifiers, poolers, decoders, what hid a patch.
const LEFT_OUT: [&str; 11] = [
    "mask_token",
    "embeddings.mask_token",
    "head",
    "classifier",
    "pooler",
    "decoder",
    "decoder_embed",
    "decoder_pos_embed",
    "decoder_blocks",
    "decoder_norm",
    "decoder_pred",
];

/// Where the tensor called `name`, without its model's prefix, belongs.
pub(super) fn place(name: &str) -> Place {
    let is_or_is_below = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if LEFT_OUT.into_iter().any(is_or_is_below) {
        return Place::LeftOut;
    }
    if let Some((_, canonical)) = TOKENS.iter().find(|(theirs, _)| *theirs == name) {
        return Place::Whole((*canonical).to_owned());
    }
    if let Some((block, rest)) = in_block(name) {
        return place_in_block(block, rest);
    }
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    match STEM.iter().find(|(theirs, _)| *theirs == module) {
        Some((_, canonical)) if is_part(part) => Place::Whole(format!("{canonical}.{part}")),
        _ => Place::Unknown,
    }
}

fn is_part(part: &str) -> bool {
    matches!(part, "weight" | "bias")
}

/// The block's number and what follows it.
fn in_block(name: &str) -> Option<(usize, &str)> {
    let lists = ["blocks.", "encoder.layer.", "encoder.layers.", "layers."];
    let rest = lists.iter().find_map(|list| name.strip_prefix(list))?;
    let (number, rest) = rest.split_once('.')?;
    let number = index(number)?;
    // DINOv2's training code divides its blocks into chunks but keeps counting:
    // `blocks.1.10.norm1` is the eleventh.
    match rest.split_once('.') {
        Some((inner, rest)) if index(inner).is_some() => Some((index(inner)?, rest)),
        _ => Some((number, rest)),
    }
}

fn index(digits: &str) -> Option<usize> {
    let plain = digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

fn place_in_block(block: usize, rest: &str) -> Place {
    let canonical = |module: &str| format!("blocks.{block}.{module}");
    if let Some((_, scale)) = SCALES.iter().find(|(theirs, _)| *theirs == rest) {
        return Place::Whole(canonical(scale));
    }
    let Some((module, part)) = rest.rsplit_once('.').filter(|(_, part)| is_part(part)) else {
        return Place::Unknown;
    };
    if module == "attn.qkv" {
        return Place::Qkv(canonical("attn"), part.to_owned());
    }
    if let Some((_, half)) = HALVES.iter().find(|(theirs, _)| *theirs == module) {
        return Place::Half(canonical(&format!("mlp.fc1.{part}")), *half);
    }
    if GATED_OUTPUT.contains(&module) {
        return Place::Whole(canonical(&format!("mlp.fc2.{part}")));
    }
    match BLOCK.iter().find(|(theirs, _)| *theirs == module) {
        Some((_, ours)) => Place::Whole(canonical(&format!("{ours}.{part}"))),
        None => Place::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_librarys_name_of_a_tensor_is_one_place() {
        let whole = |name: &str| Place::Whole(name.to_owned());
        for name in [
            "blocks.10.mlp.fc1.weight",
            "blocks.1.10.mlp.w12.weight",
            "encoder.layer.10.intermediate.dense.weight",
            "encoder.layer.10.mlp.weights_in.weight",
            "layers.10.mlp.fc1.weight",
        ] {
            assert_eq!(place(name), whole("blocks.10.mlp.fc1.weight"), "{name}");
        }
        for name in ["attn.q", "attention.attention.query", "attention.q_proj"] {
            let found = place(&format!("encoder.layer.3.{name}.bias"));
            assert_eq!(found, whole("blocks.3.attn.q.bias"));
        }
        let qkv = place("blocks.3.attn.qkv.bias");
        assert_eq!(qkv, Place::Qkv("blocks.3.attn".to_owned(), "bias".to_owned()));
        let half = Place::Half("blocks.3.mlp.fc1.bias".to_owned(), 1);
        assert_eq!(place("blocks.3.mlp.fc1_x.bias"), half);
        for name in ["head.weight", "decoder_blocks.0.norm1.weight", "mask_token"] {
            assert_eq!(place(name), Place::LeftOut, "{name}");
        }
        for name in ["headless.weight", "blocks.3.attn.q_norm.weight", "blocks.x.norm1.bias", ""] {
            assert_eq!(place(name), Place::Unknown, "{name}");
        }
    }

    #[test]
    fn a_transformer_is_found_by_its_patch_embedding() {
        let names = [
            "teacher.backbone.patch_embed.proj.weight",
            "model.vit.embeddings.patch_embeddings.projection.weight",
            "my_patch_embed.proj.weight",
            "patch_embed.proj.weight",
        ];
        let found = Library::find(names.into_iter());
        let expected = [
            ("teacher.backbone.", Library::Timm),
            ("model.vit.", Library::Transformers),
            ("", Library::Timm),
        ];
        assert_eq!(found, expected);
    }
}
