//! What a training step costs beside PyTorch: the same vision transformer, LoRA and batch, each
//! in a process of its own, in turns, so that whatever else the machine does meets both.

mod ours;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tributary_shared::architecture::Architecture;

use crate::command::{self, Failed};

pub use ours::run as run_ours;
pub use report::Report;

/// The program that does the same with PyTorch, transformers and peft.
const THEIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python/trainer_bench.py");

/// A size of the plain vision transformer with 16-pixel patches (Dosovitskiy et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// Width 192, 12 blocks, 3 heads: 5.5 million weights.
    Tiny,
    /// Width 384, 12 blocks, 6 heads: 22 million weights.
    Small,
    /// Width 768, 12 blocks, 12 heads: 86 million weights.
    Base,
}

impl Size {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Base => "base",
        }
    }

    fn width(self) -> usize {
        match self {
            Self::Tiny => 192,
            Self::Small => 384,
            Self::Base => 768,
        }
    }
}

/// What the frozen blocks compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BenchPrecision {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl BenchPrecision {
    fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Blocks adapted where not all are.
const LAST_BLOCKS: usize = 4;

/// What one process of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// A site's training with LoRA in every block
    Lora,
    /// The same in the last four blocks, with what enters them kept on disk
    LastBlocks,
    /// Gradients of a batch and image by image, by turns
    Samples,
    /// A site's training on large files that it does not keep, read inside and ahead of a step, by turns
    Files,
}

impl Work {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::LastBlocks => "last-blocks",
            Self::Samples => "samples",
            Self::Files => "files",
        }
    }

    fn last_blocks(self) -> Option<usize> {
        (self == Self::LastBlocks).then_some(LAST_BLOCKS)
    }
}

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct TrainerBenchOptions {
    /// The transformer's size
    #[arg(long, value_enum, default_value_t = Size::Small)]
    pub size: Size,
    /// Side of an image, pixels; a multiple of 16
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u16).range(16..=1024))]
    pub image_size: u16,
    /// Images of an optimiser step
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// Timed steps of one turn; one more warms up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub steps: u16,
    /// Rank of the LoRA factors on queries and values
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=192))]
    pub rank: u16,
    /// Side of a large file's picture, pixels
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u16).range(64..=4096))]
    pub file_size: u16,
    /// What the frozen blocks compute with; PyTorch's side under autocast
    #[arg(long, value_enum, default_value_t)]
    pub precision: BenchPrecision,
    /// Threads of either side
    #[arg(long, default_value_t = cores(), value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
}

fn cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(u16::MAX)
}

impl TrainerBenchOptions {
    fn architecture(&self) -> Architecture {
        let width = self.size.width();
        let (image_size, heads, mlp_width) = (self.image_size, width / 64, width * 4);
        let text = format!(
            "image_size = {image_size}\npatch_size = 16\nchannels = 3\nwidth = {width}\n\
             depth = 12\nheads = {heads}\nmlp_width = {mlp_width}\n"
        );
        toml::from_str(&text).expect("these numbers describe a transformer")
    }

    fn arguments(&self) -> Vec<String> {
        let Self { size, image_size, batch, steps, rank, precision, threads, .. } = self;
        let numbers = [
            ("--image-size", image_size),
            ("--batch", batch),
            ("--steps", steps),
            ("--rank", rank),
            ("--threads", threads),
        ];
        let words = ["--size", size.as_str(), "--precision", precision.as_str()];
        let mut arguments: Vec<String> = words.map(str::to_owned).into();
        for (name, value) in numbers {
            arguments.extend([name.to_owned(), value.to_string()]);
        }
        arguments
    }
}

/// What one process measured of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Wall time of each timed optimiser step, seconds.
    pub step_s: Vec<f64>,
    /// Wall time of the forward pass over as many images as one step has, seconds.
    pub forward_s: f64,
    /// The most memory it ever had resident, bytes.
    pub peak_bytes: u64,
    /// Thread time of a step that went into images on their way into the model, seconds; ours alone.
    #[serde(default)]
    pub reading_s: Option<f64>,
    /// Wall time of reading and decoding one PNG file at the start, seconds; ours alone.
    #[serde(default)]
    pub decoding_s: Option<f64>,
}

/// Gradients of a batch, and image by image, by turns in one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Samples {
    /// Wall time of each plain gradient, seconds.
    pub plain_s: Vec<f64>,
    /// Wall time of each image's own gradient, all images of the batch, seconds.
    pub samples_s: Vec<f64>,
}

/// Training on files that are decoded at every step, seconds a step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// Wall time of each step that reads its own images.
    pub inside_s: Vec<f64>,
    /// Wall time of each step whose images were read while the one before was computed.
    pub ahead_s: Vec<f64>,
    /// Thread time of reading in a step, ahead of it.
    pub reading_s: f64,
    /// Wall time of a step that waited for its images to be read ahead.
    pub waited_s: f64,
}

/// One process's measurement.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a training.
    Training(Measured),
    /// Of gradients alone.
    Samples(Samples),
    /// Of a training on files.
    Files(Files),
}

/// Every turn of everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Turns {
    /// LoRA in every block.
    pub ours: Vec<Measured>,
    /// The same with PyTorch.
    pub pytorch: Vec<Measured>,
    /// LoRA in the last four blocks, what enters them kept on disk.
    pub ours_last_blocks: Vec<Measured>,
    /// The same with PyTorch, which keeps nothing.
    pub pytorch_last_blocks: Vec<Measured>,
    /// Gradients image by image beside plain ones.
    pub samples: Vec<Samples>,
    /// Training on large files, of all turns together.
    pub files: Files,
}

/// Measures both sides, `turns` times each, in turns; `python` has PyTorch, transformers and peft.
pub fn measure(
    options: &TrainerBenchOptions,
    turns: u16,
    python: &Path,
    say: &dyn Fn(&str),
) -> Result<Report, Failed> {
    let this = std::env::current_exe().map_err(|e| Failed::io("finding this program", &e))?;
    let mut all = Turns::default();
    let ours = |work: Work| {
        let mut command = Command::new(&this);
        command.args(["ours", "--work", work.as_str()]).args(options.arguments());
        command.args(["--file-size", &options.file_size.to_string()]);
        command
    };
    let theirs = |work: Work| {
        let last_blocks = work.last_blocks().unwrap_or(0).to_string();
        let mut command = Command::new(python);
        command.arg(THEIRS).args(options.arguments()).args(["--last-blocks", &last_blocks]);
        command
    };
    for turn in 1..=turns {
        let say = |what: &str| say(&format!("turn {turn} of {turns}: {what}"));
        say("ours");
        all.ours.push(process(&mut ours(Work::Lora))?);
        say("PyTorch");
        all.pytorch.push(process(&mut theirs(Work::Lora))?);
        say("ours, last blocks");
        all.ours_last_blocks.push(process(&mut ours(Work::LastBlocks))?);
        say("PyTorch, last blocks");
        all.pytorch_last_blocks.push(process(&mut theirs(Work::LastBlocks))?);
        say("ours, image by image");
        all.samples.push(process(&mut ours(Work::Samples))?);
    }
    // Takes turns by itself, and its files take long to draw.
    say("ours, large files");
    all.files = process(&mut ours(Work::Files))?;
    Ok(Report::new(options, all))
}

/// Runs one side to its end; its last line is what it measured.
fn process<T: DeserializeOwned>(command: &mut Command) -> Result<T, Failed> {
    let outcome = command::run(command)?;
    serde_json::from_value(outcome.data)
        .map_err(|e| Failed::new("reading what was measured", None, &e.to_string()))
}

/// The Python to compare with when none is named: of the active virtual environment, or `python3`.
pub fn default_python() -> PathBuf {
    let venv = std::env::var_os("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("bin/python"));
    venv.unwrap_or_else(|| "python3".into())
}
