//! Questions to sites: would you take part in this run now? Delivered with a site's next call for
//! an assignment, answered by id. In memory alone: a restarted coordinator asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::SiteName;
use tributary_shared::refusal::Refusal;

/// Most questions open to one site.
const OPEN_MAX: usize = 16;
/// A delivered question without an answer is delivered again after this long: the reply was lost,
/// or the site's program was started anew.
const DELIVER_AGAIN: Duration = Duration::from_secs(10);

/// What a site is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The run's manifest.
    pub manifest: RunManifest,
    /// Sites that a round would ask, this one included.
    pub cohort_size: u32,
    /// An operator asks before the run begins; else a refusal that the site gave is asked about.
    pub is_check: bool,
}

/// What a site says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Why it would not take part; absent when it would.
    pub refusal: Option<Refusal>,
    /// Words for a class of what should be looked at.
    pub warnings: Vec<String>,
}

/// A question ready to go out.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Names the question in its answer.
    pub id: String,
    /// The question.
    pub question: Question,
}

/// More questions to one site than it could answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{site} has {OPEN_MAX} unanswered questions already; wait until it answers")]
pub struct TooManyQuestions {
    /// The site.
    pub site: SiteName,
}

/// The open questions of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Inquiries(Arc<Mutex<Table>>);

struct Table {
    /// Begins every id, so that an answer to a coordinator that is gone fits no question of this
    /// one.
    prefix: String,
    asked: u64,
    open: BTreeMap<SiteName, Vec<Open>>,
}

struct Open {
    id: String,
    question: Question,
    delivered: Option<Instant>,
    answer: oneshot::Sender<Answer>,
}

/// A question that waits for its answer; dropping it takes the question back.
pub struct Pending {
    site: SiteName,
    id: String,
    answer: oneshot::Receiver<Answer>,
    inquiries: Inquiries,
}

impl Pending {
    /// Waits for the answer; `None` when the question can never be answered any more.
    pub async fn answered(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.inquiries.take(&self.site, &self.id);
    }
}

impl Inquiries {
    /// An empty table; `prefix` differs from that of every earlier coordinator.
    pub fn new(prefix: String) -> Self {
        Self(Arc::new(Mutex::new(Table { prefix, asked: 0, open: BTreeMap::new() })))
    }

    /// Opens a question to `site`.
    pub fn ask(&self, site: &SiteName, question: Question) -> Result<Pending, TooManyQuestions> {
        let mut table = self.lock();
        table.asked += 1;
        let id = format!("{}-{}", table.prefix, table.asked);
        let open = table.open.entry(site.clone()).or_default();
        if open.len() >= OPEN_MAX {
            return Err(TooManyQuestions { site: site.clone() });
        }
        let (sender, answer) = oneshot::channel();
        open.push(Open { id: id.clone(), question, delivered: None, answer: sender });
        Ok(Pending { site: site.clone(), id, answer, inquiries: self.clone() })
    }

    /// The oldest question that `site` should hear at `now`; it counts as delivered.
    pub fn next(&self, site: &SiteName, now: Instant) -> Option<Delivery> {
        let mut table = self.lock();
        let due = |open: &&mut Open| open.delivered.is_none_or(|at| now >= at + DELIVER_AGAIN);
        let open = table.open.get_mut(site)?.iter_mut().find(due)?;
        open.delivered = Some(now);
        Some(Delivery { id: open.id.clone(), question: open.question.clone() })
    }

    /// Hands the answer of `site` to whoever asked; `false` when that question is not open.
    pub fn answer(&self, site: &SiteName, id: &str, answer: Answer) -> bool {
        // A receiver that went away has taken the question back.
        self.take(site, id).is_some_and(|open| open.answer.send(answer).is_ok())
    }

    fn take(&self, site: &SiteName, id: &str) -> Option<Open> {
        let mut table = self.lock();
        let open = table.open.get_mut(site)?;
        let found = open.iter().position(|open| open.id == id)?;
        let taken = open.remove(found);
        if open.is_empty() {
            table.open.remove(site);
        }
        Some(taken)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is valid after every single operation, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        let manifest = RunManifest::from_toml(
            "schema_version = 1
            name = 'run'
            task = { kind = 'rehearsal', payload_bytes = 16 }
            rounds = { count = 1, round_deadline_s = 100, stall_timeout_s = 30 }
            quorum = { sites = 1 }",
        )
        .unwrap();
        Question { manifest, cohort_size: 1, is_check: true }
    }

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn an_answer_reaches_whoever_asked_and_only_once() {
        let inquiries = Inquiries::new("a".to_owned());
        let mut pending = inquiries.ask(&site("s"), question()).unwrap();
        assert_eq!(inquiries.next(&site("t"), Instant::now()), None, "another site");
        let delivery = inquiries.next(&site("s"), Instant::now()).unwrap();
        assert_eq!(delivery.question, question());
        let answer = Answer { warnings: vec!["w".to_owned()], ..Answer::default() };
        assert!(!inquiries.answer(&site("t"), &delivery.id, answer.clone()), "not its question");
        assert!(inquiries.answer(&site("s"), &delivery.id, answer.clone()));
        assert!(!inquiries.answer(&site("s"), &delivery.id, answer.clone()), "answered already");
        assert_eq!(pending.answered().await, Some(answer));
    }

    #[test]
    fn a_delivered_question_is_delivered_again_after_a_while_alone() {
        let inquiries = Inquiries::new("a".to_owned());
        let _pending = inquiries.ask(&site("s"), question()).unwrap();
        let now = Instant::now();
        let first = inquiries.next(&site("s"), now);
        assert!(first.is_some());
        assert_eq!(inquiries.next(&site("s"), now), None);
        assert_eq!(inquiries.next(&site("s"), now + DELIVER_AGAIN), first);
    }

    #[test]
    fn a_question_whose_asker_is_gone_is_taken_back_and_their_number_is_bounded() {
        let inquiries = Inquiries::new("a".to_owned());
        drop(inquiries.ask(&site("s"), question()).unwrap());
        assert_eq!(inquiries.next(&site("s"), Instant::now()), None);
        let open: Vec<Pending> =
            (0..OPEN_MAX).map(|_| inquiries.ask(&site("s"), question()).unwrap()).collect();
        assert!(inquiries.ask(&site("s"), question()).is_err());
        drop(open);
        assert!(inquiries.ask(&site("s"), question()).is_ok());
    }
}
