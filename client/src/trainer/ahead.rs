//! What the next step looks at, read while this one is computed.
//!
//! A step's inputs follow from its cases and from the names of its random streams alone, so it does
//! not matter when and on which thread they are read. Threads of their own read them, as many as
//! compute: where computing takes the processor, both share it and whoever has work gets it; where
//! it happens elsewhere, nothing waits for a decoder. What is not read ahead, because it would take
//! too much memory, is read inside the step.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Control;
use super::session::{TrainError, check_stop};

/// What is read ahead of one step, at most, bytes. While a step is computed its own and the next
/// one's are held.
const BYTES_MAX: usize = 128 << 20;

/// What was read of a step's cases before it began, by case.
#[derive(Debug)]
pub(super) struct Ahead<R>(BTreeMap<usize, R>);

impl<R> Default for Ahead<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<R> Ahead<R> {
    /// What was read of `case`; `None` where the step has to read it.
    pub(super) fn get(&self, case: usize) -> Option<&R> {
        self.0.get(&case)
    }
}

/// The cases of a step in the order that it looks at them.
type CasesOf<'a, S> = Box<dyn Fn(&S) -> Vec<usize> + Sync + 'a>;

/// Reads one case of a step.
type Read<'a, S, R> = Box<dyn Fn(&S, usize) -> Result<R, TrainError> + Sync + 'a>;

/// How the cases of steps `S` are read.
pub(super) struct Reader<'a, S, R> {
    pub(super) cases: CasesOf<'a, S>,
    pub(super) read: Read<'a, S, R>,
    /// What is read of a case, about, bytes.
    pub(super) bytes: usize,
    /// Threads that read; nothing is read ahead without one.
    pub(super) threads: usize,
    pub(super) control: &'a Control,
}

impl<S: Sync, R: Send> Reader<'_, S, R> {
    /// As many of the cases of `step` as are read ahead; fewer once `enough` is set.
    fn read(&self, step: &S, enough: &AtomicBool) -> Result<Ahead<R>, TrainError> {
        if self.threads == 0 {
            return Ok(Ahead::default());
        }
        let mut cases = (self.cases)(step);
        cases.truncate(BYTES_MAX / self.bytes.max(1));
        let next = AtomicUsize::new(0);
        let some = || {
            let mut read = Vec::new();
            while !enough.load(Ordering::Relaxed) && !self.control.is_stopped() {
                let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let one = (self.read)(step, *case);
                if one.is_err() {
                    enough.store(true, Ordering::Relaxed);
                }
                read.push(one.map(|one| (*case, one)));
            }
            read
        };
        thread::scope(|scope| {
            let others = 1..self.threads.min(cases.len());
            let others: Vec<_> = others.map(|_| scope.spawn(some)).collect();
            let mut all = some();
            for other in others {
                all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            Ok(Ahead(all.into_iter().collect::<Result<_, _>>()?))
        })
    }
}

/// Gives `take` each of `steps` in order until it breaks, fails or is stopped, with what was read of
/// the step meanwhile and how long steps have waited so far for what was not read yet. What cannot
/// be read fails where its step begins.
pub(super) fn each_step<S: Sync, R: Send + Sync>(
    mut steps: impl Iterator<Item = S>,
    reader: &Reader<'_, S, R>,
    mut take: impl FnMut(&S, &Ahead<R>, Duration) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let enough = &AtomicBool::new(false);
    let began = Instant::now();
    let Some(mut step) = steps.next() else { return Ok(()) };
    let mut ahead = reader.read(&step, enough);
    let mut waited = began.elapsed();
    loop {
        check_stop(reader.control)?;
        let read = ahead?;
        let next = steps.next();
        let (taken, reading) = thread::scope(|scope| {
            let next = next.as_ref().filter(|_| reader.threads > 0);
            let reading = next.map(|next| scope.spawn(|| reader.read(next, enough)));
            let taken = take(&step, &read, waited);
            if !matches!(taken, Ok(ControlFlow::Continue(()))) {
                enough.store(true, Ordering::Relaxed);
            }
            let began = Instant::now();
            let reading = reading.map(|reading| reading.join());
            waited += began.elapsed();
            (taken, reading)
        });
        if taken?.is_break() {
            return Ok(());
        }
        let Some(next) = next else { return Ok(()) };
        step = next;
        ahead = match reading {
            Some(reading) => reading.unwrap_or_else(|panic| resume_unwind(panic)),
            None => Ok(Ahead::default()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn reader<'a>(
        control: &'a Control,
        threads: usize,
        bytes: usize,
        read: impl Fn(usize) -> Result<usize, TrainError> + Sync + 'a,
    ) -> Reader<'a, Vec<usize>, usize> {
        Reader {
            cases: Box::new(Clone::clone),
            read: Box::new(move |_, case| read(case)),
            bytes,
            threads,
            control,
        }
    }

    fn steps() -> Vec<Vec<usize>> {
        (0..5).map(|step| (step * 10..step * 10 + 7).collect()).collect()
    }

    #[test]
    fn every_step_finds_its_own_cases_and_no_others() {
        let control = Control::default();
        for threads in [0, 1, 3] {
            let reader = reader(&control, threads, 1, |case| Ok(case * 2));
            let mut seen = Vec::new();
            each_step(steps().into_iter(), &reader, |step, ahead, _| {
                for case in 0..60 {
                    let known = threads > 0 && step.contains(&case);
                    assert_eq!(ahead.get(case).copied(), known.then_some(case * 2));
                }
                seen.push(step.clone());
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            assert_eq!(seen, steps());
        }
    }

    #[test]
    fn no_more_than_the_room_allows_is_read_and_one_step_ahead() {
        let control = Control::default();
        let read = Mutex::new(Vec::new());
        let reader = reader(&control, 2, BYTES_MAX / 3, |case| {
            read.lock().unwrap().push(case);
            Ok(case)
        });
        each_step(steps().into_iter(), &reader, |step, _, _| {
            let furthest = read.lock().unwrap().iter().max().copied().unwrap();
            assert!(furthest < step[0] + 20, "{furthest} at {step:?}");
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let mut read = read.lock().unwrap().clone();
        read.sort_unstable();
        let expected: Vec<usize> = (0..5).flat_map(|step| step * 10..step * 10 + 3).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn an_error_waits_for_its_step_and_a_break_or_a_stop_for_nothing() {
        let control = Control::default();
        let failing =
            reader(
                &control,
                2,
                1,
                |case| {
                    if case == 22 { Err(TrainError::NoCases) } else { Ok(case) }
                },
            );
        let mut taken = 0;
        let found = each_step(steps().into_iter(), &failing, |_, _, _| {
            taken += 1;
            Ok(ControlFlow::Continue(()))
        });
        assert!(matches!(found, Err(TrainError::NoCases)), "{found:?}");
        assert_eq!(taken, 2);

        let plain = reader(&control, 2, 1, Ok);
        let mut taken = 0;
        each_step(steps().into_iter(), &plain, |_, _, _| {
            taken += 1;
            Ok(if taken == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .unwrap();
        assert_eq!(taken, 3);

        let stopping = |_: &Vec<usize>, _: &Ahead<usize>, _| {
            control.stop();
            Ok(ControlFlow::Continue(()))
        };
        let found = each_step(steps().into_iter(), &plain, stopping);
        assert!(matches!(found, Err(TrainError::Stopped)), "{found:?}");
    }

    #[test]
    fn a_reader_that_panics_takes_the_training_with_it() {
        let control = Control::default();
        let broken = reader(&control, 2, 1, |case| {
            assert_ne!(case, 12, "a bug");
            Ok(case)
        });
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            each_step(steps().into_iter(), &broken, |_, _, _| Ok(ControlFlow::Continue(())))
        }));
        assert!(found.is_err());
    }
}
