//! `pretrain`: unlabelled images to a backbone file and its card.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tributary_shared::architecture::Architecture;
use tributary_shared::dataset::Interpolation;
use tributary_shared::outcome::{Failure, chain};

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
    /// Share of an image's patches that is hidden
    #[arg(long, default_value_t = 0.75)]
    mask_ratio: f64,
    /// Width of the decoder, which is thrown away; a multiple of 32
    #[arg(long, default_value_t = 64)]
    decoder_width: usize,
    /// Blocks of the decoder
    #[arg(long, default_value_t = 1)]
    decoder_depth: usize,
    /// Seed of weights, order, masks and flips
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
        let checked = architecture.check();
        checked.map_err(|e| Failure::invalid("arguments", e.to_string()))?;
        Ok(architecture)
    }
}

pub(super) fn run(args: &PretrainArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let plan = plan(args)?;
    let channels = plan.architecture.channels;
    let input = InputSpec {
        image_size: plan.architecture.image_size,
        channels,
        mean: vec![PIXEL_CENTRE; channels],
        std: vec![PIXEL_CENTRE; channels],
        interpolation: Interpolation::Bilinear,
    };
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
    let card = card(args, &made, dataset.len(), &input, began.elapsed().as_secs());
    write(args, &made, &card)?;
    print(format, &card, || {
        let (first, last) = (made.losses.first(), made.losses.last());
        println!("{} ({} weights)", args.out.display(), made.backbone.parameters());
        println!("digest  {}", made.backbone.digest());
        let loss = |l: Option<&f64>| super::shown(l.copied());
        println!("loss    {} -> {}", loss(first), loss(last));
        println!("card    {}", args.out.with_extension("json").display());
    });
    Ok(())
}

fn plan(args: &PretrainArgs) -> Result<Pretraining, Failure> {
    let require = |holds: bool, problem: &str| {
        if holds { Ok(()) } else { Err(Failure::invalid("arguments", problem)) }
    };
    require((1..=100_000).contains(&args.epochs), "--epochs must be between 1 and 100000")?;
    require((1..=65_536).contains(&args.batch_size), "--batch-size must be between 1 and 65536")?;
    require(
        args.learning_rate > 0.0 && args.learning_rate.is_finite(),
        "--learning-rate must be above 0",
    )?;
    require((0.0..=10.0).contains(&args.weight_decay), "--weight-decay must be between 0 and 10")?;
    require(args.mask_ratio > 0.0 && args.mask_ratio < 1.0, "--mask-ratio must be in (0, 1)")?;
    require(
        args.decoder_width.is_multiple_of(32) && (32..=8_192).contains(&args.decoder_width),
        "--decoder-width must be a multiple of 32 between 32 and 8192",
    )?;
    require((1..=32).contains(&args.decoder_depth), "--decoder-depth must be between 1 and 32")?;
    let architecture = args.shape.architecture()?;
    require(architecture.patches() > 1, "an image must have more than one patch")?;
    Ok(Pretraining {
        architecture,
        epochs: args.epochs,
        batch_size: args.batch_size,
        learning_rate: args.learning_rate,
        weight_decay: args.weight_decay,
        mask_ratio: args.mask_ratio,
        decoder_width: args.decoder_width,
        decoder_depth: args.decoder_depth,
        seed: args.seed,
    })
}

/// What made the file and how it can be recognised.
fn card(
    args: &PretrainArgs,
    made: &Pretrained,
    images: usize,
    input: &InputSpec,
    seconds: u64,
) -> Value {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounded = |loss: &f64| (loss * 1e4).round() / 1e4;
    json!({
        "file": args.out.file_name().map(|name| name.to_string_lossy()),
        "digest": made.backbone.digest(),
        "parameters": made.backbone.parameters(),
        "architecture": made.backbone.architecture(),
        "mean": input.mean,
        "std": input.std,
        "method": "masked autoencoding (He et al. 2021, arXiv:2111.06377), decoder dropped",
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
