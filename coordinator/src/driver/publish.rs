//! Making the next adapter: deltas and base from the blob store, folded in site order into a new
//! blob, then one command. A failure (a full disk) leaves the aggregate owed; the ticker tries
//! again.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::pin::Pin;

use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::initial::{adapter_header, write_initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::chain;
use tributary_shared::tensors::{Header, Subject};

use super::{Driver, DriverError};
use crate::aggregate;
use crate::blobs::Blobs;
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
    let adapter = tokio::task::spawn_blocking(move || plan.carry_out(&blobs))
        .await
        .map_err(|e| DriverError::io("aggregating")(std::io::Error::other(e)))??;
    live.command(driver, Command::Publish { round, adapter }).await
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

/// Tells the system that a delta will not be read again soon: what the page cache holds of it goes
/// to the next round's deltas, so that a week of rounds does not push everything else out.
fn leave_page_cache(delta: &File) {
    // Advice: a system that does not take it only keeps the pages longer.
    let _ = rustix::fs::fadvise(delta, 0, None, rustix::fs::Advice::DontNeed);
}

/// Everything an aggregation needs to know, so that it can run beside the fold.
struct Plan {
    strategy: tributary_shared::manifest::Strategy,
    base: (Digest, Header),
    deltas: Vec<(Digest, Header, u64)>,
    next: Header,
}

impl Plan {
    fn new(run: &Run, aggregating: Aggregating) -> Self {
        let name = &run.manifest().name;
        let contract = run.contract();
        let delta = |(site, accepted): &(_, crate::round::seat::Accepted)| {
            let subject = Subject::Delta {
                run: name.clone(),
                round: aggregating.round,
                site: Clone::clone(site),
                base: aggregating.base,
                cases: accepted.cases,
            };
            let header = Header::new(subject, contract.digest(), &contract.layout);
            (accepted.digest, header, accepted.cases)
        };
        let version = run.rounds_published();
        Self {
            strategy: run.manifest().strategy.clone(),
            base: (aggregating.base, adapter_header(name, version, contract)),
            deltas: aggregating.accepted.iter().map(delta).collect(),
            next: adapter_header(name, version + 1, contract),
        }
    }

    fn carry_out(self, blobs: &Blobs) -> Result<Digest, DriverError> {
        let open = |digest: Digest| {
            blobs
                .open_blocking(digest)
                .map_err(DriverError::io(format!("opening {}", digest.short())))
        };
        let (base, base_header) = self.base;
        let base = aggregate::Input { header: base_header, bytes: open(base)?, cases: 0 };
        let (mut deltas, mut files) = (Vec::new(), Vec::new());
        for (digest, header, cases) in self.deltas {
            let file = open(digest)?;
            files.push(file.try_clone().map_err(DriverError::io("aggregating"))?);
            deltas.push(aggregate::Input { header, bytes: file, cases });
        }
        let adapter = blobs
            .put_with(|out| {
                aggregate::run(&self.strategy, base, deltas, &self.next, out)
                    .map_err(std::io::Error::other)
            })
            .map_err(DriverError::io("aggregating"))?;
        files.iter().for_each(leave_page_cache);
        Ok(adapter)
    }
}
