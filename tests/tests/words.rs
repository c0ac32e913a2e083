//! Messages that people read when something is in the way: the operator's reason, the other
//! program, a coordinator that restarts.

use std::fs;
use std::time::Instant;

use tributary_deploy::lines::{Lines, Next};
use tributary_deploy::{Process, Site};
use tributary_tests::{PATIENCE, RehearsalRun, Scratch};

/// Words of libraries, which say nothing to the person who reads a log.
const OF_LIBRARIES: [&str; 16] = [
    "http://",
    "https://",
    "docs.rs",
    "transport error",
    "tcp connect error",
    "h2 protocol error",
    "hyper",
    "tonic",
    "rustls",
    "Os {",
    "os error",
    "code: '",
    "close_notify",
    "ConnectError",
    "status: ",
    "source: ",
];

fn without_words_of_libraries(text: &str) {
    for line in text.lines() {
        for word in OF_LIBRARIES {
            assert!(!line.contains(word), "`{word}` in: {line}");
        }
    }
}

/// Failed before: the log told of `transport error: tcp connect error` and of a link to the manual
/// of rustls.
#[test]
fn a_coordinator_that_restarts_under_its_sites_is_told_in_plain_words() {
    let mut scratch = Scratch::with_powers_of_two(2);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("long", 500, 2).to_toml());
    for round in [2, 4] {
        let mut follow = scratch.federation.follow("long").unwrap();
        follow.until(PATIENCE, |event| event.is("adapter_published", round)).unwrap();
        let lines = |site: &Site| site.process().unwrap().stderr().clone();
        let all: Vec<Lines> = scratch.federation.sites().iter().map(lines).collect();
        let from: Vec<usize> = all.iter().map(Lines::count).collect();
        scratch.federation.kill_coordinator();
        for (lines, from) in all.iter().zip(from) {
            let noticed = lines.wait(from, PATIENCE, |line| line.contains("trying again in"));
            assert!(matches!(noticed, Next::Line(..)), "{noticed:?}");
        }
        scratch.federation.start_coordinator().unwrap();
    }
    let mut follow = scratch.federation.follow("long").unwrap();
    follow.until(PATIENCE, |event| event.is("adapter_published", 6)).unwrap();
    for site in scratch.federation.sites() {
        let log = fs::read_to_string(site.process().unwrap().log()).unwrap();
        assert!(log.contains("the coordinator at"), "{log}");
        without_words_of_libraries(&log);
    }
    let logs = scratch.federation.root().join("logs");
    for log in fs::read_dir(logs).unwrap() {
        let path = log.unwrap().path();
        if path.to_string_lossy().contains("coordinator") {
            without_words_of_libraries(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Failed before: the site was told that it is suspended, and never why.
#[test]
fn the_reason_of_a_suspension_reaches_the_site_and_outlives_a_restart() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    let suspend = ["site", "suspend", "site-0", "--reason", "audit of its data"];
    scratch.federation.operator(suspend).unwrap();
    let told = "the operator has suspended this site: audit of its data";
    let process = scratch.federation.sites()[0].process().unwrap();
    process.wait_stderr(PATIENCE, |line| line.contains(told)).unwrap();
    scratch.federation.kill_coordinator();
    scratch.federation.start_coordinator().unwrap();
    scratch.federation.kill_site(0);
    scratch.federation.start_site(0).unwrap();
    let process = scratch.federation.sites()[0].process().unwrap();
    process.wait_stderr(PATIENCE, |line| line.contains(told)).unwrap();

    let config = scratch.federation.sites()[0].config();
    let config = config.to_str().unwrap();
    let doctor = scratch.federation.client_command(["doctor", "--config", config]).output();
    let doctor = String::from_utf8(doctor.unwrap().stdout).unwrap();
    assert!(doctor.contains(told), "{doctor}");
    // The program writes its status at most once a second.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = scratch.federation.client(["status", "--config", config]).unwrap().data;
        let trouble = status["last"]["activity"]["trouble"].as_str().unwrap();
        if trouble.starts_with(told) {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}

/// Failed before: the second program said nothing for ten seconds.
#[test]
fn a_second_program_in_one_directory_names_the_first_and_takes_over_from_it() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    let first = scratch.federation.sites()[0].process().unwrap().id();
    let config = scratch.federation.sites()[0].config();
    let log = scratch.folder.path().join("second.log");
    let mut run = scratch.federation.client_command(["run", "--config", config.to_str().unwrap()]);
    let mut second = Process::start(&mut run, scratch.federation.guard(), &log).unwrap();
    let told = format!("another tributary-client (process {first}) uses it; waiting up to 10 s");
    second.wait_stderr(PATIENCE, |line| line.contains(&told)).unwrap();
    scratch.federation.kill_site(0);
    second.wait_stderr(PATIENCE, |line| line.contains(" connected")).unwrap();
    assert!(second.is_alive());
}
