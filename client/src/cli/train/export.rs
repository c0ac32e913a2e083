//! `export` and `import-adapter`: adapters to and from Python, and merged backbones.

use std::path::{Path, PathBuf};

use serde_json::json;
use tributary_shared::digest::Digest;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::{self, RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tensors::encode;

use super::backbone::RunTable;
use super::evaluate::read_adapter;
use super::local::train_head_alone;
use super::{read_backbone, read_manifest};
use crate::cli::{Format, print};
use crate::model::{Backbone, merged, write_whole};
use crate::trainer::{
    ExportError, ImportPeftError, Transformers, export_peft, export_timm, import_peft,
};

/// What an adapter is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum As {
    /// A directory for `peft` on transformers' ViT: LoRA, rsLoRA, DoRA, a head alone.
    #[default]
    Peft,
    /// A directory for timm: the whole model, merged where it can be.
    Timm,
    /// A backbone file with the adapter merged in, for another run to start from.
    Backbone,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The run's manifest
    #[arg(long, value_name = "run.toml")]
    run: PathBuf,
    /// The adapter in canonical bytes, or `initial`
    #[arg(long, value_name = "FILE|initial")]
    adapter: PathBuf,
    /// What to write
    #[arg(long = "as", value_enum, default_value_t)]
    kind: As,
    /// The run's backbone; `--as peft` needs it for DoRA alone
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// Directory to make, or the file of `--as backbone`
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// The adapter was trained with `train --head-only`
    #[arg(long)]
    head_only: bool,
    /// Major version of transformers that will load it: its modules' names differ
    #[arg(long, value_enum, default_value_t = Transformers::V5)]
    transformers: Transformers,
}

pub(super) fn run(args: &ExportArgs, format: Format) -> Result<(), Failure> {
    let mut manifest = read_manifest(&args.run)?;
    if args.head_only {
        train_head_alone(&mut manifest)?;
    }
    let values = read_adapter(&args.adapter, &manifest)?;
    let backbone = args.backbone.as_deref().map(|path| read_backbone(path, &manifest));
    let backbone = backbone.transpose()?;
    let labelled = !matches!(manifest.task, Task::SelfSupervised { .. });
    let failed = |e: ExportError| {
        let failure = Failure::invalid("export", chain(&e));
        match e {
            ExportError::NoBackbone(_) => failure.hint("--backbone FILE"),
            ExportError::Unsupported(_) if args.kind == As::Peft && labelled => {
                failure.hint("`--as timm` writes every kind of adaptation and head")
            }
            ExportError::Unsupported(_)
            | ExportError::Adapter
            | ExportError::Exists(_)
            | ExportError::Write { .. } => failure,
        }
    };
    let (out, backbone) = (&args.out, backbone.as_ref());
    match args.kind {
        As::Peft => {
            export_peft(out, &manifest, backbone, &values, args.transformers).map_err(failed)?;
            print(format, json!({ "adapter_dir": out }), || {
                say!("{}", out.display());
                say!("load it with peft.PeftModel.from_pretrained(model, {out:?})");
            });
        }
        As::Timm => {
            let needed = || failed(ExportError::NoBackbone("a model for timm"));
            let backbone = backbone.ok_or_else(needed)?;
            let alone = export_timm(out, &manifest, backbone, &values).map_err(failed)?;
            print(format, json!({ "model_dir": out, "timm_alone": alone }), || {
                say!("{}", out.display());
                match alone {
                    true => say!(
                        "load it with timm.create_model(\"local-dir:{}\", pretrained=True)",
                        out.display()
                    ),
                    false => say!(
                        "load it with tributary_timm.load({out:?}); the module lies beside the weights"
                    ),
                }
            });
        }
        As::Backbone => {
            let needed = || failed(ExportError::NoBackbone("a merged backbone"));
            write_merged(out, &manifest, backbone.ok_or_else(needed)?, &values, format)?;
        }
    }
    Ok(())
}

fn write_merged(
    out: &Path,
    manifest: &RunManifest,
    backbone: &Backbone,
    values: &[Vec<f32>],
    format: Format,
) -> Result<(), Failure> {
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let whole = merged(backbone, &contract, values).map_err(|e| {
        Failure::invalid("export", chain(&e)).hint("`--as timm` writes every kind of adaptation")
    })?;
    whole.save(out).map_err(|e| Failure::invalid("output", chain(&e)))?;
    let asked = manifest.backbone.clone().expect("the manifest of a model names its backbone");
    let table = manifest::Backbone { digest: whole.digest(), ..asked };
    let data = json!({ "file": out, "digest": whole.digest(), "backbone": table });
    print(format, data, || {
        say!("wrote      {} ({} weights)", out.display(), whole.parameters());
        say!("digest     {}", whole.digest());
        say!("note       the trained head is not in it: a run on it begins with a new one");
        let table = toml::to_string(&RunTable { backbone: table }).unwrap_or_default();
        say!("\n{}", table.trim_end());
    });
    Ok(())
}

/// Arguments of `import-adapter`.
#[derive(Debug, clap::Args)]
pub struct ImportAdapterArgs {
    /// What `peft` wrote: `adapter_config.json` with `adapter_model.safetensors` or `.bin`, which is
    /// read as data; nothing in it is run
    folder: PathBuf,
    /// The run's manifest, whose adapter contract it must fit
    #[arg(long, value_name = "run.toml")]
    run: PathBuf,
    /// The run's backbone; DoRA alone needs it
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// The adapter has a head alone, as `train --head-only` makes it
    #[arg(long)]
    head_only: bool,
    /// Adapter to write, in canonical bytes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn import(args: &ImportAdapterArgs, format: Format) -> Result<(), Failure> {
    let mut manifest = read_manifest(&args.run)?;
    if args.head_only {
        train_head_alone(&mut manifest)?;
    }
    let backbone = args.backbone.as_deref().map(|path| read_backbone(path, &manifest));
    let backbone = backbone.transpose()?;
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let values = import_peft(&args.folder, &contract, backbone.as_ref()).map_err(|e| {
        let failure = Failure::invalid("adapter", chain(&e));
        match e {
            ImportPeftError::NoBackbone => failure.hint("--backbone FILE"),
            ImportPeftError::Mismatch { .. } => {
                failure.hint("the run's [adapter] must say what peft trained")
            }
            ImportPeftError::Unsupported(_)
            | ImportPeftError::Read { .. }
            | ImportPeftError::Config { .. }
            | ImportPeftError::NoWeights(_)
            | ImportPeftError::Weights(_) => failure,
        }
    })?;
    let header = adapter_header(&manifest.name, manifest.rounds.count, &contract);
    let bytes = encode(&header, &values);
    write_whole(&args.out, &bytes)
        .map_err(|e| Failure::invalid("output", format!("{}: {e}", args.out.display())))?;
    let digest = Digest::of(&bytes);
    let data = json!({ "adapter": args.out, "digest": digest, "tensors": values.len() });
    print(format, data, || {
        say!("{}", args.out.display());
        say!("digest  {digest}");
        say!("tensors {}", values.len());
    });
    Ok(())
}
