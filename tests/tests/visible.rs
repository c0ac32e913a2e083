//! Trouble is visible where it is looked for, and a coordinator that moves is followed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use tributary_deploy::Process;
use tributary_tests::member::Member;
use tributary_tests::{PATIENCE, RehearsalRun, Scratch};

/// The row of `site list` of the site at `index`.
fn listed(scratch: &Scratch, index: usize) -> Value {
    scratch.federation.operator(["site", "list"]).unwrap().data[index].clone()
}

/// Waits until the coordinator's log has a line with `words`.
fn logged(scratch: &Scratch, words: &str) -> String {
    let coordinator = scratch.federation.coordinator().unwrap();
    coordinator.wait_stderr(PATIENCE, |line| line.contains(words)).unwrap()
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Before, a site knew the address of its startup kit alone and looked there for ever.
#[test]
fn a_coordinator_that_moves_is_followed_without_editing_a_file() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    let site = scratch.federation.sites()[0].directory.clone();
    let moved = format!("127.0.0.1:{}", free_port());
    let announced = [("TRIBUTARY__ADDRESS", moved.as_str())];
    scratch.federation.kill_coordinator();
    // Still at the old port, it tells where it will be.
    scratch.federation.start_coordinator_with(&announced).unwrap();
    let wait = |scratch: &Scratch, words: &str| {
        let process = scratch.federation.sites()[0].process().unwrap();
        process.wait_stderr(PATIENCE, |line| line.contains(words)).unwrap()
    };
    wait(&scratch, &format!("announces the address {moved}"));
    let kept = fs::read_to_string(site.join("identity/announced-address")).unwrap();
    assert_eq!(kept.trim(), moved);
    scratch.federation.kill_coordinator();
    let listen = [announced[0], ("TRIBUTARY__LISTEN", moved.as_str())];
    scratch.federation.start_coordinator_with(&listen).unwrap();
    assert_eq!(scratch.federation.address(), moved);
    wait(&scratch, &format!("address={moved}"));
    scratch.start_run(&RehearsalRun::new("moved", 1, 1).to_toml());
    assert_eq!(scratch.finish("moved")["state"], "completed");
    // A site that starts anew goes there first.
    scratch.federation.kill_site(0);
    scratch.federation.start_site(0).unwrap();
    wait(&scratch, &format!("address={moved}"));
    let config = site.join("site.toml");
    let status = scratch.federation.client(["status", "--config", config.to_str().unwrap()]);
    assert_eq!(status.unwrap().data["last"]["coordinator"], moved.as_str());
}

/// Before, the client began without a word, and nobody saw that it could train nothing.
#[test]
fn a_missing_backbone_is_said_at_once_at_the_site_and_at_the_coordinator() {
    let mut scratch = Scratch::with_powers_of_two(1);
    let site = scratch.federation.sites()[0].directory.clone();
    let config = site.join("site.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[backbone]\npath = \"gone.safetensors\"\n")).unwrap();
    scratch.federation.start_site(0).unwrap();
    let process = scratch.federation.sites()[0].process().unwrap();
    let said = process.wait_stderr(PATIENCE, |line| line.contains("backbone_missing")).unwrap();
    assert!(said.contains("gone.safetensors"), "{said}");
    logged(&scratch, "the site reports trouble");
    let row = listed(&scratch, 0);
    assert_eq!(row["trouble"], "backbone_missing", "{row}");
    assert_eq!(row["version"], env!("CARGO_PKG_VERSION"), "{row}");
    let status = scratch.federation.operator(["status"]).unwrap().data;
    assert_eq!(status["sites_in_trouble"][0]["trouble"], "backbone_missing", "{status}");
    let of_site = ["status", "--config", config.to_str().unwrap()];
    let of_site = scratch.federation.client(of_site).unwrap().data;
    assert_eq!(of_site["last"]["troubles"][0]["class"], "backbone_missing", "{of_site}");
    let doctor = ["doctor", "--config", config.to_str().unwrap()];
    let doctor = scratch.federation.client(doctor).unwrap_err();
    assert_eq!(doctor.exit, Some(1), "{doctor:?}");
    // It takes part in what needs none all the same.
    scratch.start_run(&RehearsalRun::new("all-the-same", 1, 1).to_toml());
    assert_eq!(scratch.finish("all-the-same")["state"], "completed");
}

/// Before, a copied directory trained twice, unseen.
#[test]
fn a_copied_identity_is_an_alarm_at_both_programs_and_at_the_coordinator() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    let (site, copy) = {
        let site = scratch.federation.sites()[0].directory.clone();
        (site, scratch.folder.path().join("copy"))
    };
    fs::create_dir_all(copy.join("identity")).unwrap();
    for file in ["site.toml", "policy.toml"] {
        fs::copy(site.join(file), copy.join(file)).unwrap();
    }
    for file in fs::read_dir(site.join("identity")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, copy.join("identity").join(file.file_name().unwrap())).unwrap();
    }
    let config = copy.join("site.toml");
    let mut second = std::process::Command::new(&scratch.federation.binaries().client);
    second.args(["run", "--config", config.to_str().unwrap()]);
    let log = scratch.folder.path().join("copy.log");
    let second = Process::start(&mut second, scratch.federation.guard(), &log).unwrap();
    logged(&scratch, "two programs use this site's identity");
    let said = |process: &Process| {
        process.wait_stderr(PATIENCE, |line| line.contains("another program uses")).unwrap()
    };
    said(&second);
    said(scratch.federation.sites()[0].process().unwrap());
    assert_eq!(listed(&scratch, 0)["trouble"], "shared_identity");
    scratch.start_run(&RehearsalRun::new("twice", 1, 1).to_toml());
    let status = scratch.federation.operator(["status"]).unwrap().data;
    assert_eq!(status["sites_in_trouble"][0]["trouble"], "shared_identity", "{status}");
    assert_eq!(scratch.show("twice")["seats"][0]["state"], "asked");
}

/// Before, `aggregating` was all that was shown, for ever, and a site that could not fetch a lost
/// adapter was recorded as lost itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_adapter_is_the_coordinators_trouble_and_no_sites() {
    let scratch = tokio::task::spawn_blocking(|| Scratch::with_powers_of_two(1)).await.unwrap();
    let short = "round_deadline_s = 100\nstall_timeout_s = 60\nlease_s = 1".to_owned();
    let manifest = RehearsalRun { timeouts: short, ..RehearsalRun::new("lost", 1, 1) };
    scratch.start_run(&manifest.to_toml());
    let site = &scratch.federation.sites()[0].directory;
    let mut site = Member::connect(site, scratch.federation.address()).await;
    let round = site.join(100).await;
    let hex = round.base.to_hex();
    let blob = scratch.federation.coordinator_directory().join("blobs").join(&hex[..2]).join(&hex);
    let bytes = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    logged(&scratch, "the coordinator has lost the adapter");
    let show = scratch.show("lost");
    assert!(show["trouble"].as_str().unwrap().contains("restore blobs/"), "{show}");
    assert_eq!(show["seats"][0]["state"], "training", "{show}");
    // Without its base the round is closed and cannot be aggregated.
    site.contribute(&round, 100, 1.0).await;
    logged(&scratch, "aggregation failed");
    let show = scratch.show("lost");
    assert_eq!(show["state"], "aggregating", "{show}");
    assert!(show["trouble"].as_str().unwrap().starts_with("aggregating round 1: "), "{show}");
    fs::write(&blob, bytes).unwrap();
    let show = scratch.finish("lost");
    assert_eq!((show["state"].as_str(), show["trouble"].as_str()), (Some("completed"), Some("")));
}
