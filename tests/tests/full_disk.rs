//! The coordinator's disk is full: nothing that it acknowledges is lost, what cannot wait works, it
//! blames itself, and it is back by itself once there is room.
//!
//! The disks are small file systems in memory; where none may be mounted there is nothing to try.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tributary_tests::small_disk::SmallDisk;
use tributary_tests::{PATIENCE, RehearsalRun, Scratch, seats};

/// As large as the one on which a run was lost.
const DISK_BYTES: u64 = 3 << 20;
/// Longest time that the coordinator may take to notice that there is room.
const BACK_MAX: Duration = Duration::from_secs(10);
const SHORT: &str = "short of disk space";

/// A coordinator on a small disk.
struct Cramped {
    scratch: Scratch,
    disk: SmallDisk,
}

impl Cramped {
    fn found() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let disk = SmallDisk::mount(&folder.path().join("coordinator"), DISK_BYTES)?;
        let edit = |text: String| text.replace("# reserve_mib = 64", "reserve_mib = 1");
        let scratch = Scratch::found_in(folder, edit);
        Some(Self { scratch, disk })
    }

    fn status(&self) -> Value {
        self.scratch.federation.operator(["status"]).unwrap().data
    }

    /// Frees the disk, and waits until the coordinator has noticed.
    fn free(&self) {
        let coordinator = self.scratch.federation.coordinator().unwrap();
        let said = |line: &str| line.contains("there is room on the disk again");
        let since = Instant::now();
        self.disk.free();
        coordinator.wait_stderr(BACK_MAX, said).unwrap();
        assert!(since.elapsed() < BACK_MAX, "{:?}", since.elapsed());
        assert_eq!(self.status()["disk"]["short"], false);
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        // Before the folder goes in which the disk is mounted.
        self.scratch.federation.kill_all();
        self.disk.unmount();
    }
}

/// A small manifest: a dozen rounds' tensors fit the disk.
fn tiny(name: &str, rounds: u32) -> RehearsalRun {
    RehearsalRun { payload_bytes: 400, ..RehearsalRun::new(name, rounds, 2) }
}

/// Failed before: the third invitation "succeeded" on the full disk, and everything from there on
/// (the run, its twelve published rounds, what sites were told) was gone after the restart.
#[test]
fn what_is_acknowledged_after_a_full_disk_is_there_after_a_kill() {
    let Some(mut cramped) = Cramped::found() else { return };
    let (mut with_disk, scratch) = (Vec::new(), &mut cramped.scratch);
    for k in 0..3u64 {
        scratch.enroll(&format!("site-{k}"), 2f32.powi(k as i32), 100 * (k + 1));
    }
    cramped.disk.fill();
    for k in 0..6 {
        let invited = cramped.scratch.federation.invite(&format!("late-{k}"));
        with_disk.push(invited.unwrap_err().to_string());
    }
    assert!(with_disk.iter().all(|said| said.contains(SHORT)), "{with_disk:?}");
    assert_eq!(cramped.status()["disk"]["short"], true);
    // What must not wait does not: on a disk without a free byte.
    let site = |words: &[&str]| {
        let words = [&["site"], words].concat();
        cramped.scratch.federation.operator(words).map(|done| done.data)
    };
    site(&["suspend", "site-2", "--reason", "checks"]).unwrap();
    site(&["reinstate", "site-2"]).unwrap();
    site(&["revoke", "site-2", "--reason", "gone"]).unwrap();
    let run = cramped.scratch.folder.path().join("refused.toml");
    std::fs::write(&run, tiny("refused", 1).to_toml()).unwrap();
    let refused = cramped.scratch.federation.operator(["run", "start", run.to_str().unwrap()]);
    assert!(refused.unwrap_err().to_string().contains(SHORT));

    cramped.free();
    let invited = cramped.scratch.federation.invite("in-time").unwrap();
    assert!(invited.exists());
    for index in 0..2 {
        cramped.scratch.federation.start_site(index).unwrap();
    }
    cramped.scratch.start_run(&tiny("after", 12).to_toml());
    let before = cramped.scratch.finish("after");
    assert_eq!(before["state"], "completed", "{before}");

    let scratch = &mut cramped.scratch;
    scratch.federation.kill_coordinator();
    scratch.federation.start_coordinator().unwrap();
    assert_eq!(scratch.show("after"), before);
    let sites = scratch.federation.operator(["site", "list"]).unwrap().data;
    let state = |name: &str| {
        let found = sites.as_array().unwrap().iter().find(|site| site["name"] == name);
        found.map(|site| site["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state("site-2").as_deref(), Some("revoked"));
    assert_eq!(state("in-time").as_deref(), Some("invited"));
    assert_eq!(state("late-2"), None, "it was refused");
    scratch.start_run(&tiny("next", 2).to_toml());
    assert_eq!(scratch.finish("next")["state"], "completed");
    assert_eq!(scratch.audit()["verified"], true);
}

/// Failed before: sites were lost to the round for what the coordinator's disk did.
#[test]
fn a_round_waits_for_the_coordinators_disk_and_no_site_is_blamed() {
    let Some(mut cramped) = Cramped::found() else { return };
    for k in 0..2u64 {
        cramped.scratch.enroll(&format!("site-{k}"), 1.0, 100 * (k + 1));
    }
    let deadline = Duration::from_secs(6);
    let timeouts = "round_deadline_s = 6\nstall_timeout_s = 4\nlease_s = 2".to_owned();
    cramped.scratch.start_run(&RehearsalRun { timeouts, ..tiny("patient", 1) }.to_toml());
    let mut history = cramped.scratch.federation.follow("patient").unwrap();
    history.until(PATIENCE, |event| event.is("round_opened", 1)).unwrap();
    cramped.disk.fill();
    for index in 0..2 {
        cramped.scratch.federation.start_site(index).unwrap();
    }
    for site in cramped.scratch.federation.sites() {
        site.process().unwrap().wait_stderr(PATIENCE, |line| line.contains(SHORT)).unwrap();
    }
    // How long the fault lasts, not a wait for anything: past every limit of the round.
    std::thread::sleep(deadline);
    for site in cramped.scratch.federation.sites() {
        let config = site.config();
        let status = ["status", "--config", config.to_str().unwrap()];
        let status = cramped.scratch.federation.client(status).unwrap().data;
        assert!(status.to_string().contains(SHORT), "{status}");
    }
    cramped.free();
    let show = cramped.scratch.finish("patient");
    assert_eq!(show["state"], "completed", "{show}");
    let seats = seats(&show, 1);
    assert!(seats.iter().all(|(_, state, _)| state == "accepted"), "{seats:?}");
    while let Some(event) = history.next(PATIENCE).unwrap() {
        assert!(event.kind != "site_lost", "{event:?}");
    }
}
