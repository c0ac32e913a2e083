//! The launchers from outside: what they print, and where nobody reads it.

use std::fs;
use std::io::pipe;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PROGRAMS: [&str; 3] = [
    env!("CARGO_BIN_EXE_demo"),
    env!("CARGO_BIN_EXE_federation-bench"),
    env!("CARGO_BIN_EXE_trainer-bench"),
];

#[test]
fn arguments_that_do_not_parse_answer_in_the_format_asked_for() {
    for program in PROGRAMS {
        let output = Command::new(program).args(["--format", "json", "--fly"]).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let envelope: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(envelope["error"]["code"], "arguments");
        assert!(envelope["error"]["message"].as_str().unwrap().contains("--fly"));

        let output = Command::new(program).arg("--fly").output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

/// Failed before: cargo's aliases end in `--`, and the second one was an unexpected argument.
#[test]
fn options_behind_one_more_separator_are_read_alike() {
    for program in PROGRAMS {
        let parsed = |arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(parsed(&["--fly"]), parsed(&["--", "--fly"]));
        // One is dropped, not several.
        assert!(parsed(&["--", "--", "--fly"]).1.contains("--fly"));
        assert_eq!(parsed(&["--", "--version"]).0, Some(0));
    }
    let aliases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cargo/config.toml");
    let aliases: toml::Table = toml::from_str(&fs::read_to_string(aliases).unwrap()).unwrap();
    for program in ["demo", "federation-bench", "trainer-bench"] {
        let alias = aliases["alias"][program].as_str().unwrap();
        assert_eq!(alias, format!("run -p tributary-deploy --bin {program} --"));
    }
}

#[test]
fn what_fails_is_an_envelope_too() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("python");
    let [.., bench] = PROGRAMS;
    let size = ["--size", "tiny", "--image-size", "16", "--batch", "1", "--steps", "1"];
    let mut command = Command::new(bench);
    command.args(["--format", "json", "--python"]).arg(&nowhere).args(size);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let envelope: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(envelope["error"]["code"], "bench");
}

#[test]
fn a_demo_that_nobody_watches_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let [demo, ..] = PROGRAMS;
    let mut command = Command::new(demo);
    command.arg("--out").arg(folder.path().join("out")).stdout(writer);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
