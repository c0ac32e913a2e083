//! `backbone`: from a published checkpoint to the file that manifests name.

use std::path::{Path, PathBuf};

use comfy_table::{Table, presets::NOTHING};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tributary_shared::architecture::Architecture;
use tributary_shared::dataset::Interpolation;
use tributary_shared::digest::Digest;
use tributary_shared::manifest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::problems::Problems;

use crate::cli::{Format, print};
use crate::model::{
    Backbone, ImportError, ImportReport, Imported, backbone_layout, import_backbone, preset,
    presets, write_whole,
};

/// Longest architecture file read, bytes.
const ARCHITECTURE_BYTES_MAX: u64 = 1 << 20;

/// Imports published weights and looks at backbone files.
#[derive(Debug, clap::Subcommand)]
pub enum BackboneCommand {
    /// Make a backbone of a checkpoint: safetensors or PyTorch, with the names of timm or
    /// transformers. PyTorch files are read as data; nothing in them is run
    Import(ImportArgs),
    /// The architectures that `import --arch` knows by name
    List,
    /// A file's digest, shape and size
    Show {
        /// The file (safetensors)
        file: PathBuf,
    },
    /// Whether a file is the one that a manifest names
    Verify {
        /// The file (safetensors)
        file: PathBuf,
        /// `backbone.digest` of the manifest
        #[arg(long)]
        digest: Digest,
    },
}

/// Arguments of `backbone import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The checkpoint (`.safetensors`, or `.pth`, `.pt`, `.bin` of PyTorch 1.6 or later)
    file: PathBuf,
    /// A name of `backbone list`, or a `.toml` with `mean`, `std`, `interpolation`, `crop_pct` and
    /// `[architecture]`
    #[arg(long, value_name = "NAME|TOML")]
    arch: String,
    /// Side of the images that the backbone will see, pixels; positions are interpolated
    /// [default: the architecture's]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// What the model's names begin with, where a file holds several models
    #[arg(long)]
    prefix: Option<String>,
    /// Backbone to write (safetensors); its card is written beside it as `.json`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(command: &BackboneCommand, format: Format) -> Result<(), Failure> {
    match command {
        BackboneCommand::Import(args) => import(args, format),
        BackboneCommand::List => {
            list(format);
            Ok(())
        }
        BackboneCommand::Show { file } => show(file, format),
        BackboneCommand::Verify { file, digest } => verify(file, *digest, format),
    }
}

/// What `--arch` asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    mean: Vec<f64>,
    std: Vec<f64>,
    #[serde(default)]
    interpolation: Interpolation,
    crop_pct: Option<f64>,
    architecture: Architecture,
}

fn asked(arch: &str) -> Result<Asked, Failure> {
    if let Some(preset) = preset(arch) {
        return Ok(Asked {
            mean: preset.mean.to_vec(),
            std: preset.std.to_vec(),
            architecture: preset.architecture,
            interpolation: preset.interpolation,
            // Borders show things in medical images: whoever wants them cut off says so in the run.
            crop_pct: None,
        });
    }
    let invalid = |problem: String| Failure::invalid("architecture", format!("{arch}: {problem}"));
    if !arch.ends_with(".toml") {
        return Err(invalid("no architecture of this name".to_owned())
            .hint("`backbone list` shows the names; a `.toml` describes others"));
    }
    let bytes = std::fs::metadata(arch).map_err(|e| invalid(e.to_string()))?.len();
    if bytes > ARCHITECTURE_BYTES_MAX {
        return Err(invalid(format!("{bytes} bytes; at most {ARCHITECTURE_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(arch).map_err(|e| invalid(e.to_string()))?;
    let asked: Asked = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
    Problems::of(|found| asked.architecture.check(found)).map_err(|e| invalid(e.to_string()))?;
    let channels = asked.architecture.channels;
    if asked.mean.len() != channels || asked.std.len() != channels {
        return Err(invalid(format!("`mean` and `std` need {channels} numbers, one a channel")));
    }
    if asked.crop_pct.is_some_and(|share| !manifest::CROP_PCT.contains(&share)) {
        return Err(invalid(
            "`crop_pct` must be 0.5 to 1; left out, images are stretched".to_owned(),
        ));
    }
    Ok(asked)
}

/// `[backbone]` as a run's manifest has it.
#[derive(Serialize)]
pub(super) struct RunTable {
    pub(super) backbone: manifest::Backbone,
}

fn import(args: &ImportArgs, format: Format) -> Result<(), Failure> {
    let asked = asked(&args.arch)?;
    let prefix = args.prefix.as_deref();
    let imported = import_backbone(&args.file, &asked.architecture, args.image_size, prefix);
    let Imported { backbone, report } = imported.map_err(import_failure)?;
    backbone.save(&args.out).map_err(|e| Failure::invalid("output", chain(&e)))?;
    let table = manifest::Backbone {
        digest: backbone.digest(),
        architecture: backbone.architecture().clone(),
        mean: asked.mean,
        std: asked.std,
        interpolation: asked.interpolation,
        crop_pct: asked.crop_pct,
    };
    let data = json!({
        "file": args.out,
        "parameters": backbone.parameters(),
        "features": backbone.architecture().features(),
        "import": report,
        "backbone": table,
    });
    write_card(&args.out, &table)?;
    print(format, data, || {
        print_report(&report);
        say!("wrote      {} ({} weights)", args.out.display(), backbone.parameters());
        say!("card       {}", args.out.with_extension("json").display());
        say!("digest     {}", backbone.digest());
        say!("\n{}", toml::to_string(&RunTable { backbone: table }).unwrap_or_default().trim_end());
    });
    Ok(())
}

/// Writes the card of the backbone at `out`: its table of a manifest. `tributary run new` reads it
/// from beside the file.
fn write_card(out: &Path, table: &manifest::Backbone) -> Result<(), Failure> {
    let path = out.with_extension("json");
    let mut text = serde_json::to_string_pretty(table).expect("a card is plain data");
    text.push('\n');
    write_whole(&path, text.as_bytes())
        .map_err(|e| Failure::invalid("output", format!("{}: {e}", path.display())))
}

fn import_failure(error: ImportError) -> Failure {
    let failure = Failure::invalid("checkpoint", chain(&error));
    match error {
        ImportError::SeveralModels { .. } => failure.hint("--prefix PREFIX"),
        ImportError::Mismatch { problems, .. } => {
            let hint = "`backbone list` shows other architectures; `--image-size` other sizes";
            failure.hint(hint).details(problems)
        }
        ImportError::Read { .. }
        | ImportError::Format { .. }
        | ImportError::NoModel { .. }
        | ImportError::Architecture(_) => failure,
    }
}

fn print_report(report: &ImportReport) {
    let ImportReport { library, prefix, tensors, .. } = report;
    say!("read       {tensors} tensors with {library}'s names, prefix `{prefix}`");
    for (what, names) in [("left out", &report.left_out), ("filled", &report.filled)] {
        if !names.is_empty() {
            say!("{what:<10} {}", names.join(", "));
        }
    }
    if let Some(positions) = &report.positions {
        say!("positions  {positions}");
    }
    report.notes.iter().for_each(|note| say!("note       {note}"));
}

fn list(format: Format) {
    let all = presets();
    print(format, json!({ "presets": &all }), || {
        let mut table = Table::new();
        table.load_preset(NOTHING);
        table.set_header([
            "NAME", "PIXELS", "PATCH", "WIDTH", "BLOCKS", "WEIGHTS", "FEATURES", "MODEL",
        ]);
        for preset in &all {
            let shape = &preset.architecture;
            let millions = backbone_layout(shape).elements() as f64 / 1e6;
            table.add_row([
                preset.name.to_owned(),
                shape.image_size.to_string(),
                shape.patch_size.to_string(),
                shape.width.to_string(),
                shape.depth.to_string(),
                format!("{millions:.1} M"),
                shape.features().to_string(),
                preset.model.to_owned(),
            ]);
        }
        say!("{table}");
    });
}

fn open(file: &Path) -> Result<Backbone, Failure> {
    Backbone::open_described(file).map_err(|e| Failure::invalid("backbone", chain(&e)))
}

fn show(file: &Path, format: Format) -> Result<(), Failure> {
    let backbone = open(file)?;
    let data = json!({
        "digest": backbone.digest(),
        "parameters": backbone.parameters(),
        "architecture": backbone.architecture(),
    });
    print(format, data, || {
        say!("digest        {}", backbone.digest());
        say!("weights       {}", backbone.parameters());
        let architecture = toml::to_string(backbone.architecture());
        say!("\n[backbone.architecture]\n{}", architecture.unwrap_or_default().trim_end());
    });
    Ok(())
}

fn verify(file: &Path, digest: Digest, format: Format) -> Result<(), Failure> {
    let backbone = open(file)?;
    let found = backbone.digest();
    if found != digest {
        let line = format!("{}: its digest is {found}, asked for is {digest}", file.display());
        return Err(Failure::refused("digest", line));
    }
    print(format, json!({ "digest": found }), || say!("{} is {found}", file.display()));
    Ok(())
}
