//! Every way to change the export of a small history, and what is found.

mod away;
mod fixture;
mod recovered;

use std::collections::BTreeMap;
use std::io::Cursor;

use ring::signature::Ed25519KeyPair;
use tributary_shared::check::{CheckAnswer, SiteCheck};
use tributary_shared::digest::Digest;
use tributary_shared::initial::adapter_header;
use tributary_shared::name::RunName;
use tributary_shared::tensors::encode;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::Signer;
use tributary_shared::tlog::merkle::leaf_hash;

use self::fixture::{Coordinator, checkpoint, export, export_under, history, key, signer, site};
use super::*;
use crate::round::Command;
use crate::round::event::{RegistryEvent, RunEvent, Unusable};
use crate::round::record::{Event, Record, Stream};
use crate::round::seat::Seat;

fn check(export: &[u8]) -> Result<Report, Finding> {
    verify(Cursor::new(export), &key(), &[], &mut |_| {})
}

fn found(export: &[u8]) -> Finding {
    check(export).unwrap_err()
}

/// The whole line, as `main` prints it.
fn line(finding: &Finding) -> String {
    tributary_shared::outcome::chain(finding)
}

/// The finding in `records` after one was changed and everything signed anew: what a coordinator
/// could do that owns the key and still cannot break the rules.
fn found_in(change: impl FnOnce(&mut Vec<Record>)) -> String {
    let mut coordinator = history();
    change(&mut coordinator.records);
    line(&found(&coordinator.export()))
}

fn position(records: &[Record], wanted: impl Fn(&RunEvent) -> bool) -> usize {
    records
        .iter()
        .position(|record| matches!(&record.event, Event::Run(event) if wanted(event)))
        .unwrap()
}

fn published(event: &RunEvent) -> bool {
    matches!(event, RunEvent::AdapterPublished { .. })
}

#[test]
fn a_true_history_is_verified_and_told() {
    let export = history().export();
    let mut last = None;
    let report =
        verify(Cursor::new(&export), &key(), &[], &mut |progress| last = Some(progress)).unwrap();
    assert_eq!(last, Some(Progress::Rounds { done: 2, total: 2 }));
    assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (2, 0));
    assert_eq!((report.tensor_files, report.members.len()), (7, 3));
    let [demo, other] = &report.runs[..] else { panic!("{report:?}") };
    assert_eq!((&demo.state[..], demo.rounds_published), ("completed_partial", 2));
    assert_eq!((&other.state[..], other.rounds_published), ("stopped", 0));
    let counts: Vec<_> =
        demo.sites.iter().map(|s| (s.accepted, s.refused, s.declined, s.lost)).collect();
    assert_eq!(counts, [(2, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1)]);
    let counts: Vec<_> = other.sites.iter().map(|s| (s.accepted, s.lost)).collect();
    assert_eq!(counts, [(0, 0), (0, 0), (0, 0)]);

    let text = report.to_string();
    let verdict = text.lines().next().unwrap();
    assert!(verdict.starts_with("VERIFIED: "), "{text}");
    assert!(verdict.ends_with("all 2 published adapters recomputed bit for bit"), "{text}");
    assert_eq!(report.not_recomputed(), [""; 0]);
    for part in ["2 of 2 recomputed bit for bit", "run demo: completed_partial", "b, c", "3 active"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["verified"], true);
    assert_eq!(json["runs"][0]["rounds"][0]["counted"]["b"], 300);
}

#[test]
fn without_tensor_files_the_report_says_what_was_not_recomputed() {
    let coordinator = history();
    let report = check(&export(&coordinator.leaves(), &BTreeMap::new())).unwrap();
    assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (0, 2));
    assert!(report.to_string().contains("not recomputed: the export does not hold"));
    assert!(
        report
            .verdict()
            .ends_with("0 of 2 published adapters recomputed bit for bit, 2 NOT recomputed")
    );
    assert_eq!(report.not_recomputed().len(), 2);
    // Before, `audit verify --require-tensors` told the adapters first and the verdict last.
    let told = report.under("NOT VERIFIED: adapters");
    assert!(told.starts_with("NOT VERIFIED: adapters\n\nlog "), "{told}");
    assert_eq!(told.matches("VERIFIED").count(), 1, "{told}");

    let mut files = coordinator.files.clone();
    let run = &coordinator.runs[&"demo".parse::<RunName>().unwrap()];
    let Some(Seat::Accepted(delta)) = run.seat(&site("b"), 1) else { panic!() };
    files.remove(&delta.digest);
    let report = check(&export(&coordinator.leaves(), &files)).unwrap();
    assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (1, 1));
    let reason = report.runs[0].rounds[0].not_recomputed_because.as_deref();
    assert_eq!(reason, Some("the export does not hold the delta of b"));
}

#[test]
fn an_empty_log_is_a_log() {
    let report = check(&export(&[], &BTreeMap::new())).unwrap();
    assert_eq!((report.leaves, report.runs.len()), (0, 0));
}

/// Two masks a byte: its lowest and its highest bit.
#[test]
fn every_flipped_byte_is_found() {
    let mut bytes = history().export();
    assert!(check(&bytes).is_ok());
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80] {
            bytes[at] ^= mask;
            assert!(check(&bytes).is_err(), "byte {at} with mask {mask:#x} passes");
            bytes[at] ^= mask;
        }
    }
}

#[test]
fn every_truncation_and_every_addition_is_found() {
    let bytes = history().export();
    for length in 0..bytes.len() {
        let finding = found(&bytes[..length]);
        assert!(matches!(finding, Finding::Truncated { .. }), "{length} bytes: {finding:?}");
    }
    let longer = [&bytes[..], b"E"].concat();
    assert_eq!(line(&found(&longer)), format!("byte {}: bytes after the end marker", bytes.len()));
}

#[test]
fn a_changed_leaf_is_named() {
    let coordinator = history();
    let leaves = coordinator.leaves();
    let mut bytes = coordinator.export();
    let at = position(&coordinator.records, published);
    let start = bytes.windows(leaves[at].len()).position(|w| w == leaves[at]).unwrap();
    let cases = b"\"cases\":400";
    let cases = bytes[start..].windows(cases.len()).position(|w| w == cases).unwrap();
    bytes[start + cases + 8] = b'5';
    let record = &coordinator.records[at];
    let text = line(&found(&bytes));
    let expected = format!("leaf {at} (run/demo seq {}): bytes hash to sha256:", record.seq);
    assert!(text.starts_with(&expected) && text.contains(", recorded sha256:"), "{text}");
}

/// Leaves removed, swapped or doubled: with the old signature, and signed anew.
#[test]
fn leaves_left_out_moved_or_doubled_are_found() {
    let coordinator = history();
    let leaves = coordinator.leaves();
    let head = checkpoint(&leaves);
    for at in 0..leaves.len() {
        let mut removed = leaves.clone();
        removed.remove(at);
        let mut doubled = leaves.clone();
        doubled.insert(at, leaves[at].clone());
        let mut swapped = leaves.clone();
        swapped.swap(at, (at + 1) % leaves.len());
        for (what, changed) in [("removed", removed), ("doubled", doubled), ("swapped", swapped)] {
            let kept = export_under(&head, &changed, &BTreeMap::new());
            assert!(check(&kept).is_err(), "leaf {at} {what} under the old signature");
            // A stream without its last event is a younger stream. Only a known head tells.
            let records = &coordinator.records;
            let last = records[at + 1..].iter().all(|r| r.stream != records[at].stream);
            let last_removed = what == "removed" && last && at != 6;
            // Neighbours of different runs stand in no order to each other.
            let (this, next) = (&coordinator.records[at], coordinator.records.get(at + 1));
            let apart = what == "swapped" && next.is_some_and(|next| next.stream != this.stream);
            let anew = export(&changed, &BTreeMap::new());
            assert_eq!(
                check(&anew).is_ok(),
                last_removed || apart,
                "leaf {at} {what}, signed anew"
            );
            let known =
                verify(Cursor::new(&anew), &key(), std::slice::from_ref(&head), &mut |_| {});
            assert!(known.is_err(), "leaf {at} {what} against a known head");
        }
    }
}

#[test]
fn a_history_that_denies_a_known_head_is_found() {
    let coordinator = history();
    let leaves = coordinator.leaves();
    let verify_with = |leaves: &[Vec<u8>], known: &[Checkpoint]| {
        let bytes = export(leaves, &BTreeMap::new());
        verify(Cursor::new(bytes), &key(), known, &mut |_| {}).map(|report| report.leaves)
    };
    let known: Vec<Checkpoint> = (0..=leaves.len()).map(|n| checkpoint(&leaves[..n])).collect();
    assert_eq!(verify_with(&leaves, &known).unwrap(), leaves.len() as u64);

    let mut forked = history();
    let Event::Registry(RegistryEvent::Invited { by, .. }) = &mut forked.records[3].event else {
        panic!()
    };
    *by = "operator/another".into();
    let fork = verify_with(&forked.leaves(), &known[..=3]);
    assert!(fork.is_ok(), "both pasts agree on three leaves");
    let fork = verify_with(&forked.leaves(), &known[9..]).unwrap_err();
    assert!(matches!(fork, Finding::Fork { size: 9, .. }), "{fork}");
    let back = verify_with(&leaves[..9], &known).unwrap_err();
    assert!(matches!(back, Finding::Rollback { known: 10, exported: 9 }), "{back}");
}

#[test]
fn answers_to_a_check_are_of_the_sites_that_were_asked() {
    let checked = |asked: &[&str], answered: &[&str]| {
        let mut coordinator = history();
        let (run, manifest) = ("next".parse::<RunName>().unwrap(), Digest::of(b"terms"));
        let asked = asked.iter().map(|name| site(name)).collect();
        let by = "operator/o".to_owned();
        coordinator.register(RegistryEvent::RunChecked { by, run: run.clone(), manifest, asked });
        let answer = |name: &&str| SiteCheck {
            site: site(name),
            answer: CheckAnswer::Ready,
            warnings: Vec::new(),
        };
        let answers = answered.iter().map(answer).collect();
        coordinator.register(RegistryEvent::CheckAnswered { run, manifest, answers });
        check(&coordinator.export()).map(|report| report.leaves).map_err(|found| line(&found))
    };
    assert!(checked(&["a", "b"], &["a", "b"]).is_ok());
    for answered in [&["a"][..], &["a", "c"], &["b", "a"]] {
        let found = checked(&["a", "b"], answered).unwrap_err();
        assert!(found.contains("of other sites than were asked"), "{found}");
    }
    // Two operators at the same time.
    let mut coordinator = history();
    let (run, manifest) = ("next".parse::<RunName>().unwrap(), Digest::of(b"terms"));
    for by in ["operator/o", "operator/p"].map(str::to_owned) {
        let (run, asked) = (run.clone(), vec![site("a")]);
        coordinator.register(RegistryEvent::RunChecked { by, run, manifest, asked });
    }
    for answer in [CheckAnswer::Ready, CheckAnswer::Policy] {
        let answers = vec![SiteCheck { site: site("a"), answer, warnings: Vec::new() }];
        let run = run.clone();
        coordinator.register(RegistryEvent::CheckAnswered { run, manifest, answers });
    }
    check(&coordinator.export()).unwrap();
    let found = checked(&["a", "zed"], &["a", "zed"]).unwrap_err();
    assert!(found.contains("zed is asked and was never enrolled"), "{found}");
}

#[test]
fn another_key_another_log_and_another_signature_are_refused() {
    let bytes = history().export();
    let other = verify(Cursor::new(&bytes), &signer(8).verifier_key(), &[], &mut |_| {});
    assert!(matches!(other, Err(Finding::Checkpoint(_))), "{other:?}");

    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let renamed = Signer::new("log.example/another", pair).unwrap().verifier_key();
    let other = verify(Cursor::new(&bytes), &renamed, &[], &mut |_| {});
    assert!(matches!(other, Err(Finding::Checkpoint(_))), "{other:?}");

    let head = checkpoint(&[]);
    let mut note = Checkpoint::sign(head.size, head.root, &signer(7));
    let cosigned = Checkpoint::sign(head.size, head.root, &signer(8));
    note.push_str(cosigned.lines().last().unwrap());
    note.push('\n');
    let bytes = ExportWriter::begin(Vec::new(), &note, 0).unwrap().finish().unwrap();
    assert!(line(&found(&bytes)).contains("more than the log's own signature"));
}

/// Neither a file of another shape nor one that fits in every way but is not the mean.
#[test]
fn a_published_adapter_must_be_the_mean() {
    let mut coordinator = Coordinator::found();
    let demo = coordinator.start("demo");
    coordinator.open(&demo);
    for (who, cases) in [("a", 100), ("b", 300), ("c", 50)] {
        coordinator.accept(&demo, who, cases);
        coordinator.submit(&demo, who, cases, 1.0);
    }
    let honest = coordinator.runs[&demo].clone();
    coordinator.publish(&demo, 1, f32::from_bits(1.0_f32.to_bits() + 1));
    let text = line(&found(&coordinator.export()));
    assert!(text.starts_with("run demo round 1: the accepted deltas lead to adapter"), "{text}");

    let at = coordinator.records.len() - 1;
    coordinator.records.truncate(at);
    coordinator.runs.insert(demo.clone(), honest);
    let foreign = adapter_header(&demo, 2, coordinator.runs[&demo].contract());
    let adapter = coordinator.keep(encode(&foreign, &[vec![1.0; 3]]));
    coordinator.command(&demo, Command::Publish { round: 1, adapter });
    let unnamed = |c: &mut Coordinator| {
        let mut named = TensorFiles::default();
        c.records.iter().for_each(|record| named.take(record));
        let named = named.digests();
        c.files.retain(|digest, _| named.contains(digest));
    };
    unnamed(&mut coordinator);
    let text = line(&found(&coordinator.export()));
    assert!(text.ends_with("version: expected 1, found 2"), "{text}");
}

/// A2: a weight above the share of one site is cut, by the auditor as by the coordinator.
#[test]
fn a_cut_weight_is_recomputed_and_told() {
    let mut coordinator = Coordinator::found();
    let demo = coordinator.start("demo");
    coordinator.open(&demo);
    for (who, cases, value) in [("a", 100, 1.0), ("b", 300, 2.0), ("c", 10_000_000, 4.0)] {
        coordinator.accept(&demo, who, cases);
        coordinator.submit(&demo, who, cases, value);
    }
    // c weighs two thirds: (100 * 1 + 300 * 2 + 800 * 4) / 1200
    coordinator.publish(&demo, 1, 3.25);
    let report = check(&coordinator.export()).unwrap();
    assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (1, 0));
    let cut: Vec<_> = report.runs[0].rounds[0].weights_cut.iter().collect();
    assert_eq!(cut, [(&site("c"), &800)]);
    assert!(report.to_string().contains("c used as 800"), "{report}");
}

/// A4: a removal stands in the history, and the report says so.
#[test]
fn a_history_whose_deltas_were_removed_is_verified_and_says_why_a_round_is_not_recomputed() {
    let mut coordinator = history();
    let demo: RunName = "demo".parse().unwrap();
    coordinator.command(&demo, Command::Remove { keep: 1 });
    let mut named = TensorFiles::default();
    coordinator.records.iter().for_each(|record| named.take(record));
    let named = named.digests();
    assert_eq!(named.len(), coordinator.files.len() - 2, "the deltas of a and b in round 1");
    coordinator.files.retain(|digest, _| named.contains(digest));
    let report = check(&coordinator.export()).unwrap();
    assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (1, 1));
    let reason = report.runs[0].rounds[0].not_recomputed_because.as_deref();
    let why = "the coordinator removed its deltas by [retention], as the history says";
    assert_eq!(reason, Some(why));
}

/// A10: failed before: no such history could be written, and the run stood still.
#[test]
fn a_history_with_an_excluded_delta_is_verified() {
    let mut coordinator = Coordinator::found();
    let demo = coordinator.start("demo");
    coordinator.open(&demo);
    for (who, cases, value) in [("a", 100, 1.0), ("b", 300, 2.0), ("c", 50, 4.0)] {
        coordinator.accept(&demo, who, cases);
        coordinator.submit(&demo, who, cases, value);
    }
    let Some(Seat::Accepted(delta)) = coordinator.runs[&demo].seat(&site("c"), 1).cloned() else {
        panic!("c is counted")
    };
    let (digest, reason) = (delta.digest, Unusable::Damaged);
    coordinator.command(&demo, Command::Exclude { round: 1, site: site("c"), digest, reason });
    coordinator.publish(&demo, 1, 1.75);
    let whole = check(&coordinator.export()).unwrap();
    coordinator.files.remove(&digest);
    let report = check(&coordinator.export()).unwrap();
    for report in [&whole, &report] {
        assert_eq!((report.adapters_recomputed, report.adapters_not_recomputed), (1, 0));
        let round = &report.runs[0].rounds[0];
        assert_eq!(round.missing[0].site, site("c"));
        assert!(round.missing[0].reason.contains("are damaged"), "{:?}", round.missing);
    }
}

#[test]
fn a_delta_that_is_not_what_was_counted_is_found() {
    let accepted = |event: &RunEvent| matches!(event, RunEvent::DeltaAccepted { .. });
    let text = found_in(|records| {
        let at = position(records, accepted);
        let Event::Run(RunEvent::DeltaAccepted { norm, .. }) = &mut records[at].event else {
            panic!()
        };
        *norm += 1e-12;
    });
    assert!(text.contains("delta of a in round 1 of run demo") && text.contains("norm"), "{text}");

    let coordinator = history();
    let mut files = coordinator.files.clone();
    files.insert(Digest::of(b"stowaway"), b"stowaway".to_vec());
    let text = line(&found(&export(&coordinator.leaves(), &files)));
    assert!(text.contains("no event of the history names"), "{text}");
}

#[test]
fn what_the_rules_do_not_allow_is_named_with_its_leaf() {
    let text = found_in(|records| {
        let at = position(records, published);
        let Event::Run(RunEvent::AdapterPublished { version, .. }) = &mut records[at].event else {
            panic!()
        };
        *version = 2;
    });
    assert!(
        text.starts_with("leaf ")
            && text.contains("(run/demo seq ")
            && text.ends_with("version 2 out of turn"),
        "{text}"
    );

    let text = found_in(|records| {
        let at = position(records, published);
        let Event::Run(RunEvent::AdapterPublished { strategy, .. }) = &mut records[at].event else {
            panic!()
        };
        *strategy = "krum\u{1b}[2J".into();
    });
    assert!(text.ends_with("made by krum [2J, the manifest says fedavg"), "{text}");

    let text = found_in(|records| {
        let at = position(records, |event| matches!(event, RunEvent::TermsAccepted { .. }));
        let Event::Run(RunEvent::TermsAccepted { cases, .. }) = &mut records[at].event else {
            panic!()
        };
        *cases = u64::MAX;
    });
    assert!(text.contains("18446744073709551615 cases are not between 1 and"), "{text}");

    let text = found_in(|records| {
        let at = position(records, |event| matches!(event, RunEvent::RunStarted { .. }));
        let Event::Run(RunEvent::RunStarted { manifest, .. }) = &mut records[at].event else {
            panic!()
        };
        manifest.rounds.count = 3;
    });
    assert!(text.contains("manifest digest is sha256:"), "{text}");

    let text = found_in(|records| {
        let at = position(records, |event| matches!(event, RunEvent::RunStarted { .. }));
        let Event::Run(RunEvent::RunStarted { adapter, .. }) = &mut records[at].event else {
            panic!()
        };
        *adapter = Digest::of(b"a better start");
    });
    assert!(text.contains("the manifest's initial adapter is sha256:"), "{text}");
}

#[test]
fn only_enrolled_sites_are_asked() {
    let text = found_in(|records| {
        // The last event of the registry so far: site c holds a certificate.
        records.remove(6);
    });
    assert!(text.ends_with("c is asked and was never enrolled"), "{text}");
}

#[test]
fn records_of_another_form_are_refused() {
    let schema = found_in(|records| records[4].schema = 2);
    assert!(schema.starts_with("leaf 4: record schema 2"), "{schema}");
    let seq = found_in(|records| records[4].seq = 9);
    assert_eq!(seq, "leaf 4 (registry seq 9): seq 4 of this stream should stand here");
    let stream = found_in(|records| {
        records[4].stream = Stream::Run("demo".parse().unwrap());
        records[4].seq = 0;
    });
    assert!(stream.ends_with("the event belongs to another stream"), "{stream}");
    let unfounded = found_in(|records| {
        records.remove(0);
        for record in &mut records[..6] {
            record.seq -= 1;
        }
    });
    assert!(unfounded.contains("a log begins with `founded`"), "{unfounded}");

    let mut leaves = history().leaves();
    leaves[2].push(b' ');
    let text = line(&found(&export(&leaves, &BTreeMap::new())));
    assert!(text.ends_with("the record is not in canonical form"), "{text}");
}

#[test]
fn a_half_written_export_is_not_finished() {
    let note = Checkpoint::sign(1, Digest::of(b""), &signer(7));
    let begin = || ExportWriter::begin(Vec::new(), &note, 1).unwrap();
    assert!(begin().finish().is_err());
    assert!(begin().tensor(Digest::of(b""), 0).is_err());
    let mut writer = begin();
    writer.leaf(b"{}", leaf_hash(b"{}")).unwrap();
    assert!(writer.leaf(b"{}", leaf_hash(b"{}")).is_err());
    writer.tensor(Digest::of(b"1234"), 4).unwrap();
    assert!(writer.tensor_data(b"12345").is_err());
    assert!(writer.finish().is_err());
}

#[test]
fn a_file_is_verified_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.export");
    std::fs::write(&path, history().export()).unwrap();
    assert_eq!(verify_file(&path, &key(), &[], &mut |_| {}).unwrap().adapters_recomputed, 2);
    let missing = verify_file(&folder.path().join("none"), &key(), &[], &mut |_| {}).unwrap_err();
    assert!(matches!(missing, Finding::Unreadable(_)), "{missing:?}");
}
