//! Tables, times and sizes as people read them.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use tributary_shared::digest::Digest;
use tributary_shared::text::printable;
use tributary_shared::timestamp::Timestamp;

use crate::clock;

/// What stands where there is nothing to say.
pub(super) const NOTHING: &str = "-";

/// A table with headings; the columns in `numbers` are aligned right.
pub(super) fn table(headings: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let first = index == 0;
        column.set_padding((if first { 0 } else { 1 }, 1));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `2026-11-23 19:04:29Z`; nothing for a time that never was.
pub(super) fn time(millis: i64) -> String {
    if millis <= 0 {
        return NOTHING.to_owned();
    }
    let text = Timestamp::from_millis(millis).to_string();
    let Some((date, clock)) = text.split_once('T') else {
        return text;
    };
    let seconds = clock.split(['.', 'Z']).next().unwrap_or(clock);
    format!("{date} {seconds}Z")
}

/// RFC 3339 for machines, `None` for a time that never was.
pub(super) fn time_or_none(millis: i64) -> Option<String> {
    (millis > 0).then(|| Timestamp::from_millis(millis).to_string())
}

/// `5 minutes ago`.
pub(super) fn ago(millis: i64) -> String {
    if millis <= 0 {
        return "never".to_owned();
    }
    let passed = clock::now().since(Timestamp::from_millis(millis));
    if passed < Duration::from_secs(1) {
        return "now".to_owned();
    }
    format!("{} ago", HumanDuration(passed))
}

/// `in 5 minutes`, or `over` when it has passed.
pub(super) fn until(millis: i64) -> String {
    match Timestamp::from_millis(millis).since(clock::now()) {
        Duration::ZERO => "over".to_owned(),
        left => format!("in {}", HumanDuration(left)),
    }
}

/// The time between two points, `1m 5s`.
pub(super) fn between(from: i64, to: i64) -> String {
    let passed = Timestamp::from_millis(to).since(Timestamp::from_millis(from));
    if passed < Duration::from_secs(10) {
        return format!("{:.1}s", passed.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(passed.as_secs())).to_string()
}

/// `12.60 MiB`.
pub(super) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// The first digits of a digest as it came over the wire.
pub(super) fn short(digest: &[u8]) -> String {
    Digest::try_from(digest).map_or_else(|_| NOTHING.to_owned(), Digest::short)
}

/// The whole digest as it came over the wire, for machines.
pub(super) fn digest_or_none(digest: &[u8]) -> Option<String> {
    Digest::try_from(digest).ok().map(|d| d.to_string())
}

/// A bar for `bytes` of `what` (or a counter when the size is not known); invisible unless
/// standard error is a terminal.
pub(super) fn bar(what: &str, bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            (ProgressBar::new(bytes), template)
        }
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_to_the_second_and_zero_is_no_time() {
        assert_eq!(time(1_000), "1970-01-01 00:00:01Z");
        assert_eq!(time(1_234), "1970-01-01 00:00:01Z");
        assert_eq!(time(0), "-");
        assert_eq!(time_or_none(0), None);
        assert_eq!(between(0, 65_400), "1m 5s");
        assert_eq!(between(0, 1_400), "1.4s");
    }

    #[test]
    fn a_site_cannot_forge_a_line_of_the_table() {
        let rows = vec![vec!["a".to_owned(), "x\nforged \u{1b}[2Ayes".to_owned()]];
        let text = table(&["SITE", "REASON"], &[], rows);
        assert_eq!(text, "SITE  REASON\na     x forged  [2Ayes");
    }
}
