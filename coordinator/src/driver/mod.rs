//! The shell that owns live runs. Its whole contract with the pure core, in `live`:
//! decide -> commit -> evolve -> act, and on start the same from the stored events.

mod absence;
pub mod checks;
pub mod inquiries;
mod leaves;
mod live;
mod members;
pub mod presence;
mod publish;
mod recall;
mod room;
mod starting;
mod submission;
#[cfg(test)]
mod tests;
mod ticker;
mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;
use tributary_proto::channel::{Connections, Member, Role};
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::outcome::chain;
use tributary_shared::refusal::Refusal;
use tributary_shared::terms::Terms;
use tributary_shared::timestamp::Timestamp;

use inquiries::{Inquiries, Pace, Pending, Question, TooManyQuestions};
pub use live::{LiveRun, Snapshot};
pub use members::{Members, Standing};
pub use recall::{KnownRound, recoveries};
pub use submission::Expected;
pub use uploads::{NO_UPLOAD, Upload};

use self::recall::Recalled;
use crate::blobs::Blobs;
use crate::clock;
use crate::round::event::{LossCause, RegistryEvent};
use crate::round::lease::Progress;
use crate::round::{Command, CorruptHistory, Run};
use crate::space::{Shortage, Space};
use crate::store::{CommitError, MemberState, StartError, StateError, Store, StoreError};
use crate::unbroken::{Interrupted, to_the_end};

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// An expected no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such run.
    #[error("there is no run `{0}`")]
    UnknownRun(RunName),
    /// There is such a run already.
    #[error("there is a run `{0}` already; give the manifest another name")]
    RunExists(RunName),
    /// No member of that name is enrolled.
    #[error("no member `{0}` is enrolled")]
    UnknownMember(Member),
    /// Its certificate is dead for good.
    #[error("{0} is revoked for good; invite it anew")]
    RevokedMember(Member),
    /// A delta was submitted that has not arrived whole.
    #[error("delta {0} has not arrived whole; upload it again")]
    NotUploaded(Digest),
    /// Another coordinator works on the same store; this one must stop.
    #[error("another coordinator has written to the same database")]
    Superseded,
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// The stored history is impossible.
    #[error(transparent)]
    Corrupt(#[from] CorruptHistory),
    /// The disk is short of room.
    #[error("{shortage}; {mend}")]
    Short {
        /// Size of the shortage.
        shortage: Shortage,
        /// Consequence of the shortage, as words for the message.
        mend: &'static str,
    },
    /// A member is out, and the history could not say so.
    #[error(
        "{member} is cut off now and counts as {state} until this coordinator stops, but the history does not say so: {}; mend that and say it again",
        unwritten(.source)
    )]
    Unwritten {
        /// The member.
        member: Member,
        /// Its state from now on.
        state: &'static str,
        /// Error of the store.
        source: StoreError,
    },
    /// A site has too much in the spool.
    #[error(
        "this site has sent {held} bytes for other runs that are not counted yet, and {most} are \
         allowed; it sends this delta when those are settled"
    )]
    Quota {
        /// Bytes of its other deltas.
        held: u64,
        /// Bytes of all of them that are allowed.
        most: u64,
    },
    /// The process is shutting down.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A file could not be read or written.
    #[error("{what} failed")]
    Io {
        /// The operation.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<StartError> for DriverError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::RunExists(name) => Self::RunExists(name),
            StartError::Store(error) => Self::Store(error),
        }
    }
}

impl From<StateError> for DriverError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Unknown(member) => Self::UnknownMember(member),
            StateError::Revoked(member) => Self::RevokedMember(member),
            StateError::Store(error) => Self::Store(error),
        }
    }
}

impl From<CommitError> for DriverError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Stale { .. } => Self::Superseded,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

/// The reason for which a member's state was not written, in words.
fn unwritten(error: &StoreError) -> String {
    if error.is_full() { "the coordinator's disk is full".to_owned() } else { chain(error) }
}

impl DriverError {
    /// True when there was no room on the disk.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Self::Short { .. } => true,
            Self::Store(error) | Self::Unwritten { source: error, .. } => error.is_full(),
            Self::Io { source, .. } => {
                [StorageFull, QuotaExceeded, FileTooLarge].contains(&source.kind())
            }
            Self::Refused(_)
            | Self::UnknownRun(_)
            | Self::RunExists(_)
            | Self::UnknownMember(_)
            | Self::RevokedMember(_)
            | Self::NotUploaded(_)
            | Self::Superseded
            | Self::Quota { .. }
            | Self::Corrupt(_)
            | Self::Interrupted(_) => false,
        }
    }

    /// Wraps a file system error of the operation `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The deltas that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// Of those that were counted.
    pub retention: Retention,
    /// Most bytes that one site's deltas may have, over all runs, before they are counted.
    pub unsettled_bytes_max: u64,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { retention: Retention::All, unsettled_bytes_max: 8 << 30 }
    }
}

/// The counted deltas that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// All of them.
    All,
    /// Those of each run's newest closed rounds.
    Last(NonZeroU32),
}

/// Owns every live run. Cheap to clone.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

struct Inner {
    store: Store,
    blobs: Blobs,
    members: Members,
    space: Space,
    started: Timestamp,
    runs: RwLock<BTreeMap<RunName, Arc<LiveRun>>>,
    /// Names of runs whose initial adapter is being written.
    starting: Mutex<BTreeSet<RunName>>,
    uploads: uploads::Uploads,
    presence: presence::Presence,
    inquiries: Inquiries,
    /// Rounds that sites hold from a lost branch of the history, and the statements that explain it.
    recalled: Recalled,
    pace: Pace,
    keeping: Keeping,
    /// Bumped whenever somebody waiting (a site, the ticker) should look again.
    changed: watch::Sender<u64>,
    /// Set when this coordinator must not go on.
    stop: CancellationToken,
    /// True once another coordinator's writes were seen.
    superseded: AtomicBool,
}

impl Driver {
    /// Loads and folds every run, and does what each still owes: recovery is the live path.
    /// `stop` ends the background work, and is set by the driver itself when it must not go on.
    pub async fn start(
        store: Store,
        blobs: Blobs,
        connections: Connections,
        space: Space,
        (pace, keeping): (Pace, Keeping),
        stop: CancellationToken,
    ) -> Result<Self, DriverError> {
        let members = Members::load(&store, connections).await?;
        let recalled = Recalled::load(&store).await?;
        let driver = Self(Arc::new(Inner {
            store,
            blobs,
            members,
            space,
            pace,
            keeping,
            started: clock::now(),
            superseded: AtomicBool::new(false),
            runs: RwLock::default(),
            starting: Mutex::default(),
            uploads: uploads::Uploads::default(),
            presence: presence::Presence::default(),
            inquiries: Inquiries::new(format!("{:x}", clock::now().as_millis())),
            recalled,
            changed: watch::Sender::new(0),
            stop,
        }));
        for name in driver.0.store.run_names().await? {
            let run = LiveRun::load(&driver.0.store, &name).await?;
            driver.0.runs.write().await.insert(name, Arc::new(run));
        }
        driver.remove_strange_parts().await?;
        for run in driver.runs().await {
            run.act(&driver).await?;
        }
        tokio::spawn(ticker::tick(driver.clone()));
        Ok(driver)
    }

    /// The store, for readers.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The blobs, for readers.
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// Who may take part.
    pub fn members(&self) -> &Members {
        &self.0.members
    }

    /// Last report of each site about itself.
    pub fn presence(&self) -> &presence::Presence {
        &self.0.presence
    }

    /// Uploads under way.
    pub fn uploads(&self) -> &uploads::Uploads {
        &self.0.uploads
    }

    /// When this process began.
    pub fn started(&self) -> Timestamp {
        self.0.started
    }

    /// Asks `site` whether it would take part now; its next call for an assignment brings the
    /// question. Nothing of it is history.
    pub fn inquire(
        &self,
        site: &SiteName,
        question: Question,
    ) -> Result<Pending, TooManyQuestions> {
        let pending = self.0.inquiries.ask(site, question)?;
        self.wake();
        Ok(pending)
    }

    /// Changes whenever a waiting site should look again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Set when the coordinator stops; long waits and streams end with it.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Says whether the driver stopped because another coordinator writes to its database.
    pub fn is_superseded(&self) -> bool {
        self.0.superseded.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.0.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Every run, by name.
    pub async fn runs(&self) -> Vec<Arc<LiveRun>> {
        self.0.runs.read().await.values().cloned().collect()
    }

    /// One run.
    pub async fn run(&self, name: &RunName) -> Result<Arc<LiveRun>, DriverError> {
        let runs = self.0.runs.read().await;
        runs.get(name).cloned().ok_or_else(|| DriverError::UnknownRun(name.clone()))
    }

    /// What `site` should work on now; `busy` names a round it already works on.
    pub async fn assignment(
        &self,
        site: &SiteName,
        busy: Option<(&str, u32)>,
    ) -> Option<(Terms, RunManifest)> {
        for run in self.runs().await {
            let found = run.read(|run| run.assignment(site).map(|t| (t, run.manifest().clone())));
            if let Some((terms, manifest)) = found
                && busy != Some((terms.run.as_str(), terms.round))
            {
                return Some((terms, manifest));
            }
        }
        None
    }

    /// A site's heartbeat. Gives the reason to stop working on the round, if there is one.
    pub async fn heartbeat(
        &self,
        site: &SiteName,
        run: &RunName,
        round: u32,
        progress: Progress,
    ) -> Result<Option<String>, DriverError> {
        let now = clock::now();
        self.busy(site, run, now).await;
        let live = self.run(run).await?;
        let moving = live.hear(site, now, progress);
        live.command(self, Command::Hear { site: site.clone(), moving }).await?;
        let stop = |run: &Run| match run.expected_delta(site, round, 0) {
            Ok(_) | Err(Refusal::Wrong { .. }) => run
                .seat(site, round)
                .filter(|seat| seat.is_final())
                .map(|seat| format!("this round has settled this site as {}", seat.as_str())),
            Err(refusal) => Some(refusal.to_string()),
        };
        let suspended = self.members().standing_of_site(site) == Standing::Suspended;
        let reason = live.read(stop);
        Ok(reason.or_else(|| suspended.then(|| Refusal::Suspended.to_string())))
    }

    /// Takes a site out of every open round, after its standing changed.
    async fn withdraw(&self, site: &SiteName, cause: LossCause) -> Result<(), DriverError> {
        let mut ended = Ok(());
        for run in self.runs().await {
            let (site, cause) = (site.clone(), cause.clone());
            let command = Command::Lose { site, round: None, cause };
            // One run's trouble keeps the site in no other run.
            ended = ended.and(run.command(self, command).await);
        }
        ended
    }

    /// Suspends, reinstates or revokes a member. One that may no longer call is cut off at once, and a site is lost to
    /// every open round. Where the state cannot be written, it is cut off all the same, until this process ends.
    pub async fn set_member_state(
        &self,
        member: &Member,
        state: MemberState,
        event: RegistryEvent,
    ) -> Result<(), DriverError> {
        let (driver, member) = (self.clone(), member.clone());
        to_the_end(async move {
            match driver.commit_state(&member, state, event).await {
                Ok(_) => {}
                Err(StateError::Store(source)) if state != MemberState::Active => {
                    driver.0.members.put_unwritten(&member, state);
                    return Err(DriverError::Unwritten { member, state: state.as_str(), source });
                }
                Err(error) => return Err(error.into()),
            }
            // First of all: whatever else cannot be done now, the member is out.
            driver.0.members.put(&member, state);
            let cause = match state {
                MemberState::Active => return driver.members_changed().await,
                MemberState::Suspended => LossCause::Suspended,
                MemberState::Revoked => LossCause::Revoked,
            };
            let withdrawn = match member.role {
                Role::Site => driver.withdraw(&member.name, cause).await,
                Role::Operator | Role::Auditor => Ok(()),
            };
            driver.members_changed().await?;
            withdrawn
        })
        .await?
    }

    /// Reads the members again and lets waiting runs look for new ones.
    pub async fn members_changed(&self) -> Result<(), DriverError> {
        self.0.members.reload(&self.0.store).await?;
        for run in self.runs().await {
            run.act(self).await?;
        }
        Ok(())
    }
}
