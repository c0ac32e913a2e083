//! `run show`: a run, its open round's seats and its closed rounds, once or as it changes.

use std::io::IsTerminal;

use serde::Serialize;
use serde_json::{Value, json};
use tributary_proto::v1::{ContributionRow, RoundRow, SeatRow, ShowRunReply};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::{Failure, ok_envelope};
use tributary_shared::terms::SiteMetrics;
use tributary_shared::text::printable;

use super::present::{
    NOTHING, between, bytes, digest_or_none, short, table, time, time_or_none, until,
};
use super::runs::{LOOK_AGAIN, RunLine, is_over, look, look_again, warnings};
use super::session::{Globals, Session};
use super::{Answer, Format, emit};

/// Explanation of the columns AUROC and LOSS.
const EVALUATED: &str = "AUROC and LOSS are of the adapter version under OF, on held-out cases before the \
     round trained it further; ADAPTER is what the round published.";

/// Shows a run as it stands.
pub(super) async fn show(run: &RunName, globals: &Globals) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let reply = look(&session, run).await?;
    Ok(Answer::Whole { data: machine(&reply), text: people(&reply) })
}

/// Shows a run whenever it changes, until it ends. On a terminal the tables are redrawn in
/// place; otherwise each state is printed below the last, as JSON one envelope a line.
pub(super) async fn watch(run: &RunName, globals: &Globals) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let redraw = globals.format == Format::Text && std::io::stdout().is_terminal();
    let mut reply = look(&session, run).await?;
    let mut shown = String::new();
    loop {
        let text = match globals.format {
            Format::Json => ok_envelope(machine(&reply)).to_string(),
            Format::Text => people(&reply),
        };
        if text != shown {
            if redraw && !shown.is_empty() {
                // Up over the old tables, and clear from there.
                let lines = shown.lines().count();
                emit(&format!("\u{1b}[{lines}A\u{1b}[J{text}"));
            } else {
                emit(&text);
            }
            shown = text;
        }
        if reply.run.as_ref().is_none_or(|row| is_over(&row.state)) {
            return Ok(Answer::Printed);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        reply = look_again(&session, run).await?;
    }
}

fn people(reply: &ShowRunReply) -> String {
    let mut parts = vec![head(reply)];
    if !reply.seats.is_empty() {
        let headings = ["SITE", "STATE", "PROGRESS", "CASES", "SENT", "DETAIL"];
        let deadline = match reply.deadline_ms {
            ..=0 => String::new(),
            at => format!(", hard cap {}", until(at)),
        };
        let seats = table(&headings, &[3, 4], reply.seats.iter().map(seat).collect());
        parts.push(format!("Round {}{deadline}\n{seats}", reply.round));
    }
    if !reply.rounds.is_empty() {
        let headings = [
            "ROUND",
            "PUBLISHED",
            "TOOK",
            "SITES",
            "CASES",
            "OF",
            "AUROC",
            "LOSS",
            "UPLOAD",
            "ADAPTER",
        ];
        let rows = reply.rounds.iter().map(round).collect();
        let rounds = table(&headings, &[0, 3, 4, 6, 7, 8], rows);
        parts.push(format!("{rounds}\n{EVALUATED}"));
        parts.extend(absences(&reply.rounds));
    }
    parts.join("\n\n")
}

fn head(reply: &ShowRunReply) -> String {
    let Some(run) = &reply.run else {
        return "(the coordinator's answer names no run)".to_owned();
    };
    let mut lines = vec![format!(
        "{}: {}, {} of {} rounds published",
        run.name, run.state, run.rounds_published, run.rounds_asked
    )];
    if !run.detail.is_empty() {
        lines.push(run.detail.clone());
    }
    lines.extend(warnings(run));
    let ended = if run.ended_ms > 0 { time(run.ended_ms) } else { "not yet".to_owned() };
    lines.push(format!("started {}, ended {ended}", time(run.started_ms)));
    if let Ok(manifest) = RunManifest::from_json(&reply.manifest_json) {
        lines.push(format!(
            "{}, quorum {} sites, terms {}",
            manifest.strategy.as_str(),
            manifest.quorum.sites,
            digest_or_none(&reply.manifest_digest).unwrap_or_default()
        ));
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn seat(seat: &SeatRow) -> Vec<String> {
    let progress = if seat.steps > 0 {
        let eta = if seat.eta_s > 0 { format!(", {} s left", seat.eta_s) } else { String::new() };
        format!("{} {}/{}{eta}", seat.phase, seat.step, seat.steps)
    } else if seat.phase.is_empty() {
        NOTHING.to_owned()
    } else {
        seat.phase.clone()
    };
    vec![
        seat.site.clone(),
        seat.state.clone(),
        progress,
        if seat.cases > 0 { seat.cases.to_string() } else { NOTHING.to_owned() },
        if seat.uploaded_bytes > 0 { bytes(seat.uploaded_bytes) } else { NOTHING.to_owned() },
        seat.detail.clone(),
    ]
}

fn round(round: &RoundRow) -> Vec<String> {
    let accepted = round.contributions.iter().filter(|c| c.state == "accepted");
    let cases: u64 = accepted.clone().map(|c| c.cases).sum();
    let took = if round.published_ms > 0 {
        between(round.opened_ms, round.published_ms)
    } else {
        NOTHING.to_owned()
    };
    vec![
        round.round.to_string(),
        time(round.published_ms),
        took,
        format!("{}/{}", accepted.count(), round.contributions.len()),
        cases.to_string(),
        format!("v{}", round.base_version),
        number(mean(round, |metrics| metrics.holdout_auroc)),
        number(mean(round, |metrics| metrics.holdout_loss)),
        bytes(round.upload_bytes),
        published(round),
    ]
}

/// The round's adapter, with its version.
fn published(round: &RoundRow) -> String {
    match round.published_ms {
        ..=0 => NOTHING.to_owned(),
        _ => format!("v{} {}", round.base_version + 1, short(&round.adapter_digest)),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |v| format!("{v:.4}"))
}

/// Mean over the sites that hold cases out, weighted by those cases. It is of the adapter that
/// the round began with: that is what a site evaluates before it trains.
fn mean(round: &RoundRow, value: impl Fn(&SiteMetrics) -> Option<f64>) -> Option<f64> {
    let (mut sum, mut weight) = (0.0, 0.0);
    for contribution in &round.contributions {
        let Some(metrics) = metrics(contribution) else { continue };
        if let Some(value) = value(&metrics).filter(|v| v.is_finite()) {
            let cases = metrics.holdout_cases as f64;
            sum += value * cases;
            weight += cases;
        }
    }
    (weight > 0.0).then(|| sum / weight)
}

fn metrics(contribution: &ContributionRow) -> Option<SiteMetrics> {
    serde_json::from_str(&contribution.metrics_json).ok()
}

/// Who did not contribute, and why.
fn absences(rounds: &[RoundRow]) -> Option<String> {
    let mut rows = Vec::new();
    for round in rounds {
        for contribution in round.contributions.iter().filter(|c| c.state != "accepted") {
            rows.push(vec![
                round.round.to_string(),
                contribution.site.clone(),
                contribution.state.clone(),
                contribution.detail.clone(),
            ]);
        }
    }
    (!rows.is_empty()).then(|| table(&["ROUND", "MISSING", "STATE", "WHY"], &[0], rows))
}

/// A run for machines.
#[derive(Serialize)]
struct Run<'r> {
    #[serde(flatten)]
    run: Option<RunLine<'r>>,
    manifest_digest: Option<String>,
    manifest: Value,
    round: u32,
    deadline: Option<String>,
    seats: Vec<Value>,
    rounds: Vec<Value>,
}

fn machine(reply: &ShowRunReply) -> Value {
    let run = Run {
        run: reply.run.as_ref().map(RunLine::from),
        manifest_digest: digest_or_none(&reply.manifest_digest),
        manifest: serde_json::from_slice(&reply.manifest_json).unwrap_or(Value::Null),
        round: reply.round,
        deadline: time_or_none(reply.deadline_ms),
        seats: reply.seats.iter().map(machine_seat).collect(),
        rounds: reply.rounds.iter().map(machine_round).collect(),
    };
    serde_json::to_value(run).unwrap_or(Value::Null)
}

fn machine_seat(seat: &SeatRow) -> Value {
    json!({
        "site": seat.site, "state": seat.state, "detail": seat.detail, "phase": seat.phase,
        "step": seat.step, "steps": seat.steps, "eta_s": seat.eta_s, "cases": seat.cases,
        "uploaded_bytes": seat.uploaded_bytes,
    })
}

fn machine_round(round: &RoundRow) -> Value {
    let contributions: Vec<Value> = round
        .contributions
        .iter()
        .map(|c| {
            json!({
                "site": c.site, "state": c.state, "detail": c.detail, "cases": c.cases,
                "delta_digest": digest_or_none(&c.delta_digest), "metrics": metrics(c),
            })
        })
        .collect();
    json!({
        "round": round.round,
        "adapter_digest": digest_or_none(&round.adapter_digest),
        "opened": time_or_none(round.opened_ms),
        "published": time_or_none(round.published_ms),
        "upload_bytes": round.upload_bytes,
        "evaluated_version": round.base_version,
        "holdout_auroc": mean(round, |m| m.holdout_auroc),
        "holdout_loss": mean(round, |m| m.holdout_loss),
        "contributions": contributions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contribution(site: &str, state: &str, cases: u64, auroc: f64) -> ContributionRow {
        let metrics =
            SiteMetrics { holdout_cases: cases, holdout_auroc: Some(auroc), ..Default::default() };
        ContributionRow {
            site: site.into(),
            state: state.into(),
            detail: if state == "accepted" { String::new() } else { "not heard for 30 s".into() },
            cases: 100,
            metrics_json: serde_json::to_string(&metrics).unwrap(),
            ..Default::default()
        }
    }

    /// Before, nothing said that the numbers are of the adapter that the round began with.
    #[test]
    fn held_out_numbers_stand_beside_the_version_they_are_of() {
        let round = |round, base_version| RoundRow {
            round,
            base_version,
            published_ms: 1,
            adapter_digest: vec![7; 32].into(),
            contributions: vec![contribution("a", "accepted", 30, 0.5)],
            ..Default::default()
        };
        // Round 2 was void: round 3 begins with the same adapter.
        let void = RoundRow { published_ms: 0, ..round(2, 1) };
        let rounds = vec![round(1, 0), void, round(3, 1)];
        let reply = ShowRunReply { rounds, ..Default::default() };
        let text = people(&reply);
        let headings: Vec<usize> = ["OF", "ADAPTER"]
            .map(|word| text.lines().find(|l| l.starts_with("ROUND")).unwrap().find(word).unwrap())
            .to_vec();
        let table: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("ROUND")).collect();
        assert!(table[1][headings[0]..].starts_with("v0"), "{text}");
        assert!(table[1][headings[1]..].starts_with("v1 "), "{text}");
        assert!(table[2][headings[0]..].starts_with("v1"), "{text}");
        assert!(table[2][headings[1]..].starts_with(NOTHING), "{text}");
        assert!(table[3][headings[1]..].starts_with("v2 "), "{text}");
        assert!(text.contains("AUROC and LOSS are of the adapter version under OF"), "{text}");
        let versions: Vec<Value> = machine(&reply)["rounds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|round| round["evaluated_version"].clone())
            .collect();
        assert_eq!(versions, [0, 1, 1]);
    }

    #[test]
    fn a_round_is_weighted_by_held_out_cases_and_names_who_is_missing() {
        let lost =
            ContributionRow { metrics_json: String::new(), ..contribution("c", "lost", 0, 0.0) };
        let round = RoundRow {
            round: 1,
            opened_ms: 1_000,
            published_ms: 3_500,
            contributions: vec![
                contribution("a", "accepted", 30, 0.5),
                contribution("b", "accepted", 10, 0.9),
                lost,
            ],
            ..Default::default()
        };
        assert_eq!(mean(&round, |m| m.holdout_auroc), Some(0.6));
        let text = people(&ShowRunReply { rounds: vec![round], ..Default::default() });
        assert!(text.contains("2.5s"), "{text}");
        assert!(text.contains("2/3"), "{text}");
        assert!(text.contains("not heard for 30 s"), "{text}");
    }
}
