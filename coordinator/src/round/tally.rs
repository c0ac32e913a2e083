//! Each site's part in closed rounds, counted in one way for tables and audits.

use std::collections::BTreeMap;

use tributary_shared::name::SiteName;

use super::Run;
use super::seat::Seat;

/// Outcomes of the rounds that one site was asked in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rounds in which its delta was counted.
    pub accepted: u32,
    /// Rounds in which its delta was refused, or excluded after it was counted.
    pub refused: u32,
    /// Rounds in which it was asked and nothing came. A round that was cut short counts for none.
    pub lost: u32,
    /// Rounds in which it said no.
    pub declined: u32,
    /// Its training cases, as last counted.
    pub cases: Option<u64>,
}

/// The counts of every site that was ever asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<SiteName, Counts>);

impl Tally {
    /// Adds a run's closed rounds.
    pub fn count(&mut self, run: &Run) {
        for past in run.past().values() {
            for (site, seat) in &past.seats {
                let counts = self.0.entry(site.clone()).or_default();
                match seat {
                    Seat::Accepted(accepted) => {
                        counts.accepted += 1;
                        counts.cases = Some(accepted.cases);
                    }
                    Seat::Excluded { .. } | Seat::Refused { .. } => counts.refused += 1,
                    Seat::Declined { .. } => counts.declined += 1,
                    Seat::Asked | Seat::Training { .. } | Seat::Lost { .. } => {
                        counts.lost += u32::from(past.missing.iter().any(|m| m.site == *site));
                    }
                }
            }
        }
    }

    /// The counts of `site`; zeros when it was never asked.
    pub fn of(&self, site: &SiteName) -> Counts {
        self.0.get(site).copied().unwrap_or_default()
    }

    /// Every site, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&SiteName, &Counts)> {
        self.0.iter()
    }
}
