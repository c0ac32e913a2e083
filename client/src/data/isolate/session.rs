//! A process that keeps one slide open for as long as the client reads it. No other file shares it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::pool::Worker;
use super::slide::Asked;
use super::wire::{Answer, Request};
use super::{DecoderProblem, Limits};

/// A process for one slide.
#[derive(Debug)]
pub(in crate::data) struct Session {
    /// The process, or the problem that ended it.
    worker: Result<Worker, DecoderProblem>,
    limits: Limits,
    /// Time that is left for the current picture.
    left: Duration,
}

impl Session {
    pub(super) fn start(program: &Path, limits: Limits) -> Result<Self, DecoderProblem> {
        let worker = Ok(Worker::start(program, limits)?);
        Ok(Self { worker, limits, left: Duration::from_secs(limits.seconds) })
    }

    /// Starts the time limit of another picture; several questions may be about one picture.
    pub(in crate::data) fn next_picture(&mut self) {
        self.left = Duration::from_secs(self.limits.seconds);
    }

    /// Asks the process; the inner error is OpenSlide's reason. A process that failed is ended, and not started again:
    /// every later question fails in the same way.
    pub(in crate::data) fn ask(
        &mut self,
        asked: Asked<'_>,
    ) -> Result<Result<Vec<u8>, String>, DecoderProblem> {
        let worker = self.worker.as_mut().map_err(|problem| problem.clone())?;
        let begun = Instant::now();
        let answered = worker.ask(&Request::Slide(asked), self.limits, self.left);
        self.left = self.left.saturating_sub(begun.elapsed());
        let (answer, ended) = match answered {
            Ok(answered) => (Ok(answered.answer), answered.ended),
            Err(failed) => (Err(failed.problem.clone()), Some(failed.problem)),
        };
        if let Some(problem) = ended {
            self.worker = Err(problem);
        }
        match answer? {
            Answer::Samples(bytes) => Ok(Ok(bytes)),
            Answer::Refused(words) => Ok(Err(words)),
            Answer::Memory => Err(DecoderProblem::Memory { mib: self.limits.memory_mib }),
        }
    }
}
