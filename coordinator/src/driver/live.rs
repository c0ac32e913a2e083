//! One live run: the fold, its place in the history, and the leases of its open round.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tributary_proto::channel::{Member, Role};
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::outcome::chain;
use tributary_shared::refusal::Refusal;
use tributary_shared::timestamp::Timestamp;

use super::leaves::ProofLeaves;
use super::uploads::Tidied;
use super::{Driver, DriverError, Retention};
use crate::clock;
use crate::round::event::{LossCause, RunEvent};
use crate::round::lease::{Leases, Progress};
use crate::round::record::{Event, Stream};
use crate::round::seat::Seat;
use crate::round::{Collecting, Command, CorruptHistory, Phase, Run};
use crate::store::{MemberState, Store};
use crate::unbroken::to_the_end;

/// Longest reason kept of the coordinator's own trouble, characters.
const TROUBLE_CHARS_MAX: usize = 500;
/// Beginning of the trouble of a disk that has no room for an adapter.
const NO_ROOM: &str = "the disk has no room";
/// The beginning of the reason when a round's base is not there.
const BASE_GONE: &str = "the coordinator has lost the adapter that the round begins with,";

/// A run that this coordinator owns.
pub struct LiveRun {
    name: RunName,
    /// Held by the one command that decides, commits and folds: the next event's place in the run's
    /// stream.
    pub(super) turn: tokio::sync::Mutex<u64>,
    /// The fold; taken out only while an event is folded in. Locked for a moment only, and never
    /// while anything is written: a reader waits for no commit.
    run: RwLock<Option<Run>>,
    /// The open round's leases; where both are locked, after `run`.
    leases: Mutex<Leases>,
    /// The leaves that prove the open round; where both are locked, after `run`.
    leaves: Mutex<ProofLeaves>,
    /// The round whose aggregation is under way in this process; 0 for none.
    aggregating: AtomicU32,
    /// Reason this coordinator itself does not get on with the run; empty when it does.
    trouble: Mutex<String>,
    /// Requests so far to bring the files in line with the fold.
    pub(super) tidy_requests: AtomicU64,
    /// Outcome of the last such pass; held by the one caller that makes a pass, which serves every
    /// request made before it.
    pub(super) tidied: tokio::sync::Mutex<Option<Tidied>>,
    /// The deltas of rounds up to this one were removed by this process.
    pub(super) removed_to: AtomicU32,
    /// Held by the caller of [`Self::tick`].
    ticking: Arc<tokio::sync::Mutex<()>>,
    /// True when time stood still for the run's sites at the last tick.
    held: AtomicBool,
    /// True while the run passes over a site that was not heard; read at every call of a site.
    misses_a_site: AtomicBool,
}

/// Least time that sites have to come back once the coordinator has room again: they ask every few
/// seconds.
const GRACE_MIN: Duration = Duration::from_secs(10);

/// A run and its open round's progress, for tables.
pub struct Snapshot {
    /// The fold.
    pub run: Run,
    /// The open round's leases.
    pub leases: Leases,
    /// Reason this coordinator itself does not get on with the run; empty when it does.
    pub trouble: String,
}

impl LiveRun {
    /// A run after `seq` events.
    pub(super) fn new(run: Run, leaves: ProofLeaves, seq: u64, now: Timestamp) -> Self {
        Self {
            name: run.manifest().name.clone(),
            misses_a_site: AtomicBool::new(run.away().has_absent()),
            turn: tokio::sync::Mutex::new(seq),
            run: RwLock::new(Some(run)),
            leases: Mutex::new(Leases::new(now)),
            leaves: Mutex::new(leaves),
            aggregating: AtomicU32::new(0),
            tidy_requests: AtomicU64::new(0),
            tidied: tokio::sync::Mutex::default(),
            removed_to: AtomicU32::new(0),
            trouble: Mutex::default(),
            ticking: Arc::default(),
            held: AtomicBool::new(false),
        }
    }

    /// Folds the stored events of `name`.
    pub async fn load(store: &Store, name: &RunName) -> Result<Self, DriverError> {
        let mut folded: Option<(Run, ProofLeaves)> = None;
        let mut seq = 0;
        for (leaf, record) in store.records(&Stream::Run(name.clone())).await? {
            let Event::Run(event) = &record.event else {
                return Err(CorruptHistory(format!("leaf {leaf} is no event of a run")).into());
            };
            folded = Some(match folded {
                None => (Run::open(record.at, event)?, ProofLeaves::new(leaf)),
                Some((run, mut leaves)) => {
                    leaves.add(leaf, event);
                    (run.evolve(record.at, event)?, leaves)
                }
            });
            seq += 1;
        }
        let none = || CorruptHistory(format!("run {name} has no events"));
        let (run, leaves) = folded.ok_or_else(none)?;
        Ok(Self::new(run, leaves, seq, clock::now()))
    }

    /// The run's name.
    pub fn name(&self) -> &RunName {
        &self.name
    }

    /// Says whether the run passes over a site that was not heard.
    pub(super) fn misses_a_site(&self) -> bool {
        self.misses_a_site.load(Ordering::Relaxed)
    }

    /// Reads the fold, as the last commit left it.
    pub fn read<T>(&self, read: impl FnOnce(&Run) -> T) -> T {
        let run = self.run.read().unwrap_or_else(PoisonError::into_inner);
        read(run.as_ref().expect("a run is absent only while one event is folded in"))
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // Leases are valid after every single operation, also after a panic elsewhere.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaves(&self) -> MutexGuard<'_, ProofLeaves> {
        // The leaves are valid after every single operation, also after a panic elsewhere.
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves that prove `round`, if it is open, begins with `base` and has a seat of `site`.
    pub fn proof_leaves(&self, site: &SiteName, round: u32, base: Digest) -> Option<Vec<u64>> {
        self.read(|run| match run.phase() {
            Phase::Collecting(open)
                if open.round == round && open.base == base && open.seats.contains_key(site) =>
            {
                self.leaves().of_round(base)
            }
            Phase::Waiting | Phase::Collecting(_) | Phase::Aggregating(_) | Phase::Ended { .. } => {
                None
            }
        })
    }

    fn evolve(&self, at: Timestamp, leaf: u64, event: &RunEvent) -> Result<(), CorruptHistory> {
        let mut slot = self.run.write().unwrap_or_else(PoisonError::into_inner);
        let run = slot.take().expect("a run is absent only while one event is folded in");
        // On failure the run stays absent: an event that is committed and cannot be folded is a
        // bug, and nothing may be decided on the state before it.
        *slot = Some(run.evolve(at, event)?);
        self.leaves().add(leaf, event);
        Ok(())
    }

    /// A copy for tables.
    pub fn snapshot(&self) -> Snapshot {
        let (run, leases) = self.read(|run| (run.clone(), self.leases().clone()));
        Snapshot { run, leases, trouble: self.trouble() }
    }

    /// A heartbeat; not part of the history. Says whether the site's work moves.
    pub fn hear(&self, site: &SiteName, now: Timestamp, progress: Progress) -> bool {
        self.read(|run| {
            let mut leases = self.leases();
            leases.hear(site, now, progress);
            leases.is_moving(site, &run.manifest().rounds, now)
        })
    }

    /// A heartbeat of a site in another run: it lives, and is busy there.
    pub fn busy_elsewhere(&self, site: &SiteName, now: Timestamp) {
        let is_asked = |run: &Run| match run.phase() {
            Phase::Collecting(collecting) => {
                matches!(collecting.seats.get(site), Some(Seat::Asked))
            }
            Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => false,
        };
        if self.read(is_asked) {
            self.leases().busy(site, now);
        }
    }

    /// Another sign that a site moves: terms accepted, bytes durable.
    pub fn touch(&self, site: &SiteName, now: Timestamp) {
        self.leases().touch(site, now);
    }

    /// decide -> commit -> evolve -> act, to the end even when whoever asked is gone: a commit
    /// that is not folded in would make the next one look like another coordinator's.
    pub async fn command(
        self: &Arc<Self>,
        driver: &Driver,
        command: Command,
    ) -> Result<(), DriverError> {
        // What is refused or is so already waits for no other command.
        if self.decide(driver, clock::now(), command.clone())?.is_empty() {
            return Ok(());
        }
        let (live, driver) = (self.clone(), driver.clone());
        to_the_end(async move {
            // Agreed terms change no file and no phase.
            let only_agrees = matches!(command, Command::AcceptTerms { .. });
            if live.apply(&driver, command).await? && !only_agrees {
                live.act(&driver).await?;
            }
            Ok(())
        })
        .await?
    }

    /// The events that `command` leads to now.
    fn decide(
        &self,
        driver: &Driver,
        now: Timestamp,
        command: Command,
    ) -> Result<Vec<RunEvent>, Refusal> {
        self.read(|run| {
            // A deadline that passes while the coordinator is short of room closes nothing.
            let moment = match run.next_deadline() {
                Some(deadline) if deadline <= now && holds(driver, run, now) => {
                    Timestamp::from_millis(deadline.as_millis() - 1)
                }
                Some(_) | None => now,
            };
            run.decide(moment, command)
        })
    }

    /// decide -> commit -> evolve; says whether anything happened.
    pub(super) async fn apply(
        &self,
        driver: &Driver,
        command: Command,
    ) -> Result<bool, DriverError> {
        let mut seq = self.turn.lock().await;
        let now = clock::now();
        let events = self.decide(driver, now, command)?;
        if events.is_empty() {
            return Ok(false);
        }
        let stream = Stream::Run(self.name.clone());
        let records: Vec<Event> = events.iter().cloned().map(Event::Run).collect();
        let committed = match driver.commit(now, &stream, *seq, &records).await {
            Ok(committed) => committed,
            Err(error) => {
                let error = DriverError::from(error);
                if matches!(error, DriverError::Superseded) {
                    driver.0.superseded.store(true, Ordering::SeqCst);
                    driver.0.stop.cancel();
                }
                return Err(error);
            }
        };
        for (event, (leaf, _)) in events.iter().zip(committed) {
            tracing::info!(run = %self.name, event = %describe(event), "committed");
            if let Err(error) = self.evolve(now, leaf, event) {
                // The run cannot be read any more, and a restart says which leaf is to blame.
                tracing::error!(run = %self.name, leaf, error = %chain(&error), "an event does not follow");
                driver.0.stop.cancel();
                return Err(error.into());
            }
            *seq += 1;
            if matches!(event, RunEvent::AdapterPublished { .. } | RunEvent::RunEnded { .. }) {
                self.set_trouble("");
            }
            if matches!(event, RunEvent::RoundOpened { .. }) {
                *self.leases() = Leases::new(now);
            }
            // It was heard, or it answered: in an open round it is asked from now on.
            if let RunEvent::SiteAvailable { site } = event {
                self.leases().touch(site, now);
            }
        }
        let misses = self.read(|run| run.away().has_absent());
        self.misses_a_site.store(misses, Ordering::Relaxed);
        driver.wake();
        Ok(true)
    }

    /// Does what the run's phase still owes. The same function after a restart as after a
    /// command; owing nothing, it does nothing.
    pub async fn act(&self, driver: &Driver) -> Result<(), DriverError> {
        loop {
            if let Retention::Last(keep) = driver.0.keeping.retention {
                let remove = Command::Remove { keep: keep.get() };
                if !self.decide(driver, clock::now(), remove.clone())?.is_empty() {
                    self.apply(driver, remove).await?;
                }
            }
            let tidied = self.tidy(driver).await;
            if let Err(error) = &tidied {
                tracing::error!(run = %self.name, error = %chain(error), "tidying failed");
            }
            let phase = self.read(|run| run.phase().clone());
            match phase {
                // The ticker looks again.
                Phase::Waiting if driver.space().check(clock::now()).is_err() => return Ok(()),
                Phase::Waiting => {
                    self.skip_known(driver).await?;
                    let active = driver.members().active_sites();
                    if !self.apply(driver, Command::Open { active }).await? {
                        return Ok(());
                    }
                }
                Phase::Aggregating(aggregating) => {
                    match tidied {
                        Ok(Phase::Aggregating(then)) if then.round == aggregating.round => {}
                        // The last delta was counted meanwhile, and may not be a blob yet.
                        Ok(_) => continue,
                        // The ticker tries again.
                        Err(error) => {
                            self.set_trouble(&chain(&error));
                            return Ok(());
                        }
                    }
                    let bytes = self.read(|run| run.contract().layout.payload_bytes());
                    if !driver.space().fits(bytes) {
                        self.set_trouble(&format!(
                            "{NO_ROOM} for the next adapter of {bytes} bytes; free some, and the run goes on"
                        ));
                        return Ok(());
                    }
                    if self.trouble().starts_with(NO_ROOM) {
                        self.set_trouble("");
                    }
                    // One aggregation a round in this process; its end comes back as a command.
                    let round = aggregating.round;
                    if self.aggregating.swap(round, Ordering::SeqCst) != round {
                        let (driver, name) = (driver.clone(), self.name.clone());
                        tokio::spawn(super::publish::publish(driver, name, aggregating));
                    }
                    return Ok(());
                }
                Phase::Collecting(open) => {
                    // A site that was suspended while the round was being opened was in no open round then.
                    let Some((site, cause)) = withdrawn(driver, &open) else { return Ok(()) };
                    let lost = Command::Lose { site, round: Some(open.round), cause };
                    if !self.apply(driver, lost).await? {
                        return Ok(());
                    }
                }
                Phase::Ended { .. } => return Ok(()),
            }
        }
    }

    /// Lets the next [`Self::act`] try the aggregation again, and keeps why it failed.
    pub(super) fn aggregation_failed(&self, reason: &str) {
        self.set_trouble(reason);
        self.aggregation_ended();
    }

    /// Lets the next [`Self::act`] begin an aggregation of the same round.
    pub(super) fn aggregation_ended(&self) {
        self.aggregating.store(0, Ordering::SeqCst);
    }

    /// Reason this coordinator itself does not get on with the run; empty when it does.
    pub fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, reason: &str) {
        let reason: String = reason.chars().take(TROUBLE_CHARS_MAX).collect();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Says whether the coordinator lacks the adapter that the open round began with: then no site
    /// can work, and none is to blame.
    fn lacks_base(&self, driver: &Driver) -> bool {
        let base = self.read(|run| match run.phase() {
            Phase::Collecting(collecting) => Some(collecting.base),
            Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => None,
        });
        let Some(base) = base else { return false };
        if driver.blobs().exists(base) {
            if self.trouble().starts_with(BASE_GONE) {
                self.set_trouble("");
                // Leases of the waiting sites restart now.
                *self.leases() = Leases::new(clock::now());
            }
            return false;
        }
        let reason = format!("{BASE_GONE} {}; restore blobs/", base.short());
        if self.trouble() != reason {
            tracing::error!(run = %self.name, "{reason}");
            self.set_trouble(&reason);
        }
        true
    }

    /// The right to [`Self::tick`], until dropped; `None` while another caller has it.
    pub(super) fn begin_tick(&self) -> Option<OwnedMutexGuard<()>> {
        self.ticking.clone().try_lock_owned().ok()
    }

    /// Says whether the run has ended and its files are in line with that: nothing is left to do.
    pub(super) fn is_settled(&self) -> bool {
        let is_ended = |phase: &Phase| matches!(phase, Phase::Ended { .. });
        let tidied = self.tidied.try_lock();
        let tidied =
            tidied.is_ok_and(|done| done.as_ref().is_some_and(|done| is_ended(&done.phase)));
        tidied && self.read(|run| is_ended(run.phase()))
    }

    /// Says whether [`Self::tick`] is under way.
    pub(super) fn is_ticking(&self) -> bool {
        self.ticking.try_lock().is_err()
    }

    /// Loses the sites whose leases have run out, closes what is due.
    pub(super) async fn tick(self: &Arc<Self>, driver: &Driver) -> Result<(), DriverError> {
        if self.lacks_base(driver) {
            return Ok(());
        }
        let now = clock::now();
        let (held, round, lapsed) = self.read(|run| {
            let held = holds(driver, run, now);
            let mut leases = self.leases();
            if self.held.swap(held, Ordering::SeqCst) && !held {
                leases.restart(now);
            }
            let lapsed = match run.phase() {
                Phase::Collecting(collecting) => {
                    leases.lapsed(&collecting.seats, &run.manifest().rounds, now)
                }
                Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => Vec::new(),
            };
            (held, run.round(), lapsed)
        });
        if held {
            return self.act(driver).await;
        }
        for (site, cause) in lapsed {
            // A call may have closed the round and opened the next by now.
            self.command(driver, Command::Lose { site, round: Some(round), cause }).await?;
        }
        if self.read(Run::next_deadline).is_some_and(|deadline| deadline <= now) {
            self.command(driver, Command::Tick).await?;
        }
        // A run may wait for a member, or for an aggregation that failed on a full disk.
        self.act(driver).await
    }

    /// The time at which [`Self::tick`] has something to do, if no call comes before.
    pub(super) fn next_deadline(&self, driver: &Driver) -> Option<Timestamp> {
        if self.trouble().starts_with(BASE_GONE) {
            return None;
        }
        self.read(|run| {
            let collecting = match run.phase() {
                Phase::Collecting(collecting) => collecting,
                // A pause that has passed lets the run wait for sites, which no time brings.
                Phase::Waiting => return run.next_deadline().filter(|end| *end > clock::now()),
                Phase::Aggregating(_) | Phase::Ended { .. } => return None,
            };
            if holds(driver, run, clock::now()) {
                return None;
            }
            let lease = self.leases().next_deadline(&collecting.seats, &run.manifest().rounds);
            run.next_deadline().into_iter().chain(lease).min()
        })
    }
}

/// True when time stands still for a run's sites: the coordinator itself is short of room, or was
/// so a moment ago. It blames itself and not them.
fn holds(driver: &Driver, run: &Run, now: Timestamp) -> bool {
    driver.space().is_or_was_short(now, run.manifest().rounds.lease().max(GRACE_MIN))
}

/// A site of the open round that is suspended or revoked and still awaited.
fn withdrawn(driver: &Driver, open: &Collecting) -> Option<(SiteName, LossCause)> {
    let awaited = open.seats.iter().filter(|(_, seat)| !seat.is_final() && !seat.is_withdrawn());
    awaited.map(|(site, _)| site).find_map(|site| {
        let member = Member { role: Role::Site, name: site.clone() };
        let cause = match driver.members().state(&member)? {
            MemberState::Active => return None,
            MemberState::Suspended => LossCause::Suspended,
            MemberState::Revoked => LossCause::Revoked,
        };
        Some((site.clone(), cause))
    })
}

/// One line for the operational log; the whole event is in the history.
fn describe(event: &RunEvent) -> String {
    match event {
        RunEvent::RunStarted { manifest_digest, .. } => {
            format!("run started, manifest {}", manifest_digest.short())
        }
        RunEvent::RoundOpened { round, cohort, passed_over, .. } => match passed_over.len() {
            0 => format!("round {round} opened to {} sites", cohort.len()),
            away => format!("round {round} opened to {} sites, {away} passed over", cohort.len()),
        },
        RunEvent::SiteAvailable { site } => format!("{site} may be asked again"),
        RunEvent::RefusalChanged { site, reason } => format!("{site} still refuses: {reason}"),
        RunEvent::RoundWithdrawn { round, reasons } => {
            let all = reasons.len();
            format!("round {round} withdrawn: all {all} sites refuse for now or are absent")
        }
        RunEvent::RunResumed { by, reason } => format!("resumed by {by}: {reason}"),
        RunEvent::TermsAccepted { round, site, cases } => {
            format!("round {round}: {site} accepted the terms with {cases} cases")
        }
        RunEvent::Declined { round, site, reason } => {
            format!("round {round}: {site} declined: {reason}")
        }
        RunEvent::SiteLost { round, site, cause } => format!("round {round}: {site} lost: {cause}"),
        RunEvent::SiteReturned { round, site } => format!("round {round}: {site} returned"),
        RunEvent::DeltaRefused { round, site, reason, .. } => {
            format!("round {round}: delta of {site} refused: {reason}")
        }
        RunEvent::DeltaAccepted { round, site, digest, cases, .. } => {
            format!("round {round}: delta {} of {site} accepted, {cases} cases", digest.short())
        }
        RunEvent::RoundClosed { round, quorum_met, missing } => {
            let word = if *quorum_met { "closed" } else { "closed below quorum" };
            format!("round {round} {word}, {} sites missing", missing.len())
        }
        RunEvent::DeltaExcluded { round, site, digest, reason, .. } => {
            format!("round {round}: delta {} of {site} excluded: {reason}", digest.short())
        }
        RunEvent::AdapterPublished { round, version, adapter, .. } => {
            format!("round {round}: adapter version {version} is {}", adapter.short())
        }
        RunEvent::DeltasRemoved { to } => format!("deltas of the rounds up to {to} are removed"),
        RunEvent::RoundsSkipped { to, site, .. } => {
            format!("rounds up to {to} skipped: {site} knows them from before the recovery")
        }
        RunEvent::RunEnded { state, detail } => format!("run ended: {} {detail}", state.as_str()),
    }
}
