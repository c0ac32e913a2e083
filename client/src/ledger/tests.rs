use super::*;

fn entry(round: u32, event: Event) -> Entry {
    Entry { at: Timestamp::from_millis(1), run: "run".parse().unwrap(), round, event }
}

fn trained(round: u32) -> Entry {
    let trained = Trained {
        base: Digest::of(b"base"),
        digest: Digest::of(&[u8::try_from(round).unwrap()]),
        bytes: 9,
        norm: 0.1,
        cases: u64::MAX,
        metrics: tributary_shared::terms::SiteMetrics {
            train_loss: Some(0.1 + 0.2),
            ..Default::default()
        },
    };
    entry(round, Event::Trained(trained))
}

fn counted(round: u32) -> Entry {
    let digest = Digest::of(&[u8::try_from(round).unwrap()]);
    entry(round, Event::Answered { digest, refusal: None })
}

#[test]
fn what_was_appended_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let all = [
        trained(1),
        counted(1),
        trained(2),
        entry(3, Event::Declined { manifest: None, reason: Refusal::Suspended }),
    ];
    let mut ledger = Ledger::open(&path).unwrap();
    for entry in &all {
        ledger.append(entry).unwrap();
    }
    drop(ledger);
    assert_eq!(read(&path).unwrap(), all);
    let ledger = Ledger::open(&path).unwrap();
    let run = "run".parse().unwrap();
    let declined = Standing::Declined { manifest: None, reason: Refusal::Suspended };
    assert_eq!(ledger.standing(&run, 3), Some(&declined));
    assert_eq!(ledger.owed(), [("run".parse().unwrap(), 2)]);
}

#[test]
fn only_a_refusal_of_the_newest_round_is_one_to_ask_about() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join(FILE_NAME)).unwrap();
    let (run, other) = ("run".parse().unwrap(), "runs".parse().unwrap());
    let reason = Refusal::Suspended;
    let manifest = Some(Digest::of(b"manifest"));
    let declined = Event::Declined { manifest, reason: reason.clone() };
    ledger.append(&entry(2, declined)).unwrap();
    assert_eq!(ledger.declined(&run), Some((2, manifest, Some(&reason))));
    assert_eq!(ledger.declined(&other), None);
    ledger.append(&trained(3)).unwrap();
    assert_eq!(ledger.declined(&run), None, "it took part since");
}

#[test]
fn a_line_cut_off_anywhere_is_dropped_and_reported_and_writing_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut whole = Ledger::open(&path).unwrap();
    whole.append(&trained(1)).unwrap();
    let kept = std::fs::read(&path).unwrap();
    whole.append(&counted(1)).unwrap();
    drop(whole);
    let bytes = std::fs::read(&path).unwrap();
    for cut in kept.len()..bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(read(&path).unwrap(), [trained(1)], "cut at {cut}");
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.torn_bytes(), (cut - kept.len()) as u64);
        assert_eq!(ledger.owed().len(), 1);
        ledger.append(&counted(1)).unwrap();
        drop(ledger);
        assert_eq!(read(&path).unwrap(), [trained(1), counted(1)], "cut at {cut}");
    }
}

/// Failed before: the handle that had failed was used again, for good.
#[test]
fn after_a_failed_entry_the_ledger_is_opened_anew_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path).unwrap();
    ledger.append(&trained(1)).unwrap();
    ledger.file = File::open(&path).unwrap();
    let failed = ledger.append(&counted(1)).unwrap_err();
    assert!(failed.to_string().contains("cannot append"), "{failed}");
    assert_eq!(ledger.owed().len(), 1, "a failed entry does not count");
    ledger.append(&counted(1)).unwrap();
    assert_eq!(ledger.owed(), []);
    assert_eq!(read(&path).unwrap(), [trained(1), counted(1)]);
}

/// Failed before: a line that could not be cut off stayed behind the next, shorter one.
#[test]
fn what_a_failed_entry_left_is_cut_off_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path).unwrap();
    ledger.append(&trained(1)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let left = [&whole[..], &b"{\"half of a line that is longer than the next\"".repeat(50)[..]];
    std::fs::write(&path, left.concat()).unwrap();
    ledger.in_doubt = true;
    ledger.append(&counted(1)).unwrap();
    assert_eq!(read(&path).unwrap(), [trained(1), counted(1)]);
    drop(ledger);
    assert_eq!(Ledger::open(&path).unwrap().torn_bytes(), 0);
}

#[test]
fn the_highest_answered_and_owed_rounds_of_each_run_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path).unwrap();
    for line in [trained(1), counted(1), trained(2), counted(2), trained(5)] {
        ledger.append(&line).unwrap();
    }
    let run: RunName = "other".parse().unwrap();
    ledger.append(&Entry { run: run.clone(), ..trained(9) }).unwrap();
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    let first: RunName = "run".parse().unwrap();
    let known = [(run, 9, false), (first.clone(), 2, true), (first.clone(), 5, false)];
    assert_eq!(ledger.known_rounds(), known);
    let done = Done { deltas_of_run: 3, deltas: 4, other_runs: 1 };
    assert_eq!(ledger.done(&first), done);
}

#[test]
fn checks_are_counted_over_a_span_after_a_restart_too_and_leave_every_round_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path).unwrap();
    let checked = |at, answer| Entry {
        at: Timestamp::from_millis(at),
        run: "run".parse().unwrap(),
        round: 0,
        event: Event::Checked { manifest: Digest::of(b"m"), answer, warnings: Vec::new() },
    };
    for (at, answer) in [
        (1_000, CheckAnswer::Ready),
        (2_000, CheckAnswer::Policy),
        (3_000, CheckAnswer::ChecksPerDay),
    ] {
        ledger.append(&checked(at, answer)).unwrap();
    }
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    let within = |span_ms| {
        ledger.checks_within(Timestamp::from_millis(3_500), Duration::from_millis(span_ms))
    };
    assert_eq!(within(5_000), Checks { answered: 2, over: 1 });
    assert_eq!(within(2_000), Checks { answered: 1, over: 1 });
    assert_eq!(ledger.standing(&"run".parse().unwrap(), 0), None);
    assert!(ledger.owed().is_empty());
}

#[test]
fn a_damaged_line_inside_stops_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    std::fs::write(&path, "{}\n{}\n").unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(error.to_string().contains("ledger.jsonl:1: not a ledger entry"), "{error}");
    std::fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
    assert!(matches!(Ledger::open(&path), Err(LedgerError::Damaged { line: 1, .. })));
}
