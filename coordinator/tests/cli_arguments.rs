//! The two programs from outside: exit codes, one clear line an error, the JSON envelope. Nothing
//! here needs a coordinator.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tributary_shared::manifest::RunManifest;

const OPERATOR: &str = env!("CARGO_BIN_EXE_tributary");
const SERVICE: &str = env!("CARGO_BIN_EXE_tributary-coordinator");
/// The sample's digest.
const ZERO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env_remove("TRIBUTARY_IDENTITY")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("programs print UTF-8")
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn arguments_that_do_not_parse_exit_with_4() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["fly"],
        &["site"],
        &["site", "invite"],
        &["site", "invite", "Not A Name"],
        &["site", "suspend", "a"],
        &["site", "invite", "a", "--valid", "soon"],
        &["run", "start"],
        &["run", "pull", "r", "--version", "-1"],
        &["run", "stop", "r"],
        &["audit", "export"],
        &["run", "list", "--format", "xml"],
    ] {
        let output = run(OPERATOR, folder.path(), arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let output = run(SERVICE, folder.path(), &["serve", "--port", "1"]);
    assert_eq!(output.status.code(), Some(4));
    for program in [OPERATOR, SERVICE] {
        let output = run(program, folder.path(), &["--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Usage:"));
        assert_eq!(run(program, folder.path(), &["--version"]).status.code(), Some(0));
    }
}

#[test]
fn with_format_json_every_failure_is_one_envelope_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, code) in [
        (&["run", "list", "--format", "json"][..], "identity"),
        (&["fly", "--format=json"], "arguments"),
        (&["--format", "json", "run", "start", "none.toml"], "file"),
        (&["audit", "verify", "--file", "x", "--key", "none", "--format", "json"], "file"),
        (&["enroll", "none.kit", "--format", "json"], "kit"),
    ] {
        let output = run(OPERATOR, folder.path(), arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {output:?}");
        let envelope: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let keys: Vec<&String> = envelope.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["error", "schema_version", "status"]);
        assert_eq!(envelope["schema_version"], 1);
        assert_eq!(envelope["status"], "error");
        assert_eq!(envelope["error"]["code"], code, "{envelope}");
        assert!(envelope["error"]["message"].is_string() && envelope["error"]["hint"].is_string());
        assert_eq!(text(&output.stdout).trim().lines().count(), 1);
    }
}

#[test]
fn a_missing_identity_says_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(OPERATOR, folder.path(), &["site", "list"]);
    assert_eq!(output.status.code(), Some(4));
    let error = text(&output.stderr);
    // `init --directory coord`, as the README has it, makes coord/operator, which was not looked at.
    let places = "no identity: looked in ./operator, ./auditor, ./coord/operator";
    assert!(error.starts_with(&format!("error: {places}")), "{error}");
    assert!(error.contains("TRIBUTARY_IDENTITY"), "{error}");
    assert_eq!(error.trim().lines().count(), 1);
    let named = run(OPERATOR, folder.path(), &["site", "list", "--identity", "elsewhere"]);
    let error = text(&named.stderr);
    assert!(error.starts_with("error: elsewhere holds no identity"), "{error}");
}

/// Refused before, but in clap's words and without an example; blank words were taken.
#[test]
fn what_needs_a_reason_says_so_with_an_example_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["site suspend alpha", "site revoke alpha", "run stop one"] {
        let words: Vec<&str> = command.split(' ').collect();
        for more in [&[][..], &["--reason", " "]] {
            let output = run(OPERATOR, folder.path(), &[&words[..], more].concat());
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            let error = text(&output.stderr);
            assert!(error.contains(&format!("e.g. tributary {command} --reason \"")), "{error}");
            assert_eq!(error.trim().lines().count(), 1, "{error}");
        }
        let help = run(OPERATOR, folder.path(), &[&words[..2], &["--help"]].concat());
        let usage = text(&help.stdout);
        let line = usage.lines().find(|line| line.starts_with("Usage:")).expect("a usage");
        assert!(line.contains("> --reason <WORDS>"), "{line}");
    }
}

/// The values that `init --help` gives as examples used to be capitals, which are refused.
#[test]
fn the_examples_of_inits_help_are_taken_and_its_next_steps_name_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let help = text(&run(SERVICE, folder.path(), &["init", "--help"]).stdout);
    let help = help.split("Options:").nth(1).expect("options");
    let mut line = vec!["init"];
    for option in ["--directory", "--consortium", "--address"] {
        let told = help.split(option).nth(1).and_then(|rest| rest.split("e.g. ").nth(1));
        let example =
            told.and_then(|rest| rest.split([' ', ';', '\n']).next()).expect("an example");
        line.extend([option, example]);
    }
    let founded = run(SERVICE, folder.path(), &line);
    assert_eq!(founded.status.code(), Some(0), "{line:?}: {founded:?}");
    let told = text(&founded.stdout);
    let (_, next) = told.split_once("\nNext").expect("next steps");
    let (_, next) = next.split_once('\n').expect("steps");
    for words in next.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        let files = words.iter().filter(|word| word.contains('/'));
        assert!(files.clone().count() > 0, "{words:?}");
        assert!(files.clone().all(|file| folder.path().join(file).exists()), "{words:?}");
    }
    // As many sites as the rehearsal needs; before, one was invited and the run never began.
    let rehearsal = std::fs::read_to_string(folder.path().join("coord/rehearsal.toml")).unwrap();
    let rehearsal = RunManifest::from_toml(&rehearsal).unwrap();
    assert_eq!(next.matches("site invite").count(), rehearsal.quorum.sites as usize);
    // Found where `init` made it, without being named; nothing listens there.
    let list = run(OPERATOR, folder.path(), &["site", "list", "--address", "127.0.0.1:9"]);
    assert_eq!(list.status.code(), Some(2), "{list:?}");
    let refused = run(SERVICE, folder.path(), &["init", "--consortium", "NAME"]);
    assert!(text(&refused.stderr).contains("e.g. example"), "{refused:?}");
}

/// `run start` on the sample with `from` replaced by `to`.
fn start(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let sample = std::fs::read_to_string(samples().join("run.toml")).expect("a sample");
    assert!(sample.contains(from), "the sample has no `{from}`");
    // The sample's digest is a problem of its own.
    let sample = if from == ZERO { sample } else { sample.replace(ZERO, &ZERO.replace('0', "1")) };
    std::fs::write(folder.path().join("run.toml"), sample.replacen(from, to, 1)).expect("written");
    let output = run(OPERATOR, folder.path(), &["run", "start", "run.toml"]);
    assert_eq!(output.status.code(), Some(4), "{from} -> {to}: {output:?}");
    assert!(output.stdout.is_empty());
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        1,
        "something was written"
    );
    text(&output.stderr)
}

#[test]
fn every_mistake_in_a_manifest_is_one_line_with_file_key_and_mend() {
    let digest = ZERO;
    for (from, to, place, problem) in [
        ("rank = 8", "rnk = 8", "run.toml:", "unknown field `rnk`"),
        ("schema_version = 1", "schema_version = 2", "schema_version", "this version reads 1"),
        ("schema_version = 1", "", "run.toml", "missing field `schema_version`"),
        ("name = \"chest-nodule-1\"", "name = \"Chest 1\"", "name", "is not a name"),
        ("\n[adapter]\n", "\n[adaptor]\n", "run.toml:", "unknown field `adaptor`"),
        (digest, "sha256:00", "digest", "is not a digest"),
        (digest, &digest.to_uppercase(), "digest", "is not a digest"),
        ("kind = \"binary\"", "kind = \"trinary\"", "run.toml:", "unknown variant `trinary`"),
        ("[\"normal\", \"nodule\"]", "[\"normal\"]", "task.classes", "1 classes do not fit"),
        ("[\"normal\", \"nodule\"]", "[\"a\", \"a\"]", "task.classes", "must be distinct"),
        ("mean = [0.5]", "mean = [0.5, 0.5]", "backbone.mean", "one a channel"),
        ("patch_size = 8", "patch_size = 7", "patch_size", "does not divide"),
        ("heads = 4", "heads = 5", "heads", "does not divide"),
        ("pool = \"class_token\"", "pool = \"best\"", "pool", "unknown variant `best`"),
        ("rank = 8", "rank = 500", "adapter.rank", "above the backbone's width 128"),
        ("rank = 8", "rank = 0", "adapter.rank", "kind = \"head_only\""),
        (digest, digest, "backbone.digest", "all zeros"),
        ("alpha = 16.0", "alpha = 0.0", "adapter.alpha", "is not above 0"),
        ("dropout = 0.0", "dropout = 1.0", "adapter.dropout", "is not in [0, 1)"),
        ("[\"q\", \"v\"]", "[]", "adapter.targets", "name at least one"),
        ("[\"q\", \"v\"]", "[\"query\"]", "targets", "`query` is unknown"),
        ("epochs = 1", "epochs = 0", "training.epochs", "is not between"),
        ("learning_rate = 2e-3", "learning_rate = nan", "training.learning_rate", "NaN"),
        ("holdout = 0.2", "holdout = \"a fifth\"", "holdout", "invalid type"),
        ("count = 10", "count = 0", "rounds.count", "is not between"),
        ("round_deadline_s = 7200", "round_deadline_s = -1", "round_deadline_s", "invalid value"),
        ("sites = 2", "sites = 4", "quorum.sites", "more than the 3 sites of the cohort"),
        ("share_of_cases = 0.5", "share_of_cases = 1.5", "quorum.share_of_cases", "at most 1"),
        ("kind = \"fedavg\"", "kind = \"fedmagic\"", "run.toml:", "unknown variant `fedmagic`"),
        ("delta_norm_max = 100.0", "delta_norm_max = inf", "limits.delta_norm_max", "inf"),
        ("count = 10", "count = ", "run.toml:", "count"),
    ] {
        let error = start(from, to);
        assert!(error.starts_with("error: run.toml"), "{to}: {error}");
        assert!(error.contains(place), "{to}: no `{place}` in: {error}");
        assert!(error.contains(problem), "{to}: no `{problem}` in: {error}");
        assert!(error.contains("deploy/run.toml"), "{to}: no mend in: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{to}: {error}");
    }
}

/// Before, the first of them alone was told.
#[test]
fn all_problems_of_a_manifest_are_told_at_once_in_text_and_in_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let sample = std::fs::read_to_string(samples().join("run.toml")).expect("a sample");
    let wrong = sample.replace("rank = 8", "rank = 0").replace("sites = 2", "sites = 50");
    std::fs::write(folder.path().join("run.toml"), wrong).expect("written");
    let arguments = ["run", "start", "run.toml"];
    let output = run(OPERATOR, folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let error = text(&output.stderr);
    let lines: Vec<&str> = error.trim().lines().map(str::trim).collect();
    let [digest, rank, quorum, summary] = lines[..] else { panic!("{error}") };
    assert!(digest.starts_with("backbone.digest: all zeros"), "{error}");
    assert!(rank.starts_with("adapter.rank: 0 trains no factor"), "{error}");
    assert!(quorum.starts_with("quorum.sites: 50 is more than the 3 sites"), "{error}");
    let told = "error: run.toml: 3 problems (deploy/run.toml explains every key; the coordinator \
                was not asked: ";
    assert!(summary.starts_with(told), "{error}");
    let output = run(OPERATOR, folder.path(), &[&arguments[..], &["--format", "json"]].concat());
    let envelope: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let details = envelope["error"]["details"].as_array().expect("a list");
    assert_eq!(details.iter().map(|d| d.as_str().unwrap()).collect::<Vec<_>>(), lines[..3]);
}

/// Works without a coordinator, and overwrites nothing.
#[test]
fn a_new_manifest_is_written_offline_and_never_over_another_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let backbone = samples().join("backbone/backbone.safetensors");
    let backbone = backbone.to_str().expect("a UTF-8 path");
    let arguments =
        ["run", "new", "--backbone", backbone, "--task", "binary", "--classes", "no,yes"];
    let output = run(OPERATOR, folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("tributary run check run.toml"), "{said}");
    assert!(said.contains("The coordinator was not asked who is enrolled"), "{said}");
    let written = std::fs::read_to_string(folder.path().join("run.toml")).expect("a manifest");
    let manifest = tributary_shared::manifest::RunManifest::from_toml(&written).expect("a run");
    assert_eq!(manifest.name.as_str(), "binary-1");
    let output = run(OPERATOR, folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(text(&output.stderr).contains("exists already"), "{output:?}");
    let after = std::fs::read_to_string(folder.path().join("run.toml")).expect("a manifest");
    assert_eq!(after, written);
    for (more, problem) in [
        (&["--task", "binary"][..], "needs --classes"),
        (&["--task", "survival", "--classes", "a,b"], "has no classes"),
        (&["--task", "multi_class", "--classes", "a,a"], "must be distinct"),
    ] {
        let more = [&["run", "new", "--out", "b.toml", "--backbone", backbone], more].concat();
        let output = run(OPERATOR, folder.path(), &more);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(text(&output.stderr).contains(problem), "{output:?}");
    }
    let output =
        run(OPERATOR, folder.path(), &["run", "new", "--task", "binary", "--out", "c.toml"]);
    assert!(text(&output.stderr).contains("needs --backbone FILE"), "{output:?}");
}

#[test]
fn a_rehearsal_takes_no_model_and_a_manifest_has_a_largest_size() {
    let error = start(
        "kind = \"binary\"\nclasses = [\"normal\", \"nodule\"]",
        "kind = \"rehearsal\"\npayload_bytes = 4",
    );
    assert!(error.contains("a rehearsal takes no [backbone]"), "{error}");
    let error =
        start("schema_version = 1", &format!("schema_version = 1 # {}", "x".repeat(60_000)));
    assert!(error.contains("larger than 49152 bytes"), "{error}");
}

#[test]
fn a_bad_configuration_is_one_line_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coordinator.toml");
    for (content, problem) in [
        ("directory = \"state\"\nlisten = \"here\"", "listen: `here` is not IP:PORT"),
        (
            "directory = \"state\"\nlisen = \"127.0.0.1:1\"",
            "coordinator.toml:2: lisen: unknown field",
        ),
        ("directory = \"state\"\n[database]\nurl = \"postgres://h/d\"", "not supported yet"),
        ("directory = \"state\"", "root.pem"),
    ] {
        std::fs::write(&file, content).unwrap();
        let output = run(SERVICE, folder.path(), &["serve"]);
        assert_eq!(output.status.code(), Some(4), "{content}: {output:?}");
        let error = text(&output.stderr);
        assert!(error.starts_with("error: ") && error.contains(problem), "{content}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
        assert!(!folder.path().join("state").exists(), "{content}");
    }
    let output = Command::new(SERVICE)
        .args(["serve", "--config"])
        .arg(&file)
        .env("TRIBUTARY__LISTEN", "nowhere")
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("`nowhere` is not IP:PORT"), "{output:?}");
}

#[test]
fn init_overwrites_nothing_and_says_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let init = || {
        let arguments = ["init", "--directory", "state", "--consortium", "demo"];
        run(SERVICE, folder.path(), &[&arguments[..], &["--address", "127.0.0.1:8443"]].concat())
    };
    let output = init();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    for next in ["tributary-coordinator serve --config", "tributary site invite", "tributary run"] {
        assert!(said.contains(next), "{said}");
    }
    let config = std::fs::read_to_string(folder.path().join("state/coordinator.toml")).unwrap();
    assert!(config.contains("listen = \"127.0.0.1:8443\""), "{config}");
    let output = init();
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("init never overwrites an authority"), "{output:?}");
    let migrate = ["migrate", "--config", "state/coordinator.toml", "--format", "json"];
    let output = run(SERVICE, folder.path(), &migrate);
    let envelope: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(envelope["data"]["leaves"], 0, "{output:?}");
}

#[test]
fn a_reader_who_has_gone_ends_a_program_quietly_and_hides_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let unread = |program: &str, arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path()).env_remove("TRIBUTARY_IDENTITY");
        command.stdout(writer).output().unwrap()
    };
    let init = ["init", "--directory", "coord", "--consortium", "c", "--address", "localhost:1"];
    for (program, arguments) in [(SERVICE, &init[..]), (OPERATOR, &["--help"])] {
        let output = unread(program, arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
    assert!(folder.path().join("coord/coordinator.toml").exists());
    let output = unread(OPERATOR, &["run", "list", "--identity", "none", "--format", "json"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}
