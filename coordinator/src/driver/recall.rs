//! After a recovery: what sites' ledgers hold of the branch that was lost, so that no round is
//! trained a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tlog::recovery::Recovery;

use super::{Driver, DriverError, LiveRun};
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Stream};
use crate::round::{Command, Skip};
use crate::store::{Store, StoreError};
use crate::unbroken::to_the_end;

/// A round of which a site's ledger holds a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRound {
    /// The run.
    pub run: RunName,
    /// The round.
    pub round: u32,
    /// True when the delta was answered.
    pub answered: bool,
}

/// The recoveries of this history and what sites said since this process began.
pub(super) struct Recalled {
    recoveries: Vec<Recovery>,
    /// Held while rounds are given up, so that the runs share one bound.
    skipping: tokio::sync::Mutex<()>,
    known: Mutex<BTreeMap<SiteName, Vec<KnownRound>>>,
}

impl Recalled {
    /// Reads the statements out of the registry.
    pub(super) async fn load(store: &Store) -> Result<Self, StoreError> {
        let (skipping, known) = Default::default();
        Ok(Self { recoveries: recoveries(store).await?, skipping, known })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SiteName, Vec<KnownRound>>> {
        // The map is valid after every single operation, also after a panic elsewhere.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rounds of `run` that `active` sites hold: one that takes no part cuts no round of the others
    /// short.
    fn of(&self, run: &RunName, active: &BTreeSet<SiteName>) -> Vec<(SiteName, KnownRound)> {
        let known = self.lock();
        let sites = known.iter().filter(|(site, _)| active.contains(*site));
        let rows = sites.flat_map(|(site, rows)| rows.iter().map(move |row| (site, row)));
        rows.filter(|(_, row)| row.run == *run).map(|(s, row)| (s.clone(), row.clone())).collect()
    }
}

/// Every recovery statement of the history, in order.
pub async fn recoveries(store: &Store) -> Result<Vec<Recovery>, StoreError> {
    let records = store.records(&Stream::Registry).await?;
    Ok(records
        .into_iter()
        .filter_map(|(_, record)| match record.event {
            Event::Registry(RegistryEvent::Recovered { recovery }) => Some(*recovery),
            Event::Registry(_) | Event::Run(_) => None,
        })
        .collect())
}

impl Driver {
    /// Every recovery statement of the history, in order.
    pub fn recoveries(&self) -> &[Recovery] {
        &self.0.recalled.recoveries
    }

    /// Takes note of what a site's ledger holds, and goes on above it where a recovery explains
    /// why this history does not know it.
    pub async fn recall(&self, site: &SiteName, known: Vec<KnownRound>) -> Result<(), DriverError> {
        if self.recoveries().is_empty() {
            return Ok(());
        }
        let known = highest(known);
        let runs: BTreeSet<RunName> = known.iter().map(|row| row.run.clone()).collect();
        let before = self.0.recalled.lock().insert(site.clone(), known.clone());
        if before.is_some_and(|before| before == known) {
            return Ok(());
        }
        for name in runs {
            let Ok(run) = self.run(&name).await else { continue };
            let driver = self.clone();
            to_the_end(async move {
                run.skip_known(&driver).await?;
                run.act(&driver).await
            })
            .await??;
        }
        Ok(())
    }
}

/// Of each run the highest answered round and the highest owed one, which say it all.
fn highest(known: Vec<KnownRound>) -> Vec<KnownRound> {
    let mut highest: BTreeMap<(RunName, bool), u32> = BTreeMap::new();
    for KnownRound { run, round, answered } in known {
        let so_far = highest.entry((run, answered)).or_default();
        *so_far = round.max(*so_far);
    }
    let row = |((run, answered), round)| KnownRound { run, round, answered };
    highest.into_iter().map(row).collect()
}

impl LiveRun {
    /// Skips the rounds that sites know from a lost branch; says whether it did.
    pub(super) async fn skip_known(&self, driver: &Driver) -> Result<bool, DriverError> {
        let known = driver.0.recalled.of(self.name(), &driver.members().active_sites());
        if known.is_empty() {
            return Ok(false);
        }
        let mut skipped = false;
        let _turn = driver.0.recalled.skipping.lock().await;
        for recovery in driver.recoveries().iter().rev() {
            let digest = recovery.statement.digest();
            // Each lost leaf can have opened a round of one run only.
            let others = driver.runs().await.into_iter().filter(|run| run.name() != self.name());
            let given_up = others.map(|run| run.read(|run| run.skipped(digest)));
            let given_up = given_up.fold(0, u64::saturating_add);
            let most = recovery.statement.lost_leaves().saturating_sub(given_up);
            for (site, KnownRound { round, answered, .. }) in known.clone() {
                let skip = Skip { site, round, answered, recovery: digest, most };
                skipped |= self.apply(driver, Command::Skip(skip)).await?;
            }
        }
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before: each of a thousand equal rows was remembered and led to a look at the run.
    #[test]
    fn rows_of_one_run_are_two_at_most() {
        let row = |run: &str, round, answered| {
            let run = run.parse().unwrap();
            KnownRound { run, round, answered }
        };
        let mut known = vec![row("a", 3, true); 1000];
        known.extend([row("a", 7, true), row("a", 5, false), row("b", 1, false)]);
        let expected = [row("a", 5, false), row("a", 7, true), row("b", 1, false)];
        assert_eq!(highest(known), expected);
    }

    /// Failed before: a suspended site's word cut rounds short.
    #[test]
    fn only_what_active_sites_hold_is_told() {
        let (run, round): (RunName, u32) = ("a".parse().unwrap(), 3);
        let row = KnownRound { run: run.clone(), round, answered: true };
        let [active, suspended]: [SiteName; 2] = ["x", "y"].map(|name| name.parse().unwrap());
        let sites = [active.clone(), suspended].map(|site| (site, vec![row.clone()]));
        let (recoveries, skipping) = Default::default();
        let recalled = Recalled { recoveries, skipping, known: Mutex::new(sites.into()) };
        assert_eq!(recalled.of(&run, &[active.clone()].into()), [(active, row)]);
        assert_eq!(recalled.of(&run, &BTreeSet::new()), []);
    }
}
