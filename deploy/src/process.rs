//! A long-lived process of the federation.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::command::{Failed, TAIL_LINES, spell};
use crate::guard::Guard;
use crate::lines::{Lines, Next};
use crate::resources::{self, Usage};

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    doing: String,
    log: PathBuf,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Starts `command`, standard error appended to the file `log`.
    pub fn start(command: &mut Command, guard: &Guard, log: &Path) -> Result<Self, Failed> {
        let doing = spell(command);
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(|e| Failed::file(log, &e))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        guard.enlist(command);
        let mut child = command.spawn().map_err(|e| Failed::io(&doing, &e))?;
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failed::new(&doing, None, "its output cannot be read"));
        };
        let (stdout, stderr) = (Lines::read(out, None), Lines::read(err, Some(file)));
        Ok(Self { child, doing, log: log.to_path_buf(), stdout, stderr })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds its standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it writes to standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// What it writes to standard error.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Memory and processor time by now.
    pub fn usage(&self) -> Option<Usage> {
        resources::usage(self.id())
    }

    /// Waits for a line of standard output that `wanted` takes.
    pub fn wait_stdout(
        &self,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, Failed> {
        self.line(self.stdout.wait(0, timeout, wanted), timeout)
    }

    /// Waits for a line of standard error that `wanted` takes.
    pub fn wait_stderr(
        &self,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, Failed> {
        self.line(self.stderr.wait(0, timeout, wanted), timeout)
    }

    fn line(&self, next: Next, timeout: Duration) -> Result<String, Failed> {
        match next {
            Next::Line(line, _) => Ok(line),
            Next::Closed => {
                // What it said last may still be on its way.
                self.stderr.wait_closed();
                Err(self.failed("it ended early"))
            }
            Next::TimedOut => Err(self.failed(&format!("nothing within {timeout:?}"))),
        }
    }

    /// A failure of this process, with the end of its log.
    pub fn failed(&self, problem: &str) -> Failed {
        let tail = self.stderr.tail(TAIL_LINES);
        let problem = format!("{problem}; its log is {}", self.log.display());
        Failed { tail, ..Failed::new(&self.doing, None, &problem) }
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Failed> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| self.failed("it has no process id"))?;
        kill_process(pid, signal).map_err(|e| self.failed(&e.to_string()))
    }

    /// From now on it may write no file longer than `bytes`; any it likes when absent.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<(), Failed> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        let new = Rlimit { current: bytes.or(maximum), maximum };
        prlimit(pid, Resource::Fsize, new).map_err(|e| self.failed(&e.to_string()))?;
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus, Failed> {
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus, Failed> {
        self.child.wait().map_err(|e| Failed::io(&self.doing, &e))
    }

    fn end(&mut self) {
        // Either fails only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
