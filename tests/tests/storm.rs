//! Storms: `kill -9` of the coordinator and of sites, disks that take nothing more, and restores of
//! older backups, at random moments. After each, the history, the ledgers and the sums agree: no
//! delta is lost, doubled or mis-weighted, and no round is trained twice.
//!
//! `TRIBUTARY_STORM_SEEDS=50 cargo test -p tributary-tests --test storm` runs fifty seeds,
//! `TRIBUTARY_STORM_SEED=7` one of them again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tributary_deploy::command::{self, Failed, Outcome};
use tributary_tests::{RehearsalRun, Scratch, binaries};

const SITES: usize = 3;
const ROUNDS: u32 = 4;
const FAULTS: usize = 6;
/// Storms over one consortium: every backup holds all that came before.
const SEEDS_AT_ONCE: usize = 10;

#[test]
fn history_ledgers_and_sums_agree_after_kills_full_disks_and_restores() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seeds = match (number("TRIBUTARY_STORM_SEED"), number("TRIBUTARY_STORM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(3),
    };
    let seeds: Vec<u64> = seeds.collect();
    for seeds in seeds.chunks(SEEDS_AT_ONCE) {
        let mut scratch = Scratch::with_powers_of_two(SITES);
        for site in scratch.federation.sites() {
            let policy = fs::read_to_string(site.policy()).unwrap();
            fs::write(site.policy(), format!("recovery = \"accept\"\n{policy}")).unwrap();
        }
        scratch.start_sites();
        for seed in seeds {
            println!("storm seed {seed}");
            storm(&mut scratch, *seed);
        }
        let audit = scratch.audit();
        assert_eq!(audit["verified"], true, "{audit}");
    }
}

/// A fault, at a random moment of a run.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9` of the coordinator, then a start.
    KillCoordinator,
    /// `kill -9` of a site, then a start.
    KillSite(usize),
    /// The coordinator's disk takes nothing for a moment.
    FillCoordinator(Duration),
    /// A site's disk takes nothing for a moment.
    FillSite(usize, Duration),
    /// A backup while everything goes on.
    Backup,
    /// `kill -9` of the coordinator, and the last backup in place of its state.
    Restore,
}

impl Fault {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let site = random.random_range(0..SITES);
        let moment = Duration::from_millis(random.random_range(1..100));
        match random.random_range(0..9) {
            0 | 1 => Self::KillCoordinator,
            2 | 3 => Self::KillSite(site),
            4 => Self::FillCoordinator(moment),
            5 => Self::FillSite(site, moment),
            6 | 7 => Self::Backup,
            _ => Self::Restore,
        }
    }
}

#[expect(clippy::print_stdout, reason = "a failed storm is found again by its faults")]
fn storm(scratch: &mut Scratch, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let name = format!("storm-{seed}");
    // Several chunks a delta, so that some faults fall into an upload.
    let timeouts = "round_deadline_s = 100\nstall_timeout_s = 60\nvoid_pause_s = 1".to_owned();
    let run = RehearsalRun {
        payload_bytes: 1 << 20,
        timeouts,
        ..RehearsalRun::new(&name, ROUNDS, SITES as u32)
    };
    scratch.start_run(&run.to_toml());
    // Every backup of this storm knows the run.
    let mut last = backup(scratch, seed, 0);
    for number in 1..=FAULTS {
        // The fault's moment, not a wait for anything.
        std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
        let fault = Fault::draw(&mut random);
        println!("  {fault:?}");
        match fault {
            Fault::KillCoordinator => restart_coordinator(scratch, |_| ()),
            Fault::KillSite(site) => {
                scratch.federation.kill_site(site);
                scratch.federation.start_site(site).expect("the site starts again");
            }
            Fault::FillCoordinator(moment) => {
                full_for(scratch.federation.coordinator().unwrap(), moment);
            }
            Fault::FillSite(site, moment) => {
                full_for(scratch.federation.sites()[site].process().unwrap(), moment);
            }
            Fault::Backup => last = backup(scratch, seed, number),
            Fault::Restore => restart_coordinator(scratch, |scratch| restore(scratch, &last)),
        }
    }
    let show = scratch.finish(&name);
    let state = show["state"].as_str().unwrap();
    // A round that was open when the state went back in time ends without a delta.
    assert!(["completed", "completed_partial"].contains(&state), "seed {seed}: {show}");
    check_sums(scratch, &name);
    check_ledgers(scratch, &name, &show);
}

fn restart_coordinator(scratch: &mut Scratch, between: impl FnOnce(&Scratch)) {
    scratch.federation.kill_coordinator();
    between(scratch);
    scratch.federation.start_coordinator().expect("the coordinator starts again");
}

/// No file of `process` may grow or be written for `moment`.
fn full_for(process: &tributary_deploy::Process, moment: Duration) {
    process.limit_files(Some(0)).unwrap();
    // The length of the fault, not a wait for anything.
    std::thread::sleep(moment);
    process.limit_files(None).unwrap();
}

fn coordinator(scratch: &Scratch, verb: &str, arguments: &[&str]) -> Result<Outcome, Failed> {
    let config = scratch.federation.coordinator_directory().join("coordinator.toml");
    let mut command = Command::new(&binaries().coordinator);
    command.args([verb, "--format", "json", "--config"]).arg(config).args(arguments);
    command::run(&mut command)
}

fn backup(scratch: &Scratch, seed: u64, number: usize) -> PathBuf {
    let out = scratch.folder.path().join(format!("backup-{seed}-{number}"));
    coordinator(scratch, "backup", &["--rate", "0", "--out", out.to_str().unwrap()]).unwrap();
    out
}

fn restore(scratch: &Scratch, from: &Path) {
    coordinator(scratch, "restore", &["--replace", "--from", from.to_str().unwrap()]).unwrap();
    let operator = scratch.federation.operator_identity();
    let operator = operator.to_str().unwrap();
    let recovered =
        coordinator(scratch, "recover", &["--reason", "a storm", "--operator", operator]);
    if let Err(failed) = recovered {
        // The backup may be as new as the history.
        assert!(failed.problem.contains("continues every head"), "{failed:?}");
    }
}

/// Every version holds every site's delta exactly once with its own weight.
fn check_sums(scratch: &Scratch, run: &str) {
    let cases: f64 = (1..=SITES).map(|k| 100.0 * k as f64).sum();
    let weighted: f64 = (0..SITES).map(|k| 100.0 * (k + 1) as f64 * 2f64.powi(k as i32)).sum();
    for version in 1..=ROUNDS {
        let payload = scratch.payload(run, version);
        let expected = f64::from(version) * weighted / cases;
        let error = (f64::from(payload[0]) - expected).abs();
        assert!(error <= 1e-5 * expected, "version {version}: {} for {expected}", payload[0]);
        assert!(payload[1..].iter().all(|v| *v == 0.0), "version {version}: stray values");
    }
}

/// No site trained a round twice, and what the history counts is what the ledger says was trained.
fn check_ledgers(scratch: &Scratch, run: &str, show: &Value) {
    for site in scratch.federation.sites() {
        let ledger = fs::read_to_string(site.directory.join("ledger.jsonl")).unwrap();
        let entries = ledger.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut trained = BTreeMap::new();
        for entry in entries.filter(|entry| entry["kind"] == "trained" && entry["run"] == run) {
            let round = entry["round"].as_u64().unwrap();
            let before = trained.insert(round, entry["digest"].clone());
            assert!(before.is_none(), "{}: round {round} was trained twice", site.name);
        }
        for round in show["rounds"].as_array().unwrap() {
            let counted = round["contributions"].as_array().unwrap().iter();
            let mut counted =
                counted.filter(|c| c["site"] == *site.name && c["state"] == "accepted");
            let Some(counted) = counted.next() else { continue };
            let number = round["round"].as_u64().unwrap();
            assert_eq!(trained.get(&number), Some(&counted["delta_digest"]), "{}", site.name);
        }
    }
}
