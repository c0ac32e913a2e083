//! Who of an open round is alive and moving. Not part of the history: a restarted coordinator
//! starts every lease afresh.

use std::collections::BTreeMap;

use tributary_shared::manifest::Rounds;
use tributary_shared::name::SiteName;
use tributary_shared::timestamp::Timestamp;

use super::event::LossCause;
use super::seat::{Seat, Seats};

/// What a heartbeat says of a site's work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// What it does, e.g. `training`.
    pub phase: String,
    /// Steps done.
    pub step: u64,
    /// Steps to do.
    pub steps: u64,
    /// Seconds left, as the site reckons.
    pub eta_s: u64,
}

/// One site's lease.
#[derive(Clone, Debug, PartialEq)]
struct Lease {
    heard: Timestamp,
    moved: Timestamp,
    progress: Progress,
}

/// The leases of one open round.
#[derive(Clone, Debug, PartialEq)]
pub struct Leases {
    since: Timestamp,
    leases: BTreeMap<SiteName, Lease>,
}

impl Leases {
    /// Fresh leases from `now`: a round was opened, or the coordinator restarted.
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, leases: BTreeMap::new() }
    }

    /// A heartbeat of `site`.
    pub fn hear(&mut self, site: &SiteName, now: Timestamp, progress: Progress) {
        let lease = self.leases.entry(site.clone()).or_insert_with(|| Lease {
            heard: now,
            moved: now,
            progress: progress.clone(),
        });
        lease.heard = now;
        if (&lease.progress.phase, lease.progress.step) != (&progress.phase, progress.step) {
            lease.moved = now;
        }
        lease.progress = progress;
    }

    /// Any other sign of life or progress of `site`: terms accepted, bytes uploaded.
    pub fn touch(&mut self, site: &SiteName, now: Timestamp) {
        let progress = Progress::default();
        let lease =
            self.leases.entry(site.clone()).or_insert(Lease { heard: now, moved: now, progress });
        lease.heard = now;
        lease.moved = now;
    }

    /// Begins every lease afresh: for a while the sites could not move, and it was not their doing.
    pub fn restart(&mut self, now: Timestamp) {
        self.since = now;
        for lease in self.leases.values_mut() {
            (lease.heard, lease.moved) = (now, now);
        }
    }

    /// A sign that `site` works on another run: it lives, and has not answered here.
    pub fn busy(&mut self, site: &SiteName, now: Timestamp) {
        let (moved, progress) = (self.since, Progress::default());
        let lease =
            self.leases.entry(site.clone()).or_insert(Lease { heard: now, moved, progress });
        lease.heard = now;
    }

    /// Whether `site` has moved within the stall timeout.
    pub fn is_moving(&self, site: &SiteName, rounds: &Rounds, now: Timestamp) -> bool {
        let moved = self.leases.get(site).map_or(self.since, |l| l.moved);
        now < moved.plus(rounds.stall_timeout())
    }

    /// The last progress heard of `site`.
    pub fn progress(&self, site: &SiteName) -> Option<&Progress> {
        self.leases.get(site).map(|lease| &lease.progress)
    }

    /// The sites whose time is up at `now`, and why.
    pub fn lapsed(
        &self,
        seats: &Seats,
        rounds: &Rounds,
        now: Timestamp,
    ) -> Vec<(SiteName, LossCause)> {
        self.limits(seats, rounds)
            .filter(|(_, limit, _)| *limit <= now)
            .map(|(site, _, cause)| (site.clone(), cause(now)))
            .collect()
    }

    /// When the next lease runs out if nothing more is heard.
    pub fn next_deadline(&self, seats: &Seats, rounds: &Rounds) -> Option<Timestamp> {
        self.limits(seats, rounds).map(|(_, limit, _)| limit).min()
    }

    /// For every site still awaited: when its time is up, and how that would be put.
    fn limits<'a>(
        &'a self,
        seats: &'a Seats,
        rounds: &'a Rounds,
    ) -> impl Iterator<Item = (&'a SiteName, Timestamp, Cause<'a>)> {
        seats.iter().filter_map(move |(site, seat)| match seat {
            // Not heard in this round: whether it is there at all is not known.
            Seat::Asked if !self.leases.contains_key(site) => {
                let since = self.since;
                let cause = move |now: Timestamp| LossCause::NoAnswer {
                    waited_s: now.since(since).as_secs(),
                };
                Some((site, since.plus(rounds.answer_timeout()), Box::new(cause) as Cause<'a>))
            }
            // Heard, and perhaps still reading its images.
            Seat::Asked => Some(self.training_limit(site, rounds)),
            Seat::Training { .. } => Some(self.training_limit(site, rounds)),
            Seat::Accepted(_)
            | Seat::Excluded { .. }
            | Seat::Refused { .. }
            | Seat::Declined { .. }
            | Seat::Lost { .. } => None,
        })
    }

    fn training_limit<'a>(
        &'a self,
        site: &'a SiteName,
        rounds: &Rounds,
    ) -> (&'a SiteName, Timestamp, Cause<'a>) {
        let lease = self.leases.get(site);
        let heard = lease.map_or(self.since, |l| l.heard);
        let moved = lease.map_or(self.since, |l| l.moved);
        let step = lease.map_or(0, |l| l.progress.step);
        let silent_at = heard.plus(rounds.lease());
        let stalled_at = moved.plus(rounds.stall_timeout());
        if silent_at <= stalled_at {
            let cause =
                move |now: Timestamp| LossCause::Silent { silent_s: now.since(heard).as_secs() };
            (site, silent_at, Box::new(cause))
        } else {
            let cause = move |now: Timestamp| LossCause::Stalled {
                stalled_s: now.since(moved).as_secs(),
                step,
            };
            (site, stalled_at, Box::new(cause))
        }
    }
}

type Cause<'a> = Box<dyn Fn(Timestamp) -> LossCause + 'a>;
