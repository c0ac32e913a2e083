//! Places for the connections of members and of strangers, and the choice of the one that goes when
//! there are too few. Pure; the shell in `connections` closes what this names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::member::Member;

/// Descriptors that connections leave to the database, the spool, files being read, and the log.
const RESERVE: u64 = 160;
/// Fewest connections that are worth serving with.
const CONNECTIONS_MIN: u64 = 96;
/// Places that members cannot take from strangers: every member begins as one.
const STRANGERS_MIN: usize = 64;
/// Most strangers: a handshake costs some tens of kilobytes of memory.
const STRANGERS_MAX: usize = 2048;

/// Numbers of connections that a server holds, by holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one member; the oldest makes room.
    pub per_member: usize,
    /// Without a certificate, after the handshake.
    pub anonymous: usize,
    /// Of these from one address; the oldest makes room.
    pub anonymous_per_address: usize,
}

impl Limits {
    /// Limits of a process that can have `descriptors` files open; `None` when that is too little to
    /// serve with.
    pub fn of_descriptors(descriptors: u64) -> Option<Self> {
        let connections = descriptors.saturating_sub(RESERVE);
        if connections < CONNECTIONS_MIN {
            return None;
        }
        // More than a machine has ports for one address; a limit may say "unlimited".
        let connections = usize::try_from(connections.min(1 << 16)).unwrap_or(1 << 16);
        Some(Self { connections, per_member: 8, anonymous: 64, anonymous_per_address: 16 })
    }

    /// Fewest descriptors to serve with.
    pub const DESCRIPTORS_MIN: u64 = RESERVE + CONNECTIONS_MIN;
}

impl Default for Limits {
    /// Those of a process with 4,096 descriptors.
    fn default() -> Self {
        Self::of_descriptors(4096).expect("4,096 descriptors are enough to serve with")
    }
}

/// Origin of a stranger: an IPv4 address, or the 64 bits of an IPv6 address that name its
/// network; its owner has all the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(IpAddr);

impl Origin {
    /// The origin of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            v4 @ IpAddr::V4(_) => Self(v4),
            IpAddr::V6(v6) => {
                Self(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))))
            }
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

/// Progress of a stranger; the first of these loses its place first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Accepted, and has sent nothing.
    Silent,
    /// In its TLS handshake.
    Handshake,
    /// After it, without a certificate: it may enrol.
    Anonymous,
}

const STAGES: [Stage; 3] = [Stage::Silent, Stage::Handshake, Stage::Anonymous];

/// Holder of a place.
#[derive(Clone, Debug)]
enum Holder {
    Stranger(Origin, Stage),
    Member(Member),
}

/// The places of one server. Connections are numbers that grow with time.
#[derive(Debug)]
pub(super) struct Door {
    limits: Limits,
    holders: BTreeMap<u64, Holder>,
    strangers: BTreeMap<Origin, [BTreeSet<u64>; 3]>,
    members: BTreeMap<Member, BTreeSet<u64>>,
}

/// Answer to a connection that asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is room.
    Stay,
    /// This one goes for it; its place is free already.
    Displace(u64),
    /// It must go itself.
    Refuse,
}

impl Door {
    pub(super) fn new(limits: Limits) -> Self {
        let (holders, strangers, members) = Default::default();
        Self { limits, holders, strangers, members }
    }

    /// A connection was accepted from `origin`.
    pub(super) fn accepted(&mut self, id: u64, origin: Origin) -> Verdict {
        let of_members = self.holders.len() - self.strangers_held(&STAGES);
        let most = self.limits.connections.saturating_sub(of_members).min(STRANGERS_MAX);
        let full = self.strangers_held(&STAGES) >= most;
        let displaced = if full { self.of_the_greediest(&STAGES) } else { None };
        self.take(id, Holder::Stranger(origin, Stage::Silent), displaced)
    }

    /// A stranger sent its first byte.
    pub(super) fn spoke(&mut self, id: u64) {
        if let Some(Holder::Stranger(origin, _)) = self.remove(id) {
            self.put(id, Holder::Stranger(origin, Stage::Handshake));
        }
    }

    /// A stranger has no certificate.
    pub(super) fn anonymous(&mut self, id: u64) -> Verdict {
        let Some(Holder::Stranger(origin, _)) = self.remove(id) else { return Verdict::Refuse };
        let here = self.strangers.get(&origin).map(|stages| &stages[Stage::Anonymous as usize]);
        let crowded = here.filter(|ids| ids.len() >= self.limits.anonymous_per_address);
        let displaced = match crowded {
            Some(ids) => ids.first().copied(),
            None if self.strangers_held(&[Stage::Anonymous]) >= self.limits.anonymous => {
                self.of_the_greediest(&[Stage::Anonymous])
            }
            None => None,
        };
        self.take(id, Holder::Stranger(origin, Stage::Anonymous), displaced)
    }

    /// A stranger proved to be `member`.
    pub(super) fn member(&mut self, id: u64, member: Member) -> Verdict {
        if self.remove(id).is_none() {
            return Verdict::Refuse;
        }
        let most = self.limits.connections.saturating_sub(STRANGERS_MIN);
        let held = self.holders.len() - self.strangers_held(&STAGES);
        let of_member = self.members.get(&member);
        let displaced = if of_member.is_some_and(|ids| ids.len() >= self.limits.per_member) {
            of_member.and_then(BTreeSet::first).copied()
        } else if held >= most {
            // Only one that has several loses one: a place is not passed round among equals.
            let greediest = self.members.values().max_by_key(|ids| ids.len());
            let Some(oldest) = greediest.filter(|ids| ids.len() > 1).and_then(BTreeSet::first)
            else {
                return Verdict::Refuse;
            };
            Some(*oldest)
        } else {
            None
        };
        self.take(id, Holder::Member(member), displaced)
    }

    /// A connection has ended.
    pub(super) fn left(&mut self, id: u64) {
        self.remove(id);
    }

    /// Number of connections.
    pub(super) fn count(&self) -> usize {
        self.holders.len()
    }

    /// The connections of `member`.
    pub(super) fn of(&self, member: &Member) -> impl Iterator<Item = u64> {
        self.members.get(member).into_iter().flatten().copied()
    }

    fn strangers_held(&self, stages: &[Stage]) -> usize {
        self.strangers.values().map(|held| count(held, stages)).sum()
    }

    /// Of the address that holds most places in `stages`, the one in the earliest stage that is
    /// the oldest there; of several such addresses likewise.
    fn of_the_greediest(&self, stages: &[Stage]) -> Option<u64> {
        let most = self.strangers.values().map(|held| count(held, stages)).max()?;
        let greediest = || self.strangers.values().filter(|held| count(held, stages) == most);
        let oldest = |stage: &Stage| {
            greediest().filter_map(|held| held[*stage as usize].first().copied()).min()
        };
        stages.iter().find_map(oldest)
    }

    fn take(&mut self, id: u64, holder: Holder, displaced: Option<u64>) -> Verdict {
        self.put(id, holder);
        let Some(displaced) = displaced else { return Verdict::Stay };
        self.remove(displaced);
        Verdict::Displace(displaced)
    }

    fn put(&mut self, id: u64, holder: Holder) {
        match &holder {
            Holder::Stranger(origin, stage) => {
                self.strangers.entry(*origin).or_default()[*stage as usize].insert(id);
            }
            Holder::Member(member) => {
                self.members.entry(member.clone()).or_default().insert(id);
            }
        }
        self.holders.insert(id, holder);
    }

    fn remove(&mut self, id: u64) -> Option<Holder> {
        let holder = self.holders.remove(&id)?;
        match &holder {
            Holder::Stranger(origin, stage) => {
                let held = self.strangers.entry(*origin).or_default();
                held[*stage as usize].remove(&id);
                if count(held, &STAGES) == 0 {
                    self.strangers.remove(origin);
                }
            }
            Holder::Member(member) => {
                let held = self.members.entry(member.clone()).or_default();
                held.remove(&id);
                if held.is_empty() {
                    self.members.remove(member);
                }
            }
        }
        Some(holder)
    }
}

fn count(held: &[BTreeSet<u64>; 3], stages: &[Stage]) -> usize {
    stages.iter().map(|stage| held[*stage as usize].len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: u8 = 1;

    fn door(connections: usize) -> Door {
        Door::new(Limits { connections, ..Limits::default() })
    }

    fn from(host: u8) -> Origin {
        Origin::of(IpAddr::from([10, 0, 0, host]))
    }

    fn site(name: &str) -> Member {
        format!("site/{name}").parse().unwrap()
    }

    /// A3c: one address's silent sockets took every handshake.
    #[test]
    fn the_address_with_most_silent_connections_makes_room_for_others() {
        let mut door = door(100);
        for id in 0..99 {
            assert_eq!(door.accepted(id, from(HOSTILE)), Verdict::Stay);
        }
        assert_eq!(door.accepted(99, from(2)), Verdict::Stay);
        // The oldest of the address that holds most goes, whichever address comes.
        for (id, host) in [(100, 3), (101, HOSTILE), (102, HOSTILE)] {
            assert_eq!(door.accepted(id, from(host)), Verdict::Displace(id - 100));
        }
        assert!(door.holders.contains_key(&99) && door.holders.contains_key(&100));
        assert_eq!(door.holders.len(), 100);
    }

    #[test]
    fn of_one_address_those_that_said_nothing_go_first() {
        let mut door = door(100);
        for id in 0..100 {
            door.accepted(id, from(HOSTILE));
        }
        door.spoke(0);
        assert_eq!(door.accepted(100, from(HOSTILE)), Verdict::Displace(1));
    }

    /// Failed before: of addresses that hold equally many, the highest one lost its place, also in its handshake.
    #[test]
    fn of_addresses_that_hold_equally_many_the_oldest_silent_connection_goes() {
        let mut door = door(100);
        for id in 0..100u8 {
            door.accepted(id.into(), from(100 + id));
        }
        door.spoke(99);
        assert_eq!(door.accepted(100, from(HOSTILE)), Verdict::Displace(0));
        (1..=100).for_each(|id| door.spoke(id));
        assert_eq!(door.accepted(101, from(HOSTILE + 1)), Verdict::Displace(1));
    }

    #[test]
    fn strangers_take_no_members_place_and_members_leave_some_for_strangers() {
        let mut door = door(100);
        for id in 0..36 {
            door.accepted(id, from(2));
            assert_eq!(door.member(id, site(&format!("s{id}"))), Verdict::Stay);
        }
        door.accepted(36, from(2));
        assert_eq!(door.member(36, site("late")), Verdict::Refuse);
        for id in 37..1000 {
            door.accepted(id, from(HOSTILE));
        }
        assert_eq!(door.holders.len(), 100);
        assert!((0..36).all(|id| matches!(door.holders[&id], Holder::Member(_))));
    }

    #[test]
    fn a_members_oldest_connection_makes_room_for_its_newest() {
        let mut door = door(100);
        for id in 0..9 {
            door.accepted(id, from(HOSTILE));
            assert_eq!(door.member(id, site("mallory")) == Verdict::Displace(0), id == 8);
        }
        assert_eq!(door.of(&site("mallory")).count(), 8);
        // When members' places run out, who has several gives one up.
        for id in 9..37 {
            door.accepted(id, from(2));
            assert_eq!(door.member(id, site(&format!("s{id}"))), Verdict::Stay);
        }
        door.accepted(37, from(2));
        assert_eq!(door.member(37, site("late")), Verdict::Displace(1));
    }

    #[test]
    fn connections_without_a_certificate_are_few_and_fewer_from_one_address() {
        let mut door = door(1000);
        for id in 0..17 {
            door.accepted(id, from(HOSTILE));
            assert_eq!(door.anonymous(id) == Verdict::Displace(0), id == 16);
        }
        for id in 17..65 {
            door.accepted(id, from(u8::try_from(id).unwrap()));
            assert_eq!(door.anonymous(id), Verdict::Stay);
        }
        door.accepted(65, from(200));
        assert_eq!(door.anonymous(65), Verdict::Displace(1));
    }

    #[test]
    fn an_ipv6_network_is_one_origin_and_a_mapped_address_is_ipv4() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), from(HOSTILE));
        assert_eq!(of("2001:db8::1").to_string(), "2001:db8::/64");
    }

    #[test]
    fn limits_follow_the_descriptors() {
        assert_eq!(Limits::of_descriptors(Limits::DESCRIPTORS_MIN - 1), None);
        assert_eq!(Limits::of_descriptors(1024).unwrap().connections, 864);
        assert_eq!(Limits::of_descriptors(u64::MAX).unwrap().connections, 1 << 16);
    }
}
