//! Histories that were restored from a backup, with and without the statement that says so.

use std::path::Path;

use tributary_proto::channel::{Identity, sign_recovery};
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::recovery::{Draft, Head, Recovery, Statement};

use super::*;
use crate::membership::{Founding, init};

/// Leaves that the backup had.
const KEPT: usize = 9;

/// An operator whose root is that of the history.
fn operator(folder: &Path) -> Identity {
    let founding = Founding {
        consortium: "consortium".parse().unwrap(),
        server_names: Vec::new(),
        listen: "127.0.0.1:0".to_owned(),
        address: "127.0.0.1:0".to_owned(),
        operator: "o".parse().unwrap(),
    };
    let founded = init(&folder.join("coordinator"), &founding, crate::clock::now()).unwrap();
    Identity::load(&founded.operator).unwrap()
}

/// The history of a consortium with that operator.
fn rooted(identity: &Identity) -> Coordinator {
    let mut coordinator = history();
    let Event::Registry(RegistryEvent::Founded { root, .. }) = &mut coordinator.records[0].event
    else {
        panic!("a history begins with its founding")
    };
    *root = Digest::of(&identity.root);
    let certificate = Digest::of(&identity.certificate);
    let enrolled = RegistryEvent::Enrolled { member: "operator/o".to_owned(), certificate };
    let event = Event::Registry(enrolled);
    coordinator
        .records
        .insert(7, Record::new(Timestamp::from_millis(6_500), Stream::Registry, 7, event));
    coordinator
}

fn signed(leaves: &[Vec<u8>]) -> Head {
    let head = checkpoint(leaves);
    let note = Checkpoint::sign(head.size, head.root, &signer(7));
    Head::open(&note, &key()).unwrap()
}

fn statement(lost: &[Vec<u8>], identity: &Identity) -> Recovery {
    let statement = Statement {
        schema: 1,
        log: key(),
        consortium: "consortium".parse().unwrap(),
        lost: vec![signed(lost)],
        kept: signed(&lost[..KEPT]),
        at: crate::clock::now(),
        reason: "the disk failed".to_owned(),
        operator: "operator/o".to_owned(),
    };
    sign_recovery(Draft::sign(statement, &signer(7)), identity).unwrap()
}

/// The restored history with `events` of the registry after what was kept.
fn restored(whole: &Coordinator, events: Vec<RegistryEvent>) -> Vec<Vec<u8>> {
    let mut restored = Coordinator::found();
    restored.records = whole.records[..KEPT].to_vec();
    for event in events {
        restored.register(event);
    }
    restored.leaves()
}

fn verify_with(leaves: &[Vec<u8>], known: &[Checkpoint]) -> Result<Report, Finding> {
    let bytes = export(leaves, &BTreeMap::new());
    verify(Cursor::new(bytes), &key(), known, &mut |_| {})
}

/// Failed before: a history restored with all honesty was a rollback for good.
#[test]
fn a_statement_explains_heads_of_the_lost_branch_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let identity = operator(folder.path());
    let whole = rooted(&identity);
    let lost = whole.leaves();
    let recovery = Box::new(statement(&lost, &identity));
    let leaves = restored(&whole, vec![RegistryEvent::Recovered { recovery }]);
    let known: Vec<Checkpoint> = (0..=lost.len()).map(|n| checkpoint(&lost[..n])).collect();
    let report = verify_with(&leaves, &known).unwrap();
    let [found] = &report.recoveries[..] else { panic!("{report}") };
    assert_eq!(found.explains, [lost.len() as u64]);
    assert_eq!(found.in_lost_range, (KEPT as u64 + 1..lost.len() as u64).collect::<Vec<_>>());
    // One branch was lost, and it has one root of a size. Failed before: any root below the lost size was explained.
    let forged = Checkpoint { root: Digest::of(b"another"), ..checkpoint(&lost[..KEPT + 1]) };
    verify_with(&leaves, std::slice::from_ref(&forged)).unwrap();
    let both = verify_with(&leaves, &[forged, checkpoint(&lost[..KEPT + 1])]);
    assert!(matches!(both, Err(Finding::Fork { .. })));
    assert_eq!((found.kept_size, found.lost[0].size), (KEPT as u64, lost.len() as u64));
    assert!(report.to_string().contains("signed by the log and operator/o"), "{report}");

    // A head that the statement does not name, and another branch of the same size.
    let size = lost.len() as u64 + 1;
    let beyond = Checkpoint { size, ..checkpoint(&lost) };
    assert!(matches!(verify_with(&leaves, &[beyond]), Err(Finding::Rollback { .. })));
    let other = Checkpoint { root: Digest::of(b"another"), ..checkpoint(&lost) };
    assert!(verify_with(&leaves, &[other]).is_err());
    // The kept leaves are not the statement's to rewrite.
    let within = Checkpoint { root: Digest::of(b"another"), ..checkpoint(&lost[..KEPT - 1]) };
    assert!(matches!(verify_with(&leaves, &[within]), Err(Finding::Fork { .. })));
    // Without the statement it stays a finding.
    let silent = restored(&whole, Vec::new());
    assert!(matches!(verify_with(&silent, &known), Err(Finding::Rollback { .. })));
}

#[test]
fn a_statement_that_does_not_hold_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let identity = operator(folder.path());
    let whole = rooted(&identity);
    let good = statement(&whole.leaves(), &identity);
    let found = |change: &dyn Fn(&mut Recovery)| {
        let mut recovery = Box::new(good.clone());
        change(&mut recovery);
        let leaves = restored(&whole, vec![RegistryEvent::Recovered { recovery }]);
        line(&verify_with(&leaves, &[]).unwrap_err())
    };
    let reason = found(&|r| r.statement.reason = "another".to_owned());
    assert!(reason.contains("not signed by the log's key"), "{reason}");
    let operator = found(&|r| {
        let other = Draft::sign(r.statement.clone(), &signer(7));
        r.operator_signature.clone_from(&other.log_signature);
    });
    assert!(operator.contains("not signed by its operator's key"), "{operator}");
    // An operator of a root that this history was not founded on.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = self::operator(elsewhere.path());
    let foreign = found(&|r| *r = statement(&whole.leaves(), &stranger));
    assert!(foreign.contains("is vouched for by root"), "{foreign}");
    // A history that does not begin with what the statement keeps.
    let kept = found(&|r| {
        let mut said = r.statement.clone();
        let note = Checkpoint::sign(KEPT as u64, Digest::of(b"another"), &signer(7));
        said.kept = Head::open(&note, &key()).unwrap();
        *r = sign_recovery(Draft::sign(said, &signer(7)), &identity).unwrap();
    });
    assert!(kept.contains("which this history does not begin with"), "{kept}");
    // Rounds are skipped only as far as a recovery of this history allows.
    let mut skipping = history();
    let at = position(&skipping.records, |event| matches!(event, RunEvent::RoundOpened { .. }));
    let Record { stream, seq, at: time, .. } = skipping.records[at].clone();
    skipping.records.truncate(at);
    let skip = RunEvent::RoundsSkipped { to: 3, site: site("a"), recovery: Digest::of(b"none") };
    skipping.records.push(Record::new(time, stream, seq, Event::Run(skip)));
    let skipped = line(&verify_with(&skipping.leaves(), &[]).unwrap_err());
    assert!(skipped.contains("for a recovery that the history does not have"), "{skipped}");
}
