//! What a training step costs beside PyTorch: the same vision transformer, LoRA and batch, each
//! in a process of its own, in turns, so that whatever else the machine does meets both.

mod ours;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

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
        let Self { size, image_size, batch, steps, rank, threads } = self;
        let numbers = [
            ("--image-size", image_size),
            ("--batch", batch),
            ("--steps", steps),
            ("--rank", rank),
            ("--threads", threads),
        ];
        let mut arguments = vec!["--size".to_owned(), size.as_str().to_owned()];
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
}

/// Measures both sides, `turns` times each, in turns; `python` has PyTorch, transformers and peft.
pub fn measure(
    options: &TrainerBenchOptions,
    turns: u16,
    python: &Path,
    say: &dyn Fn(&str),
) -> Result<Report, Failed> {
    let this = std::env::current_exe().map_err(|e| Failed::io("finding this program", &e))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 1..=turns {
        say(&format!("turn {turn} of {turns}: ours"));
        ours.push(process(Command::new(&this).arg("ours").args(options.arguments()))?);
        say(&format!("turn {turn} of {turns}: PyTorch"));
        theirs.push(process(Command::new(python).arg(THEIRS).args(options.arguments()))?);
    }
    Ok(Report::new(options, ours, theirs))
}

/// Runs one side to its end; its last line is what it measured.
fn process(command: &mut Command) -> Result<Measured, Failed> {
    let outcome = command::run(command)?;
    serde_json::from_value(outcome.data)
        .map_err(|e| Failed::new("reading what was measured", None, &e.to_string()))
}

/// The Python to compare with when none is named: of the active virtual environment, or `python3`.
pub fn default_python() -> PathBuf {
    let venv = std::env::var_os("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("bin/python"));
    venv.unwrap_or_else(|| "python3".into())
}
