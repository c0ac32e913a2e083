//! The program's output where the reader has gone: `tributary-client ... | head -1`.

use std::io::{PipeWriter, pipe};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tributary-client");

/// The writing end of a pipe that nobody reads.
fn closed() -> PipeWriter {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer
}

fn unread(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdout(closed()).output().expect("the program starts")
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    for arguments in [&["backbone", "list"][..], &["backbone", "list", "--format", "json"]] {
        let output = unread(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn work_that_was_asked_for_is_done_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = folder.path().join("drawn");
    let out = drawn.to_str().unwrap();
    let synth = ["data", "synth", "--modality", "fundus", "--sites", "1", "--patients", "8"];
    let output = unread(&[&synth[..], &["--size", "16", "--out", out]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(drawn.join("site-1/labels.csv").exists());
}

#[test]
fn a_failure_keeps_its_exit_code_where_nobody_reads() {
    let missing = ["backbone", "show", "nowhere.safetensors", "--format", "json"];
    assert_eq!(unread(&missing).status.code(), Some(4));
    assert_eq!(unread(&["fly", "--format", "json"]).status.code(), Some(4));
    let mut command = Command::new(PROGRAM);
    let output = command.args(&missing[..3]).stderr(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_told() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(PROGRAM);
    let output = command.args(["backbone", "list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error: standard output: ") && told.lines().count() == 1, "{told}");
}

#[test]
fn arguments_that_do_not_parse_answer_in_the_format_asked_for() {
    let output = Command::new(PROGRAM).args(["data", "inspect", "--format", "json"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(4));
    let envelope: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(envelope["error"]["code"], "arguments");
}
