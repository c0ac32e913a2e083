//! `tributary-client data` as a person types it.

use clap::Parser;
use tempfile::TempDir;
use tributary_client::cli::Format;
use tributary_client::cli::data::{self, DataCommand};
use tributary_shared::outcome::{ExitCode, Failure};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(subcommand)]
    command: DataCommand,
}

fn run(line: &str) -> Result<(), Failure> {
    let line = Line::try_parse_from(std::iter::once("data").chain(line.split(' ')));
    data::run(line.expect("parses").command, Format::Json)
}

#[test]
fn draw_look_and_divide() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    let synth = "synth --modality chest-xray --sites 1 --patients 8 --size 16 --seed 3";
    run(&format!("{synth} --out {at}/drawn")).expect("draws");
    run(&format!("check {at}/drawn/site-1 --classes clear,nodule")).expect("counts");
    run(&format!("inspect {at}/drawn/site-1/labels.csv")).expect("counts");
    run(&format!("split {at}/drawn/site-1 --sites 2 --out {at}/divided")).expect("divides");
    run(&format!("inspect {at}/divided/site-2")).expect("counts");

    let again = run(&format!("{synth} --out {at}/drawn")).expect_err("refused");
    assert_eq!((again.exit, again.code), (ExitCode::Invalid, "not_empty"));
}

#[test]
fn what_would_be_refused_is_exit_code_4_and_the_first_reason() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    std::fs::write(folder.path().join("bad.png"), b"").expect("written");
    let csv = "file,patient,label\nbad.png,p,ill\nnone.png,q,ill\n";
    std::fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let failure = run(&format!("check {at} --classes ill,well")).expect_err("refused");
    assert_eq!(failure.exit, ExitCode::Invalid);
    let real = folder.path().canonicalize().expect("there").display().to_string();
    assert_eq!(
        failure.to_string().replace(&real, "DIR"),
        "2 of 2 images would be refused, the first: DIR/labels.csv, line 3: `none.png` does not exist \
         in the folder"
    );
}

#[test]
fn a_missing_run_file_is_one_line() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display().to_string();
    let failure = run(&format!("check {at} --run {at}/run.toml")).expect_err("refused");
    assert_eq!(
        failure.to_string().replace(&at, "DIR"),
        "DIR/run.toml: No such file or directory (os error 2)"
    );
}
