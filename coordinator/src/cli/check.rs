//! `run check` and `run start`: everything that stands in a run's way, before it costs a day.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tributary_proto::v1::{CheckReport, CheckRunRequest, Finding, StartRunRequest};
use tributary_shared::check::{CheckAnswer, CheckWarning};
use tributary_shared::outcome::{ExitCode, Failure};
use tributary_shared::text::printable;

use super::manifest::{self, Written};
use super::present::{digest_or_none, table};
use super::session::{Globals, Session, TIMEOUT_DEFAULT};
use super::{Answer, Format, emit};

/// Time that the coordinator may take beyond the sites' own.
const ANSWER_AFTER: Duration = Duration::from_secs(10);

/// Lists what stands in the way of a run, starts nothing.
pub(super) async fn check(file: &Path, globals: &Globals) -> Result<Answer, Failure> {
    let written = manifest::load(file)?;
    let session = match open(globals).await {
        Ok(session) => session,
        Err(failure) => return Err(unasked(file, &written, failure)),
    };
    let request =
        CheckRunRequest { manifest_toml: written.text.clone(), wait_ms: wait_ms(globals) };
    let reply = session.ask(session.client.clone().check_run(request)).await?;
    let report = reply.report.unwrap_or_default();
    let data = machine(&written, &report);
    let sites = sites(&report);
    if let Some(failure) = refusal(file, &report, data.clone()) {
        // The table first, then a line for each problem, and the summary last.
        if globals.format == Format::Text && !report.sites.is_empty() {
            emit(&sites);
        }
        return Err(failure);
    }
    let text = format!(
        "{sites}\nNothing stands in the way of run {}. Start it: tributary run start {}",
        written.manifest.name,
        file.display()
    );
    Ok(Answer::new(data, text.trim_start()))
}

/// Checks the manifest as [`check`] does, and starts the run if nothing stands in its way; with
/// `anyway` without asking the sites.
pub(super) async fn start(file: &Path, anyway: bool, globals: &Globals) -> Result<Answer, Failure> {
    let written = manifest::load(file)?;
    if anyway && !written.problems.is_empty() {
        return Err(manifest::problems_failure(file, &written.problems));
    }
    let session = match open(globals).await {
        Ok(session) => session,
        Err(failure) => return Err(unasked(file, &written, failure)),
    };
    let request =
        StartRunRequest { manifest_toml: written.text.clone(), anyway, wait_ms: wait_ms(globals) };
    let reply = session.ask(session.client.clone().start_run(request)).await?;
    let report = reply.report.unwrap_or_default();
    if !reply.started {
        let mut report = report;
        if anyway {
            // Passed over; the problems alone stand in the way.
            report.warnings.clear();
        }
        let data = machine(&written, &report);
        let unsaid = || Failure::refused("refused", "the coordinator did not start the run");
        let failure = refusal(file, &report, data).unwrap_or_else(unsaid);
        if globals.format == Format::Text && !report.sites.is_empty() {
            emit(&sites(&report));
        }
        return Err(failure);
    }
    started(&written, &reply.run, &reply.manifest_digest, &report)
}

fn started(
    written: &Written,
    run: &str,
    manifest_digest: &[u8],
    report: &CheckReport,
) -> Result<Answer, Failure> {
    let digest = written.manifest.digest();
    if *manifest_digest != digest.as_bytes()[..] {
        let message = format!(
            "run {} was started under other terms than were sent: {} instead of {digest}",
            printable(run),
            digest_or_none(manifest_digest).unwrap_or_default(),
        );
        return Err(Failure::new(ExitCode::Bug, "bug", message)
            .hint("stop it; the coordinator and this program may be of different versions"));
    }
    let name = &written.manifest.name;
    let mut text =
        format!("Run {name} started: {} rounds, terms {digest}.\n", written.manifest.rounds.count);
    for warning in &report.warnings {
        text += &format!("Passed over: {}\n", line(warning));
    }
    text += &format!("Watch it: tributary run show {name} --watch");
    let data = json!({
        "run": name,
        "manifest_digest": digest,
        "payload_bytes": report.payload_bytes,
        "warnings": report.warnings.iter().map(line).collect::<Vec<_>>(),
    });
    Ok(Answer::new(data, text))
}

/// Time that sites may take to answer.
fn wait(globals: &Globals) -> Duration {
    globals.timeout.unwrap_or(TIMEOUT_DEFAULT)
}

fn wait_ms(globals: &Globals) -> u32 {
    u32::try_from(wait(globals).as_millis()).unwrap_or(u32::MAX)
}

async fn open(globals: &Globals) -> Result<Session, Failure> {
    let timeout = Some(wait(globals) + ANSWER_AFTER);
    Session::open(&Globals { timeout, ..globals.clone() }).await
}

/// The coordinator could not be asked: the manifest's own problems are told all the same.
fn unasked(file: &Path, written: &Written, failure: Failure) -> Failure {
    if written.problems.is_empty() {
        return failure;
    }
    let told = manifest::problems_failure(file, &written.problems);
    let hint = told.hint.clone().unwrap_or_default();
    told.hint(format!("{hint}; the coordinator was not asked: {}", failure.message))
}

/// Reason the run may not begin without the operator's word, if there is one.
fn refusal(file: &Path, report: &CheckReport, data: Value) -> Option<Failure> {
    let CheckReport { problems, warnings, .. } = report;
    let lines: Vec<String> = problems.iter().chain(warnings).map(line).collect();
    let file = file.display();
    let counted = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    let message = match (&lines[..], problems.len(), warnings.len()) {
        ([], ..) => return None,
        ([line], ..) => format!("{file}: {line}"),
        (_, found, 0) => format!("{file}: {}", counted(found, "problem")),
        (_, 0, found) => format!("{file}: {}", counted(found, "warning")),
        (_, found, more) => {
            format!("{file}: {}, {}", counted(found, "problem"), counted(more, "warning"))
        }
    };
    let failure = match problems.is_empty() {
        true => Failure::refused("warnings", message)
            .hint("`tributary run start --anyway` passes over warnings"),
        // What stands in the file is mended there; the rest is the coordinator's refusal.
        false if report.manifest_problems > 0 => {
            Failure::invalid("configuration", message).hint("deploy/run.toml explains every key")
        }
        false => Failure::refused("problems", message),
    };
    Some(failure.details(lines).data(data))
}

fn line(found: &Finding) -> String {
    printable(&format!("{}: {}", found.key, found.problem))
}

/// Every site's answer as a table; empty when none was asked.
fn sites(report: &CheckReport) -> String {
    if report.sites.is_empty() {
        return String::new();
    }
    let row = |site: &tributary_proto::v1::SiteAnswer| {
        let answer: Option<CheckAnswer> = site.answer.parse().ok();
        let mut meaning = answer.map_or(String::new(), |a| a.meaning().to_owned());
        for warning in &site.warnings {
            let known: Option<CheckWarning> = warning.parse().ok();
            meaning += &known.map_or(format!("; {warning}"), |w| format!("; {}", w.meaning()));
        }
        vec![site.site.clone(), site.answer.replace('_', " "), meaning]
    };
    table(&["SITE", "ANSWER", "MEANING"], &[], report.sites.iter().map(row).collect())
}

fn machine(written: &Written, report: &CheckReport) -> Value {
    let sites = report
        .sites
        .iter()
        .map(|site| json!({ "site": site.site, "answer": site.answer, "warnings": site.warnings }));
    json!({
        "run": written.manifest.name,
        "manifest_digest": written.manifest.digest(),
        "payload_bytes": report.payload_bytes,
        "problems": report.problems.iter().map(line).collect::<Vec<_>>(),
        "warnings": report.warnings.iter().map(line).collect::<Vec<_>>(),
        "sites": sites.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use tributary_proto::v1::SiteAnswer;

    use super::*;

    fn finding(key: &str) -> Finding {
        Finding { key: key.to_owned(), problem: "wrong".to_owned() }
    }

    #[test]
    fn problems_refuse_for_good_and_warnings_until_they_are_passed_over() {
        let refused = |problems: &[&str], warnings: &[&str], manifest_problems| {
            let report = CheckReport {
                problems: problems.iter().copied().map(finding).collect(),
                warnings: warnings.iter().copied().map(finding).collect(),
                manifest_problems,
                ..CheckReport::default()
            };
            refusal(Path::new("run.toml"), &report, Value::Null)
                .map(|failure| (failure.exit, failure.code, failure.message, failure.details.len()))
        };
        assert_eq!(refused(&[], &[], 0), None);
        let warned = (ExitCode::Refused, "warnings", "run.toml: a: wrong".to_owned(), 1);
        assert_eq!(refused(&[], &["a"], 0), Some(warned));
        let message = "run.toml: 1 problem, 2 warnings".to_owned();
        let mixed = (ExitCode::Refused, "problems", message, 3);
        assert_eq!(refused(&["n"], &["a", "b"], 0), Some(mixed));
        let message = "run.toml: 2 problems".to_owned();
        let file = (ExitCode::Invalid, "configuration", message, 2);
        assert_eq!(refused(&["n", "m"], &[], 1), Some(file));
    }

    #[test]
    fn a_sites_answer_stands_in_the_table_in_words() {
        let site = |site: &str, answer: &str, warnings: &[&str]| SiteAnswer {
            site: site.to_owned(),
            answer: answer.to_owned(),
            warnings: warnings.iter().map(|w| (*w).to_owned()).collect(),
        };
        let sites = vec![site("a", "ready", &["warmup_too_long"]), site("b", "no_answer", &[])];
        let text = super::sites(&CheckReport { sites, ..CheckReport::default() });
        assert!(text.contains("would take part now; training.warmup_steps"), "{text}");
        assert!(text.contains("no answer"), "{text}");
    }
}
