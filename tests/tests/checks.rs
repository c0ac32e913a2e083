//! Answers that an operator gets before a run begins: from the manifest, from the coordinator and
//! from every site, as a call that both sides keep a record of.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tributary_deploy::SiteOptions;
use tributary_tests::Scratch;
use tributary_tests::images::{Storage, backbone};

/// The envelope and the exit code of `tributary run VERB FILE`.
fn ask(scratch: &Scratch, arguments: &[&str]) -> (Value, Option<i32>) {
    let mut command = scratch.federation.operator_command(arguments.iter().copied());
    let output = command.output().unwrap();
    let envelope = serde_json::from_slice(&output.stdout);
    (envelope.unwrap_or_else(|e| panic!("{e}: {output:?}")), output.status.code())
}

fn written(scratch: &Scratch, manifest: &str) -> String {
    let path = scratch.folder.path().join("run.toml");
    fs::write(&path, manifest).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Each site's answer and warnings.
fn answers(envelope: &Value) -> Vec<(String, String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |site: &Value| {
        let warnings = site["warnings"].as_array().unwrap().iter().map(text).collect();
        (text(&site["site"]), text(&site["answer"]), warnings)
    };
    envelope["data"]["sites"].as_array().unwrap().iter().map(row).collect()
}

fn lines(envelope: &Value) -> Vec<String> {
    let details = envelope["error"]["details"].as_array().unwrap();
    details.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// Answers to checks in a site's ledger, oldest first.
fn checked(scratch: &Scratch, index: usize) -> Vec<String> {
    let config = scratch.federation.sites()[index].config();
    let ledger = ["ledger", "--config", config.to_str().unwrap()];
    let entries = scratch.federation.client(ledger).unwrap().data;
    let checks = entries.as_array().unwrap().iter().filter(|entry| entry["kind"] == "checked");
    checks.map(|entry| entry["answer"].as_str().unwrap().to_owned()).collect()
}

/// The history's events of checks.
fn recorded(scratch: &Scratch) -> Vec<Value> {
    let log = scratch.federation.operator(["run", "log"]).unwrap().data;
    let events = log.as_array().unwrap().iter().map(|entry| entry["record"]["event"].clone());
    events
        .filter(|event| event["type"] == "run_checked" || event["type"] == "check_answered")
        .collect()
}

fn manifest(name: &str, more: &str, tables: &str) -> String {
    format!(
        "schema_version = 1\nname = \"{name}\"\n\
         adapter = {{ kind = \"lora\", rank = 2, alpha = 4.0, targets = \"qv\" }}\n\
         rounds = {{ count = 2, round_deadline_s = 100, stall_timeout_s = 60 }}\n\
         quorum = {{ sites = 2 }}\n\
         [task]\nkind = \"binary\"\nclasses = [\"low\", \"high\"]\n\
         [training]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.01\nholdout = 0.25\n\
         seed = 1\n{more}\n{tables}"
    )
}

/// Puts `line` first into a site's policy.
fn stricter(scratch: &Scratch, index: usize, line: &str) {
    let policy = scratch.federation.sites()[index].policy();
    let text = fs::read_to_string(&policy).unwrap();
    fs::write(&policy, format!("{line}\n{text}")).unwrap();
}

/// One site that would take part, one whose policy refuses, one without the backbone, one that is
/// asked once a day, and one that is not there.
fn consortium() -> (Scratch, String) {
    let mut scratch = Scratch::found();
    let folder = scratch.folder.path().to_owned();
    let data = Storage::Png.write(&folder.join("images"), 24, 1);
    let (file, tables) = backbone(&folder, &data);
    for name in ["agrees", "bare", "declines", "guarded", "offline"] {
        let backbone = (name != "bare").then(|| file.clone());
        let data = Some(data.clone());
        let options = SiteOptions { data, backbone, threads: Some(1), ..SiteOptions::default() };
        scratch.federation.enroll(name, &options).unwrap();
    }
    stricter(&scratch, 2, "rounds_max = 1");
    stricter(&scratch, 3, "checks_per_day = 1");
    for index in 0..4 {
        scratch.federation.start_site(index).unwrap();
    }
    scratch.federation.wait_connected().unwrap();
    (scratch, tables)
}

/// Before, `run start` took such a run, and two of its sites declined every round of it.
#[test]
fn a_check_asks_every_connected_site_and_stands_in_the_history_and_in_their_ledgers() {
    let (scratch, tables) = consortium();
    let file = written(&scratch, &manifest("first", "warmup_steps = 600", &tables));
    let (envelope, exit) = ask(&scratch, &["run", "check", &file]);
    let row = |site: &str, answer: &str, warnings: &[&str]| {
        let warnings = warnings.iter().map(|w| (*w).to_owned()).collect();
        (site.to_owned(), answer.to_owned(), warnings)
    };
    let rest = [
        row("bare", "backbone", &[]),
        row("declines", "policy", &[]),
        row("guarded", "ready", &["warmup_too_long"]),
        row("offline", "not_connected", &[]),
    ];
    assert_eq!(answers(&envelope)[0], row("agrees", "ready", &["warmup_too_long"]), "{envelope}");
    assert_eq!(answers(&envelope)[1..], rest, "{envelope}");
    assert_eq!((exit, &envelope["error"]["code"]), (Some(1), &json!("warnings")), "{envelope}");
    assert_eq!(lines(&envelope).len(), 5, "{envelope}");
    // Nothing was started.
    assert_eq!(scratch.federation.operator(["run", "list"]).unwrap().data, json!([]));

    // The limit of one site is reached; the others answer as before.
    let (envelope, _) = ask(&scratch, &["run", "check", &file]);
    assert_eq!(answers(&envelope)[3], row("guarded", "checks_per_day", &[]), "{envelope}");
    let kept: Vec<Vec<String>> = (0..5).map(|index| checked(&scratch, index)).collect();
    let twice = |answer: &str| vec![answer.to_owned(), answer.to_owned()];
    let guarded = vec!["ready".to_owned(), "checks_per_day".to_owned()];
    let expected = [twice("ready"), twice("backbone"), twice("policy"), guarded, Vec::new()];
    assert_eq!(kept, expected);

    let history = recorded(&scratch);
    let kinds: Vec<&Value> = history.iter().map(|event| &event["type"]).collect();
    assert_eq!(kinds, ["run_checked", "check_answered", "run_checked", "check_answered"]);
    assert_eq!(history[0]["run"], "first");
    assert_eq!(history[0]["asked"], json!(["agrees", "bare", "declines", "guarded"]));
    assert_eq!(history[0]["manifest"], history[1]["manifest"]);
    assert!(history[0]["by"].as_str().unwrap().starts_with("operator/"), "{history:?}");
    let said = json!({ "site": "bare", "answer": "backbone" });
    assert_eq!(history[1]["answers"][1], said);
    // A class, and neither a path nor a count of cases.
    let words = serde_json::to_string(&history).unwrap();
    assert!(!words.contains("images") && !words.contains("cases"), "{words}");
    assert_eq!(scratch.audit()["verified"], true);
}

#[test]
fn a_run_is_started_when_nothing_stands_in_its_way_or_when_the_operator_insists() {
    let (mut scratch, tables) = consortium();
    let file = written(&scratch, &manifest("second", "", &tables));
    let (envelope, exit) = ask(&scratch, &["run", "start", &file]);
    assert_eq!((exit, &envelope["error"]["code"]), (Some(1), &json!("warnings")), "{envelope}");
    assert_eq!(lines(&envelope).len(), 3, "{envelope}");
    assert_eq!(scratch.federation.operator(["run", "list"]).unwrap().data, json!([]));

    let asked = recorded(&scratch).len();
    let started = scratch.federation.operator(["run", "start", &file, "--anyway"]).unwrap();
    assert_eq!(started.data["run"], "second");
    // Passed over: no site was asked once more.
    assert_eq!(recorded(&scratch).len(), asked);
    let (envelope, exit) = ask(&scratch, &["run", "start", &file, "--anyway"]);
    assert_eq!(exit, Some(1), "{envelope}");
    assert!(lines(&envelope)[0].contains("there is a run `second` already"), "{envelope}");
    scratch.federation.operator(["run", "stop", "second", "--reason", "seen"]).unwrap();

    // The sites that would take part are enough.
    let cohort = "cohort = { sites = [\"agrees\", \"offline\"] }\n";
    scratch.federation.start_site(4).unwrap();
    scratch.federation.wait_connected().unwrap();
    let file = written(&scratch, &format!("{cohort}{}", manifest("third", "", &tables)));
    let (envelope, exit) = ask(&scratch, &["run", "check", &file]);
    assert_eq!(exit, Some(0), "{envelope}");
    let started = scratch.federation.operator(["run", "start", &file]).unwrap();
    assert_eq!(started.data["warnings"], json!([]));
    scratch.federation.operator(["run", "stop", "third", "--reason", "seen"]).unwrap();
    assert_eq!(scratch.audit()["verified"], true);
}

/// The sample was started as it is: no digest, no such sites, and a run that waits for ever.
#[test]
fn the_untouched_sample_is_refused_with_all_its_problems_at_once() {
    let scratch = Scratch::found();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/run.toml");
    let sample = sample.to_str().unwrap();
    for verb in ["check", "start"] {
        let (envelope, exit) = ask(&scratch, &["run", verb, sample]);
        assert_eq!(exit, Some(4), "{envelope}");
        let keys: Vec<String> = lines(&envelope)
            .iter()
            .map(|line| line.split(": ").next().unwrap().to_owned())
            .collect();
        let expected =
            ["backbone.digest", "cohort.sites", "cohort.sites", "cohort.sites", "quorum.sites"];
        assert_eq!(keys, expected, "{envelope}");
    }
    assert!(recorded(&scratch).is_empty());
    assert_eq!(scratch.federation.operator(["run", "list"]).unwrap().data, json!([]));
}

/// A manifest that `run new` writes is ready to start, for every kind of task.
#[test]
fn a_new_manifest_of_every_kind_passes_the_check_on_a_fresh_consortium() {
    let mut scratch = Scratch::found();
    let folder = scratch.folder.path().to_owned();
    let backbone: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/backbone/backbone.safetensors");
    for number in 0..2u64 {
        let data = Storage::Png.write(&folder.join(format!("images-{number}")), 24, number);
        let (data, backbone) = (Some(data), Some(backbone.clone()));
        let options = SiteOptions { data, backbone, threads: Some(1), ..SiteOptions::default() };
        scratch.federation.enroll(&format!("site-{number}"), &options).unwrap();
    }
    scratch.start_sites();
    let backbone = backbone.to_str().unwrap();
    for (kind, classes) in [
        ("binary", true),
        ("multi_class", true),
        ("multi_label", true),
        ("ordinal", true),
        ("survival", false),
        ("segmentation", true),
        ("mae", false),
        ("simclr", false),
        ("dino", false),
        ("rehearsal", false),
    ] {
        let file = folder.join(format!("{kind}.toml"));
        let file = file.to_str().unwrap();
        let mut new = vec!["run", "new", "--task", kind, "--out", file];
        if classes {
            new.extend(["--classes", "low,high"]);
        }
        if kind != "rehearsal" {
            new.extend(["--backbone", backbone]);
        }
        let made = scratch.federation.operator(new).unwrap().data;
        assert_eq!(made["sites"], json!(["site-0", "site-1"]), "{made}");
        let (envelope, exit) = ask(&scratch, &["run", "check", file]);
        assert_eq!(exit, Some(0), "{kind}: {envelope}");
    }
}
