//! Nothing outlives the launcher, also when it is killed.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::command::Failed;

/// A process group with a watchman: a shell that waits for the end of its standard input, which
/// the launcher holds, and then kills the whole group, itself included. The kernel closes the
/// pipe however the launcher ends, so this holds for `kill -9` too.
#[derive(Debug)]
pub struct Guard {
    watchman: Child,
    // Closed on drop.
    input: Option<ChildStdin>,
}

impl Guard {
    /// Posts the watchman.
    pub fn post() -> Result<Self, Failed> {
        let mut watchman = Command::new("sh")
            .args(["-c", "trap '' HUP INT TERM; read _; kill -9 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| Failed::io("starting sh", &e))?;
        let input = watchman.stdin.take();
        Ok(Self { watchman, input })
    }

    /// Puts a command's process into the group.
    pub fn enlist(&self, command: &mut Command) {
        // Process ids fit: Linux's stay below 2^22.
        command.process_group(i32::try_from(self.watchman.id()).unwrap_or(0));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.take());
        // Nothing is left to do if the watchman is gone already.
        let _ = self.watchman.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn who_was_enlisted_dies_with_the_guard() {
        let guard = Guard::post().unwrap();
        let mut sleeper = Command::new("sleep");
        sleeper.arg("600").stdout(Stdio::piped());
        guard.enlist(&mut sleeper);
        let mut sleeper = sleeper.spawn().unwrap();
        drop(guard);
        // Its output closes when it is gone.
        let mut rest = Vec::new();
        sleeper.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        assert!(!sleeper.wait().unwrap().success());
    }
}
