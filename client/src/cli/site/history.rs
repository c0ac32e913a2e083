//! `status` and `ledger`: what the client does, and everything it did.

use std::collections::BTreeSet;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use tributary_shared::name::RunName;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::text::printable;

use super::ConfigArgs;
use crate::cli::{Format, print};
use crate::config::site::SiteConfig;
use crate::ledger::{self, Entry, Event};
use crate::site::directory::{is_held, ledger_of};
use crate::site::status::Status;

/// Which entries to print.
#[derive(Debug, clap::Args)]
pub struct LedgerArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only this run.
    #[arg(long, value_name = "NAME")]
    run: Option<RunName>,
    /// Only what left the building.
    #[arg(long)]
    released: bool,
}

#[derive(Debug, Serialize)]
struct Now {
    running: bool,
    last: Option<Status>,
    counted: usize,
    refused: usize,
    /// Rounds, however many reasons each was declined for in turn.
    declined: usize,
    /// Deltas in the outbox, without an answer.
    owed: usize,
}

pub(super) fn status(config: &SiteConfig, format: Format) -> Result<(), Failure> {
    let directory = &config.directory;
    let last = Status::read(directory).map_err(|e| {
        Failure::invalid("status", format!("{}: {e}", directory.display()))
            .hint("start the client; it writes status.json anew")
    })?;
    let entries = read(config)?;
    let count = |what: fn(&Event) -> bool| entries.iter().filter(|e| what(&e.event)).count();
    let answered = count(|e| matches!(e, Event::Answered { .. }));
    let declines = entries.iter().filter(|e| matches!(e.event, Event::Declined { .. }));
    let declined: BTreeSet<_> = declines.map(|e| (&e.run, e.round)).collect();
    let now = Now {
        running: is_held(directory),
        last,
        counted: count(|e| matches!(e, Event::Answered { refusal: None, .. })),
        refused: count(|e| matches!(e, Event::Answered { refusal: Some(_), .. })),
        declined: declined.len(),
        owed: count(|e| matches!(e, Event::Trained(_))).saturating_sub(answered),
    };
    print(format, &now, || tell(&now));
    Ok(())
}

fn tell(now: &Now) {
    let Some(last) = &now.last else {
        say!("The client has not run here yet.");
        return;
    };
    say!("{} of {}, coordinator {}", last.member, last.consortium, last.coordinator);
    let activity = &last.activity;
    if now.running {
        say!("Running (process {}), as of {}:", last.process, last.at);
        let round = activity.round.as_ref();
        let round = round.map_or(String::new(), |id| format!(" round {} of {}", id.round, id.run));
        let step = match activity.steps {
            0 => String::new(),
            steps => format!(", {} of {steps}", activity.step),
        };
        let loss = activity.loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        say!("  {}{round}{step}{loss}", activity.phase.as_str());
        if let Some(trouble) = waits_for(last) {
            say!("  {}", printable(trouble));
        }
        for trouble in &last.troubles {
            say!("  trouble: {}", printable(&trouble.to_string()));
        }
    } else if last.left {
        say!("Not running; it left at {}.", last.at);
    } else {
        say!("Not running; it was cut off after {}. Start it again: nothing is lost.", last.at);
    }
    say!(
        "Deltas: {} counted, {} refused, {} waiting in the outbox. Rounds declined: {}.",
        now.counted,
        now.refused,
        now.owed,
        now.declined
    );
}

/// The reason for which the client waits, unless it is among the troubles that are printed anyway.
fn waits_for(status: &Status) -> Option<&str> {
    let reason = &status.activity.trouble;
    let told = status.troubles.iter().any(|trouble| trouble.detail == *reason);
    (!reason.is_empty() && !told).then_some(reason)
}

pub(super) fn ledger(args: &LedgerArgs, format: Format) -> Result<(), Failure> {
    let mut entries = read(&args.config.read()?)?;
    entries.retain(|entry| {
        let of_run = args.run.as_ref().is_none_or(|run| *run == entry.run);
        of_run && (!args.released || matches!(entry.event, Event::Released { .. }))
    });
    print(format, &entries, || table(&entries));
    Ok(())
}

fn read(config: &SiteConfig) -> Result<Vec<Entry>, Failure> {
    ledger::read(&ledger_of(&config.directory)).map_err(|e| Failure::invalid("ledger", chain(&e)))
}

fn table(entries: &[Entry]) {
    if entries.is_empty() {
        say!("Nothing was agreed, refused or trained, and nothing has left.");
        return;
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["WHEN", "RUN", "ROUND", "WHAT", "DETAIL"]);
    for entry in entries {
        let (what, detail) = words(&entry.event);
        let round = if entry.round == 0 { "-".to_owned() } else { entry.round.to_string() };
        table.add_row([entry.at.to_string(), entry.run.to_string(), round, what.into(), detail]);
    }
    say!("{table}");
}

/// An entry's kind and the rest of it, for people.
fn words(event: &Event) -> (&'static str, String) {
    match event {
        Event::Agreed { manifest, cohort_size, cases, .. } => (
            "agreed",
            format!("{cases} cases, cohort of {cohort_size}, manifest {}", manifest.short()),
        ),
        Event::Declined { reason, .. } => ("declined", printable(&reason.to_string())),
        Event::Willing { manifest } => {
            ("willing", format!("would take part now; manifest {}", manifest.short()))
        }
        Event::Stopped { reason } => ("stopped", printable(reason)),
        Event::Trained(trained) => {
            let (digest, norm) = (trained.digest.short(), trained.norm);
            let metrics = serde_json::to_string(&trained.metrics).unwrap_or_default();
            let cases = trained.cases;
            ("trained", format!("delta {digest}, norm {norm:.4}, {cases} cases, tells {metrics}"))
        }
        Event::Released { digest, bytes } => {
            ("left the building", format!("{digest}, {bytes} bytes"))
        }
        Event::Checked { manifest, answer, warnings } => {
            let warnings: String = warnings.iter().map(|warning| format!(", {warning}")).collect();
            ("checked", format!("answered {answer}{warnings}; manifest {}", manifest.short()))
        }
        Event::Answered { digest, refusal: None } => {
            ("counted", format!("delta {}", digest.short()))
        }
        Event::Answered { refusal: Some(refusal), .. } => {
            ("refused", printable(&refusal.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::refusal::{Refusal, RefusalClass};

    use super::*;
    use crate::site::activity::Activity;

    /// Failed before: the sentence on a restored history was printed as reason and as trouble.
    #[test]
    fn a_reason_that_is_also_a_trouble_is_printed_once() {
        let text = r#"{"schema_version": 1, "member": "m", "consortium": "c", "coordinator": "h:1",
            "process": 1, "at": 0, "left": false,
            "troubles": [{"class": "history_not_continued", "detail": "restored"}]}"#;
        let mut status: serde_json::Value = serde_json::from_str(text).unwrap();
        let activity = Activity { trouble: "restored".to_owned(), ..Activity::default() };
        status["activity"] = serde_json::to_value(activity).unwrap();
        let mut status: Status = serde_json::from_value(status).unwrap();
        assert_eq!(waits_for(&status), None);
        status.troubles.clear();
        assert_eq!(waits_for(&status), Some("restored"));
    }

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        let reason = "late\u{1b}[2J\nforged line".to_owned();
        let events = [
            Event::Stopped { reason: reason.clone() },
            Event::Declined {
                manifest: None,
                reason: Refusal::SiteFailed { reason, class: RefusalClass::Never },
            },
        ];
        for event in events {
            let (_, detail) = words(&event);
            assert!(!detail.chars().any(char::is_control), "{detail:?}");
        }
    }
}
