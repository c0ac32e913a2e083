//! Calls whose caller is gone: a site that is killed takes the future of its call with it.

mod deltas;

use std::path::Path;

use ring::signature::Ed25519KeyPair;
use tributary_proto::channel::Role;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::Signer;
use tributary_shared::tlog::recovery::{Draft, Head, RECOVERY_SCHEMA, Recovery, Statement};

use super::*;
use crate::round::seat::Seat;

async fn driver(directory: &Path) -> Driver {
    driver_keeping(directory, Keeping::default()).await
}

async fn driver_keeping(directory: &Path, keeping: Keeping) -> Driver {
    let store = Store::open(&directory.join("tributary.db")).await.unwrap();
    let blobs = Blobs::at(directory).unwrap();
    let (connections, stop) = (Connections::default(), CancellationToken::new());
    let space = Space::of(&[], Some(1 << 20));
    let rules = (inquiries::Pace::default(), keeping);
    Driver::start(store, blobs, connections, space, rules, stop).await.unwrap()
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
    // The run lives in this process too, as soon as its first event is written.
    let there = async {
        while driver.run(&"run".parse().unwrap()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    let hang = std::time::Duration::from_secs(60);
    tokio::time::timeout(hang, there).await.expect("it is started whole");
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

fn peer(member: &Member, serial_hex: &str) -> tributary_proto::channel::Peer {
    let (member, serial_hex) = (member.clone(), serial_hex.to_owned());
    tributary_proto::channel::Peer { member, serial_hex, fingerprint: Digest::of(b"") }
}

async fn enrol(driver: &Driver, member: &Member, serial: &str) {
    write_member(driver, member, serial).await;
    driver.members_changed().await.unwrap();
}

/// A member in the store, which the driver has not read again.
async fn write_member(driver: &Driver, member: &Member, serial: &str) {
    let certificate = crate::store::Certificate {
        der: serial.as_bytes().to_vec(),
        serial_hex: serial.to_owned(),
        expires: Timestamp::from_millis(i64::MAX),
    };
    let event = RegistryEvent::Enrolled {
        member: member.to_string(),
        certificate: Digest::of(serial.as_bytes()),
    };
    driver.store().add_member(clock::now(), member, &certificate, event).await.unwrap();
}

fn revoked(member: &Member) -> RegistryEvent {
    let (reason, by) = ("left".to_owned(), "operator/anna".to_owned());
    RegistryEvent::Revoked { member: member.to_string(), reason, by }
}

/// A6a. Failed before: only a site could be revoked, and a suspended person could still call.
#[tokio::test]
async fn a_person_is_revoked_and_its_certificate_is_no_longer_known() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    let person: Member = "auditor/carl".parse().unwrap();
    enrol(&driver, &person, "aa").await;
    assert_eq!(driver.members().standing(&peer(&person, "aa")), Standing::Active);
    driver.set_member_state(&person, MemberState::Revoked, revoked(&person)).await.unwrap();
    assert_eq!(driver.members().standing(&peer(&person, "aa")), Standing::Unknown);
}

/// A6c. Failed before: rows that were read before a revocation were put in place after it.
#[tokio::test]
async fn rows_read_before_a_change_do_not_undo_it() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    let member: Member = "site/a".parse().unwrap();
    enrol(&driver, &member, "aa").await;
    let members = driver.members();
    let (version, stale) = (members.version(), driver.store().members().await.unwrap());
    driver.set_member_state(&member, MemberState::Revoked, revoked(&member)).await.unwrap();
    assert!(!members.replace(version, stale));
    assert_eq!(members.standing(&peer(&member, "aa")), Standing::Unknown);
    let fresh = driver.store().members().await.unwrap();
    assert!(members.replace(members.version(), fresh));
    assert_eq!(members.standing(&peer(&member, "aa")), Standing::Unknown);
}

/// B6. Failed before: on a disk that had filled a second time, no member could be cut off.
#[tokio::test]
async fn a_state_that_cannot_be_written_holds_until_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    let site: Member = "site/a".parse().unwrap();
    enrol(&driver, &site, "aa").await;
    driver.members().put_unwritten(&site, MemberState::Suspended);
    assert_eq!(driver.members().standing(&peer(&site, "aa")), Standing::Suspended);
    assert!(driver.members().active_sites().is_empty());
    driver.members_changed().await.unwrap();
    assert_eq!(driver.members().standing(&peer(&site, "aa")), Standing::Suspended);
    let event =
        RegistryEvent::Reinstated { member: site.to_string(), by: "operator/anna".to_owned() };
    driver.set_member_state(&site, MemberState::Active, event).await.unwrap();
    assert_eq!(driver.members().standing(&peer(&site, "aa")), Standing::Active);
}

/// Failed before: only a full disk cut a member off in memory; after any other error of the database it went on calling.
#[tokio::test]
async fn a_member_is_cut_off_whatever_kept_its_state_from_being_written() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    let site: Member = "site/a".parse().unwrap();
    enrol(&driver, &site, "aa").await;
    driver.store().close().await;
    let event = RegistryEvent::Suspended {
        member: site.to_string(),
        by: "operator/anna".to_owned(),
        reason: "left".to_owned(),
    };
    let told = driver.set_member_state(&site, MemberState::Suspended, event).await.unwrap_err();
    assert!(matches!(told, DriverError::Unwritten { .. }), "{told:?}");
    assert!(told.to_string().contains("the history does not say so"), "{told}");
    assert_eq!(driver.members().standing(&peer(&site, "aa")), Standing::Suspended);
}

/// Failed before: a site that was suspended between the choice of a round's sites and the round's opening was asked, and
/// the round waited for it in vain.
#[tokio::test]
async fn a_site_that_is_suspended_while_a_round_is_opened_is_lost_to_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    driver.start_run(rehearsal("run"), &operator()).await.unwrap();
    let [a, b]: [Member; 2] = ["site/a", "site/b"].map(|name| name.parse().unwrap());
    write_member(&driver, &a, "aa").await;
    write_member(&driver, &b, "bb").await;
    driver.members().reload(driver.store()).await.unwrap();
    let active = driver.members().active_sites();
    driver.members().put(&b, MemberState::Suspended);
    let run = driver.run(&"run".parse().unwrap()).await.unwrap();
    run.command(&driver, Command::Open { active }).await.unwrap();
    let seat = |name: &SiteName| run.read(|run| run.seat(name, 1).cloned()).unwrap();
    assert!(matches!(seat(&b.name), Seat::Lost { cause: LossCause::Suspended, .. }));
    assert_eq!(seat(&a.name), Seat::Asked);
}

/// Failed before: an enrolment whose second reading of the members failed left the old certificate good and the new one
/// unknown until the coordinator was restarted.
#[tokio::test]
async fn members_that_were_not_read_again_after_a_change_are_read_by_the_ticker() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    let member: Member = "site/a".parse().unwrap();
    write_member(&driver, &member, "aa").await;
    assert_eq!(driver.members().standing(&peer(&member, "aa")), Standing::Unknown);
    hang_up(driver.members().reload(driver.store())).await;
    let read_again = async {
        while driver.members().standing(&peer(&member, "aa")) != Standing::Active {
            // A look ten times a second spins no core.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let hang = std::time::Duration::from_secs(60);
    tokio::time::timeout(hang, read_again).await.expect("the ticker looks every five seconds");
}

/// The command by which `site` agrees to the open round of `run`.
fn terms(run: &LiveRun, site: &str, cases: u64) -> Command {
    run.read(|run| Command::AcceptTerms {
        site: site.parse().unwrap(),
        round: run.round(),
        manifest: run.manifest_digest(),
        base: run.adapter(),
        cases,
    })
}

/// A2: one lock was held across every commit, so that heartbeats waited for the fsyncs of others'
/// events. Failed before: none of these calls was answered.
#[tokio::test]
async fn what_changes_nothing_waits_for_no_commit() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    enroll(&driver, "a").await;
    enroll(&driver, "b").await;
    driver.start_run(rehearsal("run"), &operator()).await.unwrap();
    let (site, name) = ("a".parse::<SiteName>().unwrap(), "run".parse::<RunName>().unwrap());
    let run = driver.run(&name).await.unwrap();
    run.command(&driver, terms(&run, "a", 5)).await.unwrap();
    let agreed = terms(&run, "a", 5);
    // As long as another command commits.
    let turn = run.turn.lock().await;
    let answered = async {
        let beat = driver.heartbeat(&site, &name, 1, Progress::default()).await.unwrap();
        assert_eq!(beat, None);
        driver.heard(&site).await;
        assert!(driver.assignment(&site, None).await.is_some());
        run.command(&driver, agreed).await.unwrap();
        let refused = run.command(&driver, terms(&run, "stranger", 5)).await;
        assert!(matches!(refused, Err(DriverError::Refused(_))), "{refused:?}");
    };
    let hang = std::time::Duration::from_secs(60);
    tokio::time::timeout(hang, answered).await.expect("all of it is answered");
    drop(turn);
    assert_eq!(kinds(&driver, "run").await, ["run_started", "round_opened", "terms_accepted"]);
}

/// A15: failed before: every call of every site waited while an initial adapter was written.
#[tokio::test]
async fn starting_a_run_stops_no_other_runs_calls() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    driver.start_run(rehearsal("run"), &operator()).await.unwrap();
    let reserved = driver.reserve(&"large".parse().unwrap()).await.unwrap();
    // As long as the other run's adapter is being written.
    let answered = async {
        driver.run(&"run".parse().unwrap()).await.unwrap();
        let again = driver.start_run(rehearsal("large"), &operator()).await.unwrap_err();
        assert!(matches!(again, DriverError::RunExists(_)), "{again:?}");
        driver.start_run(rehearsal("third"), &operator()).await.unwrap();
    };
    let hang = std::time::Duration::from_secs(60);
    tokio::time::timeout(hang, answered).await.expect("all of it is answered");
    drop(reserved);
    driver.start_run(rehearsal("large"), &operator()).await.expect("the name is free again");
}

/// Failed before: each run, those started later included, could lose as many rounds as leaves were lost.
#[tokio::test]
async fn runs_share_the_bound_of_rounds_that_a_recovery_gives_up() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("tributary.db")).await.unwrap();
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let signer = Signer::new("log", pair).unwrap();
    let head = |size: u64| {
        let note = Checkpoint::sign(size, Digest::of(&size.to_le_bytes()), &signer);
        Head::open(&note, &signer.verifier_key()).unwrap()
    };
    let statement = Statement {
        schema: RECOVERY_SCHEMA,
        log: signer.verifier_key(),
        consortium: "demo".parse().unwrap(),
        lost: vec![head(10)],
        kept: head(5),
        at: clock::now(),
        reason: "the disk failed".to_owned(),
        operator: "operator/anna".to_owned(),
    };
    // Its certificates are checked before it becomes a leaf, and not when it is read.
    let Draft { statement, log_signature } = Draft::sign(statement, &signer);
    let recovery = Recovery {
        statement,
        log_signature,
        operator_certificate: String::new(),
        operator_signature: String::new(),
        root_certificate: String::new(),
    };
    let digest = recovery.statement.digest();
    let recovered = RegistryEvent::Recovered { recovery: Box::new(recovery) };
    store.record(clock::now(), recovered).await.unwrap();
    store.close().await;

    let driver = driver(directory.path()).await;
    enroll(&driver, "a").await;
    for name in ["one", "two"] {
        driver.start_run(rehearsal(name), &operator()).await.unwrap();
    }
    let known = |run: &str| KnownRound { run: run.parse().unwrap(), round: 3, answered: true };
    let site = "a".parse().unwrap();
    driver.recall(&site, vec![known("one"), known("two")]).await.unwrap();
    let mut given_up = Vec::new();
    for name in ["one", "two"] {
        let run = driver.run(&name.parse().unwrap()).await.unwrap();
        given_up.push(run.read(|run| run.skipped(digest)));
    }
    assert_eq!(given_up, [3, 0], "five leaves were lost");
}
