//! A disk without room, for tests: a process of its own that may write no file longer than a few
//! bytes, as if the disk were full (`EFBIG` where a disk says `ENOSPC`), until it makes room.

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Set in such a process.
const SIGN: &str = "TRIBUTARY_TEST_FULL_DISK";
/// Kilobytes that a file may have there.
const KILOBYTES: &str = "1";

/// Whether this process is one.
pub(crate) fn is_simulated() -> bool {
    std::env::var_os(SIGN).is_some()
}

/// Runs the test `name` of this program again, in such a process; fails as it does.
pub(crate) fn simulate_in_a_child(name: &str) {
    let this = std::env::current_exe().expect("this program has a path");
    // The signal that would kill a program at the limit is ignored, so that it sees the error.
    let limited = format!("trap '' XFSZ; ulimit -S -f {KILOBYTES}; exec \"$0\" \"$@\"");
    let mut child = Command::new("sh");
    child.args(["-c", &limited]).arg(this).args(["--exact", name, "--nocapture"]).env(SIGN, "1");
    let output = child.output().expect("a shell runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{stderr}");
    assert!(said.contains("1 passed"), "no such test: {said}");
}

/// From now on there is room.
pub(crate) fn make_room() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum })
        .expect("a soft limit may be raised");
}
