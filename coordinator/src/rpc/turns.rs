//! Turns to upload: deltas on their way in share one budget of memory, and a site that finds it
//! taken waits in line.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tributary_proto::channel::CHUNK_BYTES;
use tributary_shared::name::SiteName;

/// Time that a site has to begin its upload once it is its turn.
const OFFER: Duration = Duration::from_secs(10);
/// Time that a place in line is kept for a site that does not ask.
const PLACE_KEPT: Duration = Duration::from_secs(30);
/// Turns of one site: its upload, and the dead half of one whose connection broke.
const PER_SITE: usize = 2;
/// Longest turn while others wait.
const TURN: Duration = Duration::from_secs(30);

/// The turns of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Turns(Arc<Inner>);

struct Inner {
    /// Bytes of one stream that may wait to be read.
    stream_window: u64,
    budget: u64,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    free: u64,
    /// Sites in the order in which they asked first.
    line: VecDeque<Place>,
    /// Calls that wait now, by site.
    waiting: BTreeMap<SiteName, usize>,
    /// Turns in use or offered, by site.
    held: BTreeMap<SiteName, usize>,
    /// Turns whose uploads have not begun, numbered.
    offers: BTreeMap<SiteName, (u64, Turn)>,
    offered: u64,
}

/// A site's place in line.
struct Place {
    site: SiteName,
    cost: u64,
    asked: Instant,
}

/// One upload's share of the budget, given back when dropped.
pub struct Turn {
    site: SiteName,
    cost: u64,
    began: Instant,
    turns: Turns,
}

impl Turns {
    /// Turns over `budget` bytes, where a stream may have `stream_window` bytes wait to be read.
    pub fn new(budget: u64, stream_window: u64) -> Self {
        let (line, waiting, held, offers) = Default::default();
        let state = State { free: budget, line, waiting, held, offers, offered: 0 };
        let (state, changed) = (Mutex::new(state), Notify::new());
        Self(Arc::new(Inner { stream_window, budget, state, changed }))
    }

    /// Memory that an upload of `missing` bytes may take: what waits to be read, and messages being
    /// read and written, all in buffers of up to twice their size. Measured: 4.4 MB for 5 MiB.
    fn cost(&self, missing: u64) -> u64 {
        let messages = 2 * CHUNK_BYTES as u64;
        (2 * (missing.min(self.0.stream_window) + messages)).min(self.0.budget)
    }

    /// Waits until `site` may upload `missing` bytes. The turn is then kept for it for a while.
    /// Dropped before that, the site's place in line is kept for a while.
    pub async fn wait(&self, site: &SiteName, missing: u64) {
        let _waiting = Waiting::enter(self, site);
        let cost = self.cost(missing);
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Before the look: a turn that is given back after it must not be missed.
            changed.as_mut().enable();
            if self.offer(site, cost) {
                return;
            }
            changed.await;
        }
    }

    /// The turn that `site` has waited for, or a free one that no site waits for.
    pub fn take(&self, site: &SiteName, missing: u64) -> Option<Turn> {
        let mut state = self.lock();
        if let Some((_, mut turn)) = state.offers.remove(site) {
            turn.began = Instant::now();
            return Some(turn);
        }
        // Nothing is left to send: a whole delta needs no memory and waits for no other site.
        let cost = if missing == 0 { 0 } else { self.cost(missing) };
        let may = cost == 0 || (!state.others_wait(site) && state.free >= cost);
        (may && state.may(site)).then(|| self.begin(&mut state, site.clone(), cost))
    }

    /// Offers `site` its turn if it has come.
    fn offer(&self, site: &SiteName, cost: u64) -> bool {
        let mut state = self.lock();
        if state.offers.contains_key(site) {
            return true;
        }
        let now = Instant::now();
        let State { line, waiting, .. } = &mut *state;
        line.retain(|place| waiting.contains_key(&place.site) || now < place.asked + PLACE_KEPT);
        if !line.iter().any(|place| place.site == *site) {
            line.push_back(Place { site: site.clone(), cost, asked: now });
        }
        let next =
            |place: &Place| state.waiting.contains_key(&place.site) && state.may(&place.site);
        let Some(next) = state.line.iter().position(next) else { return false };
        let place = &state.line[next];
        if place.site != *site || state.free < place.cost {
            return false;
        }
        let cost = place.cost;
        state.line.remove(next);
        let turn = self.begin(&mut state, site.clone(), cost);
        state.offered += 1;
        let number = state.offered;
        state.offers.insert(site.clone(), (number, turn));
        drop(state);
        // There may be room for the one behind, too.
        self.0.changed.notify_waiters();
        let (turns, site) = (self.clone(), site.clone());
        tokio::spawn(async move {
            tokio::time::sleep(OFFER).await;
            turns.withdraw(&site, number);
        });
        true
    }

    /// Takes an offer back that was not taken up.
    fn withdraw(&self, site: &SiteName, number: u64) {
        let mut state = self.lock();
        let kept = state.offers.get(site).is_some_and(|(offered, _)| *offered == number);
        let withdrawn = if kept { state.offers.remove(site) } else { None };
        drop(state);
        // A turn gives its share back when it is dropped, and must not find the lock held.
        drop(withdrawn);
    }

    fn begin(&self, state: &mut State, site: SiteName, cost: u64) -> Turn {
        state.free = state.free.saturating_sub(cost);
        *state.held.entry(site.clone()).or_default() += 1;
        Turn { site, cost, began: Instant::now(), turns: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every single operation, also after a panic elsewhere.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// True when `site` may have one more turn.
    fn may(&self, site: &SiteName) -> bool {
        self.held.get(site).is_none_or(|turns| *turns < PER_SITE)
    }

    fn others_wait(&self, site: &SiteName) -> bool {
        self.waiting.keys().any(|waiting| waiting != site)
    }
}

impl Turn {
    /// True when it has lasted long enough and others wait: the rest of the delta waits in line
    /// again, so that no number of slow senders keeps the others out.
    pub fn is_over(&self) -> bool {
        self.began.elapsed() >= TURN && self.turns.lock().others_wait(&self.site)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.free += self.cost;
        count_down(&mut state.held, &self.site);
        drop(state);
        self.turns.0.changed.notify_waiters();
    }
}

/// A call that waits, until dropped.
struct Waiting<'a> {
    turns: &'a Turns,
    site: &'a SiteName,
}

impl<'a> Waiting<'a> {
    fn enter(turns: &'a Turns, site: &'a SiteName) -> Self {
        *turns.lock().waiting.entry(site.clone()).or_default() += 1;
        Self { turns, site }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        count_down(&mut state.waiting, self.site);
        if let Some(place) = state.line.iter_mut().find(|place| place.site == *self.site) {
            place.asked = Instant::now();
        }
        drop(state);
        // Who stood behind it may be the first now.
        self.turns.0.changed.notify_waiters();
    }
}

fn count_down(counts: &mut BTreeMap<SiteName, usize>, site: &SiteName) {
    if let Some(count) = counts.get_mut(site) {
        *count -= 1;
        if *count == 0 {
            counts.remove(site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    /// True when a wait is over as soon as it is asked for.
    async fn comes_at_once(turns: &Turns, name: &str) -> bool {
        let site = site(name);
        tokio::select! {
            biased;
            () = turns.wait(&site, 100 * MIB) => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Memory grew with the number of uploads: 266 MB for 128 sites.
    #[tokio::test]
    async fn uploads_beyond_the_budget_wait_and_come_in_the_order_of_asking() {
        // Two uploads of a window and a few messages each.
        let turns = Turns::new(10 * MIB, 2 * MIB);
        let first = turns.take(&site("a"), 100 * MIB).unwrap();
        assert!(comes_at_once(&turns, "b").await);
        let second = turns.take(&site("b"), 100 * MIB).unwrap();
        for name in ["c", "d"] {
            assert!(!comes_at_once(&turns, name).await, "{name}");
            assert!(turns.take(&site(name), 100 * MIB).is_none(), "{name}");
        }
        // A whole delta that is to be finished takes no memory.
        assert!(turns.take(&site("e"), 0).is_some());
        drop(first);
        // `c` stands before `d`, which asks first now; it does not ask, and is passed over.
        let (c, d) = (site("c"), site("d"));
        let (wait_c, wait_d) = (turns.wait(&c, 100 * MIB), turns.wait(&d, 100 * MIB));
        tokio::pin!(wait_c, wait_d);
        tokio::select! {
            biased;
            () = &mut wait_c => {}
            () = &mut wait_d => panic!("d came before c"),
        }
        let third = turns.take(&c, 100 * MIB).unwrap();
        drop(second);
        wait_d.await;
        assert!(turns.take(&d, 100 * MIB).is_some());
        assert!(!third.is_over());
        drop(third);
        assert_eq!(turns.lock().free, 10 * MIB);
    }

    /// A hostile site's half-open uploads took as much memory as it liked.
    #[tokio::test]
    async fn one_site_has_two_turns_and_a_small_delta_costs_little() {
        let turns = Turns::new(32 * MIB, 2 * MIB);
        let of_mallory: Vec<Turn> =
            std::iter::from_fn(|| turns.take(&site("mallory"), 100 * MIB)).collect();
        assert_eq!(of_mallory.len(), PER_SITE);
        // Failed before: streams with nothing to send had no limit.
        assert!(turns.take(&site("mallory"), 0).is_none());
        assert!(!comes_at_once(&turns, "mallory").await);
        assert!(comes_at_once(&turns, "a").await);
        let small = turns.take(&site("b"), 1000).unwrap();
        assert_eq!(small.cost, MIB + 2000);
    }

    /// Failed before: slow senders of deltas kept the others out.
    #[tokio::test]
    async fn a_turn_of_30_s_is_over_when_another_site_waits() {
        let turns = Turns::new(3 * MIB, 2 * MIB);
        let mut turn = turns.take(&site("a"), 100 * MIB).unwrap();
        let began = Instant::now();
        turn.began = began.checked_sub(Duration::from_secs(20)).unwrap();
        let (a, b) = (site("a"), site("b"));
        let own = Waiting::enter(&turns, &a);
        let other = Waiting::enter(&turns, &b);
        assert!(!turn.is_over(), "it has lasted 20 s");
        turn.began = began.checked_sub(Duration::from_secs(30)).unwrap();
        assert!(turn.is_over());
        drop(other);
        assert!(!turn.is_over(), "no other site waits");
        drop(own);
    }

    #[tokio::test]
    async fn an_offer_that_is_not_taken_up_goes_to_the_next() {
        let turns = Turns::new(3 * MIB, 2 * MIB);
        assert!(comes_at_once(&turns, "a").await);
        assert!(!comes_at_once(&turns, "b").await);
        turns.withdraw(&site("a"), 1);
        assert!(comes_at_once(&turns, "b").await);
    }
}
