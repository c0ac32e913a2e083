//! Trouble is visible where it is looked for, and a coordinator that moves is followed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;

use tributary_tests::{PATIENCE, RehearsalRun, Scratch};

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
