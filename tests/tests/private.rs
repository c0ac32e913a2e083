//! Everything that the programs write is its owner's alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tributary_deploy::command::run;
use tributary_tests::{RehearsalRun, Scratch};

/// Everything below `path`, itself included, that another user of the machine could use.
fn open_to_others(path: &Path, found: &mut Vec<(PathBuf, u32)>) {
    // A program that runs may have removed a temporary file since.
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        found.push((path.to_owned(), mode));
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            open_to_others(&entry.unwrap().path(), found);
        }
    }
}

/// A11. Failed before: folders were 0755 and database, blobs, exports, adapters, drawn and divided
/// images 0644 under the usual umask, and `audit verify` put every delta into the shared temporary
/// folder.
#[test]
fn no_file_of_a_federation_can_be_read_by_others() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("closed", 1, 1).to_toml());
    assert_eq!(scratch.finish("closed")["state"], "completed");
    let root = scratch.folder.path();
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    scratch.payload("closed", 1);
    let federation = &scratch.federation;
    let export = ["audit", "export", "--with-tensors", "--out", &at("history.export")];
    federation.operator(export).unwrap();
    run(federation.operator_command(["audit", "verify"]).env("TMPDIR", "/nonexistent")).unwrap();
    let draw = "data synth --modality fundus --sites 2 --patients 6 --size 32 --out";
    federation.client(draw.split(' ').chain([at("drawn").as_str()])).unwrap();
    let divided = ["data", "split", &at("drawn/site-1"), "--sites", "2", "--out", &at("divided")];
    federation.client(divided).unwrap();
    let page = ["data", "inspect", &at("drawn/site-1"), "--html", &at("page.html")];
    federation.client(page).unwrap();

    let written = [
        "coordinator",
        "sites/site-0",
        "kits/site-0.kit",
        "pulled-closed-1",
        "history.export",
        "drawn",
        "divided",
        "page.html",
    ];
    let mut found = Vec::new();
    for path in written {
        assert!(root.join(path).exists(), "{path}");
        open_to_others(&root.join(path), &mut found);
    }
    assert_eq!(found, []);
}

/// Files of an earlier version, or of a careless copy: both programs close their directories when they start.
#[test]
fn programs_close_what_was_left_open_in_their_directories() {
    let mut scratch = Scratch::with_powers_of_two(1);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("open", 1, 1).to_toml());
    assert_eq!(scratch.finish("open")["state"], "completed");
    scratch.federation.kill_all();
    let directories = ["coordinator", "sites/site-0"].map(|name| scratch.folder.path().join(name));
    let found = || {
        let mut found = Vec::new();
        directories.iter().for_each(|directory| open_to_others(directory, &mut found));
        found
    };
    directories.iter().for_each(|directory| {
        // Not the keys: a program does not start with a key that others could have read.
        let mut find = std::process::Command::new("find");
        find.arg(directory).args(["-not", "-name", "*.pem", "-exec", "chmod", "go+rX", "{}", "+"]);
        assert!(find.status().unwrap().success());
    });
    assert!(found().len() > 10, "{:?}", found());
    scratch.federation.start_coordinator().unwrap();
    scratch.start_sites();
    assert_eq!(found(), []);
}
