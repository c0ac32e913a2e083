//! `run start|list|stop|resume|wait`: runs from outside.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tributary_proto::v1::{
    ListRunsRequest, ResumeRunRequest, RunRow, ShowRunReply, ShowRunRequest, StopRunRequest,
};
use tributary_shared::name::RunName;
use tributary_shared::outcome::{ExitCode, Failure};
use tributary_shared::text::printable;

use super::Answer;
use super::present::{short, table, time, time_or_none};
use super::session::{Globals, Session};

/// Between two looks at a run that somebody waits for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a coordinator may be away (a restart) before a wait gives up.
pub(super) const AWAY_MAX: Duration = Duration::from_secs(60);

/// Ends a run; what it has published stands.
pub(super) async fn stop(
    run: &RunName,
    reason: String,
    globals: &Globals,
) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let request = StopRunRequest { run: run.to_string(), reason };
    session.ask(session.client.clone().stop_run(request)).await?;
    let text = format!("Run {run} is stopped; its published adapters stand.");
    Ok(Answer::new(json!({ "run": run, "state": "stopped" }), text))
}

/// Takes up a run that is not running.
pub(super) async fn resume(
    run: &RunName,
    reason: String,
    globals: &Globals,
) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let request = ResumeRunRequest { run: run.to_string(), reason };
    session.ask(session.client.clone().resume_run(request)).await?;
    let state = look(&session, run).await?.run.map(|row| row.state).unwrap_or_default();
    let text = format!(
        "Run {run} is taken up again and now {}. Watch it: tributary run show {run} --watch",
        printable(&state)
    );
    Ok(Answer::new(json!({ "run": run, "state": state }), text))
}

/// One run for machines.
#[derive(Serialize)]
pub(super) struct RunLine<'r> {
    name: &'r str,
    state: &'r str,
    rounds_published: u32,
    rounds_asked: u32,
    started: Option<String>,
    ended: Option<String>,
    detail: &'r str,
    warnings: &'r [String],
    trouble: &'r str,
}

impl<'r> From<&'r RunRow> for RunLine<'r> {
    fn from(run: &'r RunRow) -> Self {
        Self {
            name: &run.name,
            state: &run.state,
            rounds_published: run.rounds_published,
            rounds_asked: run.rounds_asked,
            started: time_or_none(run.started_ms),
            ended: time_or_none(run.ended_ms),
            detail: &run.detail,
            warnings: &run.warnings,
            trouble: &run.trouble,
        }
    }
}

/// The coordinator's own trouble with a run and the run's warnings for people, one line each.
pub(super) fn warnings(run: &RunRow) -> Vec<String> {
    let RunRow { name, trouble, .. } = run;
    let own = (!trouble.is_empty())
        .then(|| format!("trouble of the coordinator with {name}: {trouble}; it tries again"));
    let warnings = run.warnings.iter().map(|warning| format!("warning: {name}: {warning}"));
    own.into_iter().chain(warnings).collect()
}

/// Every run.
pub(super) async fn list(globals: &Globals) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let reply = session.ask(session.client.clone().list_runs(ListRunsRequest {})).await?;
    let data: Vec<RunLine<'_>> = reply.runs.iter().map(RunLine::from).collect();
    if data.is_empty() {
        return Ok(Answer::new(data, NO_RUNS));
    }
    let text = run_table(&reply.runs);
    Ok(Answer::new(data, text))
}

/// Message for a coordinator that has started no run yet.
pub(super) const NO_RUNS: &str = "No runs yet; start one with `tributary run start run.toml`.";

/// One line a run.
pub(super) fn run_table(runs: &[RunRow]) -> String {
    let row = |run: &RunRow| {
        vec![
            run.name.clone(),
            run.state.clone(),
            format!("{}/{}", run.rounds_published, run.rounds_asked),
            time(run.started_ms),
            time(run.ended_ms),
            run.detail.clone(),
        ]
    };
    let headings = ["RUN", "STATE", "ROUNDS", "STARTED", "ENDED", "DETAIL"];
    let mut text = table(&headings, &[2], runs.iter().map(row).collect());
    for warning in runs.iter().flat_map(warnings) {
        text.push_str(&format!("\n{}", printable(&warning)));
    }
    text
}

/// Whether a run in `state` is over.
pub(super) fn is_over(state: &str) -> bool {
    matches!(state, "completed" | "completed_partial" | "stopped" | "failed")
}

/// Asks for a run as it stands.
pub(super) async fn look(session: &Session, run: &RunName) -> Result<ShowRunReply, Failure> {
    let request = ShowRunRequest { run: run.to_string() };
    session.ask(session.client.clone().show_run(request)).await
}

/// As [`look`], but a coordinator that is away for a moment is waited for.
pub(super) async fn look_again(session: &Session, run: &RunName) -> Result<ShowRunReply, Failure> {
    let give_up = Instant::now() + AWAY_MAX;
    loop {
        match look(session, run).await {
            Err(failure) if is_away(&failure) && Instant::now() < give_up => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            ended => return ended,
        }
    }
}

/// Whether the coordinator may be back in a moment.
pub(super) fn is_away(failure: &Failure) -> bool {
    failure.exit == ExitCode::Timeout
        || (failure.exit == ExitCode::Connection && failure.code != "permission")
}

/// Waits for the end. Exit code 0 says `completed` (or, if `accept_partial`,
/// `completed_partial`): success is never reported for less than was asked.
pub(super) async fn wait(
    run: &RunName,
    accept_partial: bool,
    globals: &Globals,
) -> Result<Answer, Failure> {
    // The time limit is of the whole wait; one answer has the usual one.
    let session = Session::open(&Globals { timeout: None, ..globals.clone() }).await?;
    let ended = async {
        look(&session, run).await?;
        loop {
            let reply = look_again(&session, run).await?;
            match &reply.run {
                Some(row) if is_over(&row.state) => return Ok(reply),
                Some(_) | None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    };
    let reply = match globals.timeout {
        None => ended.await?,
        Some(limit) => tokio::time::timeout(limit, ended).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(limit);
            let message = format!("run {run} has not ended within {limit}");
            Err(Failure::new(ExitCode::Timeout, "timeout", message)
                .hint("it goes on; wait longer with --timeout"))
        })?,
    };
    verdict(&reply, accept_partial)
}

fn verdict(reply: &ShowRunReply, accept_partial: bool) -> Result<Answer, Failure> {
    let Some(row) = &reply.run else {
        let message = "the coordinator's answer names no run".to_owned();
        return Err(Failure::new(ExitCode::Bug, "bug", message));
    };
    let rounds = format!("{} of {} rounds", row.rounds_published, row.rounds_asked);
    let mut line = format!("run {}: {}, {rounds}", row.name, row.state);
    if !row.detail.is_empty() {
        line = format!("{line}: {}", row.detail);
    }
    let warned: Vec<String> = warnings(row).iter().map(|warning| printable(warning)).collect();
    let line = printable(&line);
    let success = |line: &str| {
        let lines: Vec<&str> =
            [line].into_iter().chain(warned.iter().map(String::as_str)).collect();
        Ok(Answer::new(RunLine::from(row), lines.join("\n")))
    };
    let code = match row.state.as_str() {
        "completed" => return success(&line),
        "completed_partial" if accept_partial => return success(&line),
        "completed_partial" => "completed_partial",
        "stopped" => "stopped",
        _ => "failed",
    };
    let line = [line].into_iter().chain(warned).collect::<Vec<_>>().join("; ");
    let failure = Failure::refused(code, line);
    Err(match (code, reply.rounds.iter().rfind(|r| r.published_ms > 0)) {
        ("completed_partial", Some(last)) => failure.hint(format!(
            "adapter {} is published; --accept-partial takes this for success",
            short(&last.adapter_digest)
        )),
        _ => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: &str) -> ShowRunReply {
        let run = RunRow {
            name: "r".into(),
            state: state.into(),
            rounds_published: 2,
            rounds_asked: 2,
            detail: "b: lost".into(),
            ..RunRow::default()
        };
        ShowRunReply { run: Some(run), ..ShowRunReply::default() }
    }

    #[test]
    fn only_a_run_that_gave_all_that_was_asked_is_a_success() {
        assert!(verdict(&ended("completed"), false).is_ok());
        assert!(verdict(&ended("completed_partial"), true).is_ok());
        for state in ["completed_partial", "stopped", "failed"] {
            let failure = verdict(&ended(state), false).map(|_| ()).unwrap_err();
            assert_eq!((failure.exit, failure.code), (ExitCode::Refused, state));
            assert!(failure.message.contains("b: lost"), "{failure}");
        }
        assert!(verdict(&ended("stopped"), true).is_err());
    }
}
