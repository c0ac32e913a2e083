//! Both sides' numbers, for machines and for people.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Measured, Size, TrainerBenchOptions};
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
    /// What every turn of ours measured.
    pub ours: Vec<Measured>,
    /// What every turn of PyTorch measured.
    pub pytorch: Vec<Measured>,
    /// Our median step over PyTorch's.
    pub step_ratio: f64,
    /// Our median forward pass over PyTorch's.
    pub forward_ratio: f64,
    /// Our largest peak memory over PyTorch's.
    pub peak_ratio: f64,
}

/// One side, over its turns.
struct Side {
    step_s: f64,
    forward_s: f64,
    peak_bytes: u64,
}

impl Side {
    fn of(turns: &[Measured]) -> Self {
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            median(&values)
        };
        Self {
            step_s: sorted(turns.iter().flat_map(|turn| turn.step_s.clone()).collect()),
            forward_s: sorted(turns.iter().map(|turn| turn.forward_s).collect()),
            peak_bytes: turns.iter().map(|turn| turn.peak_bytes).max().unwrap_or(0),
        }
    }
}

impl Report {
    pub(super) fn new(
        options: &TrainerBenchOptions,
        ours: Vec<Measured>,
        pytorch: Vec<Measured>,
    ) -> Self {
        let (we, they) = (Side::of(&ours), Side::of(&pytorch));
        Self {
            size: options.size,
            image_size: options.image_size,
            batch: options.batch,
            threads: options.threads,
            ours,
            pytorch,
            step_ratio: we.step_s / they.step_s,
            forward_ratio: we.forward_s / they.forward_s,
            peak_ratio: we.peak_bytes as f64 / they.peak_bytes as f64,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (we, they) = (Side::of(&self.ours), Side::of(&self.pytorch));
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["", "ours", "PyTorch", "ratio"]);
        let ms = |seconds: f64| format!("{:.0} ms", seconds * 1e3);
        let rows = [
            ("forward, one batch", ms(we.forward_s), ms(they.forward_s), self.forward_ratio),
            ("LoRA step, median", ms(we.step_s), ms(they.step_s), self.step_ratio),
            (
                "peak memory",
                format!("{:.0} MB", mb(we.peak_bytes)),
                format!("{:.0} MB", mb(they.peak_bytes)),
                self.peak_ratio,
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
        let Self { size, image_size, batch, threads, .. } = self;
        let size = size.as_str();
        write!(f, "ViT {size}/16 at {image_size}, batch {batch}, {threads} threads\n{table}")
    }
}
