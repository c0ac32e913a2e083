//! Calls whose caller is gone: a site that is killed takes the future of its call with it.

use std::path::Path;

use tributary_proto::channel::Role;

use super::*;

async fn driver(directory: &Path) -> Driver {
    let store = Store::open(&directory.join("tributary.db")).await.unwrap();
    let blobs = Blobs::at(directory).unwrap();
    let (connections, stop) = (Connections::default(), CancellationToken::new());
    let space = Space::of(&[], Some(1 << 20));
    Driver::start(store, blobs, connections, space, inquiries::Pace::default(), stop).await.unwrap()
}

fn rehearsal(name: &str) -> RunManifest {
    RunManifest::from_toml(&format!(
        "schema_version = 1
        name = '{name}'
        task = {{ kind = 'rehearsal', payload_bytes = 16 }}
        rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 30 }}
        quorum = {{ sites = 1 }}"
    ))
    .unwrap()
}

fn operator() -> Member {
    Member { role: Role::Operator, name: "anna".parse().unwrap() }
}

fn stop(reason: &str) -> Command {
    Command::Stop { reason: reason.to_owned() }
}

/// Asks, and is gone before the answer.
async fn hang_up<T>(call: impl Future<Output = T>) {
    tokio::select! {
        biased;
        _ = call => panic!("this call answers without waiting for anything"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn a_command_whose_caller_is_gone_is_carried_out_whole() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    driver.start_run(rehearsal("run"), &operator()).await.unwrap();
    let run = driver.run(&"run".parse().unwrap()).await.unwrap();
    hang_up(run.command(&driver, stop("first"))).await;
    // Decided on what the first command left, not taken for another coordinator's write.
    let second = run.command(&driver, stop("second")).await.unwrap_err();
    assert!(matches!(second, DriverError::Refused(_)), "{second:?}");
    assert!(!driver.stopping().is_cancelled());
}

#[tokio::test]
async fn a_run_whose_operator_is_gone_is_started_whole() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    hang_up(driver.start_run(rehearsal("run"), &operator())).await;
    let again = driver.start_run(rehearsal("run"), &operator()).await.unwrap_err();
    assert!(matches!(again, DriverError::RunExists(_)), "{again:?}");
    driver.run(&"run".parse().unwrap()).await.expect("the run lives in this process too");
}

/// A site that may take part.
async fn enroll(driver: &Driver, name: &str) {
    let member = Member { role: Role::Site, name: name.parse().unwrap() };
    let certificate = crate::store::Certificate {
        der: name.as_bytes().to_vec(),
        serial_hex: Digest::of(name.as_bytes()).short(),
        expires: clock::now().plus(std::time::Duration::from_secs(3_600)),
    };
    let event = RegistryEvent::Enrolled {
        member: member.to_string(),
        certificate: Digest::of(&certificate.der),
    };
    driver.store().add_member(clock::now(), &member, &certificate, event).await.unwrap();
    driver.members_changed().await.unwrap();
}

/// Takes all room: an upload that never comes.
fn fill(driver: &Driver) -> crate::space::Arriving {
    let (site, run) = ("giant".parse().unwrap(), "other".parse().unwrap());
    driver.space().accept(clock::now(), &site, &run, u64::MAX).unwrap()
}

async fn kinds(driver: &Driver, run: &str) -> Vec<String> {
    let stream = crate::round::record::Stream::Run(run.parse().unwrap());
    let records = driver.store().records(&stream).await.unwrap();
    let kind = |bytes: Vec<u8>| {
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        json["event"]["type"].as_str().unwrap().to_owned()
    };
    records.iter().map(|(_, record)| kind(record.to_bytes())).collect()
}

#[tokio::test]
async fn on_a_short_disk_no_run_starts_and_no_round_opens_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    driver.start_run(rehearsal("waits"), &operator()).await.unwrap();
    let filled = fill(&driver);
    enroll(&driver, "a").await;
    assert_eq!(kinds(&driver, "waits").await, ["run_started"]);
    let refused = driver.start_run(rehearsal("late"), &operator()).await.unwrap_err();
    assert!(refused.to_string().contains("short of disk space"), "{refused}");
    assert!(refused.is_full());
    let mut log = driver.store().follow();
    log.borrow_and_update();
    drop(filled);
    log.changed().await.unwrap();
    assert_eq!(kinds(&driver, "waits").await, ["run_started", "round_opened"]);
    driver.start_run(rehearsal("late"), &operator()).await.unwrap();
}

/// Failed before: the site was lost, and the round closed without it.
#[tokio::test]
async fn time_stands_still_for_sites_while_the_coordinator_is_short_of_room() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    enroll(&driver, "a").await;
    let mut hasty = rehearsal("hasty");
    (hasty.rounds.round_deadline_s, hasty.rounds.stall_timeout_s) = (1, 1);
    hasty.rounds.lease_s = 1;
    driver.start_run(hasty, &operator()).await.unwrap();
    let filled = fill(&driver);
    // How long the fault lasts, not a wait for anything.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let run = driver.run(&"hasty".parse().unwrap()).await.unwrap();
    run.tick(&driver).await.unwrap();
    drop(filled);
    run.tick(&driver).await.unwrap();
    assert_eq!(kinds(&driver, "hasty").await, ["run_started", "round_opened"]);
}
