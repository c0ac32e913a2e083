//! The adapted model as a directory that timm loads: merged weights under timm's names, and beside
//! them what no change of weights replaces, for our Python module that wraps timm's model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::{Architecture, FinalNorm, Gelu, Mlp, Pool};
use tributary_shared::contract::AdapterContract;
use tributary_shared::head::Head;
use tributary_shared::layout::TensorSpec;
use tributary_shared::manifest::{Backbone as Asked, RunManifest, Task};

use super::{ExportError, NO_HEAD, Named, safetensors_of, write_directory};
use crate::model::{Backbone, merged, merges};

/// The Python module that loads every such directory; it is written beside what needs it.
const MODULE: &str = include_str!("../../../../deploy/python/tributary_timm.py");
/// Stands in `config.json` where timm's own loader would build another model: it then refuses.
const NEEDS_MODULE: &str = "load_with_tributary_timm";

/// Writes `config.json` and `model.safetensors` into the new directory `out`, and
/// `tributary_timm.py` where timm alone cannot compute the model: all, or nothing. Returns whether
/// timm alone can. `values` stand in the order of the contract's layout.
pub fn export_timm(
    out: &Path,
    manifest: &RunManifest,
    backbone: &Backbone,
    values: &[Vec<f32>],
) -> Result<bool, ExportError> {
    if let Task::SelfSupervised { .. } = manifest.task {
        return Err(ExportError::Unsupported(NO_HEAD));
    }
    let unsupported = ExportError::Unsupported("a rehearsal has no model to export");
    let (Some(asked), Some(adaptation), Some(contract)) =
        (&manifest.backbone, &manifest.adapter, manifest.contract())
    else {
        return Err(unsupported);
    };
    let fits = contract.layout.tensors().len() == values.len()
        && contract.layout.tensors().iter().zip(values).all(|(s, v)| s.elements() == v.len());
    if !fits || asked.digest != backbone.digest() {
        return Err(ExportError::Adapter);
    }
    let model = timm_model(manifest, adaptation, &asked.architecture);
    let config = config(manifest, asked, &contract, model);
    let weights = weights(backbone, &contract, values);
    let config = serde_json::to_string_pretty(&config).expect("a configuration is plain data");
    let mut files =
        vec![("config.json", format!("{config}\n").into_bytes()), ("model.safetensors", weights)];
    if model.is_none() {
        files.push(("tributary_timm.py", MODULE.as_bytes().to_vec()));
    }
    write_directory(out, &files)?;
    Ok(model.is_some())
}

/// The model of timm's registry whose arguments make this one; `None` if there is none.
fn timm_model(
    manifest: &RunManifest,
    adaptation: &Adaptation,
    shape: &Architecture,
) -> Option<&'static str> {
    let one_map = manifest.head == (Head::Linear {})
        && manifest.bags.is_none()
        && !matches!(manifest.task, Task::Segmentation { .. })
        && shape.pool != Pool::ClassTokenAndMean;
    if !merges(adaptation) || !one_map {
        return None;
    }
    // Neither LayerNorm's epsilon nor the kind of perceptron can be said in a configuration.
    let eps = |eps: f64| (shape.layer_norm_eps / eps - 1.0).abs() < 1e-9;
    match shape.mlp {
        Mlp::Gelu if eps(1e-6) => Some("vit_base_patch16_224"),
        Mlp::Gelu if eps(1e-5) => Some("vit_base_patch16_clip_224"),
        Mlp::Swiglu if eps(1e-6) => Some("vit_giant_patch14_dinov2"),
        Mlp::Gelu | Mlp::Swiglu => None,
    }
}

fn config(
    manifest: &RunManifest,
    asked: &Asked,
    contract: &AdapterContract,
    model: Option<&str>,
) -> Value {
    let shape = &asked.architecture;
    let decoder = match &manifest.task {
        Task::Segmentation { decoder, .. } => {
            let mut table = json!(decoder);
            table["cells"] = json!(decoder.cells());
            table
        }
        Task::Binary { .. }
        | Task::MultiClass { .. }
        | Task::MultiLabel { .. }
        | Task::Ordinal { .. }
        | Task::Survival {}
        | Task::SelfSupervised { .. }
        | Task::Rehearsal { .. } => Value::Null,
    };
    let adapter = manifest.adapter.as_ref().filter(|adaptation| !merges(adaptation));
    json!({
        "architecture": model.unwrap_or(NEEDS_MODULE),
        "num_classes": contract.head_outputs,
        "num_features": shape.width,
        "model_args": model_args(shape),
        "pretrained_cfg": {
            "num_classes": contract.head_outputs,
            "input_size": [shape.channels, shape.image_size, shape.image_size],
            "fixed_input_size": true,
            "mean": asked.mean,
            "std": asked.std,
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "tributary": {
            "run": manifest.name,
            "task": manifest.task,
            "architecture": shape,
            "adapter": adapter,
            "head": manifest.head,
            "bags": manifest.bags,
            "decoder": decoder,
        },
    })
}

/// timm's arguments that make this shape.
fn model_args(shape: &Architecture) -> Value {
    let pool = match shape.pool {
        Pool::ClassToken => "token",
        Pool::Mean => "avg",
        Pool::ClassTokenAndMean => "",
    };
    let hidden = match shape.mlp {
        Mlp::Gelu => shape.mlp_width,
        Mlp::Swiglu => 2 * shape.mlp_width,
    };
    let activation = match (shape.mlp, shape.gelu) {
        (Mlp::Swiglu, _) => "silu",
        (Mlp::Gelu, Gelu::Exact) => "gelu",
        (Mlp::Gelu, Gelu::Tanh) => "gelu_tanh",
        (Mlp::Gelu, Gelu::Quick) => "quick_gelu",
    };
    json!({
        "img_size": shape.image_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        // timm rounds the product down: half an element above.
        "mlp_ratio": (hidden as f64 + 0.5) / shape.width as f64,
        "act_layer": activation,
        "class_token": shape.class_token,
        "reg_tokens": shape.register_tokens,
        "no_embed_class": shape.register_tokens > 0,
        "init_values": shape.layer_scale.then_some(1e-5),
        "pre_norm": shape.embedding_norm,
        "fc_norm": shape.final_norm == FinalNorm::Pooled,
        "global_pool": pool,
    })
}

/// The tensors as timm names them, what can be merged merged, then the trained modules and the
/// head under our names, which for a linear head are timm's.
fn weights(backbone: &Backbone, contract: &AdapterContract, values: &[Vec<f32>]) -> Vec<u8> {
    let whole = merged(backbone, contract, values);
    let merges = whole.is_ok();
    let whole = whole.as_ref().unwrap_or(backbone);
    let mut tensors = of_backbone(whole);
    for (spec, values) in contract.layout.tensors().iter().zip(values) {
        if !merges || spec.name.starts_with("head.") {
            tensors.push(Named::of(spec, values));
        }
    }
    safetensors_of(&tensors)
}

impl Named {
    fn of(spec: &TensorSpec, values: &[f32]) -> Self {
        Self { name: spec.name.clone(), shape: spec.shape.clone(), values: values.to_vec() }
    }
}

fn of_backbone(backbone: &Backbone) -> Vec<Named> {
    let shape = backbone.architecture();
    let ours: BTreeMap<&str, (&TensorSpec, &[f32])> =
        backbone.tensors().map(|(spec, values)| (spec.name.as_str(), (spec, values))).collect();
    let embedding_bias = ours["patch_embed.bias"].1;
    let positions = ours["pos_embed"].1;
    let mut tensors = Vec::new();
    for (name, (spec, values)) in &ours {
        let mut tensor = Named::of(spec, values);
        match *name {
            "patch_embed.weight" => "patch_embed.proj.weight".clone_into(&mut tensor.name),
            // Where a norm follows, timm's patch embedding has no bias: it goes into the positions.
            "patch_embed.bias" if shape.embedding_norm => continue,
            "patch_embed.bias" => "patch_embed.proj.bias".clone_into(&mut tensor.name),
            "reg_tokens" => "reg_token".clone_into(&mut tensor.name),
            "cls_token" if shape.register_tokens > 0 => {
                tensor.values.iter_mut().zip(positions).for_each(|(token, p)| *token += p);
            }
            "pos_embed" => {
                let bias = shape.embedding_norm.then_some(embedding_bias);
                positions_of_timm(&mut tensor, shape, bias);
            }
            _ if name.contains(".attn.k.") || name.contains(".attn.v.") => continue,
            _ => {
                if let Some((block, part)) = name.split_once(".attn.q.") {
                    tensor.name = format!("{block}.attn.qkv.{part}");
                    tensor.shape[0] *= 3;
                    for map in ["k", "v"] {
                        let more = ours[format!("{block}.attn.{map}.{part}").as_str()].1;
                        tensor.values.extend_from_slice(more);
                    }
                }
            }
        }
        tensors.push(tensor);
    }
    tensors
}

/// With registers, timm adds no position to the class token: its row is in the token itself.
fn positions_of_timm(tensor: &mut Named, shape: &Architecture, bias: Option<&[f32]>) {
    let of_patches = (shape.position_rows() - shape.patches()) * shape.width;
    if let Some(bias) = bias {
        for row in tensor.values[of_patches..].chunks_mut(shape.width) {
            row.iter_mut().zip(bias).for_each(|(position, b)| *position += b);
        }
    }
    if shape.register_tokens > 0 {
        tensor.values.drain(..of_patches);
        tensor.shape[1] = shape.patches();
    }
}
