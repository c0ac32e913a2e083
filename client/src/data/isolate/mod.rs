//! Processes for JPEG and JPEG 2000 of DICOM, OpenSlide and the first look at Parquet, so that a hostile file costs itself and not the client: memory
//! and time of a process are bounded, of the environment it is given the loader's search paths alone, and it ends with the
//! client.

mod pool;
#[cfg(feature = "openslide")]
mod session;
mod slide;
mod wire;
mod worker;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use self::pool::Pool;
#[cfg(feature = "openslide")]
pub(super) use self::session::Session;
#[cfg(feature = "openslide")]
pub(super) use self::slide::{Asked, Description, LEVELS_MAX, Region};
pub(super) use self::wire::{Coded, Request};
pub use self::worker::serve;

/// The subcommand of the program by which a decoder's process is started; its argument is its memory in MiB.
pub const COMMAND: &str = "decode-worker";

/// The program's own choice.
static CHOSEN: OnceLock<Isolation> = OnceLock::new();

/// The choice between decoding in this process and in others.
#[derive(Clone, Debug)]
pub enum Isolation {
    /// In the process that reads the file: for tests and benches. A decoder that crashes ends it.
    InProcess,
    /// In processes of a program, which is started with the arguments [`COMMAND`] and the memory in MiB.
    Process(Processes),
}

/// The processes of one program, shared by clones.
#[derive(Clone, Debug)]
pub struct Processes(Arc<Pool>);

/// Limits of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Address space of the process beside what the program maps at its start, MiB.
    pub(super) memory_mib: u64,
    /// Time until the answer is there, seconds. It is of one picture and not of a file: a file of a thousand frames may
    /// rightly take longer in all than any one picture may.
    pub(super) seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_mib: 1024, seconds: 60 }
    }
}

/// Why a decoder's process gave no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecoderProblem {
    /// The process or a thread for it was not started.
    #[error("the decoder's process cannot be started: {detail}")]
    Start {
        /// The system's reason.
        detail: String,
    },
    /// It was killed.
    #[error("decoding took longer than {seconds} s (data.reading.decoder_seconds)")]
    Time {
        /// The limit.
        seconds: u64,
    },
    /// It said so.
    #[error("the decoder needed more than {mib} MiB (data.reading.decoder_memory_mib)")]
    Memory {
        /// The limit.
        mib: u64,
    },
    /// It ended by `abort`, which is what becomes of a refused allocation.
    #[error(
        "the decoder aborted, as it does when it needs more than {mib} MiB \
         (data.reading.decoder_memory_mib)"
    )]
    Abort {
        /// The limit.
        mib: u64,
    },
    /// It ended in another way.
    #[error("the decoder crashed ({how})")]
    Crash {
        /// Its exit status.
        how: String,
    },
    /// It said what makes no sense.
    #[error("the decoder's process gave no valid answer")]
    Answer,
}

impl Isolation {
    /// Processes of `program`; none is started yet.
    pub fn processes(program: PathBuf) -> Self {
        Self::Process(Processes(Arc::new(Pool::new(program))))
    }

    /// Makes this the choice of every [`Reading`](crate::config::reading::Reading) from now on; a second call changes
    /// nothing.
    pub fn choose(self) {
        let _ = CHOSEN.set(self);
    }

    /// Has a request carried out; the inner error is what the decoder said. Of a picture, samples side by side come back,
    /// little endian, [`Coded::bytes`] of them.
    pub(super) fn ask(
        &self,
        request: &Request<'_>,
        limits: Limits,
    ) -> Result<Result<Vec<u8>, String>, DecoderProblem> {
        match self {
            Self::InProcess => Ok(worker::carry_out(request, &mut worker::Served::default())),
            Self::Process(Processes(pool)) => pool.ask(request, limits),
        }
    }

    /// A process for one slide; `None` where slides are read in this process.
    #[cfg(feature = "openslide")]
    pub(super) fn session(&self, limits: Limits) -> Result<Option<Session>, DecoderProblem> {
        match self {
            Self::InProcess => Ok(None),
            Self::Process(Processes(pool)) => Session::start(pool.program(), limits).map(Some),
        }
    }
}

impl Default for Isolation {
    /// The choice that was made with [`Isolation::choose`]; in process where the library is used without the program.
    fn default() -> Self {
        CHOSEN.get().cloned().unwrap_or(Self::InProcess)
    }
}

impl PartialEq for Isolation {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::InProcess, Self::InProcess) => true,
            (Self::Process(one), Self::Process(another)) => Arc::ptr_eq(&one.0, &another.0),
            (Self::InProcess, Self::Process(_)) | (Self::Process(_), Self::InProcess) => false,
        }
    }
}
