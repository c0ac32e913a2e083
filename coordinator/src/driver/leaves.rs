//! Leaves that prove a run's open round: kept as they are committed, so that no site's question
//! searches the history.

use tributary_shared::digest::Digest;

use crate::round::event::RunEvent;

/// Indices in the log of a run's newest leaves of each kind that a round is proved by.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProofLeaves {
    started: u64,
    opened: Option<u64>,
    published: Option<(Digest, u64)>,
}

impl ProofLeaves {
    /// The leaves of a run whose start is leaf `started`.
    pub(super) fn new(started: u64) -> Self {
        Self { started, opened: None, published: None }
    }

    /// Takes in the run's event at leaf `leaf`.
    pub(super) fn add(&mut self, leaf: u64, event: &RunEvent) {
        if matches!(event, RunEvent::RoundOpened { .. }) {
            self.opened = Some(leaf);
        } else if let RunEvent::AdapterPublished { adapter, .. } = event {
            self.published = Some((*adapter, leaf));
        }
    }

    /// The run's start, the publication of `base` unless the run began with it, and the opening of
    /// the newest round, in the log's order. Gives `None` before the first round.
    pub(super) fn of_round(&self, base: Digest) -> Option<Vec<u64>> {
        let opened = self.opened?;
        let published = self.published.filter(|(adapter, _)| *adapter == base);
        let published = published.map(|(_, leaf)| leaf);
        Some([Some(self.started), published, Some(opened)].into_iter().flatten().collect())
    }
}
