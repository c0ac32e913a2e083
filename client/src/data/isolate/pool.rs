//! The client's side of the decoders' processes: starts them, hands them one picture at a time, and ends those that take
//! too long or say what makes no sense.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::wire::{self, Answer, Request};
use super::{COMMAND, DecoderProblem, Limits};

/// Size of the pipe for a process's answers, bytes. That for requests stays as it is: all pipes of a user share 64 MiB
/// (pipe(7), `pipe-user-pages-soft`), and half a mebibyte of JPEG is written in 0.2 ms as it is.
#[cfg(target_os = "linux")]
const PIPE_BYTES: usize = 1 << 20;
/// Variables that tell glibc how to allocate in a process (mallopt(3)). A second heap for the thread that reads requests
/// would take 64 MiB of the address space. Memory that is given back after each picture must be filled with zeros by the
/// system for the next one, which takes a millisecond or more; the two thresholds are the largest that glibc comes to by
/// itself.
const ALLOCATION: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "67108864"),
];

/// Variables of the client's environment that a process is given too: the loader's search paths, on which the system finds
/// OpenSlide and libraries that the program itself was linked to.
const LIBRARY_PATHS: [&str; 2] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];

/// Processes of one program that wait for work. There are never more than threads that decode at once.
#[derive(Debug)]
pub(super) struct Pool {
    program: PathBuf,
    idle: Mutex<Vec<Worker>>,
}

impl Pool {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, idle: Mutex::default() }
    }

    #[cfg(feature = "openslide")]
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn ask(
        &self,
        request: &Request<'_>,
        limits: Limits,
    ) -> Result<Result<Vec<u8>, String>, DecoderProblem> {
        let (mut worker, mut used_before) = match self.waiting(limits) {
            Some(worker) => (worker, true),
            None => (Worker::start(&self.program, limits)?, false),
        };
        loop {
            match worker.ask(request, limits, Duration::from_secs(limits.seconds)) {
                // The most that it ever took may have been another picture's.
                Ok(Answered { answer: Answer::Memory, .. }) if used_before => {
                    worker = Worker::start(&self.program, limits)?;
                    used_before = false;
                }
                Ok(answer) => {
                    if answer.ended.is_none() {
                        self.idle().push(worker);
                    }
                    return match answer.answer {
                        Answer::Samples(samples) => Ok(Ok(samples)),
                        Answer::Refused(words) => Ok(Err(words)),
                        Answer::Memory => Err(DecoderProblem::Memory { mib: limits.memory_mib }),
                    };
                }
                // It had ended while it waited: this picture is not to blame.
                Err(Failed { unheard: true, .. }) if used_before => {
                    worker = Worker::start(&self.program, limits)?;
                    used_before = false;
                }
                Err(failed) => return Err(failed.problem),
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lives and was started with the same memory.
    fn waiting(&self, limits: Limits) -> Option<Worker> {
        loop {
            let mut worker = self.idle().pop()?;
            let lives = matches!(worker.child.try_wait(), Ok(None));
            if lives && worker.memory_mib == limits.memory_mib {
                return Some(worker);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    memory_mib: u64,
}

pub(super) struct Answered {
    pub(super) answer: Answer,
    /// The problem for which the process is asked nothing more; `None` while it may be.
    pub(super) ended: Option<DecoderProblem>,
}

pub(super) struct Failed {
    pub(super) problem: DecoderProblem,
    /// The request did not reach it.
    unheard: bool,
}

impl Worker {
    pub(super) fn start(program: &Path, limits: Limits) -> Result<Self, DecoderProblem> {
        let failed = |detail: String| DecoderProblem::Start { detail };
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(limits.memory_mib.to_string());
        command.env_clear().envs(ALLOCATION);
        for name in LIBRARY_PATHS {
            if let Some(path) = std::env::var_os(name) {
                command.env(name, path);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child =
            spawn(command).map_err(|error| failed(format!("{}: {error}", program.display())))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(requests), Some(answers)) = (requests, answers) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("it has no standard input and output".to_owned()));
        };
        // Fewer turns of the two processes; the usual 64 KiB do as well where the system allows no more.
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&answers, PIPE_BYTES);
        let answers = BufReader::new(answers);
        Ok(Self { child, requests, answers, memory_mib: limits.memory_mib })
    }

    /// Sends one request and waits for its answer, for at most the time `left`: then the process is killed, which ends
    /// the reading and writing here.
    pub(super) fn ask(
        &mut self,
        request: &Request<'_>,
        limits: Limits,
        left: Duration,
    ) -> Result<Answered, Failed> {
        let Self { child, requests, answers, .. } = self;
        let (done, unless_done) = channel::<()>();
        let watch = move || {
            let late = unless_done.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
            if late {
                // It fails where the process has ended by itself.
                let _ = child.kill();
            }
            late
        };
        let (sent, received, late) = thread::scope(|scope| {
            let watch = thread::Builder::new()
                .name("decoder time".to_owned())
                .spawn_scoped(scope, watch)
                .map_err(|error| Failed {
                    problem: DecoderProblem::Start { detail: error.to_string() },
                    unheard: false,
                })?;
            let sent = wire::send(requests, &[&request.head(), request.body()]);
            let received = match sent {
                Ok(()) => Answer::receive(answers, request.answer_bytes()),
                Err(_) => Ok(None),
            };
            drop(done);
            Ok((sent, received, watch.join().unwrap_or(false)))
        })?;
        let time = DecoderProblem::Time { seconds: limits.seconds };
        match received {
            Ok(Some(answer)) => {
                let ended = if late {
                    Some(time)
                } else if answer == Answer::Memory {
                    // It may be short of memory again for the next picture.
                    Some(DecoderProblem::Memory { mib: limits.memory_mib })
                } else {
                    (!answers.buffer().is_empty()).then_some(DecoderProblem::Answer)
                };
                Ok(Answered { answer, ended })
            }
            _ if late => Err(Failed { problem: time, unheard: false }),
            Ok(None) if sent.is_ok() => {
                Err(Failed { problem: DecoderProblem::Answer, unheard: false })
            }
            Ok(None) | Err(_) => {
                // Standard output may be closed before the process ends.
                let _ = self.child.kill();
                let problem = match self.child.wait() {
                    Ok(status) => ended(status, limits),
                    Err(error) => DecoderProblem::Crash { how: error.to_string() },
                };
                Err(Failed { problem, unheard: sent.is_err() })
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why a process ended that was to answer.
fn ended(status: ExitStatus, limits: Limits) -> DecoderProblem {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status)
        == Some(rustix::process::Signal::ABORT.as_raw())
    {
        return DecoderProblem::Abort { mib: limits.memory_mib };
    }
    DecoderProblem::Crash { how: status.to_string() }
}

type Spawned = std::io::Result<Child>;
/// A program to start, and where its process is awaited.
type Start = (Command, SyncSender<Spawned>);

/// Starts a process on a thread that lives as long as the client: Linux ends a process with the thread that started it
/// (`prctl(2)`, `PR_SET_PDEATHSIG`), and threads that read images come and go.
fn spawn(command: Command) -> Spawned {
    static STARTER: OnceLock<Option<SyncSender<Start>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (ask, asked) = sync_channel::<Start>(0);
        let start = move || {
            while let Ok((mut command, reply)) = asked.recv() {
                // The thread that asked waits for it.
                let _ = reply.send(command.spawn());
            }
        };
        thread::Builder::new().name("decoder start".to_owned()).spawn(start).ok().map(|_| ask)
    });
    let gone = || std::io::Error::other("the thread that starts decoders cannot be started");
    let (reply, spawned) = sync_channel(1);
    starter.as_ref().ok_or_else(gone)?.send((command, reply)).map_err(|_| gone())?;
    spawned.recv().map_err(|_| gone())?
}
