//! The adapter as Python's `peft` loads it onto transformers' `ViTForImageClassification`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use tributary_shared::adaptation::{Adaptation, Lora, Scaling, Target};
use tributary_shared::architecture::{FinalNorm, Gelu, Mlp, Pool};
use tributary_shared::contract::AdapterContract;
use tributary_shared::head::Head;
use tributary_shared::layout::TensorSpec;
use tributary_shared::manifest::{RunManifest, Task};

use super::names::{Transformers, theirs};
use super::{ExportError, NO_HEAD, Named, safetensors_of, write_directory};
use crate::model::{Backbone, row_lengths};

/// Writes `adapter_config.json` and `adapter_model.safetensors` into the new directory `out`:
/// both, or nothing. `values` stand in the order of the contract's layout. `backbone` is asked of
/// DoRA alone, whose file holds whole row lengths where the adapter has their changes.
pub fn export_peft(
    out: &Path,
    manifest: &RunManifest,
    backbone: Option<&Backbone>,
    values: &[Vec<f32>],
    transformers: Transformers,
) -> Result<(), ExportError> {
    let config = config(manifest, transformers)?;
    let contract = manifest.contract().ok_or(ExportError::Adapter)?;
    let weights = weights(&contract, backbone, values, transformers)?;
    let config = serde_json::to_string_pretty(&config).expect("a configuration is plain data");
    let files = [
        ("adapter_config.json", format!("{config}\n").into_bytes()),
        ("adapter_model.safetensors", safetensors_of(&weights)),
    ];
    write_directory(out, &files)
}

/// The run's LoRA; `None` when the head alone is trained.
fn parts(manifest: &RunManifest) -> Result<Option<&Lora>, ExportError> {
    let unsupported = |what| Err(ExportError::Unsupported(what));
    let (Some(backbone), Some(adaptation)) = (&manifest.backbone, &manifest.adapter) else {
        return unsupported("a rehearsal has no adapter to export");
    };
    let shape = &backbone.architecture;
    if shape.pool != Pool::ClassToken {
        return unsupported(
            "transformers' ViTForImageClassification reads the class token; a run with another pool cannot be exported",
        );
    }
    if shape.mlp != Mlp::Gelu
        || shape.gelu == Gelu::Quick
        || shape.register_tokens > 0
        || shape.layer_scale
        || shape.embedding_norm
        || shape.final_norm != FinalNorm::Tokens
    {
        return unsupported(
            "transformers' ViTForImageClassification has no registers, LayerScale, gated perceptron, quick GELU, embedding norm or pooled norm; a run on such a backbone cannot be exported to it",
        );
    }
    if let Task::SelfSupervised { .. } = manifest.task {
        return unsupported(NO_HEAD);
    }
    if manifest.bags.is_some() || matches!(manifest.task, Task::Segmentation { .. }) {
        return unsupported(
            "transformers' ViTForImageClassification judges one image as a whole; a run on bags or regions cannot be exported to it",
        );
    }
    if manifest.head != (Head::Linear {}) {
        return unsupported(
            "transformers' ViTForImageClassification has a linear head; a run with another head cannot be exported to it",
        );
    }
    match adaptation {
        Adaptation::HeadOnly => Ok(None),
        Adaptation::Lora(lora) => Ok(Some(lora)),
        Adaptation::Houlsby { .. }
        | Adaptation::AdaptFormer { .. }
        | Adaptation::Prompts { .. }
        | Adaptation::BitFit { .. }
        | Adaptation::LastBlocks { .. }
        | Adaptation::Full => unsupported(
            "peft has a counterpart for kind = \"lora\" and \"head_only\" alone; export this run's adaptation to timm",
        ),
    }
}

fn config(manifest: &RunManifest, transformers: Transformers) -> Result<Value, ExportError> {
    let lora = parts(manifest)?;
    // A pattern with the layers' path: `output.dense` alone would also match the attention's.
    // peft adapts at least one module: a head alone comes with untrained factors, which are zero.
    let targets: BTreeSet<Target> =
        lora.map_or_else(|| [Target::Q].into(), |lora| lora.targets.clone());
    let modules: Vec<String> =
        targets.iter().map(|t| transformers.module(*t).replace('.', r"\.")).collect();
    let layers = transformers.layers().replace('.', r"\.");
    let depth = manifest.backbone.as_ref().map_or(0, |b| b.architecture.depth);
    let blocks = match lora.and_then(|lora| lora.last_blocks) {
        None => r"\d+".to_owned(),
        Some(last) => {
            let numbers: Vec<String> = (depth - last..depth).map(|b| b.to_string()).collect();
            format!("({})", numbers.join("|"))
        }
    };
    let pattern = format!(r".*{layers}\.{blocks}\.({})", modules.join("|"));
    Ok(json!({
        "peft_type": "LORA",
        "task_type": Value::Null,
        "base_model_name_or_path": Value::Null,
        "inference_mode": true,
        "r": lora.map_or(1, |lora| lora.rank),
        "lora_alpha": lora.map_or(1.0, |lora| lora.alpha),
        "lora_dropout": lora.map_or(0.0, |lora| lora.dropout),
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": lora.is_some_and(|lora| lora.scaling == Scaling::Rslora),
        "use_dora": lora.is_some_and(|lora| lora.dora),
        "init_lora_weights": true,
        "target_modules": pattern,
        "modules_to_save": ["classifier"],
    }))
}

fn weights(
    contract: &AdapterContract,
    backbone: Option<&Backbone>,
    values: &[Vec<f32>],
    transformers: Transformers,
) -> Result<Vec<Named>, ExportError> {
    let specs = contract.layout.tensors();
    let fits = specs.len() == values.len()
        && specs.iter().zip(values).all(|(spec, tensor)| spec.elements() == tensor.len());
    if !fits {
        return Err(ExportError::Adapter);
    }
    let lengths = match backbone {
        Some(backbone) => frozen_lengths(contract, backbone),
        None => BTreeMap::new(),
    };
    let named = |(spec, values): (&TensorSpec, &Vec<f32>)| {
        let values = match (spec.name.ends_with(MAGNITUDE), lengths.get(spec.name.as_str())) {
            (false, _) => values.clone(),
            (true, Some(lengths)) => {
                lengths.iter().zip(values).map(|(l, c)| (l + f64::from(*c)) as f32).collect()
            }
            (true, None) => return Err(ExportError::NoBackbone("peft's file of a DoRA")),
        };
        Ok(Named { name: theirs(&spec.name, transformers), shape: spec.shape.clone(), values })
    };
    specs.iter().zip(values).map(named).collect()
}

/// How the tensors end that hold changes of row lengths.
const MAGNITUDE: &str = ".lora_magnitude";

/// Of each tensor of changed row lengths in the contract the lengths in the backbone.
pub(super) fn frozen_lengths<'a>(
    contract: &'a AdapterContract,
    backbone: &Backbone,
) -> BTreeMap<&'a str, Vec<f64>> {
    let frozen: BTreeMap<&str, &[f32]> =
        backbone.tensors().map(|(spec, values)| (spec.name.as_str(), values)).collect();
    let of = |spec: &'a TensorSpec| {
        let module = spec.name.strip_suffix(MAGNITUDE)?;
        let weight = frozen.get(format!("{module}.weight").as_str())?;
        Some((spec.name.as_str(), row_lengths(weight, spec.elements())))
    };
    contract.layout.tensors().iter().filter_map(of).collect()
}
