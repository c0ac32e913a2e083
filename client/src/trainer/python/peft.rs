//! The adapter as Python's `peft` loads it onto transformers' `ViTForImageClassification`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tributary_shared::adaptation::{Adaptation, Lora, Scaling, Target};
use tributary_shared::architecture::{FinalNorm, Gelu, Mlp, Pool};
use tributary_shared::head::Head;
use tributary_shared::manifest::{RunManifest, Task};

/// The major version of transformers, which renamed the ViT's modules in 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transformers {
    /// `vit.encoder.layer.0.attention.attention.query`.
    #[value(name = "4")]
    V4,
    /// `vit.layers.0.attention.q_proj`.
    #[default]
    #[value(name = "5")]
    V5,
}

impl Transformers {
    /// A map's path below its layer.
    fn module(self, target: Target) -> &'static str {
        match (self, target) {
            (Self::V4, Target::Q) => "attention.attention.query",
            (Self::V4, Target::K) => "attention.attention.key",
            (Self::V4, Target::V) => "attention.attention.value",
            (Self::V4, Target::Proj) => "attention.output.dense",
            (Self::V4, Target::Fc1) => "intermediate.dense",
            (Self::V4, Target::Fc2) => "output.dense",
            (Self::V5, Target::Q) => "attention.q_proj",
            (Self::V5, Target::K) => "attention.k_proj",
            (Self::V5, Target::V) => "attention.v_proj",
            (Self::V5, Target::Proj) => "attention.o_proj",
            (Self::V5, Target::Fc1) => "mlp.fc1",
            (Self::V5, Target::Fc2) => "mlp.fc2",
        }
    }

    fn layers(self) -> &'static str {
        match self {
            Self::V4 => "vit.encoder.layer",
            Self::V5 => "vit.layers",
        }
    }
}

/// Why an adapter was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not a model that transformers' class computes.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The adapter's values do not have the contract's shapes.
    #[error("the adapter does not fit the run's contract")]
    Adapter,
    /// Something is there already.
    #[error("{} exists already; name a directory that does not", .0.display())]
    Exists(PathBuf),
    /// Not writable.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into the new directory `out`:
/// both, or nothing. `values` stand in the order of the contract's layout.
pub fn export_peft(
    out: &Path,
    manifest: &RunManifest,
    values: &[Vec<f32>],
    transformers: Transformers,
) -> Result<(), ExportError> {
    let config = config(manifest, transformers)?;
    let weights = weights(manifest, values, transformers)?;
    if out.exists() {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = out.with_file_name(name);
    let written = write_all(&temporary, &config, &weights).and_then(|()| {
        let failed = |source| ExportError::Write { path: out.to_owned(), source };
        fs::rename(&temporary, out).map_err(failed)
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn write_all(directory: &Path, config: &Value, weights: &[u8]) -> Result<(), ExportError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Write { path, source }
    };
    fs::create_dir(directory).map_err(failed(directory))?;
    let mut text = serde_json::to_string_pretty(config).expect("a configuration is plain data");
    text.push('\n');
    let files = [("adapter_config.json", text.as_bytes()), ("adapter_model.safetensors", weights)];
    for (name, bytes) in files {
        let path = directory.join(name);
        let mut file = fs::File::create(&path).map_err(failed(&path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(&path))?;
    }
    Ok(())
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
        Adaptation::Lora(lora) if !lora.dora => Ok(Some(lora)),
        Adaptation::Lora(_) => unsupported(
            "this version writes no DoRA for peft: its file holds whole row lengths, the adapter their changes",
        ),
        Adaptation::Houlsby { .. }
        | Adaptation::AdaptFormer { .. }
        | Adaptation::Prompts { .. }
        | Adaptation::BitFit { .. }
        | Adaptation::LastBlocks { .. }
        | Adaptation::Full => unsupported(
            "peft has a counterpart for kind = \"lora\" and \"head_only\" alone; this run's adaptation cannot be exported to it",
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
        "use_dora": false,
        "init_lora_weights": true,
        "target_modules": pattern,
        "modules_to_save": ["classifier"],
    }))
}

fn weights(
    manifest: &RunManifest,
    values: &[Vec<f32>],
    transformers: Transformers,
) -> Result<Vec<u8>, ExportError> {
    parts(manifest)?;
    let contract = manifest.contract().ok_or(ExportError::Adapter)?;
    let specs = contract.layout.tensors();
    let fits = specs.len() == values.len()
        && specs.iter().zip(values).all(|(spec, tensor)| spec.elements() == tensor.len());
    if !fits {
        return Err(ExportError::Adapter);
    }
    let data: Vec<Vec<u8>> =
        values.iter().map(|tensor| tensor.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = specs.iter().zip(&data).map(|(spec, data)| {
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), data);
        (peft_name(&spec.name, transformers), view.expect("four bytes an element"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(safetensors::serialize(views, Some(metadata)).expect("distinct names, whole tensors"))
}

/// `blocks.0.attn.q.lora_A` becomes `base_model.model.vit.layers.0.attention.q_proj.lora_A.weight`.
fn peft_name(name: &str, transformers: Transformers) -> String {
    if let Some(part) = name.strip_prefix("head.") {
        return format!("base_model.model.classifier.{part}");
    }
    let (block, rest) =
        name.strip_prefix("blocks.").and_then(|n| n.split_once('.')).unwrap_or(("", name));
    let (module, factor) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let module = Target::ALL
        .into_iter()
        .find(|target| target.module() == module)
        .map_or(module, |target| transformers.module(target));
    format!("base_model.model.{}.{block}.{module}.{factor}.weight", transformers.layers())
}
