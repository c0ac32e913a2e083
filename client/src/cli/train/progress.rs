//! Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::trainer::{Phase, Progress};

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress on standard error until it is dropped.
pub(super) struct Display {
    bar: Option<(Phase, ProgressBar)>,
    terminal: bool,
    told: Option<Instant>,
    prefix: String,
}

impl Display {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { bar: None, terminal, told: None, prefix: String::new() }
    }

    /// Words before every line that follows, e.g. the round.
    pub(super) fn prefix(&mut self, prefix: impl Into<String>) {
        self.prefix = prefix.into();
        self.clear();
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let text = describe(&progress);
        if self.terminal {
            let bar = self.bar_of(&progress);
            bar.set_message(text);
            bar.set_position(progress.step);
            return;
        }
        if self.told.is_none_or(|told| told.elapsed() >= LINE_EVERY) {
            self.told = Some(Instant::now());
            let Progress { phase, step, total_steps, .. } = progress;
            aside!("{}{} {step}/{total_steps} {text}", self.prefix, phase.as_str());
        }
    }

    fn bar_of(&mut self, progress: &Progress) -> &ProgressBar {
        if self.bar.as_ref().is_none_or(|(phase, _)| *phase != progress.phase) {
            self.clear();
        }
        let (_, bar) = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.total_steps).with_style(style);
            bar.set_prefix(format!("{}{}", self.prefix, progress.phase.as_str()));
            (progress.phase, bar)
        });
        bar
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

fn describe(progress: &Progress) -> String {
    let loss = progress.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}, "));
    format!("{loss}{:.0} images/s, {:.0} s left", progress.images_per_s, progress.eta_s)
}
