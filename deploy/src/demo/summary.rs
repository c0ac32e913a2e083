//! What came of the demo: tables for people, a report in Markdown, one object for machines.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use super::arms::{Arm, ArmScores, Score};
use super::federated::{Round, Trained};
use super::finish::Kept;
use super::plan::Plan;
use super::{HOSPITALS, RUN};
use crate::command::Failed;
use crate::resources::mb;

/// Everything that the demo found out.
#[derive(Clone, Debug)]
pub struct Summary {
    plan: Plan,
    trained: Trained,
    arms: Vec<ArmScores>,
    kept: Kept,
    /// Without building.
    wall_s: f64,
    build_s: f64,
}

impl Summary {
    pub(super) fn make(
        plan: &Plan,
        trained: Trained,
        arms: Vec<ArmScores>,
        kept: Kept,
        (wall_s, build_s): (f64, f64),
    ) -> Self {
        Self { plan: plan.clone(), trained, arms, kept, wall_s, build_s }
    }

    /// Whether the run ended and its history holds.
    pub fn is_sound(&self) -> bool {
        self.kept.verified
    }

    /// The report's file.
    pub fn report(&self) -> PathBuf {
        self.plan.root.join("report.md")
    }

    /// The `data` of the JSON envelope.
    pub fn machine(&self) -> Value {
        let auroc: Map<String, Value> = self
            .arms
            .iter()
            .map(|scores| (scores.arm.key().to_owned(), json!(scores.pooled.auroc)))
            .collect();
        json!({
            "rounds": self.trained.rounds.len(),
            "sites": HOSPITALS.len(),
            "state": self.trained.state,
            "auroc": auroc,
            "audit": { "verified": self.kept.verified, "leaves": self.kept.leaves },
            "adapter_dir": self.kept.adapter_dir,
            "report": self.report(),
            "wall_s": self.wall_s,
        })
    }

    /// The tables and where everything is.
    pub fn people(&self) -> String {
        let mut text = String::new();
        for (heading, table) in self.sections() {
            let _ = write!(text, "\n{heading}\n\n{}\n", plain(&table));
        }
        let _ = write!(text, "\n{}\n\n{}\n", self.audit(), self.places());
        text
    }

    /// Writes the report beside everything else.
    pub(super) fn write_report(&self) -> Result<(), Failed> {
        let mut text = "# A federation on one machine\n".to_owned();
        let origin = &self.plan.images.origin;
        let _ = write!(text, "\nImages: {origin}.\n");
        for (heading, table) in self.sections() {
            let _ = write!(text, "\n## {heading}\n\n{}\n", markdown(&table));
        }
        let _ = write!(text, "\n## History\n\n{}\n\n```\n{}\n```\n", self.audit(), self.places());
        let _ = write!(text, "\n## Terms\n\n```toml\n{}```\n", self.terms());
        fs::write(self.report(), text).map_err(|e| Failed::file(&self.report(), &e))
    }

    fn sections(&self) -> [(String, Vec<Vec<String>>); 4] {
        let accuracy = "Balanced accuracy, likewise".to_owned();
        [
            (self.auroc_heading(), self.scores(|score| shown(score.auroc))),
            (accuracy, self.scores(|score| shown(score.balanced_accuracy))),
            (self.rounds_heading(), self.rounds()),
            ("Peak memory".to_owned(), self.memory()),
        ]
    }

    fn auroc_heading(&self) -> String {
        let oracle = self.plan.images.oracle_auroc;
        let oracle = oracle.map_or_else(String::new, |auroc| {
            format!("; an oracle that knows what was drawn reaches {auroc:.3}")
        });
        format!(
            "AUROC on held-out patients of each hospital and of all. An adapter trained alone is \
             judged at home, and under `all` at every hospital (mean of three adapters){oracle}"
        )
    }

    fn scores(&self, of: impl Fn(&Score) -> String) -> Vec<Vec<String>> {
        let mut heading = vec![String::new()];
        heading.extend(HOSPITALS.iter().map(|name| (*name).to_owned()));
        heading.push("all".to_owned());
        let mut table = vec![heading];
        for arm in Arm::ALL {
            if let Some(scores) = self.arms.iter().find(|scores| scores.arm == arm) {
                let cells = scores.sites.iter().chain([&scores.pooled]).map(&of);
                table.push([arm.words().to_owned()].into_iter().chain(cells).collect());
            }
        }
        if let Some(first) = self.arms.first() {
            let cases = first.sites.iter().chain([&first.pooled]).map(|s| s.cases.to_string());
            table.push(["held-out cases".to_owned()].into_iter().chain(cases).collect());
        }
        table
    }

    fn rounds_heading(&self) -> String {
        let Trained { state, rounds, .. } = &self.trained;
        format!("Run `{RUN}`: {state}, {} rounds", rounds.len())
    }

    fn rounds(&self) -> Vec<Vec<String>> {
        let heading = ["round", "contributed (training cases)", "sent up", "took", "AUROC before"];
        let mut table = vec![heading.map(str::to_owned).to_vec()];
        for round in &self.trained.rounds {
            let Round { round, wall_s, contributions, upload_bytes, base_auroc } = round;
            let sites = contributions.iter().map(|(site, cases)| format!("{site} ({cases})"));
            table.push(vec![
                round.to_string(),
                sites.collect::<Vec<_>>().join(", "),
                format!("{:.2} MB", mb(*upload_bytes)),
                format!("{wall_s:.1} s"),
                shown(*base_auroc),
            ]);
        }
        table
    }

    fn memory(&self) -> Vec<Vec<String>> {
        let mut table = vec![vec!["process".to_owned(), "peak".to_owned()]];
        let peaks = self.trained.peak_mb.iter();
        table.extend(peaks.map(|(name, peak)| vec![name.clone(), format!("{peak:.0} MB")]));
        table
    }

    fn audit(&self) -> String {
        let Kept { verified, leaves, recomputed, .. } = &self.kept;
        let verdict = if *verified { "verified, online and offline" } else { "NOT VERIFIED" };
        format!("History: {verdict}: {leaves} leaves, {recomputed} adapters recomputed bit for bit")
    }

    fn places(&self) -> String {
        let places = [
            ("adapter (peft)", self.kept.adapter_dir.clone()),
            ("report", self.report()),
            ("history", self.kept.history.clone()),
            ("logs", self.plan.root.join("logs")),
        ];
        let lines = places.iter().map(|(what, path)| format!("{what:<15} {}", path.display()));
        let took =
            format!("{:<15} {:.0} s, and {:.0} s building", "took", self.wall_s, self.build_s);
        lines.chain([took]).collect::<Vec<_>>().join("\n")
    }

    fn terms(&self) -> String {
        toml::to_string(&self.plan.manifest).unwrap_or_default()
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"))
}

fn plain(rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    rows.iter().for_each(|row| {
        table.add_row(row);
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn markdown(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |", row.join(" | "));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let columns = rows.first().map_or(0, Vec::len);
    lines.insert(1.min(lines.len()), format!("|{}", "---|".repeat(columns)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_markdown_table_has_its_rule_under_the_heading() {
        let rows = vec![vec!["a".to_owned(), "b".to_owned()], vec!["1".to_owned(), "2".to_owned()]];
        assert_eq!(markdown(&rows), "| a | b |\n|---|---|\n| 1 | 2 |");
    }
}
