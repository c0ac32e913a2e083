//! `pretrain`: unlabelled images to a backbone file and its card.

use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use tributary_shared::architecture::Architecture;
use tributary_shared::augment::Augment;
use tributary_shared::manifest::MANIFEST_BYTES_MAX;
use tributary_shared::objective::{BATCH_MAX, Dino, Mae, Objective, SimClr};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::problems::Problems;

use super::progress::Display;
use super::{Images, Threads};
use crate::cli::{Format, print};
use crate::data::{Dataset, InputSpec};
use crate::model::{Compute, write_whole};
use crate::trainer::{Control, Pretrained, Pretraining, pretrain};

/// Mean and standard deviation of pixels in [0, 1], as transformers' ViT takes them.
pub(super) const PIXEL_CENTRE: f64 = 0.5;

/// Arguments of `pretrain`.
#[derive(Debug, clap::Args)]
pub struct PretrainArgs {
    #[command(flatten)]
    images: Images,
    /// Backbone to write (safetensors); its card is written beside it as `.json`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    shape: Shape,
    /// Passes over the images
    #[arg(long, default_value_t = 100)]
    epochs: u32,
    /// Images of a step
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Peak learning rate of AdamW
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay of AdamW
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// What to learn by: `mae`, `simclr` or `dino` with their usual numbers, or a `.toml` with
    /// `[objective]` as a run's `[task.objective]` and `[augment]` as its `[training.augment]`
    #[arg(long, default_value = "mae", value_name = "NAME|TOML")]
    objective: String,
    /// Seed of weights, order, masks and views
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    threads: Threads,
}

/// The backbone's shape; by default the demo's, 1.2 million weights.
#[derive(Debug, clap::Args)]
struct Shape {
    /// Side of the square input, pixels
    #[arg(long, default_value_t = 64)]
    image_size: usize,
    /// Side of a patch, pixels
    #[arg(long, default_value_t = 8)]
    patch_size: usize,
    /// 1 (grey) or 3 (colour)
    #[arg(long, default_value_t = 3)]
    channels: usize,
    /// Width of a token
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Transformer blocks
    #[arg(long, default_value_t = 6)]
    depth: usize,
    /// Attention heads
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Width inside the multilayer perceptron [default: four times --width]
    #[arg(long)]
    mlp_width: Option<usize>,
}

impl Shape {
    fn architecture(&self) -> Result<Architecture, Failure> {
        let Self { image_size, patch_size, channels, width, depth, heads, mlp_width } = *self;
        let mut architecture = Architecture::plain(image_size, patch_size, width, depth, heads);
        architecture.channels = channels;
        architecture.mlp_width = mlp_width.unwrap_or(architecture.mlp_width);
        let checked = Problems::of(|found| architecture.check(found));
        checked.map_err(|e| Failure::invalid("arguments", e.to_string()))?;
        Ok(architecture)
    }
}

pub(super) fn run(args: &PretrainArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let plan = plan(args)?;
    let channels = plan.architecture.channels;
    let input =
        InputSpec::plain(plan.architecture.image_size, channels, PIXEL_CENTRE, PIXEL_CENTRE);
    let dataset =
        args.images.open(|source, reading| Dataset::open_unlabelled_as(source, &input, reading))?;
    let began = Instant::now();
    let mut display = Display::new();
    let control = Control::default();
    let made = pretrain(&plan, &dataset, &Compute::cpu(), &control, &mut |progress| {
        display.show(progress)
    })
    .map_err(|e| Failure::invalid("training", chain(&e)))?;
    drop(display);
    let card = card(args, &plan, &made, dataset.len(), &input, began.elapsed().as_secs());
    write(args, &made, &card)?;
    print(format, &card, || {
        let (first, last) = (made.losses.first(), made.losses.last());
        say!("{} ({} weights)", args.out.display(), made.backbone.parameters());
        say!("digest  {}", made.backbone.digest());
        let loss = |l: Option<&f64>| super::shown(l.copied());
        say!("loss    {} -> {}", loss(first), loss(last));
        say!("card    {}", args.out.with_extension("json").display());
    });
    Ok(())
}

fn plan(args: &PretrainArgs) -> Result<Pretraining, Failure> {
    let require = |holds: bool, problem: &str| {
        if holds { Ok(()) } else { Err(Failure::invalid("arguments", problem)) }
    };
    require((1..=100_000).contains(&args.epochs), "--epochs must be between 1 and 100000")?;
    let images = args.batch_size;
    require(
        (1..=BATCH_MAX).contains(&images),
        &format!("--batch-size must be between 1 and {BATCH_MAX}"),
    )?;
    require(
        args.learning_rate > 0.0 && args.learning_rate.is_finite(),
        "--learning-rate must be above 0",
    )?;
    require((0.0..=10.0).contains(&args.weight_decay), "--weight-decay must be between 0 and 10")?;
    let Learning { objective, augment } = learning(&args.objective)?;
    let plan = Pretraining {
        architecture: args.shape.architecture()?,
        objective,
        augment,
        epochs: args.epochs,
        batch_size: images,
        learning_rate: args.learning_rate,
        weight_decay: args.weight_decay,
        seed: args.seed,
    };
    plan.check().map_err(|e| Failure::invalid("objective", format!("{}: {e}", args.objective)))?;
    Ok(plan)
}

/// What `--objective` asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Learning {
    objective: Objective,
    #[serde(default)]
    augment: Option<Augment>,
}

fn learning(asked: &str) -> Result<Learning, Failure> {
    let invalid = |problem: String| Failure::invalid("objective", format!("{asked}: {problem}"));
    let objective = match asked {
        "mae" => return Ok(Learning { objective: Objective::Mae(Mae::default()), augment: None }),
        "simclr" => Objective::SimClr(SimClr::default()),
        "dino" => Objective::Dino(Dino::default()),
        path if path.ends_with(".toml") => {
            let bytes = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
            if bytes > MANIFEST_BYTES_MAX as u64 {
                let limit = format!("{bytes} bytes; at most {MANIFEST_BYTES_MAX} are read");
                return Err(invalid(limit));
            }
            let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
            return toml::from_str(&text).map_err(|e| invalid(e.to_string()));
        }
        _ => return Err(invalid("is none of mae, simclr, dino and no .toml".to_owned())),
    };
    Ok(Learning { objective, augment: Some(usual_views()) })
}

/// What the two papers do to photographs, as far as grey images take it.
fn usual_views() -> Augment {
    Augment {
        crop_area_min: 0.4,
        flip_horizontal: true,
        brightness: 0.4,
        contrast: 0.4,
        saturation: 0.2,
        hue: 0.05,
        ..Augment::default()
    }
}

/// What made the file and how it can be recognised.
fn card(
    args: &PretrainArgs,
    plan: &Pretraining,
    made: &Pretrained,
    images: usize,
    input: &InputSpec,
    seconds: u64,
) -> Value {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Pretraining { objective, augment, .. } = plan;
    let rounded = |loss: &f64| (loss * 1e4).round() / 1e4;
    json!({
        "file": args.out.file_name().map(|name| name.to_string_lossy()),
        "digest": made.backbone.digest(),
        "parameters": made.backbone.parameters(),
        "architecture": made.backbone.architecture(),
        "mean": input.mean,
        "std": input.std,
        "objective": objective,
        "augment": augment,
        "command": format!("tributary-client {}", arguments.join(" ")),
        "seed": args.seed,
        "images": images,
        "epochs": args.epochs,
        "wall_s": seconds,
        "loss_of_epoch": made.losses.iter().map(rounded).collect::<Vec<_>>(),
    })
}

fn write(args: &PretrainArgs, made: &Pretrained, card: &Value) -> Result<(), Failure> {
    made.backbone.save(&args.out).map_err(|e| Failure::invalid("output", chain(&e)))?;
    let path = args.out.with_extension("json");
    let mut text = serde_json::to_string_pretty(card).expect("a card is plain data");
    text.push('\n');
    write_whole(&path, text.as_bytes())
        .map_err(|e| Failure::invalid("output", format!("{}: {e}", path.display())))
}
