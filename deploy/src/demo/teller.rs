//! Tells what is going on: numbered steps, notes, and a bar on a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tributary_client::cli::{aside, emit};

use super::STEPS;

/// Tells on standard output, or on standard error when standard output is for machines.
#[derive(Debug)]
pub struct Teller {
    machine: bool,
    step: usize,
    began: Instant,
}

impl Teller {
    /// A teller that leaves standard output alone when it is for a `machine`.
    pub fn new(machine: bool) -> Self {
        Self { machine, step: 0, began: Instant::now() }
    }

    /// Begins the next step.
    pub fn step(&mut self, what: &str) {
        self.step += 1;
        let seconds = self.began.elapsed().as_secs();
        self.line(&format!(
            "[{}/{STEPS}] {what}  ({}:{:02})",
            self.step,
            seconds / 60,
            seconds % 60
        ));
    }

    /// Something worth knowing about the step.
    pub fn note(&self, what: &str) {
        self.line(&format!("      {what}"));
    }

    fn line(&self, text: &str) {
        if self.machine {
            aside(text);
        } else {
            emit(text);
        }
    }

    /// A bar of `length` under the notes; invisible unless standard error is a terminal.
    pub(super) fn bar(&self, length: u64) -> ProgressBar {
        let bar = ProgressBar::new(length);
        let style =
            ProgressStyle::with_template("      {spinner} {bar:30} {pos}/{len} {elapsed} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A note while `bar` is shown.
    pub(super) fn note_above(&self, bar: &ProgressBar, what: &str) {
        bar.suspend(|| self.note(what));
    }
}
