//! The room on the disks: measured against what the open runs need, asked before anything new is
//! begun, and given up to the coordinator's own commits.

use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::timestamp::Timestamp;

use super::{Driver, DriverError};
use crate::clock;
use crate::heads::Heads;
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Record, Stream};
use crate::round::{Phase, Run};
use crate::space::{Demand, Room, Space};
use crate::store::{CommitError, MemberState, StateChange, StateError};
use tributary_proto::channel::Member;

impl Driver {
    /// The disks.
    pub fn space(&self) -> &Space {
        &self.0.space
    }

    /// The room on the disks now.
    pub async fn room(&self) -> Room {
        let demand = self.demand().await;
        self.0.space.look_for(clock::now(), demand)
    }

    /// Refuses what would take room while the disk is short; `mend` says what then.
    pub fn check_room(&self, mend: &'static str) -> Result<(), DriverError> {
        let room = self.0.space.check(clock::now());
        room.map_err(|shortage| DriverError::Short { shortage, mend })
    }

    /// Refuses a run for which there is no room beside the others.
    pub(super) async fn check_room_for(&self, manifest: &RunManifest) -> Result<(), DriverError> {
        let mut demand = self.demand().await;
        let sites = manifest.cohort.as_ref().map(|cohort| cohort.sites.len());
        let sites = sites.unwrap_or_else(|| self.members().active_sites().len());
        let payload = manifest.contract().map_or(0, |c| c.layout.payload_bytes());
        demand.add(payload, sites);
        let room = self.0.space.check_for(clock::now(), demand);
        let mend = "free some on its disk, then start the run";
        room.map_err(|shortage| DriverError::Short { shortage, mend })
    }

    async fn demand(&self) -> Demand {
        let (mut demand, active) = (Demand::default(), self.members().active_sites().len());
        for run in self.runs().await {
            run.read(|run| add(&mut demand, run, active));
        }
        demand
    }

    /// Commits a run's events. They do not wait for room: on a full disk the reserve is theirs.
    pub(super) async fn commit(
        &self,
        at: Timestamp,
        stream: &Stream,
        expected_seq: u64,
        events: &[Event],
    ) -> Result<Vec<(u64, Record)>, CommitError> {
        let commit = || self.0.store.commit(at, stream, expected_seq, events);
        match commit().await {
            Err(CommitError::Store(error)) if error.is_full() && self.give_up_reserve() => {
                commit().await
            }
            ended => ended,
        }
    }

    /// Commits a member's state, as [`Self::commit`] does events.
    pub(super) async fn commit_state(
        &self,
        member: &Member,
        state: MemberState,
        event: RegistryEvent,
    ) -> Result<StateChange, StateError> {
        let commit = || self.0.store.set_member_state(clock::now(), member, state, event.clone());
        match commit().await {
            Err(StateError::Store(error)) if error.is_full() && self.give_up_reserve() => {
                commit().await
            }
            ended => ended,
        }
    }

    /// Signs the head of `size` leaves with `heads`; gives the signed note. On a full disk the room that is
    /// kept for the coordinator is given up to remember it. An error means that it could not be written.
    pub fn sign_head(&self, heads: &Heads, size: u64, root: Digest) -> Result<String, DriverError> {
        let sign =
            || heads.sign(size, root).map_err(DriverError::io("remembering the signed head"));
        match sign() {
            Err(error) if error.is_full() && self.give_up_reserve() => sign(),
            signed => signed,
        }
    }

    /// Says whether there was a reserve to give up.
    fn give_up_reserve(&self) -> bool {
        let gave = self.0.space.give_up(clock::now());
        let what = if gave { "the room kept for it is given up" } else { "no room is left for it" };
        tracing::error!("a write of the coordinator met a full disk; {what}");
        self.wake();
        gave
    }
}

/// Adds what a run that goes on needs, where `active` sites may take part.
fn add(demand: &mut Demand, run: &Run, active: usize) {
    let sites = match run.phase() {
        Phase::Ended { .. } => return,
        Phase::Collecting(collecting) => collecting.seats.len(),
        Phase::Waiting | Phase::Aggregating(_) => {
            run.manifest().cohort.as_ref().map_or(active, |cohort| cohort.sites.len())
        }
    };
    demand.add(run.contract().layout.payload_bytes(), sites);
}
