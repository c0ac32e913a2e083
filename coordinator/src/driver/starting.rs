//! Starting a run.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use tributary_proto::channel::Member;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;

use super::leaves::ProofLeaves;
use super::{Driver, DriverError, LiveRun, publish};
use crate::clock;
use crate::round::Run;
use crate::round::record::Event;
use crate::unbroken::to_the_end;

impl Driver {
    /// Takes a checked manifest: stores the initial adapter, then the first event, then acts.
    pub async fn start_run(&self, manifest: RunManifest, by: &Member) -> Result<(), DriverError> {
        let (driver, by) = (self.clone(), by.to_string());
        to_the_end(async move { driver.begin_run(manifest, &by).await }).await?
    }

    async fn begin_run(&self, manifest: RunManifest, by: &str) -> Result<(), DriverError> {
        let name = manifest.name.clone();
        self.check_room_for(&manifest).await?;
        let _reserved = self.reserve(&name).await?;
        let (blobs, terms) = (self.0.blobs.clone(), manifest.clone());
        let adapter = tokio::task::spawn_blocking(move || publish::initial(&blobs, &terms))
            .await
            .map_err(|e| DriverError::io("making the initial adapter")(std::io::Error::other(e)))?
            .map_err(DriverError::io("storing the initial adapter"))?;
        let event = Run::start(manifest, adapter, by);
        let at = clock::now();
        let run = Run::open(at, &event)?;
        let committed = self.0.store.start_run(at, &name, &[Event::Run(event)]).await?;
        let started = committed.first().map(|(leaf, _)| ProofLeaves::new(*leaf));
        let started = started.expect("a commit of one event gives its leaf");
        let run = Arc::new(LiveRun::new(run, started, 1, at));
        self.0.runs.write().await.insert(name, run.clone());
        run.act(self).await
    }

    /// Keeps the name of a run that is being started: an initial adapter may take long to write, and
    /// no other run waits for it.
    pub(super) async fn reserve(&self, name: &RunName) -> Result<Reserved, DriverError> {
        let runs = self.0.runs.read().await;
        if runs.contains_key(name) || !self.starting().insert(name.clone()) {
            return Err(DriverError::RunExists(name.clone()));
        }
        Ok(Reserved { driver: self.clone(), name: name.clone() })
    }

    fn starting(&self) -> MutexGuard<'_, BTreeSet<RunName>> {
        // The set is valid after every single operation, also after a panic elsewhere.
        self.0.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a run that is being started, until it is there or has failed.
pub(super) struct Reserved {
    driver: Driver,
    name: RunName,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.driver.starting().remove(&self.name);
    }
}
