//! Both sides' numbers, for machines and for people.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{BenchPrecision, Files, Measured, Samples, Size, TrainerBenchOptions, Turns};
use crate::bench::median;
use crate::resources::mb;

/// Everything measured. MB are 10^6 bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The transformer.
    pub size: Size,
    /// Side of an image, pixels.
    pub image_size: u16,
    /// Images of a step.
    pub batch: u16,
    /// Threads of either side.
    pub threads: u16,
    /// What the frozen blocks compute with.
    pub precision: BenchPrecision,
    /// What every turn measured.
    pub turns: Turns,
    /// Our median step over PyTorch's.
    pub step_ratio: f64,
    /// Our median forward pass over PyTorch's.
    pub forward_ratio: f64,
    /// Our largest peak memory over PyTorch's.
    pub peak_ratio: f64,
    /// Our median step of the last blocks with a cache over PyTorch's without.
    pub last_blocks_ratio: f64,
    /// The median gradient image by image over the median plain one.
    pub samples_ratio: f64,
    /// Share of all threads' time in a step that went into images on their way into the model.
    pub reading_share: f64,
    /// The median step on large files that were read ahead over the median one that reads its own.
    pub ahead_ratio: f64,
    /// Share of a step's wall time that waited for large files read ahead.
    pub waited_share: f64,
}

/// One side, over its turns.
struct Side {
    step_s: f64,
    forward_s: f64,
    peak_bytes: u64,
}

impl Side {
    fn of(turns: &[Measured]) -> Self {
        Self {
            step_s: median_of(turns.iter().flat_map(|turn| turn.step_s.clone()).collect()),
            forward_s: median_of(turns.iter().map(|turn| turn.forward_s).collect()),
            peak_bytes: turns.iter().map(|turn| turn.peak_bytes).max().unwrap_or(0),
        }
    }
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    median(&values)
}

/// Plain gradients and gradients image by image, seconds.
fn samples_s(turns: &[Samples]) -> (f64, f64) {
    let of = |times: fn(&Samples) -> &Vec<f64>| {
        median_of(turns.iter().flat_map(|turn| times(turn).clone()).collect())
    };
    (of(|turn| &turn.plain_s), of(|turn| &turn.samples_s))
}

/// The median step on large files, read inside and ahead, seconds.
fn files_s(files: &Files) -> (f64, f64) {
    (median_of(files.inside_s.clone()), median_of(files.ahead_s.clone()))
}

impl Report {
    pub(super) fn new(options: &TrainerBenchOptions, turns: Turns) -> Self {
        let (we, they) = (Side::of(&turns.ours), Side::of(&turns.pytorch));
        let last = Side::of(&turns.ours_last_blocks).step_s;
        let (plain, samples) = samples_s(&turns.samples);
        let (inside, ahead) = files_s(&turns.files);
        let reading = median_of(turns.ours.iter().filter_map(|turn| turn.reading_s).collect());
        Self {
            size: options.size,
            image_size: options.image_size,
            batch: options.batch,
            threads: options.threads,
            precision: options.precision,
            step_ratio: we.step_s / they.step_s,
            forward_ratio: we.forward_s / they.forward_s,
            peak_ratio: we.peak_bytes as f64 / they.peak_bytes as f64,
            last_blocks_ratio: last / Side::of(&turns.pytorch_last_blocks).step_s,
            samples_ratio: samples / plain,
            reading_share: reading / (we.step_s * f64::from(options.threads)),
            ahead_ratio: ahead / inside,
            waited_share: turns.files.waited_s / ahead,
            turns,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Turns { ours, pytorch, ours_last_blocks, pytorch_last_blocks, samples, files } =
            &self.turns;
        let (we, they) = (Side::of(ours), Side::of(pytorch));
        let (our_last, their_last) = (Side::of(ours_last_blocks), Side::of(pytorch_last_blocks));
        let (plain_s, samples_s) = samples_s(samples);
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["", "ours", "PyTorch", "ratio"]);
        let ms = |seconds: f64| format!("{:.0} ms", seconds * 1e3);
        let memory = |bytes: u64| format!("{:.0} MB", mb(bytes));
        let peak = |ours: &Side, theirs: &Side| ours.peak_bytes as f64 / theirs.peak_bytes as f64;
        let rows = [
            ("forward, one batch", ms(we.forward_s), ms(they.forward_s), self.forward_ratio),
            ("LoRA step, median", ms(we.step_s), ms(they.step_s), self.step_ratio),
            ("peak memory", memory(we.peak_bytes), memory(they.peak_bytes), self.peak_ratio),
            (
                "last 4 blocks, ours cached",
                ms(our_last.step_s),
                ms(their_last.step_s),
                self.last_blocks_ratio,
            ),
            (
                "peak memory",
                memory(our_last.peak_bytes),
                memory(their_last.peak_bytes),
                peak(&our_last, &their_last),
            ),
        ];
        for (what, ours, theirs, ratio) in rows {
            table.add_row([what.to_owned(), ours, theirs, format!("{ratio:.2}")]);
        }
        for column in 1..4 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let Self { size, image_size, batch, threads, precision, .. } = self;
        let (size, precision) = (size.as_str(), precision.as_str());
        writeln!(
            f,
            "ViT {size}/16 at {image_size}, batch {batch}, {threads} threads, {precision}"
        )?;
        writeln!(f, "{table}")?;
        let ratio = self.samples_ratio;
        let (plain, samples) = (ms(plain_s), ms(samples_s));
        writeln!(f, "gradients image by image {samples}, of the batch {plain}: {ratio:.2}")?;
        let decoding = median_of(ours.iter().filter_map(|turn| turn.decoding_s).collect());
        let (share, decoding) = (100.0 * self.reading_share, 1e3 * decoding);
        writeln!(
            f,
            "images on their way into the model: {share:.2} % of a step's thread time; \
             decoding a PNG at the start {decoding:.1} ms"
        )?;
        let (inside, ahead) = files_s(files);
        let waited = 100.0 * self.waited_share;
        write!(
            f,
            "large files read ahead of a step {}, inside it {}: {:.2}; {waited:.0} % of a step waited",
            ms(ahead),
            ms(inside),
            self.ahead_ratio
        )
    }
}
