//! Last report of each site about itself, and detection of one identity that two programs use. It
//! is kept in memory alone: a restarted coordinator hears it again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tributary_shared::name::SiteName;
use tributary_shared::text::printable_start;
use tributary_shared::timestamp::Timestamp;

use crate::rate_limit::RateLimit;

/// The word for two programs with one identity.
pub const SHARED_IDENTITY: &str = "shared_identity";
/// Class stored for an invalid trouble.
const OTHER: &str = "other";
/// Longest version and trouble kept, characters.
const WORD_CHARS_MAX: usize = 40;
/// Longest session nonce taken, bytes.
const NONCE_BYTES_MAX: usize = 64;
/// Retired nonces remembered of one site.
const RETIRED_MAX: usize = 8;
/// A request of a program that was killed may arrive this long after its successor's first.
const GRACE: Duration = Duration::from_secs(5);
/// A program that takes part is heard at least so often.
const ALIVE: Duration = Duration::from_secs(60);
/// Time with one program only before an alarm ends.
const QUIET: Duration = Duration::from_secs(90);

/// Last report of a site about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Its program's version.
    pub version: String,
    /// The class of its trouble; empty when it has none.
    pub trouble: String,
    /// The moment since which it has this trouble.
    pub since: Option<Timestamp>,
}

/// Lines of the log that a site may cause at once by what it says of itself.
const LINES: u32 = 10;
/// Time until it may cause one more; until then its lines are for the debug level.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The presence of every site that was heard.
pub struct Presence {
    heard: Mutex<BTreeMap<SiteName, Heard>>,
    lines: RateLimit<SiteName>,
}

impl Default for Presence {
    fn default() -> Self {
        Self { heard: Mutex::default(), lines: RateLimit::new(LINE_EVERY, LINES) }
    }
}

#[derive(Default)]
struct Heard {
    word: Word,
    sessions: Sessions,
}

impl Presence {
    /// Takes the version of a program that says hello.
    pub fn hello(&self, site: &SiteName, version: &str) {
        let version = printable_start(version, WORD_CHARS_MAX);
        match self.lines.allows(site) {
            true => tracing::info!(%site, version, "hello"),
            false => tracing::debug!(%site, version, "hello"),
        }
        self.lock().entry(site.clone()).or_default().word.version = version;
    }

    /// Takes the class of a site's trouble, empty for none. Text that is no word stands as `other`.
    pub fn trouble(&self, site: &SiteName, trouble: &str, now: Timestamp) {
        let is_word = trouble.len() <= WORD_CHARS_MAX
            && trouble.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let trouble = if is_word { trouble } else { OTHER };
        let mut table = self.lock();
        let word = &mut table.entry(site.clone()).or_default().word;
        if word.trouble == trouble {
            return;
        }
        match (self.lines.allows(site), trouble) {
            (true, "") => tracing::info!(%site, "its trouble `{}` is over", word.trouble),
            (true, _) => tracing::warn!(%site, trouble, "the site reports trouble"),
            (false, _) => tracing::debug!(%site, trouble, "the site's trouble changes often"),
        }
        word.trouble = trouble.to_owned();
        word.since = (!trouble.is_empty()).then_some(now);
    }

    /// Takes the session nonce of a request; says whether two programs use the site's identity.
    pub fn session(&self, site: &SiteName, nonce: Option<&str>, now: Timestamp) -> bool {
        let mut table = self.lock();
        let sessions = &mut table.entry(site.clone()).or_default().sessions;
        let before = sessions.is_shared(now);
        if let Some(nonce) = nonce.filter(|nonce| nonce.len() <= NONCE_BYTES_MAX) {
            sessions.hear(nonce, now);
        }
        let shared = sessions.is_shared(now);
        if shared && !before {
            tracing::error!(
                %site,
                "two programs use this site's identity at the same time, perhaps from a copied \
                 directory: neither gets work until one of them is stopped"
            );
        }
        shared
    }

    /// Says whether two programs use the site's identity.
    pub fn is_shared(&self, site: &SiteName, now: Timestamp) -> bool {
        self.lock().get(site).is_some_and(|heard| heard.sessions.is_shared(now))
    }

    /// Last report of `site` about itself.
    pub fn word(&self, site: &SiteName, now: Timestamp) -> Word {
        self.lock().get(site).map(|heard| heard.word(now)).unwrap_or_default()
    }

    /// Every site with trouble, and what it said last.
    pub fn troubles(&self, now: Timestamp) -> Vec<(SiteName, Word)> {
        let table = self.lock();
        let words = table.iter().map(|(site, heard)| (site.clone(), heard.word(now)));
        words.filter(|(_, word)| !word.trouble.is_empty()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SiteName, Heard>> {
        // The table is valid after every single operation, also after a panic elsewhere.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn word(&self, now: Timestamp) -> Word {
        let mut word = self.word.clone();
        if self.sessions.is_shared(now) {
            word.trouble = SHARED_IDENTITY.to_owned();
            word.since = self.sessions.shared_since;
        }
        word
    }
}

/// The programs that were heard under one identity. Each has a random nonce for as long as it runs,
/// so that a restart is a new nonce, and the old one is never heard again.
#[derive(Debug, Default)]
struct Sessions {
    newest: Option<Session>,
    /// Those before it, the latest first.
    retired: VecDeque<Retired>,
    /// The last time that the other of two programs was heard.
    disputed: Option<Timestamp>,
    shared_since: Option<Timestamp>,
}

#[derive(Debug)]
struct Session {
    nonce: String,
    heard: Timestamp,
}

#[derive(Debug)]
struct Retired {
    nonce: String,
    since: Timestamp,
}

impl Sessions {
    fn hear(&mut self, nonce: &str, now: Timestamp) {
        let shared = self.is_shared(now);
        if !shared {
            self.shared_since = None;
        }
        let Some(newest) = &mut self.newest else {
            self.newest = Some(Session { nonce: nonce.to_owned(), heard: now });
            return;
        };
        if newest.nonce == nonce {
            newest.heard = now;
            return;
        }
        let known = self.retired.iter().position(|retired| retired.nonce == nonce);
        if let Some(index) = known {
            let late = now < self.retired[index].since.plus(GRACE);
            if late && !shared {
                // It was under way when its program ended.
                return;
            }
            let alive = now < newest.heard.plus(ALIVE);
            if alive || shared {
                self.disputed = Some(now);
                self.shared_since.get_or_insert(now);
            }
            self.retired.remove(index);
        }
        let retired = std::mem::replace(newest, Session { nonce: nonce.to_owned(), heard: now });
        self.retired.push_front(Retired { nonce: retired.nonce, since: now });
        self.retired.truncate(RETIRED_MAX);
    }

    fn is_shared(&self, now: Timestamp) -> bool {
        self.disputed.is_some_and(|at| now < at.plus(QUIET))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000 * seconds)
    }

    /// Hears nonces at seconds; whether the identity counts as shared after each.
    fn heard(calls: &[(i64, &str)]) -> Vec<bool> {
        let mut sessions = Sessions::default();
        let hear = |(second, nonce): &(i64, &str)| {
            sessions.hear(nonce, at(*second));
            sessions.is_shared(at(*second))
        };
        calls.iter().map(hear).collect()
    }

    /// Before, a copied directory trained twice unseen.
    #[test]
    fn two_programs_are_told_apart_from_restarts() {
        for (what, calls, shared) in [
            ("one program", &[(0, "a"), (20, "a"), (40, "a")][..], false),
            ("a restart", &[(0, "a"), (20, "b"), (40, "b")], false),
            ("restarts in a row", &[(0, "a"), (1, "b"), (2, "c"), (30, "c")], false),
            ("a late request", &[(0, "a"), (20, "b"), (21, "a"), (40, "b")], false),
            ("two programs", &[(0, "a"), (10, "b"), (20, "a")], true),
            ("two programs, asked on", &[(0, "a"), (10, "b"), (20, "a"), (30, "b")], true),
            ("a copy that was stopped", &[(0, "a"), (10, "b"), (80, "a")], false),
            (
                "one of two is stopped",
                &[(0, "a"), (10, "b"), (20, "a"), (60, "a"), (111, "a")],
                false,
            ),
            ("a third program", &[(0, "a"), (1, "b"), (10, "c"), (15, "a")], true),
        ] {
            assert_eq!(heard(calls).last(), Some(&shared), "{what}");
        }
        let quiet = [(0, "a"), (10, "b"), (20, "a"), (100, "a"), (109, "a"), (111, "a")];
        assert_eq!(heard(&quiet), [false, false, true, true, true, false]);
    }

    proptest! {
        /// Each program runs for a while and is followed by the next; a request of one that was
        /// killed may arrive up to five seconds late.
        #[test]
        fn no_row_of_restarts_is_an_alarm(runs in prop::collection::vec((1..90i64, 0..5i64), 1..40)) {
            let mut sessions = Sessions::default();
            let mut now = 0;
            for (index, (lasts, late)) in runs.iter().enumerate() {
                let nonce = format!("program {index}");
                for second in (now..now + lasts).step_by(20) {
                    sessions.hear(&nonce, at(second));
                    prop_assert!(!sessions.is_shared(at(second)));
                }
                let next = now + lasts;
                sessions.hear(&format!("program {}", index + 1), at(next));
                sessions.hear(&nonce, at(next + late.min(&4)));
                prop_assert!(!sessions.is_shared(at(next + late)));
                now = next + late;
            }
        }
    }

    #[test]
    fn what_a_site_says_is_bounded_and_cleaned() {
        let presence = Presence::default();
        let site: SiteName = "a".parse().unwrap();
        let long = format!("1.0\u{1b}[2J\u{202e}{}", "x".repeat(200));
        presence.hello(&site, &long);
        presence.trouble(&site, "disk_full", at(1));
        let word = presence.word(&site, at(9));
        assert_eq!((word.trouble.as_str(), word.since), ("disk_full", Some(at(1))));
        assert!(word.version.starts_with("1.0 [2J\u{fffd}x"), "{}", word.version);
        assert_eq!(word.version.chars().count(), WORD_CHARS_MAX);
        for text in ["/mnt/patient-7", "two words", "\u{1b}[2J", &"a".repeat(41)] {
            presence.trouble(&site, text, at(2));
            assert_eq!(presence.word(&site, at(2)).trouble, OTHER, "{text:?}");
        }
        presence.trouble(&site, "", at(3));
        assert_eq!(presence.troubles(at(3)), []);
        for (second, nonce) in [(4, "n"), (10, "m"), (20, "n")] {
            presence.session(&site, Some(nonce), at(second));
        }
        assert_eq!(presence.word(&site, at(21)).trouble, SHARED_IDENTITY);
        assert_eq!(presence.troubles(at(21)).len(), 1);
    }
}
