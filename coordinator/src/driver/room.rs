//! The room on the disks, measured against what the open runs need.

use super::Driver;
use crate::clock;
use crate::round::{Phase, Run};
use crate::space::{Demand, Room};

impl Driver {
    /// The room on the disks now.
    pub async fn room(&self) -> Room {
        let (mut demand, active) = (Demand::default(), self.members().active_sites().len());
        for run in self.runs().await {
            run.read(|run| add(&mut demand, run, active)).await;
        }
        self.0.space.look(clock::now(), demand)
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
