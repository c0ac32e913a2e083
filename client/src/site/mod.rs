//! The site's loop: ask for a round, work on it, answer, ask again; for as long as the program
//! runs, whatever the coordinator and the network do.
//!
//! Crash-only: starting after `kill -9` is the same as starting. What is owed is in the ledger and
//! the outbox, never in memory alone.

pub mod activity;
mod adapters;
pub mod addresses;
mod check;
mod deliver;
pub mod directory;
mod disclosure;
mod evidence;
mod failure;
#[cfg(test)]
mod fixture;
mod inquiry;
mod judge;
mod lease;
mod outbox;
pub mod progress;
pub mod recovery;
mod replies;
mod round;
pub mod salt;
mod session;
pub mod status;
mod terms;
pub mod trouble;
mod witness;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tributary_proto::channel::{Identity, Role};
use tributary_shared::digest::Digest;
use tributary_shared::name::SiteName;
use tributary_shared::outcome::{ExitCode, Failure, chain};
use tributary_shared::text::{REASON_CHARS_MAX, printable_start};

use self::activity::{Activity, Phase, RoundId};
use self::addresses::Addresses;
use self::directory::SiteDirectory;
use self::outbox::Outbox;
use self::progress::Display;
use self::status::Reporter;
use self::trouble::{SHARED_IDENTITY, Trouble, TroubleClass};
use self::witness::Keeper;
use self::work::Work;
use crate::clock;
use crate::config::site::SiteConfig;
use crate::data::HoldoutSalt;
use crate::ledger::{Entry, Event, Ledger, LedgerError, Standing};
use crate::transport::{Backoff, CERTIFICATE_NOT_ACCEPTED, CallError, Coordinator};

pub use replies::{AtHand, check_reply};
pub use work::source;

/// How long the coordinator holds a question for the next round.
const POLL: Duration = Duration::from_secs(20);
/// The same for the first question after a round, and after another question.
const FIRST_POLL: Duration = Duration::from_secs(1);
/// Pause after a round that ends without a delta, and after an answer to a question that the ledger
/// records. The coordinator decides how often it asks, and each costs an entry.
const ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// Empty answers, one a [`POLL`], after which images and backbone are given back.
const IDLE_POLLS: u32 = 15;
/// How long a program that was killed may take to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Why the loop was cut off.
#[derive(Debug)]
enum Halt {
    /// A call gave no answer.
    Call(CallError),
    /// The site's own machine said no; it may be mended while the program waits.
    Local(Failure),
    /// Going on would be wrong until a person has mended or explained it.
    Wrong(Failure),
}

impl From<CallError> for Halt {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<LedgerError> for Halt {
    fn from(error: LedgerError) -> Self {
        let code = if trouble::is_full(&error) { trouble::DISK_FULL } else { "ledger" };
        Self::Local(Failure::invalid(code, chain(&error)))
    }
}

/// Takes part until `shutdown`. Ends before that for a configuration that can't work alone: every
/// trouble of the coordinator and of the network is waited out.
pub async fn run(
    config: SiteConfig,
    display: Display,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let mut site = Site::open(config)?;
    // Said at once, before the first word with the coordinator.
    site.look_around();
    let mut reporter = Reporter::new(
        &site.directory,
        &site.identity,
        site.address.subscribe(),
        site.troubles.subscribe(),
    );
    reporter.write();
    let mut beside = JoinSet::new();
    beside.spawn(reporter.clone().keep(site.activity.subscribe()));
    beside.spawn(display.show(site.activity.subscribe()));
    let ended = tokio::select! {
        ended = site.serve() => ended,
        () = shutdown.cancelled() => Ok(()),
    };
    beside.shutdown().await;
    reporter.leave();
    tracing::info!("left; what is owed is in the ledger and the outbox");
    ended
}

/// One site, taking part.
struct Site {
    config: SiteConfig,
    identity: Identity,
    name: SiteName,
    directory: SiteDirectory,
    salt: HoldoutSalt,
    ledger: Ledger,
    keeper: Keeper,
    outbox: Outbox,
    activity: watch::Sender<Activity>,
    addresses: Addresses,
    /// The address in use, or the first to be tried.
    address: watch::Sender<String>,
    /// The nonce of this program's calls, for as long as it runs.
    session: String,
    /// The site's own troubles.
    troubles: watch::Sender<Vec<Trouble>>,
    /// The trouble that the last step ended with.
    passing: Option<Trouble>,
    /// This machine's clock, when it is wrong.
    clock: Option<Trouble>,
    coordinator: Option<Coordinator>,
    /// Whether the coordinator knows us since the last trouble.
    greeted: bool,
    /// The file that accepts the recovery statement that the site asks about.
    awaited: Option<PathBuf>,
    /// True once a connection was made: from then on the configuration is known to work.
    connected: bool,
    /// Images and backbone of the run that was last worked on, by its manifest.
    prepared: Option<(Digest, Arc<Work>)>,
    idle_polls: u32,
}

impl Site {
    /// Everything that needs no coordinator; a failure is one of configuration.
    fn open(config: SiteConfig) -> Result<Self, Failure> {
        let identity = Identity::load(&directory::identity_of(&config.directory))
            .map_err(|e| Failure::invalid("identity", chain(&e)))?;
        if identity.member.role != Role::Site {
            let message =
                format!("{} is no site; only a site's kit enrols a client", identity.member);
            return Err(Failure::invalid("identity", message));
        }
        let directory = SiteDirectory::open(&config.directory, LOCK_PATIENCE)?;
        let salt = salt::read_or_make(&config.directory)?;
        let damaged = |e: LedgerError| Failure::invalid("ledger", chain(&e));
        let ledger = Ledger::open(&directory.ledger()).map_err(damaged)?;
        if ledger.torn_bytes() > 0 {
            let torn = ledger.torn_bytes();
            tracing::warn!("the ledger's last line was cut off by a crash: {torn} bytes removed");
        }
        let outbox = Outbox::new(directory.outbox());
        let swept = take_stock(&ledger, &outbox).map_err(|e| {
            Failure::invalid("outbox", format!("{}: {e}", directory.outbox().display()))
        })?;
        if swept > 0 {
            tracing::info!("the outbox held {swept} unfinished or answered deltas; removed");
        }
        let keeper = Keeper::open(&directory.witness(), &identity.log_verifier_key)?;
        if let Some(threads) = config.device.threads {
            crate::model::set_threads(threads)
                .map_err(|e| Failure::invalid("device.threads", chain(&e)))?;
        }
        let addresses = Addresses::load(&config, &identity);
        let address = addresses.in_order().into_iter().next().unwrap_or_default();
        Ok(Self {
            name: identity.member.name.clone(),
            config,
            identity,
            addresses,
            address: watch::Sender::new(address),
            session: new_session()?,
            troubles: watch::Sender::new(Vec::new()),
            passing: None,
            clock: None,
            directory,
            salt,
            ledger,
            keeper,
            outbox,
            activity: watch::Sender::new(Activity::default()),
            coordinator: None,
            greeted: false,
            awaited: None,
            connected: false,
            prepared: None,
            idle_polls: 0,
        })
    }

    /// One step after the other; after trouble, a wait and the next.
    async fn serve(&mut self) -> Result<(), Failure> {
        let mut backoff = backoff();
        loop {
            let halt = match self.step().await {
                Ok(()) => {
                    self.passing = None;
                    backoff.reset();
                    continue;
                }
                Err(halt) => {
                    self.passing = trouble::of(&halt);
                    self.look_around();
                    halt
                }
            };
            let (failure, for_people) = match halt {
                Halt::Call(CallError::Fatal(failure)) if !self.connected => {
                    return Err(failure);
                }
                Halt::Call(CallError::Busy(failure)) => {
                    self.wait_for_room(&failure, &mut backoff).await;
                    continue;
                }
                // The other program may be stopped at any moment.
                Halt::Wrong(failure) if failure.code == SHARED_IDENTITY => (failure, false),
                Halt::Wrong(failure) | Halt::Call(CallError::Fatal(failure)) => (failure, true),
                Halt::Call(CallError::Rejected(failure))
                    if failure.code == CERTIFICATE_NOT_ACCEPTED =>
                {
                    self.read_identity_again();
                    (failure, true)
                }
                Halt::Call(CallError::Unreachable(failure)) => {
                    // A connection comes back by itself, but to its own address alone.
                    if self.addresses.in_order().len() > 1 {
                        self.coordinator = None;
                    }
                    (failure, false)
                }
                Halt::Local(failure) | Halt::Call(CallError::Rejected(failure)) => (failure, false),
            };
            let trouble = failure.to_string();
            self.greeted = false;
            let wait =
                if for_people { backoff.next_wait_for_people() } else { backoff.next_wait() };
            let known = self.activity.borrow().trouble == trouble;
            if known {
                tracing::debug!("{trouble}; trying again in {:.1} s", wait.as_secs_f64());
            } else {
                tracing::warn!("{trouble}; trying again in {:.1} s", wait.as_secs_f64());
            }
            self.activity.send_modify(|a| {
                let phase = if a.phase == Phase::Suspended { a.phase } else { Phase::Connecting };
                *a = Activity { phase, trouble, ..Activity::default() };
            });
            self.pause(wait).await;
        }
    }

    async fn step(&mut self) -> Result<(), Halt> {
        self.look_around();
        if !self.greeted {
            self.greet().await?;
            // Nothing leaves the building under a history that was rewritten. From here on the site
            // follows it once for each round and question, and again before a delta leaves.
            self.witness().await?;
            self.greeted = true;
        }
        if self.passing.take_if(|trouble| trouble.class.is_of_the_connection()).is_some() {
            self.look_around();
        }
        if !self.ledger.owed().is_empty() {
            self.deliver_owed().await?;
            // A coordinator that has lost the round must hear that this site will not train it.
            self.greeted = false;
            return Ok(());
        }
        self.activity.send_if_modified(|a| {
            let changed = a.phase != Phase::Waiting;
            a.rest();
            changed
        });
        // After a round the first wait is short, so that the site follows the round's end soon.
        let wait = if self.idle_polls == 0 { FIRST_POLL } else { POLL };
        let reply = self.coordinator()?.next_assignment(wait, self.trouble()).await?;
        match (reply.assignment, reply.inquiry) {
            (Some(assignment), _) => {
                self.idle_polls = 0;
                self.round(&assignment).await
            }
            (None, Some(inquiry)) => {
                self.idle_polls = 0;
                self.witness().await?;
                self.inquiry(&inquiry).await
            }
            (None, None) => {
                self.idle_polls += 1;
                if self.idle_polls >= IDLE_POLLS {
                    self.prepared = None;
                }
                self.witness().await
            }
        }
    }

    /// Says that the coordinator has no room, and waits a moment. The connection is good, and what
    /// the site does meanwhile (heartbeats of its round) goes on.
    async fn wait_for_room(&self, failure: &Failure, backoff: &mut Backoff) {
        let trouble = failure.to_string();
        let told = self.activity.send_if_modified(|a| {
            let news = a.trouble != trouble;
            a.trouble.clone_from(&trouble);
            news
        });
        if told {
            tracing::warn!("{trouble}");
        }
        tokio::time::sleep(backoff.next_wait_when_busy()).await;
    }

    /// Looks for what keeps the site from working, and says what is new.
    fn look_around(&self) {
        let mut found: Vec<Trouble> = self.passing.iter().cloned().collect();
        let standing = tokio::task::block_in_place(|| trouble::look(&self.config));
        for trouble in standing.into_iter().chain(self.clock.clone()) {
            if found.iter().all(|known| known.class != trouble.class) {
                found.push(trouble);
            }
        }
        let passing = self.passing.as_ref().map(|trouble| trouble.class);
        self.troubles.send_if_modified(|known| {
            let was = |class| known.iter().any(|trouble| trouble.class == class);
            // What ended a step has a line of its own.
            let news = found.iter().filter(|a| Some(a.class) != passing && !was(a.class));
            news.for_each(|trouble| tracing::warn!("trouble: {trouble}"));
            let changed = *known != found;
            *known = found;
            changed
        });
    }

    /// The class of the site's trouble, for the wire; empty when there is none. A call that arrives disproves a trouble
    /// of the network.
    fn trouble(&self) -> &'static str {
        let troubles = self.troubles.borrow();
        let class = troubles.iter().map(|trouble| trouble.class);
        class
            .filter(|class| *class != TroubleClass::Network)
            .map(TroubleClass::as_str)
            .next()
            .unwrap_or("")
    }

    fn coordinator(&self) -> Result<&Coordinator, Halt> {
        self.coordinator.as_ref().ok_or_else(|| {
            CallError::Unreachable(Failure::connection("not connected to the coordinator")).into()
        })
    }

    fn standing(&self, id: &RoundId) -> Option<Standing> {
        self.ledger.standing(&id.run, id.round).cloned()
    }

    /// Makes an entry of the ledger durable.
    fn record(&mut self, id: &RoundId, event: Event) -> Result<(), Halt> {
        let entry = entry(id, event);
        Ok(tokio::task::block_in_place(|| self.ledger.append(&entry))?)
    }

    /// As [`Self::record`], unless the round stands so already.
    fn record_news(&mut self, id: &RoundId, event: Event) -> Result<(), Halt> {
        let entry = entry(id, event);
        Ok(tokio::task::block_in_place(|| self.ledger.append_news(&entry))?)
    }
}

fn entry(id: &RoundId, event: Event) -> Entry {
    Entry { at: clock::now(), run: id.run.clone(), round: id.round, event }
}

/// The consortium's operator wants nothing of this site, for the reason that was given.
pub fn suspended(reason: &str) -> Failure {
    let reason = printable_start(reason, REASON_CHARS_MAX);
    let message = match reason.as_str() {
        "" => "the operator has suspended this site".to_owned(),
        reason => format!("the operator has suspended this site: {reason}"),
    };
    Failure::refused("suspended", message)
        .hint("it goes on by itself once reinstated; ask the operator of the consortium")
}

/// A nonce that tells this program from every other one with the same identity.
fn new_session() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Failure::new(ExitCode::Bug, "random", "the system gave no randomness".to_owned())
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits between tries. Without a random source the waits have no jitter.
fn backoff() -> Backoff {
    let mut seed = [0; 32];
    let _ = SystemRandom::new().fill(&mut seed);
    Backoff::new(seed)
}

/// Leaves in the outbox what the ledger says is owed, and nothing else: a half-written delta and
/// one that the ledger never took up are trained again, an answered one has no use any more.
fn take_stock(ledger: &Ledger, outbox: &Outbox) -> std::io::Result<usize> {
    let owed: Vec<_> = ledger.owed().iter().map(|(run, round)| outbox.path(run, *round)).collect();
    outbox.sweep(&owed)
}

#[cfg(test)]
mod tests {
    use tributary_shared::terms::SiteMetrics;
    use tributary_shared::timestamp::Timestamp;

    use super::*;
    use crate::durable::part_of;
    use crate::ledger::Trained;

    const DELTA: &[u8] = b"a delta";

    /// What a crash leaves after each step of a round, in the order of the steps.
    #[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
    enum Step {
        Agreed,
        HalfWritten,
        Written,
        Recorded,
        Released,
        Answered,
        Removed,
    }

    fn crashed_after(step: Step, folder: &std::path::Path) -> (Ledger, Outbox) {
        let outbox = Outbox::new(folder.join("outbox"));
        std::fs::create_dir(folder.join("outbox")).unwrap();
        let mut ledger = Ledger::open(&folder.join("ledger.jsonl")).unwrap();
        let run: tributary_shared::name::RunName = "run".parse().unwrap();
        let digest = Digest::of(DELTA);
        let trained = Trained {
            base: Digest::of(b"base"),
            digest,
            bytes: DELTA.len() as u64,
            norm: 1.0,
            cases: 7,
            metrics: SiteMetrics::default(),
        };
        let agreed = Event::Agreed { manifest: digest, base: digest, cohort_size: 1, cases: 7 };
        let events = [
            (Step::Agreed, agreed),
            (Step::Recorded, Event::Trained(trained)),
            (Step::Released, Event::Released { digest, bytes: DELTA.len() as u64 }),
            (Step::Answered, Event::Answered { digest, refusal: None }),
        ];
        for (_, event) in events.into_iter().filter(|(at, _)| *at <= step) {
            let (at, run) = (Timestamp::from_millis(0), run.clone());
            ledger.append(&Entry { at, run, round: 3, event }).unwrap();
        }
        let path = outbox.path(&run, 3);
        match step {
            Step::Agreed | Step::Removed => {}
            Step::HalfWritten => std::fs::write(part_of(&path), &DELTA[..3]).unwrap(),
            Step::Written | Step::Recorded | Step::Released | Step::Answered => {
                std::fs::write(&path, DELTA).unwrap();
            }
        }
        // The restart reads the ledger anew.
        drop(ledger);
        (Ledger::open(&folder.join("ledger.jsonl")).unwrap(), outbox)
    }

    #[test]
    fn a_restart_after_any_step_trains_sends_or_rests_as_the_ledger_says() {
        for (step, swept, trains, sends) in [
            (Step::Agreed, 0, true, false),
            (Step::HalfWritten, 1, true, false),
            (Step::Written, 1, true, false),
            (Step::Recorded, 0, false, true),
            (Step::Released, 0, false, true),
            (Step::Answered, 1, false, false),
            (Step::Removed, 0, false, false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (ledger, outbox) = crashed_after(step, folder.path());
            assert_eq!(take_stock(&ledger, &outbox).unwrap(), swept, "{step:?}");
            let run = "run".parse().unwrap();
            let standing = ledger.standing(&run, 3).unwrap();
            assert_eq!(matches!(standing, Standing::Agreed { .. }), trains, "{step:?}");
            let owed = !ledger.owed().is_empty();
            assert_eq!(owed, sends, "{step:?}");
            // Exactly what is owed is still there, byte for byte.
            let holds = outbox.holds(&run, 3, Digest::of(DELTA), DELTA.len() as u64);
            assert_eq!(holds, sends, "{step:?}");
        }
    }
}
