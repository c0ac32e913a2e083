//! The bench's numbers, for machines and for people.

use std::fmt;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::floor::Floor;
use super::{BenchOptions, Idle, Timed, largest_mb};
use crate::resources::mb;

/// Everything measured. MB are 10^6 bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Sites.
    pub sites: u16,
    /// Size of one delta.
    pub payload_mb: f64,
    /// Rounds timed.
    pub rounds: u32,
    /// Wall time of a round, from opened to published.
    pub round_s_median: f64,
    /// The fastest round.
    pub round_s_min: f64,
    /// The slowest round.
    pub round_s_max: f64,
    /// The coordinator's processor time a round, all threads, user and kernel.
    pub server_cpu_s_per_round: f64,
    /// The coordinator's peak resident memory.
    pub server_peak_rss_mb: f64,
    /// The largest site's peak resident memory.
    pub site_peak_rss_mb: f64,
    /// The coordinator's resident memory with every site connected and nothing to do.
    pub server_idle_rss_mb: f64,
    /// The largest idle site's resident memory.
    pub site_idle_rss_mb: f64,
    /// From starting the first process to the first published adapter.
    pub start_to_first_round_s: f64,
    /// TLS bytes of one round between the sites and the coordinator, both directions.
    pub wire_mb_per_round: f64,
    /// The floor: 2NP over loopback TCP, 2NP over AES-256-GCM, NP over a summing loop.
    pub floor_s: f64,
    /// Its first part.
    pub floor_tcp_s: f64,
    /// Its second part.
    pub floor_cipher_s: f64,
    /// Its third part.
    pub floor_sum_s: f64,
    /// `round_s_median` over `floor_s`.
    pub times_floor: f64,
    /// The largest difference of any published value from the closed form.
    pub max_abs_error: f64,
}

impl Report {
    pub(super) fn new(
        options: &BenchOptions,
        idle: &Idle,
        timed: &Timed,
        max_abs_error: f64,
        wire_bytes: u64,
        floor: &Floor,
    ) -> Self {
        let mut rounds: Vec<f64> = timed.rounds.iter().map(Duration::as_secs_f64).collect();
        rounds.sort_by(f64::total_cmp);
        let round_s_median = median(&rounds);
        let floor_s = floor.total().as_secs_f64();
        Self {
            sites: options.sites,
            payload_mb: mb(options.payload_bytes()),
            rounds: options.rounds,
            round_s_median,
            round_s_min: rounds.first().copied().unwrap_or(f64::NAN),
            round_s_max: rounds.last().copied().unwrap_or(f64::NAN),
            server_cpu_s_per_round: timed.server_cpu_s_per_round,
            server_peak_rss_mb: mb(timed.server.rss_peak),
            site_peak_rss_mb: largest_mb(&timed.sites, |usage| usage.rss_peak),
            server_idle_rss_mb: mb(idle.server.rss),
            site_idle_rss_mb: largest_mb(&idle.sites, |usage| usage.rss),
            start_to_first_round_s: timed.start_to_first_round.as_secs_f64(),
            wire_mb_per_round: mb(wire_bytes),
            floor_s,
            floor_tcp_s: floor.tcp.as_secs_f64(),
            floor_cipher_s: floor.cipher.as_secs_f64(),
            floor_sum_s: floor.sum.as_secs_f64(),
            times_floor: round_s_median / floor_s,
            max_abs_error,
        }
    }
}

/// The middle of sorted values, or the mean of the two middle ones.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let s = |value: f64| format!("{value:.3} s");
        let mb = |value: f64| format!("{value:.1} MB");
        for (what, value) in [
            ("round, median", s(self.round_s_median)),
            ("round, fastest", s(self.round_s_min)),
            ("round, slowest", s(self.round_s_max)),
            ("floor of a round", s(self.floor_s)),
            ("  loopback TCP", s(self.floor_tcp_s)),
            ("  AES-256-GCM", s(self.floor_cipher_s)),
            ("  summing", s(self.floor_sum_s)),
            ("round over floor", format!("{:.2} x", self.times_floor)),
            ("coordinator, processor time a round", s(self.server_cpu_s_per_round)),
            ("coordinator, peak memory", mb(self.server_peak_rss_mb)),
            ("coordinator, idle memory", mb(self.server_idle_rss_mb)),
            ("site, peak memory", mb(self.site_peak_rss_mb)),
            ("site, idle memory", mb(self.site_idle_rss_mb)),
            ("start to first finished round", s(self.start_to_first_round_s)),
            ("on the wire a round", format!("{:.2} MB", self.wire_mb_per_round)),
            ("largest error", format!("{:.1e}", self.max_abs_error)),
        ] {
            table.add_row([what.to_owned(), value]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let Self { sites, payload_mb, rounds, .. } = self;
        write!(f, "{sites} sites, {payload_mb} MB, {rounds} rounds\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
