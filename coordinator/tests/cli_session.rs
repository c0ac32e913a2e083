//! The operator's and the auditor's commands against a real coordinator process: what each says,
//! its exit code, and what it leaves on disk. No site takes part.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const OPERATOR: &str = env!("CARGO_BIN_EXE_tributary");
const SERVICE: &str = env!("CARGO_BIN_EXE_tributary-coordinator");

const RUN: &str = "schema_version = 1
name = \"rehearsal\"
[task]
kind = \"rehearsal\"
payload_bytes = 400
[rounds]
count = 2
round_deadline_s = 60
stall_timeout_s = 30
[quorum]
sites = 1
";

/// A coordinator on a free port; killed when dropped.
struct Coordinator {
    folder: tempfile::TempDir,
    process: Child,
    address: String,
}

impl Coordinator {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let init = ["init", "--directory", "state", "--consortium", "demo"];
        let made = Command::new(SERVICE)
            .args(init)
            .args(["--address", "127.0.0.1:0"])
            .current_dir(folder.path())
            .output()
            .expect("the program starts");
        assert!(made.status.success(), "{made:?}");
        let mut process = Command::new(SERVICE)
            .args(["serve", "--config", "state/coordinator.toml"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert!(line.starts_with("demo: listening on 127.0.0.1:"), "{line}");
        let address = std::fs::read_to_string(folder.path().join("state/address")).expect("named");
        Self { folder, process, address }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn run_as(&self, identity: &str, arguments: &[&str]) -> Output {
        Command::new(OPERATOR)
            .args(["--address", &self.address, "--identity", identity])
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .expect("the program starts")
    }

    /// As the operator, as JSON: the envelope's data.
    fn data(&self, arguments: &[&str]) -> Value {
        let output = self.run_as("state/operator", &[arguments, &["--format", "json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        let envelope: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let keys: Vec<&String> = envelope.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["data", "schema_version", "status"]);
        assert_eq!((&envelope["schema_version"], &envelope["status"]), (&1.into(), &"ok".into()));
        envelope["data"].clone()
    }

    /// As the operator: the exit code and the one line of the failure.
    fn failure(&self, arguments: &[&str]) -> (Option<i32>, String) {
        failure_of(&self.run_as("state/operator", arguments))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn failure_of(output: &Output) -> (Option<i32>, String) {
    let error = String::from_utf8(output.stderr.clone()).expect("programs print UTF-8");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(error.trim().lines().count(), 1, "{error}");
    (output.status.code(), error)
}

fn refused(failure: (Option<i32>, String), code: i32, part: &str) {
    assert_eq!(failure.0, Some(code), "{}", failure.1);
    assert!(failure.1.contains(part), "no `{part}` in: {}", failure.1);
}

fn flip(from: &Path, to: &Path, byte: usize) {
    let mut bytes = std::fs::read(from).expect("the export is there");
    bytes[byte] ^= 1;
    std::fs::write(to, bytes).expect("written");
}

#[test]
fn members_are_invited_enrolled_and_held_to_their_role() {
    let coordinator = Coordinator::start();
    assert_eq!(coordinator.data(&["site", "list"]), Value::Array(Vec::new()));
    let invited = coordinator.data(&["site", "invite", "alpha", "--valid", "2h"]);
    assert_eq!(invited["member"], "site/alpha");
    assert_eq!(invited["address"], coordinator.address.as_str());
    let kit = coordinator.path("alpha.kit");
    let before = std::fs::read_to_string(&kit).unwrap();
    assert_eq!(std::fs::metadata(&kit).unwrap().permissions().mode() & 0o777, 0o600);
    refused(coordinator.failure(&["site", "invite", "alpha"]), 4, "alpha.kit exists already");
    assert_eq!(std::fs::read_to_string(&kit).unwrap(), before);
    assert_eq!(coordinator.data(&["site", "ls"])[0]["state"], "invited");

    refused(coordinator.failure(&["enroll", "alpha.kit"]), 4, "tributary-client enroll");
    coordinator.data(&["auditor", "invite", "eve"]);
    let enrolled = coordinator.run_as("eve", &["enroll", "eve.kit"]);
    assert_eq!(enrolled.status.code(), Some(0), "{enrolled:?}");
    assert_eq!(coordinator.run_as("eve", &["run", "list"]).status.code(), Some(0));
    let denied = failure_of(&coordinator.run_as("eve", &["site", "invite", "beta"]));
    refused(denied, 2, "auditor/eve may not call this");
    assert!(!coordinator.path("beta.kit").exists());
    // The token works once.
    let again = failure_of(&coordinator.run_as("eve2", &["enroll", "eve.kit"]));
    refused(again, 1, "used with another key");
    refused(coordinator.failure(&["site", "suspend", "nobody", "--reason", "x"]), 1, "nobody");
}

#[test]
fn a_run_is_started_watched_pulled_and_stopped() {
    let coordinator = Coordinator::start();
    std::fs::write(coordinator.path("run.toml"), RUN).unwrap();
    let started = coordinator.data(&["run", "start", "run.toml", "--anyway"]);
    refused(coordinator.failure(&["run", "start", "run.toml", "--anyway"]), 1, "already");
    refused(coordinator.failure(&["run", "show", "nope"]), 1, "no run `nope`");
    let shown = coordinator.data(&["run", "show", "rehearsal"]);
    assert_eq!(shown["state"], "waiting");
    let status = coordinator.data(&["status"]);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&status["disk"]["short"], &status["disk"]["short_since"]),
        (&false.into(), &Value::Null)
    );
    assert_eq!(status["disk"]["reserve_bytes"], 64 << 20);
    assert_eq!(
        (&status["runs"][0]["name"], &status["runs"][0]["state"]),
        (&"rehearsal".into(), &"waiting".into())
    );
    assert_eq!(shown["manifest_digest"], started["manifest_digest"]);
    assert_eq!(coordinator.data(&["run", "ls"])[0]["rounds_asked"], 2);
    refused(coordinator.failure(&["run", "wait", "rehearsal", "--timeout", "1s"]), 3, "within 1s");

    let pulled = coordinator.data(&["run", "pull", "rehearsal", "--out", "adapter"]);
    assert_eq!(pulled["version"], 0);
    refused(
        coordinator.failure(&["run", "pull", "rehearsal", "--out", "adapter"]),
        4,
        "exists already",
    );
    refused(coordinator.failure(&["run", "pull", "rehearsal", "--version", "7"]), 1, "not 7");
    assert!(!coordinator.path("rehearsal-v7").exists());

    let stopped = ["run", "stop", "rehearsal", "--reason", "enough"];
    assert_eq!(coordinator.data(&stopped)["state"], "stopped");
    refused(coordinator.failure(&["run", "wait", "rehearsal"]), 1, "enough");
    let log = coordinator.data(&["run", "log", "rehearsal"]);
    let kinds: Vec<&Value> =
        log.as_array().unwrap().iter().map(|l| &l["record"]["event"]["type"]).collect();
    assert_eq!(kinds, ["run_started", "run_ended"]);
    // A followed log of a run that has ended, ends.
    let followed = coordinator.run_as("state/operator", &["run", "log", "rehearsal", "-f"]);
    assert_eq!(followed.status.code(), Some(0), "{followed:?}");
    assert_eq!(String::from_utf8(followed.stdout).unwrap().lines().count(), 2);
}

#[test]
fn the_history_is_exported_and_proven_and_a_flipped_byte_is_found() {
    let coordinator = Coordinator::start();
    std::fs::write(coordinator.path("run.toml"), RUN).unwrap();
    coordinator.data(&["run", "start", "run.toml", "--anyway"]);
    coordinator.data(&["audit", "export", "--out", "history", "--with-tensors"]);
    let offline = ["audit", "verify", "--file", "history", "--key", "state/log.vkey"];
    assert_eq!(coordinator.data(&offline)["verified"], true);
    assert_eq!(coordinator.data(&["audit", "verify"])["leaves"], 3);
    // The line that is printed works where it was printed; before, it named `log.vkey` in no folder.
    let told = coordinator.run_as("state/operator", &["audit", "export", "--out", "bare"]);
    let told = String::from_utf8(told.stdout).unwrap();
    let line = told.split("Verify it anywhere: tributary ").nth(1).and_then(|l| l.lines().next());
    let line: Vec<&str> = line.expect("a command").split_whitespace().collect();
    assert_eq!(coordinator.data(&line)["verified"], true);
    let history = coordinator.path("history");
    let bytes = usize::try_from(std::fs::metadata(&history).unwrap().len()).unwrap();
    flip(&history, &coordinator.path("flipped"), bytes / 2);
    let flipped = ["audit", "verify", "--file", "flipped", "--key", "state/log.vkey"];
    refused(coordinator.failure(&flipped), 1, "NOT VERIFIED");
    let missing = ["audit", "verify", "--file", "none", "--key", "state/log.vkey"];
    refused(coordinator.failure(&missing), 4, "none");
}

#[test]
fn the_coordinator_stops_when_told_and_one_that_is_away_is_a_connection_failure() {
    let mut coordinator = Coordinator::start();
    let mut second = Command::new(SERVICE);
    second.args(["serve", "--config", "state/coordinator.toml"]).current_dir(&coordinator.folder);
    refused(failure_of(&logless(second.output().unwrap())), 4, "in use by another coordinator");
    let pid = coordinator.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(coordinator.process.wait().unwrap().code(), Some(0));
    assert!(!coordinator.path("state/address").exists());
    refused(coordinator.failure(&["run", "list"]), 2, "cannot reach");
}

/// Before, `serve` took a certificate without the host that members are told, and nothing looked
/// whether the two fit.
#[test]
fn doctor_and_serve_name_a_certificate_that_lacks_the_address_and_renewal_adds_it() {
    let mut coordinator = Coordinator::start();
    let folder = coordinator.folder.path().to_owned();
    let service = |arguments: &[&str], address: &str| {
        let mut command = Command::new(SERVICE);
        command.args(arguments).args(["--config", "state/coordinator.toml"]).current_dir(&folder);
        command.env("TRIBUTARY__ADDRESS", address).output().expect("the program starts")
    };
    let lines = |output: &Output| String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let well = service(&["doctor"], "127.0.0.1:0");
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    let text = lines(&well);
    assert_eq!(text.lines().filter(|line| line.starts_with("ok  ")).count(), 8, "{text}");
    assert!(text.contains("answers with this certificate") && text.contains("364 days"), "{text}");
    assert!(text.contains("in use by the running coordinator"), "{text}");

    let moved = "elsewhere.example.org:8443";
    let ill = service(&["doctor"], moved);
    assert_eq!(ill.status.code(), Some(4), "{ill:?}");
    let text = lines(&ill);
    let fault = text.lines().find(|line| line.starts_with("FAIL address")).expect("a line");
    assert!(fault.contains("is for 127.0.0.1 and not for elsewhere.example.org"), "{text}");
    assert!(text.contains("renew-server --server-name elsewhere.example.org"), "{text}");
    coordinator.process.kill().expect("it runs");
    coordinator.process.wait().expect("it ends");
    let refused_to = failure_of(&logless(service(&["serve"], moved)));
    refused(refused_to, 4, "not for elsewhere.example.org");

    // Before, the reason was told twice.
    let alone = ["renew-server", "--replace-server-names", "--server-name", "foo.example"];
    let told = failure_of(&logless(service(&alone, moved)));
    refused(told, 4, "certificate is for foo.example and not for");
    let added = ["renew-server", "--server-name", "elsewhere.example.org"];
    let renewed = service(&added, moved);
    assert_eq!(renewed.status.code(), Some(0), "{renewed:?}");
    assert!(lines(&renewed).contains("127.0.0.1, elsewhere.example.org"), "{renewed:?}");
    let text = lines(&service(&["doctor"], moved));
    assert!(text.contains("the coordinator is not running") && !text.contains("FAIL"), "{text}");
    // A public address over a listener that only this machine can reach works behind a relay.
    assert!(text.contains("warn address"), "{text}");
}

/// Failed before: the next steps lacked `--config`, the rehearsal was not in the backup, and
/// `recover` without a database named itself as the remedy.
#[test]
fn a_restore_tells_the_next_step_in_full_and_recover_says_when_there_is_none() {
    let coordinator = Coordinator::start();
    let service = |line: &str| {
        let mut command = Command::new(SERVICE);
        command.args(line.split(' ')).current_dir(&coordinator.folder);
        logless(command.output().expect("the program starts"))
    };
    let done = |output: Output| {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    done(service("backup --config state/coordinator.toml --out backup"));
    let told = done(service("restore --directory again --from backup"));
    let next = "Next: tributary-coordinator serve --config again/coordinator.toml";
    assert!(told.ends_with(&format!("{next}\n")), "{told}");
    assert!(coordinator.path("again/rehearsal.toml").exists());
    std::fs::remove_file(coordinator.path("again/tributary.db")).unwrap();
    let recover = "recover --config again/coordinator.toml --operator again/operator --reason lost";
    let output = service(recover);
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(message.contains("again/tributary.db: the database is missing"), "{message}");
    assert!(message.contains("without any backup the history cannot be continued"), "{message}");
    assert!(!message.contains("tributary-coordinator recover"), "{message}");
    assert_eq!(output.status.code(), Some(1), "{message}");
}

/// The output without the lines of the log, which goes to standard error too.
fn logless(mut output: Output) -> Output {
    let text = String::from_utf8(output.stderr).expect("programs print UTF-8");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    output.stderr = lines.join("\n").into_bytes();
    output
}
