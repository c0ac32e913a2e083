//! Who may take part now: the members' standing, in memory beside the store's rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tributary_proto::channel::{Connections, Member, Peer, Role};
use tributary_shared::name::SiteName;

use crate::store::{MemberState, Store, StoreError};

/// Whether a member may take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// May.
    Active,
    /// Not until reinstated.
    Suspended,
    /// Not with this certificate, or never enrolled.
    Unknown,
}

/// Every enrolled member and the serial number of its one good certificate.
pub struct Members {
    rows: Mutex<BTreeMap<Member, (MemberState, String)>>,
    connections: Connections,
}

impl Members {
    /// Reads the store's rows.
    pub async fn load(store: &Store, connections: Connections) -> Result<Self, StoreError> {
        let members = Self { rows: Mutex::default(), connections };
        members.reload(store).await?;
        Ok(members)
    }

    /// Reads the rows again, after one was changed.
    pub async fn reload(&self, store: &Store) -> Result<(), StoreError> {
        let rows = store.members().await?;
        let rows = rows.into_iter().map(|row| (row.member, (row.state, row.serial_hex)));
        *self.lock() = rows.collect();
        Ok(())
    }

    /// Ends every connection of `member` at once.
    pub fn cut(&self, member: &Member) {
        let cut = self.connections.cut(member);
        tracing::info!(%member, connections = cut, "connections cut");
    }

    /// True when a site's program is connected.
    pub fn is_connected(&self, site: &SiteName) -> bool {
        self.connections.holds(&Member { role: Role::Site, name: site.clone() })
    }

    /// The standing of the member behind a connection.
    pub fn standing(&self, peer: &Peer) -> Standing {
        match self.lock().get(&peer.member) {
            Some((state, serial)) if *serial == peer.serial_hex => standing(*state),
            Some(_) | None => Standing::Unknown,
        }
    }

    /// The standing of a site by name.
    pub fn standing_of_site(&self, site: &SiteName) -> Standing {
        let member = Member { role: Role::Site, name: site.clone() };
        self.lock().get(&member).map_or(Standing::Unknown, |(state, _)| standing(*state))
    }

    /// The sites that a round may ask.
    pub fn active_sites(&self) -> BTreeSet<SiteName> {
        self.lock()
            .iter()
            .filter(|(member, (state, _))| {
                member.role == Role::Site && standing(*state) == Standing::Active
            })
            .map(|(member, _)| member.name.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Member, (MemberState, String)>> {
        // The map is valid after every single operation, also after a panic elsewhere.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn standing(state: MemberState) -> Standing {
    match state {
        MemberState::Active => Standing::Active,
        MemberState::Suspended => Standing::Suspended,
        MemberState::Revoked => Standing::Unknown,
    }
}
