//! The federated run, watched live.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::plan::Plan;
use super::{HOSPITALS, RUN, Teller};
use crate::command::Failed;
use crate::events::Event;
use crate::federation::Federation;
use crate::resources::mb;

/// Longest wait for one event.
const EVENT_MAX: Duration = Duration::from_secs(3600);

/// One published round.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Round {
    /// Its number.
    pub(super) round: u64,
    /// From opened to published.
    pub(super) wall_s: f64,
    /// Whose deltas it holds, with their training cases.
    pub(super) contributions: BTreeMap<String, u64>,
    /// Bytes of all deltas.
    pub(super) upload_bytes: u64,
    /// AUROC of the round's base adapter over the sites' held-out cases, weighted by them.
    pub(super) base_auroc: Option<f64>,
}

/// What the run came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Trained {
    /// How it ended.
    pub(super) state: String,
    /// Every published round.
    pub(super) rounds: Vec<Round>,
    /// Peak memory of each process, MB.
    pub(super) peak_mb: Vec<(String, f64)>,
}

/// Starts the run and watches it to its end.
pub(super) fn run(
    plan: &Plan,
    federation: &mut Federation,
    teller: &mut Teller,
) -> Result<Trained, Failed> {
    let count = plan.manifest.rounds.count;
    teller.step(&format!("Training together: {count} rounds of federated LoRA"));
    federation.operator(["run", "start", &plan.run_toml().to_string_lossy()])?;
    let mut follow = federation.follow(RUN)?;
    let bar = teller.bar(u64::from(count) * HOSPITALS.len() as u64);
    let mut watch = Watch::default();
    let mut trained = Trained::default();
    while let Some(event) = follow.next(EVENT_MAX)? {
        bar.inc(u64::from(event.kind == "delta_accepted"));
        bar.set_message(live(&event, count));
        if let Some(line) = told(&event) {
            teller.note_above(&bar, &line);
        }
        if let Some(round) = watch.take(&event) {
            teller.note_above(&bar, &published(&round, count));
            trained.rounds.push(round);
        }
        if event.kind == "run_ended" {
            trained.state = text(&event, "state");
        }
    }
    bar.finish_and_clear();
    federation.check_alive()?;
    if !trained.state.starts_with("completed") {
        let problem = format!("it ended {}; see `tributary run show {RUN}`", trained.state);
        return Err(Failed::new("the demo's run", None, &problem));
    }
    trained.peak_mb = peaks(federation);
    Ok(trained)
}

/// Collects one round's events.
#[derive(Default)]
struct Watch {
    opened_ms: i64,
    open: Round,
    weighted_auroc: f64,
    holdout_cases: f64,
}

impl Watch {
    fn take(&mut self, event: &Event) -> Option<Round> {
        match event.kind.as_str() {
            "round_opened" => {
                *self = Self { opened_ms: event.at_ms, ..Self::default() };
                self.open.round = event.round();
            }
            "delta_accepted" => self.add(event),
            "adapter_published" => {
                let mut round = std::mem::take(&mut self.open);
                round.wall_s = (event.at_ms - self.opened_ms) as f64 / 1e3;
                if self.holdout_cases > 0.0 {
                    round.base_auroc = Some(self.weighted_auroc / self.holdout_cases);
                }
                return Some(round);
            }
            _ => {}
        }
        None
    }

    fn add(&mut self, event: &Event) {
        let cases = event.fields["cases"].as_u64().unwrap_or(0);
        self.open.contributions.insert(event.site().to_owned(), cases);
        self.open.upload_bytes += event.fields["bytes"].as_u64().unwrap_or(0);
        let metrics = &event.fields["metrics"];
        if let (Some(auroc), Some(cases)) =
            (metrics["holdout_auroc"].as_f64(), metrics["holdout_cases"].as_f64())
        {
            self.weighted_auroc += auroc * cases;
            self.holdout_cases += cases;
        }
    }
}

/// What the bar says after an event.
fn live(event: &Event, count: u32) -> String {
    let (round, site) = (event.round(), event.site());
    match event.kind.as_str() {
        "terms_accepted" => format!("round {round}/{count}: {site} trains"),
        "delta_accepted" => format!("round {round}/{count}: {site} is done"),
        "round_closed" => format!("round {round}/{count}: aggregating"),
        _ => format!("round {round}/{count}"),
    }
}

/// Trouble gets a line of its own.
fn told(event: &Event) -> Option<String> {
    let why = |key: &str| event.fields[key].to_string();
    let (round, site) = (event.round(), event.site());
    match event.kind.as_str() {
        "declined" => Some(format!("round {round}: {site} declined: {}", why("reason"))),
        "delta_refused" => Some(format!("round {round}: {site} refused: {}", why("reason"))),
        "site_lost" => Some(format!("round {round}: {site} lost: {}", why("cause"))),
        "site_returned" => Some(format!("round {round}: {site} is back")),
        _ => None,
    }
}

fn published(round: &Round, count: u32) -> String {
    let cases: u64 = round.contributions.values().sum();
    let auroc = round
        .base_auroc
        .map_or_else(String::new, |auroc| format!(", started from held-out AUROC {auroc:.3}"));
    format!(
        "round {}/{count}: {} sites, {cases} cases, {:.2} MB received, {:.1} s{auroc}",
        round.round,
        round.contributions.len(),
        mb(round.upload_bytes),
        round.wall_s
    )
}

fn text(event: &Event, key: &str) -> String {
    event.fields[key].as_str().unwrap_or("").to_owned()
}

fn peaks(federation: &Federation) -> Vec<(String, f64)> {
    let coordinator = federation.coordinator().map(|process| ("coordinator", process));
    let sites = federation.sites().iter();
    let sites = sites.filter_map(|site| Some((site.name.as_str(), site.process()?)));
    let peak = |(name, process): (&str, &crate::Process)| {
        Some((name.to_owned(), mb(process.usage()?.rss_peak)))
    };
    coordinator.into_iter().chain(sites).filter_map(peak).collect()
}
