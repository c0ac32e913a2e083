//! `export`: an adapter for Python.

use std::path::PathBuf;

use serde_json::json;
use tributary_shared::outcome::{Failure, chain};

use super::evaluate::read_adapter;
use super::local::train_head_alone;
use super::read_manifest;
use crate::cli::{Format, print};
use crate::trainer::{Transformers, export_peft};

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The run's manifest
    #[arg(long, value_name = "run.toml")]
    run: PathBuf,
    /// The adapter in canonical bytes, or `initial`
    #[arg(long, value_name = "FILE|initial")]
    adapter: PathBuf,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
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
        train_head_alone(&mut manifest);
    }
    let values = read_adapter(&args.adapter, &manifest)?;
    export_peft(&args.out, &manifest, &values, args.transformers)
        .map_err(|e| Failure::invalid("export", chain(&e)))?;
    print(format, json!({ "adapter_dir": args.out }), || {
        println!("{}", args.out.display());
        println!("load it with peft.PeftModel.from_pretrained(model, {:?})", args.out);
    });
    Ok(())
}
