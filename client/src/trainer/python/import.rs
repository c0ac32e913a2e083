//! A directory of Python's `peft` as the adapter of a run.
//!
//! The files are strangers: sizes are limited, PyTorch's pickle is read as data only, and nothing
//! is guessed: whatever differs from the run's contract is named, all of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tributary_shared::adaptation::{Adaptation, Lora, Scaling};
use tributary_shared::contract::AdapterContract;
use tributary_shared::head::Head;

use super::names::ours;
use super::peft::frozen_lengths;
use crate::model::{Backbone, Checkpoint, ImportError, Values};

/// Longest `adapter_config.json` read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Problems named in one error.
const PROBLEMS_MAX: usize = 1_000;
/// Keys of `adapter_config.json` that change what is computed in a way no run here has.
const FOREIGN: [&str; 16] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "use_qdora",
    "velora_config",
];
/// Ways to begin that leave the base model as it was; others train on a changed one.
const HARMLESS_BEGINNINGS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// Why a directory did not become an adapter.
#[derive(Debug, thiserror::Error)]
pub enum ImportPeftError {
    /// The run's adapter is none that peft's LoRA is.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Whole row lengths become changes of them only beside the backbone.
    #[error(
        "the run trains DoRA, whose peft file holds whole row lengths: give the run's backbone"
    )]
    NoBackbone,
    /// Not there, or not readable.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a configuration.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Neither weights file is there.
    #[error("{}: holds neither adapter_model.safetensors nor adapter_model.bin", .0.display())]
    NoWeights(PathBuf),
    /// A weights file that cannot be read as one.
    #[error(transparent)]
    Weights(#[from] ImportError),
    /// Another adapter than the run's.
    #[error("{}: does not fit the run's contract: {}", path.display(), problems.join("; "))]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// One line a difference.
        problems: Vec<String>,
    },
}

/// Reads the directory `folder` as peft's `save_pretrained` writes it, of transformers' 4 or 5
/// names, into values in the order of the contract's layout. `backbone` is asked of DoRA alone.
pub fn import_peft(
    folder: &Path,
    contract: &AdapterContract,
    backbone: Option<&Backbone>,
) -> Result<Values, ImportPeftError> {
    let lora = lora_of(contract)?;
    if lora.is_some_and(|lora| lora.dora) && backbone.is_none() {
        return Err(ImportPeftError::NoBackbone);
    }
    let mut problems = config_problems(&read_config(folder)?, lora);
    let weights = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| folder.join(name));
    let Some(path) = weights.iter().find(|path| path.exists()) else {
        return Err(ImportPeftError::NoWeights(folder.to_owned()));
    };
    let file = Checkpoint::open(path)?;
    let mut values = take_values(&file, contract, lora.is_none(), &mut problems)?;
    if !problems.is_empty() {
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        problems.truncate(PROBLEMS_MAX);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        return Err(ImportPeftError::Mismatch { path: folder.to_owned(), problems });
    }
    if let Some(backbone) = backbone {
        let lengths = frozen_lengths(contract, backbone);
        for (spec, values) in contract.layout.tensors().iter().zip(&mut values) {
            for (value, length) in
                values.iter_mut().zip(lengths.get(spec.name.as_str()).into_iter().flatten())
            {
                *value = (f64::from(*value) - length) as f32;
            }
        }
    }
    Ok(values)
}

/// The contract's LoRA; `None` when the head alone is trained.
fn lora_of(contract: &AdapterContract) -> Result<Option<&Lora>, ImportPeftError> {
    if contract.head != Some(Head::default()) {
        return Err(ImportPeftError::Unsupported(
            "peft keeps a linear classifier; a run with another head takes no adapter from it",
        ));
    }
    match &contract.adaptation {
        Some(Adaptation::Lora(lora)) => Ok(Some(lora)),
        Some(Adaptation::HeadOnly) => Ok(None),
        Some(
            Adaptation::Houlsby { .. }
            | Adaptation::AdaptFormer { .. }
            | Adaptation::Prompts { .. }
            | Adaptation::BitFit { .. }
            | Adaptation::LastBlocks { .. }
            | Adaptation::Full,
        )
        | None => Err(ImportPeftError::Unsupported(
            "peft has a counterpart for kind = \"lora\" and \"head_only\" alone; this run's adaptation cannot come from it",
        )),
    }
}

fn read_config(folder: &Path) -> Result<Map<String, Value>, ImportPeftError> {
    let path = folder.join("adapter_config.json");
    let read = |source| ImportPeftError::Read { path: path.clone(), source };
    let bytes = fs::metadata(&path).map_err(read)?.len();
    let problem = |problem: String| ImportPeftError::Config { path: path.clone(), problem };
    if bytes > CONFIG_BYTES_MAX {
        return Err(problem(format!("{bytes} bytes; at most {CONFIG_BYTES_MAX} are read")));
    }
    let text = fs::read(&path).map_err(read)?;
    serde_json::from_slice(&text).map_err(|e| problem(format!("not a configuration: {e}")))
}

/// A line for each key that says another adapter than the run's.
fn config_problems(config: &Map<String, Value>, lora: Option<&Lora>) -> Vec<String> {
    let mut problems = Vec::new();
    let said = |key: &str| config.get(key).unwrap_or(&Value::Null);
    let mut differ = |key: &str, expected: Value| {
        let found = said(key);
        let alike = match (expected.as_f64(), found.as_f64()) {
            (Some(expected), Some(found)) => expected == found,
            _ => expected == *found || (expected == false && found.is_null()),
        };
        if !alike {
            problems.push(format!("{key}: expected {expected}, found {found}"));
        }
    };
    differ("peft_type", "LORA".into());
    if let Some(lora) = lora {
        differ("r", lora.rank.into());
        differ("lora_alpha", lora.alpha.into());
        differ("use_rslora", (lora.scaling == Scaling::Rslora).into());
        differ("use_dora", lora.dora.into());
    }
    let bias = said("bias");
    if !bias.is_null() && bias != "none" {
        problems.push(format!("bias: expected \"none\", found {bias}"));
    }
    for key in FOREIGN {
        let empty = match said(key) {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(table) => table.is_empty(),
            Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
        };
        if !empty {
            problems.push(format!("{key} is set, which no run computes"));
        }
    }
    if let Value::String(beginning) = said("init_lora_weights")
        && !HARMLESS_BEGINNINGS.contains(&beginning.as_str())
    {
        problems.push(format!(
            "init_lora_weights = \"{beginning}\" may have changed the base model's weights: convert the adapter to plain LoRA in peft"
        ));
    }
    problems
}

/// The layout's values, and a line for whatever does not fit. Where the head alone is trained,
/// factors that add nothing (their B is zero) are passed over: peft insists on some.
fn take_values(
    file: &Checkpoint,
    contract: &AdapterContract,
    head_alone: bool,
    problems: &mut Vec<String>,
) -> Result<Values, ImportError> {
    let mut found: BTreeMap<String, &str> = BTreeMap::new();
    for (name, stored) in &file.tensors {
        match ours(name) {
            Some(ours) => {
                if let Some(twice) = found.insert(ours, name) {
                    problems.push(format!("{name} and {twice} are one tensor"));
                }
            }
            None => problems.push(format!("unused {name} {:?}", stored.shape)),
        }
    }
    let mut values = Values::new();
    for spec in contract.layout.tensors() {
        let Some(name) = found.remove(&spec.name) else {
            problems.push(format!("missing {spec}"));
            continue;
        };
        let stored = &file.tensors[name];
        if stored.shape != spec.shape {
            problems.push(format!("{name}: expected {:?}, found {:?}", spec.shape, stored.shape));
        } else if !stored.is_real() {
            problems.push(format!("{name} holds {}, not real numbers", stored.kind));
        } else {
            let tensor = file.values(name)?;
            if let Some(at) = tensor.iter().position(|v| !v.is_finite()) {
                problems.push(format!("{name}[{at}] is {}", tensor[at]));
            }
            values.push(tensor);
        }
    }
    for (ours, name) in &found {
        let up =
            ours.rsplit_once('.').and_then(|(module, _)| found.get(&format!("{module}.lora_B")));
        let adds_nothing = match up.filter(|_| head_alone && !ours.starts_with("head.")) {
            Some(up) if file.tensors[*up].is_real() => file.values(up)?.iter().all(|v| *v == 0.0),
            Some(_) | None => false,
        };
        if !adds_nothing {
            problems.push(format!("unused {name} {:?}", file.tensors[*name].shape));
        }
    }
    Ok(values)
}
