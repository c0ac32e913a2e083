//! Backups, lost databases and what follows: the coordinator's disk is taken back in time or away,
//! and operator, sites and auditor come through by the documented commands.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tributary_deploy::command::{self, Failed, Outcome};
use tributary_tests::{PATIENCE, RehearsalRun, Scratch, binaries, seats};

const SITES: usize = 3;

/// `tributary-coordinator ARGUMENTS --format json`.
fn coordinator(arguments: &[&str]) -> Result<Outcome, Failed> {
    command::run(&mut coordinator_command(arguments))
}

fn coordinator_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(&binaries().coordinator);
    command.args(arguments).args(["--format", "json"]);
    command
}

fn config(scratch: &Scratch) -> String {
    text(&scratch.federation.coordinator_directory().join("coordinator.toml"))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn backup(scratch: &Scratch, name: &str) -> PathBuf {
    let out = scratch.folder.path().join(name);
    let done = coordinator(&["backup", "--config", &config(scratch), "--out", &text(&out)]);
    let done = done.unwrap().data;
    assert_eq!(done["blobs_missing"], 0, "{done}");
    out
}

fn restore(scratch: &Scratch, from: &Path, more: &[&str]) -> Result<Outcome, Failed> {
    let (config, from) = (config(scratch), text(from));
    let arguments = [&["restore", "--config", &config, "--from", &from], more].concat();
    coordinator(&arguments)
}

fn recover(scratch: &Scratch) -> Value {
    let operator = text(&scratch.federation.operator_identity());
    let arguments = ["--operator", &operator, "--reason", "the disk failed"];
    let config = config(scratch);
    let done = coordinator(&[&["recover", "--config", &config][..], &arguments].concat());
    done.unwrap().data
}

fn accept(scratch: &Scratch, site: usize) {
    let config = text(&scratch.federation.sites()[site].config());
    scratch.federation.client(["recovery", "accept", "--config", &config]).unwrap();
}

/// Waits until a site says that it waits for its engineer.
fn asked(scratch: &Scratch, site: usize) {
    let process = scratch.federation.sites()[site].process().unwrap();
    process.wait_stderr(PATIENCE, |line| line.contains("recovery accept")).unwrap();
}

/// Every round of `run` that a site has trained; none of them twice.
fn trained_once(directory: &Path, run: &str) -> BTreeSet<u64> {
    let ledger = fs::read_to_string(directory.join("ledger.jsonl")).unwrap();
    let entries = ledger.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut rounds = BTreeSet::new();
    for entry in entries.filter(|e| e["kind"] == "trained" && e["run"] == run) {
        let round = entry["round"].as_u64().unwrap();
        assert!(rounds.insert(round), "{}: round {round} trained twice", directory.display());
    }
    rounds
}

/// The evidence that a site kept of the branch that was lost.
fn evidence(directory: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.into_iter().find(|path| text(path).contains("witness-lost-"))
}

/// Every published round holds every site's delta once, and the last payload is their sum.
fn sums_agree(scratch: &Scratch, run: &str, rounds: u32, show: &Value) {
    let published = show["rounds"].as_array().unwrap();
    let published: Vec<u32> = published
        .iter()
        .filter(|round| round["adapter_digest"].as_str().is_some_and(|digest| !digest.is_empty()))
        .map(|round| u32::try_from(round["round"].as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(published.len(), rounds as usize, "{show}");
    for round in published {
        let seats = seats(show, round);
        assert_eq!(seats.len(), SITES, "{seats:?}");
        assert!(seats.iter().all(|(_, state, _)| state == "accepted"), "round {round}: {seats:?}");
    }
    let cases: f64 = (1..=SITES).map(|k| 100.0 * k as f64).sum();
    let weighted: f64 = (0..SITES).map(|k| 100.0 * (k + 1) as f64 * 2f64.powi(k as i32)).sum();
    let expected = f64::from(rounds) * weighted / cases;
    let found = f64::from(scratch.payload(run, rounds)[0]);
    assert!((found - expected).abs() <= 1e-4 * expected, "{found} for {expected}");
}

/// Failed before: every site looped on "old_size is beyond this log", then ended with "the history
/// was rewritten", and rounds were offered again whose deltas had been released.
#[test]
fn an_older_backup_is_explained_and_no_round_is_trained_twice() {
    const ROUNDS: u32 = 80;
    let mut scratch = Scratch::with_powers_of_two(SITES);
    let policy = scratch.federation.sites()[2].policy();
    let agreeing = fs::read_to_string(&policy).unwrap() + "recovery = \"accept\"\n";
    fs::write(&policy, agreeing).unwrap();
    scratch.start_sites();
    let run = RehearsalRun { payload_bytes: 256 << 10, ..RehearsalRun::new("long", ROUNDS, 3) };
    scratch.start_run(&run.to_toml());
    let mut history = scratch.federation.follow("long").unwrap();
    history.until(PATIENCE, |e| e.is("adapter_published", 2)).unwrap();
    let file = backup(&scratch, "older.backup");
    // Further than the backup by rounds that are wholly lost, and inside one.
    let reached = rounds_closed(&scratch, "long");
    history.until(PATIENCE, |e| e.is("delta_accepted", reached + 10)).unwrap();
    scratch.federation.kill_coordinator();
    drop(history);

    let there = restore(&scratch, &file, &[]).unwrap_err();
    assert_eq!((there.exit, there.code.as_deref()), (Some(1), Some("exists")), "{there}");
    let restored = restore(&scratch, &file, &["--replace"]).unwrap().data;
    assert!(Path::new(restored["moved_aside"].as_str().unwrap()).is_file(), "{restored}");
    assert!(restored["signed"].as_u64() > restored["leaves"].as_u64(), "{restored}");
    let older = scratch.federation.start_coordinator().unwrap_err().to_string();
    assert!(older.contains("this log has signed") && older.contains("restore"), "{older}");

    let recovered = recover(&scratch);
    assert_eq!(recovered["recovery"]["statement"]["kept"]["size"], restored["leaves"]);
    scratch.federation.start_coordinator().unwrap();
    for site in [0, 1] {
        asked(&scratch, site);
        accept(&scratch, site);
    }
    let show = scratch.finish("long");
    assert_eq!(show["state"], "completed", "{show}");
    scratch.federation.check_alive().unwrap();
    sums_agree(&scratch, "long", ROUNDS, &show);

    let mut verify = vec!["audit".to_owned(), "verify".to_owned()];
    for site in scratch.federation.sites() {
        let rounds = trained_once(&site.directory, "long");
        assert!(rounds.len() > ROUNDS as usize, "no round of the lost branch: {rounds:?}");
        let now = site.directory.join("witness.json");
        for file in [evidence(&site.directory).unwrap(), now] {
            verify.extend(["--witness".to_owned(), text(&file)]);
        }
    }
    let audit = scratch.federation.operator(verify.iter().map(String::as_str)).unwrap().data;
    assert_eq!(audit["verified"], true, "{audit}");
    let told = &audit["recoveries"][0];
    let heads = |key: &str| told[key].as_array().unwrap().len();
    assert_eq!(heads("explains") + heads("in_lost_range"), SITES, "{audit}");
    assert_eq!(audit["recoveries"][0]["operator"], "operator/operator");
}

fn rounds_closed(scratch: &Scratch, run: &str) -> u64 {
    scratch.show(run)["rounds"].as_array().unwrap().len() as u64
}

/// Failed before: an empty history was begun under the old log key without a word, and every
/// client ended for good.
#[test]
fn a_missing_database_is_refused_and_the_newest_backup_goes_on_without_a_word_lost() {
    let mut scratch = Scratch::with_powers_of_two(SITES);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("before", 2, 3).to_toml());
    assert_eq!(scratch.finish("before")["state"], "completed");
    scratch.federation.kill_coordinator();
    let file = backup(&scratch, "newest.backup");
    let directory = scratch.federation.coordinator_directory();
    for name in ["tributary.db", "tributary.db-wal", "tributary.db-shm"] {
        let path = directory.join(name);
        if path.exists() {
            fs::remove_file(path).unwrap();
        }
    }
    let missing = scratch.federation.start_coordinator().unwrap_err().to_string();
    assert!(missing.contains("is missing or empty"), "{missing}");
    assert!(!directory.join("tributary.db").exists(), "an empty history was begun");
    restore(&scratch, &file, &[]).unwrap();
    scratch.federation.start_coordinator().unwrap();
    scratch.start_run(&RehearsalRun::new("after", 2, 3).to_toml());
    let show = scratch.finish("after");
    assert_eq!(show["state"], "completed", "{show}");
    sums_agree(&scratch, "after", 2, &show);
    scratch.federation.check_alive().unwrap();
    let sites = scratch.federation.sites();
    assert!(sites.iter().all(|site| evidence(&site.directory).is_none()));
    assert_eq!(scratch.audit()["verified"], true);
}

/// Failed before: a client whose certificate was not accepted ended for good, and a coordinator
/// whose whole disk was lost forked its log without knowing.
#[test]
fn a_member_that_the_backup_does_not_know_is_invited_again_while_its_client_runs() {
    let mut scratch = Scratch::with_powers_of_two(2);
    scratch.start_sites();
    let file = backup(&scratch, "early.backup");
    let late = scratch.enroll("late", 4.0, 300);
    scratch.federation.start_site(late).unwrap();
    scratch.federation.wait_connected().unwrap();
    // A run that the backup does not know: its deltas are answered, not owed for ever.
    scratch.start_run(&RehearsalRun::new("lost", 2, 3).to_toml());
    assert_eq!(scratch.finish("lost")["state"], "completed");
    // The late site has seen more than the others, who will be the first to tell.
    (0..=late).for_each(|site| scratch.federation.kill_site(site));
    scratch.federation.invite("nobody").unwrap();
    let size = scratch.audit()["leaves"].as_u64().unwrap();
    scratch.federation.start_site(late).unwrap();
    let seen = |line: &str| line.contains(&format!("at {size} leaves"));
    scratch.federation.sites()[late].process().unwrap().wait_stderr(PATIENCE, seen).unwrap();
    scratch.federation.kill_coordinator();
    // The whole disk was lost: the memory of what was signed is the backup's own.
    let head = scratch.federation.coordinator_directory().join("signed-head");
    fs::remove_file(&head).unwrap();
    restore(&scratch, &file, &["--replace"]).unwrap();
    scratch.federation.start_coordinator().unwrap();
    (0..late).for_each(|site| scratch.federation.start_site(site).unwrap());
    let taught = scratch.federation.coordinator().unwrap();
    taught.wait_stderr(PATIENCE, |line| line.contains("but this log has signed")).unwrap();
    scratch.federation.kill_coordinator();
    recover(&scratch);
    scratch.federation.start_coordinator().unwrap();

    let process = scratch.federation.sites()[late].process().unwrap();
    process.wait_stderr(PATIENCE, |line| line.contains("it was revoked or replaced")).unwrap();
    fs::remove_file(scratch.federation.root().join("kits/late.kit")).unwrap();
    let kit = text(&scratch.federation.invite("late").unwrap());
    let directory = text(&scratch.federation.sites()[late].directory);
    let enroll = ["enroll", kit.as_str(), "--directory", directory.as_str(), "--renew"];
    scratch.federation.client(enroll).unwrap();
    // Its head is larger than the statement names: the operator makes another.
    let larger = format!("a signed head of {size} leaves");
    let told = scratch.federation.coordinator().unwrap();
    told.wait_stderr(PATIENCE, |line| line.contains(&larger)).unwrap();
    scratch.federation.kill_coordinator();
    let second = recover(&scratch);
    assert_eq!(second["recovery"]["statement"]["lost"][0]["size"], size);
    scratch.federation.start_coordinator().unwrap();
    for site in 0..=late {
        asked(&scratch, site);
        accept(&scratch, site);
    }
    // The same name again: its first rounds are taken, and it goes on above them.
    scratch.start_run(&RehearsalRun::new("lost", 2, 3).to_toml());
    let show = scratch.finish("lost");
    assert_eq!(show["state"], "completed", "{show}");
    let rounds = trained_once(&scratch.federation.sites()[late].directory, "lost");
    assert!(rounds.len() >= 4, "{rounds:?}");
    scratch.federation.check_alive().unwrap();
    assert_eq!(scratch.audit()["verified"], true);
}

/// Killed at any moment, a restore leaves the old database or the new one, and the next restore
/// ends what the first began.
#[test]
fn a_restore_killed_at_any_moment_leaves_the_old_or_the_new_history() {
    let mut scratch = Scratch::with_powers_of_two(2);
    scratch.start_sites();
    let run = RehearsalRun { payload_bytes: 4 << 20, ..RehearsalRun::new("old", 2, 2) };
    scratch.start_run(&run.to_toml());
    scratch.finish("old");
    let file = backup(&scratch, "killed.backup");
    scratch.start_run(&RehearsalRun::new("new", 1, 2).to_toml());
    scratch.finish("new");
    scratch.federation.kill_all();
    let leaves = |scratch: &Scratch| {
        let done = coordinator(&["migrate", "--config", &config(scratch)]).unwrap().data;
        done["leaves"].as_u64().unwrap()
    };
    let newest = leaves(&scratch);
    let older = {
        let copy = scratch.folder.path().join("copy");
        let arguments = ["restore", "--directory", &text(&copy), "--from", &text(&file)];
        coordinator(&arguments).unwrap().data["leaves"].as_u64().unwrap()
    };
    assert!(older < newest);
    for wait_ms in (0..).step_by(15) {
        let (config, from) = (config(&scratch), text(&file));
        let arguments = ["restore", "--config", &config, "--from", &from, "--replace"];
        let mut child = coordinator_command(&arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The fault's moment, not a wait for anything.
        std::thread::sleep(Duration::from_millis(wait_ms));
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        let found = leaves(&scratch);
        assert!(found == newest || found == older, "{found} after {wait_ms} ms");
        if ended {
            assert_eq!(found, older);
            break;
        }
    }
    let directory = scratch.federation.coordinator_directory();
    assert!(!directory.join("restore.staging").exists());
}
