//! Standing of the members, in memory beside the store's rows: the one state that every request and open connection is
//! compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tributary_proto::channel::{Connections, Member, Peer, Role};
use tributary_shared::name::SiteName;

use crate::store::{MemberRow, MemberState, Store, StoreError};

/// The standing of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may call.
    Active,
    /// Its member is suspended until reinstated.
    Suspended,
    /// It was replaced or revoked, or never issued here.
    Unknown,
}

/// Every enrolled member and the serial number of its one good certificate.
pub struct Members {
    table: Mutex<Table>,
    /// Changes of the store's rows that were announced.
    changed: AtomicU64,
    /// The last of them before the rows were read.
    read: AtomicU64,
    connections: Connections,
}

#[derive(Default)]
struct Table {
    /// Grows with every change made here, so that rows that were read before one do not undo it.
    version: u64,
    rows: BTreeMap<Member, (MemberState, String)>,
    /// States that could not be written to the store. They hold until they are written, or
    /// until this process ends.
    unwritten: BTreeMap<Member, MemberState>,
}

impl Table {
    fn row(&self, member: &Member) -> Option<(MemberState, &str)> {
        let (state, serial) = self.rows.get(member)?;
        Some((self.unwritten.get(member).copied().unwrap_or(*state), serial))
    }
}

impl Members {
    /// Reads the store's rows.
    pub async fn load(store: &Store, connections: Connections) -> Result<Self, StoreError> {
        let (table, changed, read) = Default::default();
        let members = Self { table, changed, read, connections };
        members.reload(store).await?;
        Ok(members)
    }

    /// Reads the rows again, after one was changed, and ends the connections whose certificates are no longer good.
    /// After an error, or when this is dropped, it is still owed: [`Self::is_stale`].
    pub async fn reload(&self, store: &Store) -> Result<(), StoreError> {
        self.expect_change();
        loop {
            let (change, version) = (self.changed.load(Ordering::SeqCst), self.version());
            if self.replace(version, store.members().await?) {
                self.read.fetch_max(change, Ordering::SeqCst);
                self.cut_unknown();
                return Ok(());
            }
        }
    }

    /// Notes that rows of the store may have changed and must be read again.
    pub fn expect_change(&self) {
        self.changed.fetch_add(1, Ordering::SeqCst);
    }

    /// Says whether the rows must be read again.
    pub fn is_stale(&self) -> bool {
        self.read.load(Ordering::SeqCst) < self.changed.load(Ordering::SeqCst)
    }

    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    /// Takes over rows that were read at `version`; false when there was a change since, which may not be among them.
    pub(super) fn replace(&self, version: u64, rows: Vec<MemberRow>) -> bool {
        let mut table = self.lock();
        if table.version != version {
            return false;
        }
        table.version += 1;
        let rows = rows.into_iter().map(|row| (row.member, (row.state, row.serial_hex)));
        table.rows = rows.collect();
        true
    }

    /// Takes over a state that the store has just committed, and ends the member's connections when it may no longer
    /// call.
    pub fn put(&self, member: &Member, state: MemberState) {
        let mut table = self.lock();
        table.version += 1;
        table.unwritten.remove(member);
        if let Some((known, _)) = table.rows.get_mut(member) {
            *known = state;
        }
        drop(table);
        self.cut_unless_active(member, state);
    }

    /// Takes over a state that could not be committed.
    pub fn put_unwritten(&self, member: &Member, state: MemberState) {
        self.lock().unwritten.insert(member.clone(), state);
        self.cut_unless_active(member, state);
    }

    fn cut_unless_active(&self, member: &Member, state: MemberState) {
        match state {
            MemberState::Active => {}
            MemberState::Suspended | MemberState::Revoked => {
                let cut = self.connections.cut(|peer| peer.member == *member);
                tracing::info!(%member, connections = cut, "connections cut");
            }
        }
    }

    /// Ends every connection whose certificate is not, or no longer, a member's; says how many.
    pub fn cut_unknown(&self) -> usize {
        let cut = self.connections.cut(|peer| self.standing(peer) == Standing::Unknown);
        if cut > 0 {
            tracing::info!(
                connections = cut,
                "connections of replaced or revoked certificates cut"
            );
        }
        cut
    }

    /// True when a site's program is connected.
    pub fn is_connected(&self, site: &SiteName) -> bool {
        self.connections.holds(&Member { role: Role::Site, name: site.clone() })
    }

    /// The state of a member; `None` when it never enrolled.
    pub fn state(&self, member: &Member) -> Option<MemberState> {
        self.lock().row(member).map(|(state, _)| state)
    }

    /// The standing of a connection's certificate.
    pub fn standing(&self, peer: &Peer) -> Standing {
        match self.lock().row(&peer.member) {
            Some((state, serial)) if *serial == peer.serial_hex => standing(state),
            Some(_) | None => Standing::Unknown,
        }
    }

    /// The standing of a site by name.
    pub fn standing_of_site(&self, site: &SiteName) -> Standing {
        let member = Member { role: Role::Site, name: site.clone() };
        self.state(&member).map_or(Standing::Unknown, standing)
    }

    /// The sites that a round may ask.
    pub fn active_sites(&self) -> BTreeSet<SiteName> {
        let table = self.lock();
        let sites = table.rows.keys().filter(|member| member.role == Role::Site);
        sites
            .filter(|member| table.row(member).is_some_and(|(s, _)| s == MemberState::Active))
            .map(|member| member.name.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is valid after every single operation, also after a panic elsewhere.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn standing(state: MemberState) -> Standing {
    match state {
        MemberState::Active => Standing::Active,
        MemberState::Suspended => Standing::Suspended,
        MemberState::Revoked => Standing::Unknown,
    }
}
