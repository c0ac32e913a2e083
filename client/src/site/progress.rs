//! What people see while the program runs: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;
use tracing_subscriber::fmt::MakeWriter;

use super::activity::{Activity, Phase};

/// Fewest seconds between two lines, and between two states of the bar.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR_EVERY: Duration = Duration::from_millis(100);

/// Where progress is shown. Clones share one bar.
#[derive(Clone, Debug)]
pub struct Display {
    /// Absent when standard error is no terminal.
    bar: Option<ProgressBar>,
}

impl Display {
    /// A bar when standard error is a terminal and `lines` does not ask for lines.
    pub fn new(lines: bool) -> Self {
        if lines || !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar: Some(bar) }
    }

    /// Shows `activity` until it is aborted.
    pub(super) async fn show(self, mut activity: watch::Receiver<Activity>) {
        let mut shown = Activity::default();
        let every = if self.bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        while activity.changed().await.is_ok() {
            let now = activity.borrow_and_update().clone();
            match &self.bar {
                Some(bar) => draw(bar, &now, &shown),
                None => tell(&now, &shown),
            }
            shown = now;
            tokio::time::sleep(every).await;
        }
    }
}

fn draw(bar: &ProgressBar, now: &Activity, shown: &Activity) {
    if (now.phase, &now.round, now.steps) != (shown.phase, &shown.round, shown.steps) {
        let template = if now.steps > 0 {
            "{prefix} [{bar:30}] {percent:>3}% {msg}"
        } else {
            "{prefix} {spinner} {msg}"
        };
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        bar.set_style(style.progress_chars("=> "));
        bar.set_length(now.steps);
        let round = now
            .round
            .as_ref()
            .map_or(String::new(), |id| format!("{} round {}: ", id.run, id.round));
        bar.set_prefix(format!("{round}{}", now.phase.as_str()));
    }
    bar.set_message(detail(now));
    bar.set_position(now.step);
    bar.tick();
}

fn tell(now: &Activity, shown: &Activity) {
    let Some(id) = &now.round else { return };
    if (now.phase, now.step) == (shown.phase, shown.step) {
        return;
    }
    let (phase, detail) = (now.phase.as_str(), detail(now));
    tracing::info!(run = %id.run, round = id.round, "{phase} {detail}");
}

/// Step, loss, speed and time left, as far as they are known.
fn detail(now: &Activity) -> String {
    let mut parts = Vec::new();
    let bytes = matches!(now.phase, Phase::Fetching | Phase::Writing | Phase::Uploading);
    if now.steps > 0 && bytes {
        parts.push(format!("{:.1}/{:.1} MB", now.step as f64 / 1e6, now.steps as f64 / 1e6));
    } else if now.steps > 0 {
        parts.push(format!("step {}/{}", now.step, now.steps));
    }
    if let Some(loss) = now.loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if now.images_per_s > 0.0 {
        parts.push(format!("{:.1} images/s", now.images_per_s));
        parts.push(format!("{:.0} s left", now.eta_s));
    }
    parts.join(", ")
}

/// Log lines that do not tear the bar.
impl<'a> MakeWriter<'a> for Display {
    type Writer = Above;

    fn make_writer(&'a self) -> Above {
        Above { bar: self.bar.clone(), line: Vec::new() }
    }
}

/// One log line, printed above the bar when it is complete.
#[derive(Debug)]
pub struct Above {
    bar: Option<ProgressBar>,
    line: Vec<u8>,
}

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let print = || std::io::stderr().write_all(&line);
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        // A log line that cannot be printed has nowhere to complain.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let mut now =
            Activity { phase: Phase::Training, step: 3, steps: 12, ..Activity::default() };
        assert_eq!(detail(&now), "step 3/12");
        (now.loss, now.images_per_s, now.eta_s) = (Some(0.71828), 41.26, 9.4);
        assert_eq!(detail(&now), "step 3/12, loss 0.7183, 41.3 images/s, 9 s left");
        let upload =
            Activity { phase: Phase::Uploading, step: 600_000, steps: 1_200_000, ..now.clone() };
        assert!(detail(&upload).starts_with("0.6/1.2 MB"));
    }
}
