//! Sites that refuse for a while or are not there, over real programs: the run waits for them,
//! spends no round, and goes on by itself when they are back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tributary_deploy::SiteOptions;
use tributary_deploy::events::Event;
use tributary_deploy::lines::Next;
use tributary_tests::images::{Storage, backbone};
use tributary_tests::{PATIENCE, RehearsalRun, Scratch, seats};

/// A coordinator that asks about refusals every second.
fn found() -> Scratch {
    let folder = tempfile::TempDir::new().unwrap();
    Scratch::found_in(folder, |config| {
        let quick = config.replace("passing_s = 30", "passing_s = 1");
        quick.replace("until_changed_s = 60", "until_changed_s = 1")
    })
}

/// Hours that do not hold now, nor within the next eleven hours.
#[expect(clippy::disallowed_methods, reason = "the clients under test read the same clock")]
fn closed_hours() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let hour = (now / 3_600 + 12) % 24;
    format!("hours = [\"{hour:02}:00-{hour:02}:01\"]\n")
}

/// Waits until `site` has answered `times` questions by `run`.
fn wait_asked(scratch: &Scratch, site: usize, times: usize) {
    let process = scratch.federation.sites()[site].process().unwrap();
    let mut read = 0;
    for _ in 0..times {
        let asked = |line: &str| line.contains("asked whether it would take part: ");
        match process.stderr().wait(read, PATIENCE, asked) {
            Next::Line(_, next) => read = next,
            Next::Closed | Next::TimedOut => panic!("{}", process.failed("it was not asked")),
        }
    }
}

/// The whole history of a run that has ended.
fn history(scratch: &mut Scratch, run: &str) -> Vec<Event> {
    let mut follow = scratch.federation.follow(run).unwrap();
    std::iter::from_fn(|| follow.next(PATIENCE).unwrap()).collect()
}

fn of<'e>(events: &'e [Event], kind: &str) -> Vec<&'e Event> {
    events.iter().filter(|event| event.kind == kind).collect()
}

/// The number of a ledger's entries of one kind about a run.
fn entries(site: &Path, run: &str, kind: &str) -> usize {
    let ledger = fs::read_to_string(site.join("ledger.jsonl")).unwrap();
    let lines = ledger.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|entry| entry["run"] == run && entry["kind"] == kind).count()
}

/// Three void rounds in a moment failed the run, and its name could not be used again.
#[test]
fn three_sites_outside_their_hours_are_waited_for_and_cost_no_round() {
    let mut scratch = found();
    for k in 0..3 {
        scratch.enroll(&format!("site-{k}"), 2f32.powi(k), 100);
    }
    let policies: Vec<_> = scratch.federation.sites().iter().map(|site| site.policy()).collect();
    let open = fs::read_to_string(&policies[0]).unwrap();
    policies.iter().for_each(|policy| fs::write(policy, closed_hours() + &open).unwrap());
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("night", 2, 3).to_toml());
    let mut follow = scratch.federation.follow("night").unwrap();
    follow.until(PATIENCE, |event| event.is("round_withdrawn", 1)).unwrap();
    (0..3).for_each(|site| wait_asked(&scratch, site, 2));
    let show = scratch.show("night");
    assert_eq!(show["state"], "waiting", "{show}");
    let detail = show["detail"].as_str().unwrap();
    for site in ["site-0: ", "site-1: ", "site-2: "] {
        assert!(detail.contains(site) && detail.contains("`hours`"), "{detail}");
    }
    policies.iter().for_each(|policy| fs::write(policy, &open).unwrap());
    let show = scratch.finish("night");
    assert_eq!(show["state"], "completed", "{show}");
    let events = history(&mut scratch, "night");
    for kind in ["declined", "site_available"] {
        assert_eq!(of(&events, kind).len(), 3, "one a site, whatever was asked in between");
    }
    assert_eq!(of(&events, "round_opened").len(), 3, "the first one twice");
    let closed = of(&events, "round_closed");
    assert!(closed.iter().all(|event| event.fields["quorum_met"] == true), "{closed:?}");
    for site in scratch.federation.sites() {
        assert_eq!(entries(&site.directory, "night", "declined"), 1);
    }
    assert_eq!(scratch.audit()["verified"], true);
}

/// Failed before, with the policy that `enroll` writes: each site was asked with the sites that did not refuse, none,
/// and refused for its small cohort for ever.
#[test]
fn sites_that_ask_for_company_come_back_from_their_hours_together() {
    let mut scratch = found();
    for k in 0..3 {
        scratch.enroll(&format!("site-{k}"), 1.0, 100);
    }
    let policies: Vec<_> = scratch.federation.sites().iter().map(|site| site.policy()).collect();
    let open =
        fs::read_to_string(&policies[0]).unwrap().replace("cohort_min = 1", "cohort_min = 2");
    policies.iter().for_each(|policy| fs::write(policy, closed_hours() + &open).unwrap());
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("company", 1, 3).to_toml());
    let mut follow = scratch.federation.follow("company").unwrap();
    follow.until(PATIENCE, |event| event.is("round_withdrawn", 1)).unwrap();
    // The first to come back alone is no cohort; `run show` says what it waits for now.
    fs::write(&policies[0], &open).unwrap();
    let back = |event: &Event| {
        let reason = event.fields["reason"].to_string();
        event.kind == "refusal_changed" && event.site() == "site-0" && !reason.contains("`hours`")
    };
    follow.until(PATIENCE, back).unwrap();
    let detail = scratch.show("company")["detail"].to_string();
    assert!(detail.contains("site-0: the site's policy refuses: a cohort of 1"), "{detail}");
    policies.iter().for_each(|policy| fs::write(policy, &open).unwrap());
    let show = scratch.finish("company");
    assert_eq!(show["state"], "completed", "{show}");
    assert_eq!(scratch.audit()["verified"], true);
}

#[test]
fn a_typo_in_a_policy_is_waited_for_in_the_round_that_needs_the_site() {
    let mut scratch = found();
    for k in 0..2 {
        scratch.enroll(&format!("site-{k}"), 1.0, 100);
    }
    // A program does not start with such a policy; a running one lives with it.
    scratch.start_sites();
    let policy = scratch.federation.sites()[1].policy();
    let good = fs::read_to_string(&policy).unwrap();
    fs::write(&policy, format!("cohort_min = \n{good}")).unwrap();
    scratch.start_run(&RehearsalRun::new("typo", 1, 2).to_toml());
    let mut follow = scratch.federation.follow("typo").unwrap();
    let declined = follow.until(PATIENCE, |event| event.is("declined", 1)).unwrap();
    assert_eq!(declined.fields["reason"]["class"], "until_changed", "{declined:?}");
    wait_asked(&scratch, 1, 1);
    fs::write(&policy, good).unwrap();
    let show = scratch.finish("typo");
    assert_eq!(show["state"], "completed", "{show}");
    let events = history(&mut scratch, "typo");
    assert_eq!(of(&events, "round_opened").len(), 1, "it took part in the open round");
    assert_eq!(scratch.audit()["verified"], true);
}

#[test]
fn images_that_are_away_for_a_moment_are_waited_for() {
    let mut scratch = found();
    let folder = scratch.folder.path().to_owned();
    let data: Vec<_> = (0..2u64)
        .map(|site| Storage::Png.write(&folder.join(format!("images-{site}")), 24, site))
        .collect();
    let (file, tables) = backbone(&folder, &data[0]);
    for (site, data) in data.iter().enumerate() {
        let (data, backbone) = (Some(data.clone()), Some(file.clone()));
        let options = SiteOptions { data, backbone, threads: Some(1), ..SiteOptions::default() };
        scratch.federation.enroll(&format!("site-{site}"), &options).unwrap();
    }
    scratch.start_sites();
    let away = folder.join("away");
    fs::rename(&data[1], &away).unwrap();
    scratch.start_run(&format!(
        "schema_version = 1\nname = \"away\"\n\
         adapter = {{ kind = \"lora\", rank = 2, alpha = 4.0, targets = \"qv\" }}\n\
         rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 60 }}\n\
         quorum = {{ sites = 2 }}\n\
         [task]\nkind = \"self_supervised\"\n\
         objective = {{ kind = \"mae\", decoder_width = 32 }}\n\
         [training]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.01\nholdout = 0.25\nseed = 1\n\
         {tables}"
    ));
    let mut follow = scratch.federation.follow("away").unwrap();
    let declined = follow.until(PATIENCE, |event| event.is("declined", 1)).unwrap();
    assert_eq!(declined.site(), "site-1");
    assert_eq!(declined.fields["reason"]["class"], "passing", "{declined:?}");
    wait_asked(&scratch, 1, 1);
    fs::rename(&away, &data[1]).unwrap();
    let show = scratch.finish("away");
    assert_eq!(show["state"], "completed", "{show}");
    assert_eq!(scratch.audit()["verified"], true);
}

/// It held every round for the whole stall timeout.
#[test]
fn an_enrolled_site_that_is_not_there_costs_one_wait_and_is_asked_when_it_is_heard() {
    let mut scratch = Scratch::with_powers_of_two(3);
    for site in 0..2 {
        scratch.federation.start_site(site).unwrap();
    }
    scratch.federation.wait_connected().unwrap();
    let timeouts = "round_deadline_s = 100\nstall_timeout_s = 60\nanswer_timeout_s = 2".to_owned();
    let run = |name: &str| {
        let timeouts = timeouts.clone();
        RehearsalRun { timeouts, ..RehearsalRun::new(name, 4, 2) }.to_toml()
    };
    scratch.start_run(&run("absent"));
    let show = scratch.finish("absent");
    assert_eq!(show["state"], "completed_partial", "{show}");
    let events = history(&mut scratch, "absent");
    let at = |kind: &str, round: u64| {
        let found = events.iter().rfind(|event| event.is(kind, round));
        found.unwrap_or_else(|| panic!("{kind} of round {round}")).at_ms
    };
    assert!(at("round_closed", 1) - at("round_opened", 1) >= 2_000, "the one wait");
    for round in 2..=4 {
        let waited = at("round_closed", round) - at("delta_accepted", round);
        assert!(waited <= 1_000, "round {round} waited {waited} ms after the last answer");
        let seats = seats(&show, round as u32);
        assert_eq!((seats[2].0.as_str(), seats[2].1.as_str()), ("site-2", "lost"));
        assert_eq!(seats[2].2, "absent since round 1: did not answer within 2 s");
    }
    assert_eq!(of(&events, "site_lost").len(), 1);
    scratch.federation.start_site(2).unwrap();
    scratch.federation.wait_connected().unwrap();
    scratch.start_run(&run("present"));
    assert_eq!(scratch.finish("present")["state"], "completed");
    assert_eq!(scratch.audit()["verified"], true);
}

/// A site was mute until it had agreed, however long it read; with an answer timeout it would be
/// lost. Here its policy comes through a pipe, which the test holds back.
#[test]
fn a_site_that_still_judges_a_round_is_heard_and_not_lost_to_the_answer_timeout() {
    let mut scratch = Scratch::with_powers_of_two(3);
    for site in 0..2 {
        scratch.federation.start_site(site).unwrap();
    }
    scratch.federation.wait_connected().unwrap();
    let policy = scratch.federation.sites()[1].policy();
    let text = fs::read_to_string(&policy).unwrap();
    fs::remove_file(&policy).unwrap();
    assert!(Command::new("mkfifo").arg(&policy).status().unwrap().success());
    let timeouts = "round_deadline_s = 100\nstall_timeout_s = 60\nanswer_timeout_s = 2".to_owned();
    let run = RehearsalRun { timeouts, ..RehearsalRun::new("slow", 1, 2) };
    scratch.start_run(&run.to_toml());
    let mut follow = scratch.federation.follow("slow").unwrap();
    // Both have the same time, and the one that is not there comes second by name.
    let lost = follow.until(PATIENCE, |event| event.is("site_lost", 1)).unwrap();
    assert_eq!(lost.site(), "site-2", "{lost:?}");
    fs::write(&policy, text).unwrap();
    let show = scratch.finish("slow");
    assert_eq!(show["detail"], "site-2 missing in round 1: did not answer within 2 s", "{show}");
}

#[test]
fn a_stopped_run_is_taken_up_again_under_its_name() {
    let mut scratch = Scratch::with_powers_of_two(2);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("again", 200, 2).to_toml());
    let mut follow = scratch.federation.follow("again").unwrap();
    follow.until(PATIENCE, |event| event.is("adapter_published", 2)).unwrap();
    let resume = ["run", "resume", "again", "--reason", "the disk is mended"];
    let running = scratch.federation.operator(resume).unwrap_err();
    assert_eq!(running.exit, Some(1), "{running:?}");
    scratch.federation.operator(["run", "stop", "again", "--reason", "enough"]).unwrap();
    assert_eq!(scratch.finish("again")["state"], "stopped");
    scratch.federation.operator(resume).unwrap();
    let show = scratch.finish("again");
    assert_eq!(show["state"], "completed", "{show}");
    let events = history(&mut scratch, "again");
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), &last.fields["state"]), ("run_ended", &"completed".into()));
    assert_eq!(of(&events, "run_resumed").len(), 1);
    assert_eq!(of(&events, "run_ended").len(), 2);
    let done = scratch.federation.operator(resume).unwrap_err();
    assert!(done.problem.contains("it has completed"), "{done:?}");
    assert_eq!(scratch.audit()["verified"], true);
}
