//! Making the next adapter: deltas and base from the blob store, folded in site order into a new
//! blob, then one command. A failure that may end (a full disk) leaves the aggregate owed; the
//! ticker tries again. A delta that no further try can fold is excluded by an event.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::pin::Pin;

use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::initial::{adapter_header, write_initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::outcome::chain;
use tributary_shared::tensors::{Header, Subject};

use super::{Driver, DriverError};
use crate::aggregate::{self, AggregateError};
use crate::blobs::Blobs;
use crate::round::event::Unusable;
use crate::round::seat::Accepted;
use crate::round::{Aggregating, Command, Run};

/// Aggregates a closed round and publishes the outcome. Boxed: publishing opens the next round,
/// which leads here again.
pub(super) fn publish(
    driver: Driver,
    name: RunName,
    aggregating: Aggregating,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let round = aggregating.round;
        if let Err(error) = try_publish(&driver, &name, aggregating).await {
            let error = chain(&error);
            tracing::error!(run = %name, round, error, "aggregation failed; will be tried again");
            if let Ok(run) = driver.run(&name).await {
                run.aggregation_failed(&format!("aggregating round {round}: {error}"));
            }
        }
    })
}

async fn try_publish(
    driver: &Driver,
    name: &RunName,
    aggregating: Aggregating,
) -> Result<(), DriverError> {
    let live = driver.run(name).await?;
    let round = aggregating.round;
    let plan = live.read(|run| Plan::new(run, aggregating));
    let blobs = driver.0.blobs.clone();
    let deltas: Vec<Digest> = plan.deltas.iter().map(|delta| delta.digest).collect();
    let outcome = tokio::task::spawn_blocking(move || plan.carry_out(&blobs))
        .await
        .map_err(|e| DriverError::io("aggregating")(std::io::Error::other(e)))??;
    match outcome {
        Outcome::Adapter(adapter) => {
            let published = live.command(driver, Command::Publish { round, adapter }).await;
            // No site waits for this.
            let blobs = driver.0.blobs.clone();
            tokio::task::spawn_blocking(move || leave_page_cache(&blobs, &deltas));
            published
        }
        Outcome::Unusable { site, digest, reason } => {
            tracing::error!(run = %name, round, %site, "delta {digest} is excluded: {reason}");
            live.apply(driver, Command::Exclude { round, site, digest, reason }).await?;
            // Only now: a second aggregation must not fold what is excluded.
            live.aggregation_ended();
            live.act(driver).await
        }
    }
}

/// Stores a run's initial adapter, block by block. Blocks.
pub(super) fn initial(blobs: &Blobs, manifest: &RunManifest) -> io::Result<Digest> {
    blobs.put_with(|file| {
        let (mut out, mut hasher) = (BufWriter::new(file), Hasher::new());
        let mut written = Ok(());
        write_initial_adapter(manifest, |bytes| {
            if written.is_ok() {
                hasher.update(bytes);
                written = out.write_all(bytes);
            }
        });
        written.and_then(|()| out.flush())?;
        Ok(hasher.finish())
    })
}

/// Tells the system that deltas will not be read again soon: what the page cache holds of them goes
/// to the next round's deltas, so that a week of rounds does not push everything else out.
fn leave_page_cache(blobs: &Blobs, deltas: &[Digest]) {
    for digest in deltas {
        // Advice: a system that does not take it only keeps the pages longer.
        if let Ok(delta) = blobs.open_blocking(*digest) {
            let _ = rustix::fs::fadvise(&delta, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

/// Everything an aggregation needs to know, so that it can run beside the fold.
struct Plan {
    strategy: tributary_shared::manifest::Strategy,
    base: (Digest, Header),
    deltas: Vec<Delta>,
    next: Header,
}

struct Delta {
    site: SiteName,
    digest: Digest,
    header: Header,
    weight: u64,
}

/// The end of one aggregation.
enum Outcome {
    Adapter(Digest),
    /// One delta stands in its way, and always will.
    Unusable {
        site: SiteName,
        digest: Digest,
        reason: Unusable,
    },
}

impl Plan {
    fn new(run: &Run, aggregating: Aggregating) -> Self {
        let name = &run.manifest().name;
        let contract = run.contract();
        let delta = |((site, accepted), weight): (&(SiteName, Accepted), _)| {
            let subject = Subject::Delta {
                run: name.clone(),
                round: aggregating.round,
                site: site.clone(),
                base: aggregating.base,
                cases: accepted.cases,
            };
            let header = Header::new(subject, contract.digest(), &contract.layout);
            Delta { site: site.clone(), digest: accepted.digest, header, weight }
        };
        let weights = run.weights(&aggregating).into_iter().map(|weight| weight.used);
        let version = run.rounds_published();
        Self {
            strategy: run.manifest().strategy.clone(),
            base: (aggregating.base, adapter_header(name, version, contract)),
            deltas: aggregating.accepted.iter().zip(weights).map(delta).collect(),
            next: adapter_header(name, version + 1, contract),
        }
    }

    fn carry_out(self, blobs: &Blobs) -> Result<Outcome, DriverError> {
        let input = |digest, header: &Header, weight| {
            let bytes = blobs.reader(digest);
            aggregate::Input { header: header.clone(), digest, bytes, weight }
        };
        let (base_digest, base_header) = &self.base;
        let base = input(*base_digest, base_header, 0);
        let deltas =
            self.deltas.iter().map(|delta| input(delta.digest, &delta.header, delta.weight));
        let deltas = deltas.collect();
        let stored = blobs.put_with(|out| {
            aggregate::run(&self.strategy, base, deltas, &self.next, out).map_err(io::Error::other)
        });
        let error = match stored {
            Ok(adapter) => return Ok(Outcome::Adapter(adapter)),
            Err(error) => error.downcast::<AggregateError>(),
        };
        match error {
            Ok(error) => self.judge(error, blobs),
            Err(error) => Err(DriverError::io("aggregating")(error)),
        }
    }

    /// Finds the delta that an error comes of, if it comes of one.
    fn judge(&self, error: AggregateError, blobs: &Blobs) -> Result<Outcome, DriverError> {
        let unusable = |delta: &Delta, reason| {
            let Delta { site, digest, .. } = delta;
            Ok(Outcome::Unusable { site: site.clone(), digest: *digest, reason })
        };
        if let AggregateError::NotFinite { index, value } = error {
            let delta = self.largest_at(index, blobs)?;
            return unusable(delta, Unusable::NotFinite { index, value: value.to_string() });
        }
        let damaged = error.damaged();
        match damaged.and_then(|input| self.deltas.get(input.checked_sub(1)?)) {
            Some(delta) => unusable(delta, Unusable::Damaged),
            None if damaged == Some(0) => {
                let base = self.base.0.short();
                let what =
                    format!("aggregating over {base}, whose file in blobs/ is damaged or missing,");
                Err(DriverError::io(what)(io::Error::other(error)))
            }
            None => Err(DriverError::io("aggregating")(io::Error::other(error))),
        }
    }

    /// The delta whose value at `index` is furthest from zero; of several the first.
    fn largest_at(&self, index: u64, blobs: &Blobs) -> Result<&Delta, DriverError> {
        let mut largest: Option<(f32, &Delta)> = None;
        for delta in &self.deltas {
            let offset = delta.header.to_bytes().len() as u64 + 4 * index;
            let mut value = [0; 4];
            let mut file = open(blobs, delta.digest)?;
            file.seek(SeekFrom::Start(offset))
                .and_then(|_| file.read_exact(&mut value))
                .map_err(DriverError::io(format!("reading {}", delta.digest.short())))?;
            let size = f32::from_le_bytes(value).abs();
            if largest.is_none_or(|(most, _)| size > most) {
                largest = Some((size, delta));
            }
        }
        let none = || DriverError::io("aggregating")(io::Error::other("no delta"));
        largest.map(|(_, delta)| delta).ok_or_else(none)
    }
}

fn open(blobs: &Blobs, digest: Digest) -> Result<File, DriverError> {
    blobs.open_blocking(digest).map_err(DriverError::io(format!("opening {}", digest.short())))
}
