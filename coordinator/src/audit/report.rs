//! What a verified export says: the history in short, and how far it was proven.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::text::printable;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;

use super::history::{History, MemberState};
use super::recoveries::RecoveryReport;
use super::replay::Replays;
use crate::round::event::Missing;
use crate::round::weights::weigh;
use crate::round::{Counts, PastRound, Phase, Run, Tally};

/// A verified history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Always true: what does not hold is a finding, not a report.
    pub verified: bool,
    /// The log's name.
    pub log: String,
    /// Leaves, all of them proven to be under the signed root.
    pub leaves: u64,
    /// The signed root.
    pub root: Digest,
    /// When the first leaf was written, milliseconds since the Unix epoch.
    pub first_at: Option<Timestamp>,
    /// When the last leaf was written, milliseconds since the Unix epoch.
    pub last_at: Option<Timestamp>,
    /// Members and where the registry left them.
    pub members: BTreeMap<String, MemberState>,
    /// Leaves that were lost and what is said of it, each statement with both its signatures.
    pub recoveries: Vec<RecoveryReport>,
    /// Every run.
    pub runs: Vec<RunReport>,
    /// Delta and adapter files in the export, each with the digest, shapes and norm recorded.
    pub tensor_files: usize,
    /// Published adapters computed again, bit for bit.
    pub adapters_recomputed: usize,
    /// Published adapters that the export does not hold the inputs of.
    pub adapters_not_recomputed: usize,
}

/// One run of a verified history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// The run.
    pub run: RunName,
    /// `waiting`, `collecting`, `aggregating` or its end state.
    pub state: String,
    /// Who and why, in words, once it has ended.
    pub detail: String,
    /// Digest of its terms, as recomputed from the manifest.
    pub manifest: Digest,
    /// Digest of the initial adapter, as recomputed from the manifest.
    pub initial_adapter: Digest,
    /// Published rounds asked for.
    pub rounds_asked: u32,
    /// Published rounds.
    pub rounds_published: u32,
    /// Every closed round.
    pub rounds: Vec<RoundReport>,
    /// Every site that was ever asked.
    pub sites: Vec<SiteReport>,
}

/// One closed round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundReport {
    /// The round.
    pub round: u32,
    /// The adapter that came out; absent for a void round.
    pub adapter: Option<Digest>,
    /// The sites whose deltas are counted, with their cases.
    pub counted: BTreeMap<SiteName, u64>,
    /// The sites whose delta weighs less than their cases, with the weight that was used.
    pub weights_cut: BTreeMap<SiteName, u64>,
    /// Who did not contribute, and why.
    pub missing: Vec<Missing>,
    /// Whether the adapter was computed again; absent where none is owed.
    pub recomputed: Option<bool>,
    /// Why it was not computed again.
    pub not_recomputed_because: Option<String>,
}

/// One site's part in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteReport {
    /// The site.
    pub site: SiteName,
    /// Rounds in which its delta was counted.
    pub accepted: u32,
    /// Rounds in which its delta was refused, or excluded after it was counted.
    pub refused: u32,
    /// Rounds in which it said no.
    pub declined: u32,
    /// Rounds in which it was asked and nothing came.
    pub lost: u32,
    /// Its training cases, as last counted.
    pub cases: Option<u64>,
}

impl Report {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        history: &History,
        recoveries: Vec<RecoveryReport>,
        replays: &Replays,
        tensor_files: usize,
    ) -> Self {
        let runs: Vec<RunReport> =
            history.runs().values().map(|run| RunReport::new(run, replays)).collect();
        let rounds = || runs.iter().flat_map(|run| &run.rounds);
        let counted = |recomputed| rounds().filter(|r| r.recomputed == Some(recomputed)).count();
        let (adapters_recomputed, adapters_not_recomputed) = (counted(true), counted(false));
        Self {
            verified: true,
            log: checkpoint.origin.clone(),
            leaves: checkpoint.size,
            root: checkpoint.root,
            first_at: history.span().map(|(first, _)| first),
            last_at: history.span().map(|(_, last)| last),
            members: history.members().clone(),
            recoveries,
            tensor_files,
            adapters_recomputed,
            adapters_not_recomputed,
            runs,
        }
    }
}

impl RunReport {
    fn new(run: &Run, replays: &Replays) -> Self {
        let name = &run.manifest().name;
        let (state, detail) = match run.phase() {
            Phase::Waiting => ("waiting", ""),
            Phase::Collecting(_) => ("collecting", ""),
            Phase::Aggregating(_) => ("aggregating", ""),
            Phase::Ended { state, detail, .. } => (state.as_str(), &detail[..]),
        };
        let mut tally = Tally::default();
        tally.count(run);
        Self {
            run: name.clone(),
            state: state.to_owned(),
            detail: detail.to_owned(),
            manifest: run.manifest_digest(),
            initial_adapter: run.adapters()[0],
            rounds_asked: run.manifest().rounds.count,
            rounds_published: run.rounds_published(),
            rounds: run
                .past()
                .iter()
                .map(|(round, past)| {
                    let share_max = run.manifest().limits.share_max;
                    RoundReport::new(*round, past, share_max, replays.of(name, *round))
                })
                .collect(),
            sites: tally.iter().map(SiteReport::new).collect(),
        }
    }
}

impl SiteReport {
    fn new((site, counts): (&SiteName, &Counts)) -> Self {
        let Counts { accepted, refused, lost, declined, cases } = *counts;
        Self { site: site.clone(), accepted, refused, declined, lost, cases }
    }
}

impl RoundReport {
    fn new(
        round: u32,
        past: &PastRound,
        share_max: Option<f64>,
        replay: Option<&Result<(), String>>,
    ) -> Self {
        let weights = weigh(past.accepted(), share_max);
        let counted = weights.iter().map(|w| (w.site.clone(), w.declared)).collect();
        let cut = weights.into_iter().filter(|w| w.used < w.declared);
        Self {
            round,
            adapter: past.published.map(|(adapter, _)| adapter),
            counted,
            weights_cut: cut.map(|w| (w.site, w.used)).collect(),
            missing: past.missing.clone(),
            recomputed: replay.map(Result::is_ok),
            not_recomputed_because: replay.and_then(|replay| replay.clone().err()),
        }
    }
}

impl fmt::Display for Report {
    /// For people: the verdict, what was proven, then a table a run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_under(&self.verdict(), f)
    }
}

impl Report {
    /// The report for people under another verdict.
    pub fn under(&self, verdict: &str) -> String {
        fmt::from_fn(|f| self.write_under(verdict, f)).to_string()
    }

    fn write_under(&self, verdict: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{verdict}\n")?;
        writeln!(f, "log          {}", self.log)?;
        writeln!(f, "leaves       {} under the signed root {}", self.leaves, self.root.short())?;
        if let (Some(first), Some(last)) = (self.first_at, self.last_at) {
            writeln!(f, "written      {first} to {last}")?;
        }
        writeln!(f, "members      {}", self.members_in_words())?;
        writeln!(f, "tensor files {}, each as recorded", self.tensor_files)?;
        let asked = self.adapters_recomputed + self.adapters_not_recomputed;
        writeln!(f, "adapters     {} of {asked} recomputed bit for bit", self.adapters_recomputed)?;
        self.recoveries.iter().try_for_each(|recovery| write!(f, "{recovery}"))?;
        for run in &self.runs {
            write!(f, "\n{run}")?;
        }
        Ok(())
    }

    /// One line: what is proven, and what this export could not prove.
    pub fn verdict(&self) -> String {
        let leaves = counted(self.leaves, "leaf", "leaves");
        let runs = counted(self.runs.len() as u64, "run", "runs");
        let (done, left) = (self.adapters_recomputed, self.adapters_not_recomputed);
        let proven = format!("VERIFIED: {leaves} and {runs} follow the rules");
        match (done, left) {
            (0, 0) => format!("{proven}; no adapter is published"),
            (1, 0) => format!("{proven}; the 1 published adapter recomputed bit for bit"),
            (done, 0) => format!("{proven}; all {done} published adapters recomputed bit for bit"),
            (done, left) => format!(
                "{proven}; {done} of {} published adapters recomputed bit for bit, {left} NOT recomputed",
                done + left
            ),
        }
    }

    /// The published adapters that were not recomputed, in words.
    pub fn not_recomputed(&self) -> Vec<String> {
        let of_run = |run: &RunReport| {
            let rounds = run.rounds.iter().filter_map(|round| {
                let reason = round.not_recomputed_because.as_ref()?;
                Some(format!("run {} round {}: {}", run.run, round.round, printable(reason)))
            });
            rounds.collect::<Vec<_>>()
        };
        self.runs.iter().flat_map(of_run).collect()
    }

    fn members_in_words(&self) -> String {
        let states = [
            (MemberState::Active, "active"),
            (MemberState::Invited, "invited"),
            (MemberState::Suspended, "suspended"),
            (MemberState::Revoked, "revoked"),
        ];
        let counted = states.map(|(state, word)| {
            let count = self.members.values().filter(|found| **found == state).count();
            (count > 0).then(|| format!("{count} {word}"))
        });
        let words: Vec<String> = counted.into_iter().flatten().collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, asked) = (self.rounds_published, self.rounds_asked);
        writeln!(f, "run {}: {}, {done} of {asked} rounds", self.run, self.state)?;
        if !self.detail.is_empty() {
            writeln!(f, "  {}", printable(&self.detail))?;
        }
        writeln!(f, "  terms {}, initial adapter recomputed", self.manifest.short())?;
        if !self.rounds.is_empty() {
            write_table(f, &self.round_table())?;
        }
        if !self.sites.is_empty() {
            write_table(f, &self.site_table())?;
        }
        Ok(())
    }
}

impl RunReport {
    fn round_table(&self) -> Table {
        let mut table = table(["round", "adapter", "counted", "missing", "checked"]);
        for round in &self.rounds {
            let cases: u64 = round.counted.values().sum();
            let missing: Vec<&str> = round.missing.iter().map(|m| m.site.as_str()).collect();
            let checked = match (round.recomputed, &round.not_recomputed_because) {
                (Some(true), _) => "recomputed".to_owned(),
                (_, Some(reason)) => format!("not recomputed: {reason}"),
                (_, None) => "nothing published".to_owned(),
            };
            let mut in_it = format!(
                "{}, {}",
                counted(round.counted.len() as u64, "site", "sites"),
                counted(cases, "case", "cases")
            );
            for (site, used) in &round.weights_cut {
                in_it.push_str(&format!(", {site} used as {used}"));
            }
            table.add_row([
                round.round.to_string(),
                round.adapter.map_or_else(|| "-".to_owned(), Digest::short),
                in_it,
                if missing.is_empty() { "-".to_owned() } else { missing.join(", ") },
                checked,
            ]);
        }
        align_right(&mut table, &[0]);
        table
    }

    fn site_table(&self) -> Table {
        let mut table = table(["site", "accepted", "refused", "declined", "lost", "cases"]);
        for site in &self.sites {
            table.add_row([
                site.site.to_string(),
                site.accepted.to_string(),
                site.refused.to_string(),
                site.declined.to_string(),
                site.lost.to_string(),
                site.cases.map_or_else(|| "-".to_owned(), |cases| cases.to_string()),
            ]);
        }
        align_right(&mut table, &[1, 2, 3, 4, 5]);
        table
    }
}

fn counted(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

fn write_table(f: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    table.lines().try_for_each(|line| writeln!(f, " {}", line.trim_end()))
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_counted_in_the_singular() {
        assert_eq!(counted(1, "run", "runs"), "1 run");
        assert_eq!(counted(0, "leaf", "leaves"), "0 leaves");
    }
}
