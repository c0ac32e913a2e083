//! SECURITY.md lists everything that a site sends.

use std::collections::{BTreeMap, BTreeSet};

use tributary_shared::terms::SiteMetrics;

const PROTO: &str = include_str!("../proto/tributary/v1/tributary.proto");
const SECURITY: &str = include_str!("../../SECURITY.md");

/// The messages of a site and their fields. A field that is added anywhere fails the test: say in SECURITY.md, "What leaves
/// a site", what it tells and how it is bounded, and write it here.
const FIELDS: [(&str, &str); 14] = [
    ("AcceptTermsRequest", "run round manifest_digest base_digest cases"),
    ("AnswerInquiryRequest", "id refusal warnings"),
    ("CheckpointRequest", "old_size held_note"),
    ("DeclineRequest", "run round reason"),
    ("EnrollRequest", "token csr_der"),
    ("EvidenceRequest", "run round base_digest old_size held_note"),
    ("FetchRequest", "run digest offset"),
    ("HeartbeatRequest", "run round phase step steps eta_s"),
    ("HelloRequest", "client_version trouble known_rounds"),
    ("KnownRound", "run round answered"),
    ("NextAssignmentRequest", "wait_ms busy_run busy_round trouble"),
    ("SubmitRequest", "run round digest cases metrics_json"),
    ("UploadChunk", "subject offset data"),
    ("UploadStatusRequest", "run round digest cases bytes"),
];

/// Every message with its fields, type and name.
fn messages() -> BTreeMap<&'static str, Vec<[&'static str; 2]>> {
    let message = |part: &'static str| {
        let (name, rest) = part.split_once(" {")?;
        let body = rest.split('}').next()?;
        let lines = body.lines().map(|line| line.split("//").next().unwrap_or(line));
        let fields = lines.flat_map(|line| line.split(';')).filter_map(|field| {
            let mut words = field.split('=').next()?.split_whitespace().rev();
            words.next().and_then(|name| Some([words.next()?, name]))
        });
        Some((name, fields.collect()))
    };
    PROTO.split("\nmessage ").skip(1).filter_map(message).collect()
}

/// The requests of a service's calls.
fn requests(service: &str) -> Vec<&'static str> {
    let body = PROTO.split(&format!("\nservice {service} {{")).nth(1).unwrap_or_default();
    let calls = body.split("\n}").next().unwrap_or_default();
    let calls = calls.lines().filter(|line| line.trim_start().starts_with("rpc "));
    let request = |line: &'static str| line.split(['(', ')']).nth(1);
    calls.filter_map(request).map(|name| name.trim_start_matches("stream ")).collect()
}

/// A14. Failed before: heartbeats, among others, told what the list did not have.
#[test]
fn every_field_that_a_site_sends_is_listed() {
    let listed = SECURITY.split("## What leaves a site").nth(1).expect("the section");
    let listed: BTreeSet<&str> = listed.split('`').skip(1).step_by(2).collect();
    let messages = messages();
    let mut pending = [requests("Site"), requests("Enrolment")].concat();
    assert!(pending.len() >= 12, "{pending:?}");
    let (mut seen, mut found) = (BTreeSet::new(), BTreeMap::new());
    while let Some(message) = pending.pop() {
        // A refusal is sent as a reason or an answer.
        if message == "Refusal" || !seen.insert(message) {
            continue;
        }
        let fields = messages.get(message).unwrap_or_else(|| panic!("no message {message}"));
        let names: Vec<&str> = fields.iter().map(|[_, name]| *name).collect();
        found.insert(message, names.join(" "));
        for [kind, name] in fields {
            assert!(listed.contains(name), "{message}.{name} is not listed in SECURITY.md");
            if messages.contains_key(kind) {
                pending.push(kind);
            }
        }
    }
    let expected = FIELDS.map(|(message, names)| (message, names.to_owned()));
    assert_eq!(found, BTreeMap::from(expected));
    let metrics = SiteMetrics {
        train_loss: Some(0.0),
        holdout_loss: Some(0.0),
        holdout_auroc: Some(0.0),
        holdout_kappa: Some(0.0),
        holdout_grade_error: Some(0.0),
        holdout_concordance: Some(0.0),
        holdout_dice: Some(0.0),
        steps: 0,
        holdout_cases: 0,
        train_s: 0.0,
    };
    let metrics = serde_json::to_value(metrics).expect("plain data");
    for name in metrics.as_object().expect("an object").keys() {
        assert!(listed.contains(name.as_str()), "the metric {name} is not listed in SECURITY.md");
    }
}
