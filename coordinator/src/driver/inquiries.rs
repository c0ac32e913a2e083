//! Questions to sites: would you take part in this run now? Delivered with a site's next call for
//! an assignment, answered by id. In memory alone: a restarted coordinator asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::{Refusal, RefusalClass};

/// Most questions open to one site.
const OPEN_MAX: usize = 16;
/// A delivered question without an answer is delivered again after this long: the reply was lost,
/// or the site's program was started anew.
const DELIVER_AGAIN: Duration = Duration::from_secs(10);

/// A question to a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The run's manifest.
    pub manifest: RunManifest,
    /// Sites that a round would ask, this one included.
    pub cohort_size: u32,
    /// An operator asks before the run begins; else a refusal that the site gave is asked about.
    pub is_check: bool,
}

/// A site's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Reason the site would not take part; absent when it would.
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

/// Time after a refusal until the site is asked whether it still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A refusal that ends by itself.
    pub passing: Duration,
    /// A refusal that a person at the site ends.
    pub until_changed: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { passing: Duration::from_secs(30), until_changed: Duration::from_secs(60) }
    }
}

impl Pace {
    /// The time between two questions about a refusal of `class`.
    pub fn of(&self, class: RefusalClass) -> Duration {
        match class {
            RefusalClass::Passing => self.passing,
            RefusalClass::UntilChanged | RefusalClass::Never => self.until_changed,
        }
    }
}

/// The last time that a site was asked whether its refusal of a run still holds.
struct Asked {
    at: Instant,
    /// The question that it has not answered; absent after an answer.
    id: Option<String>,
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
    again: BTreeMap<(SiteName, RunName), Asked>,
}

impl Table {
    fn next_id(&mut self) -> String {
        self.asked += 1;
        format!("{}-{}", self.prefix, self.asked)
    }
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
        let (open, again) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Table { prefix, asked: 0, open, again })))
    }

    /// Opens a question to `site`.
    pub fn ask(&self, site: &SiteName, question: Question) -> Result<Pending, TooManyQuestions> {
        let mut table = self.lock();
        let id = table.next_id();
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

    /// Hands the answer of `site` to the asker; `false` when that question is not open.
    pub fn answer(&self, site: &SiteName, id: &str, answer: Answer) -> bool {
        // A receiver that went away has taken the question back.
        self.take(site, id).is_some_and(|open| open.answer.send(answer).is_ok())
    }

    /// Opens the question whether `site` still refuses `run`, unless it was asked less than `pace`
    /// ago: then says when to ask. The first time is one pace after this is first called.
    pub fn ask_again(
        &self,
        site: &SiteName,
        run: &RunName,
        pace: Duration,
        now: Instant,
    ) -> Result<String, Instant> {
        let mut table = self.lock();
        let key = (site.clone(), run.clone());
        let due = table.again.entry(key.clone()).or_insert(Asked { at: now, id: None }).at + pace;
        if now < due {
            return Err(due);
        }
        let id = table.next_id();
        table.again.insert(key, Asked { at: now, id: Some(id.clone()) });
        Ok(id)
    }

    /// Takes up the answer to [`Self::ask_again`]; gives the run it is about, when the question is
    /// open.
    pub fn answered_again(&self, site: &SiteName, id: &str, now: Instant) -> Option<RunName> {
        let mut table = self.lock();
        let ((_, run), asked) = table
            .again
            .iter_mut()
            .find(|((asked, _), open)| asked == site && open.id.as_deref() == Some(id))?;
        *asked = Asked { at: now, id: None };
        Some(run.clone())
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
        // The table is valid after every single operation, also after a panic.
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
    async fn an_answer_reaches_its_asker_once() {
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
    fn a_refusal_is_asked_about_at_its_pace_and_an_old_answer_says_nothing() {
        let (inquiries, run) = (Inquiries::new("a".to_owned()), "run".parse().unwrap());
        let (now, pace) = (Instant::now(), Duration::from_secs(30));
        let ask = |after_s| {
            inquiries.ask_again(&site("s"), &run, pace, now + Duration::from_secs(after_s))
        };
        assert_eq!(ask(0), Err(now + pace), "it has just refused");
        assert_eq!(ask(29), Err(now + pace));
        let first = ask(30).unwrap();
        assert_eq!(ask(59), Err(now + pace * 2), "it may still be judging");
        let second = ask(60).unwrap();
        assert_eq!(inquiries.answered_again(&site("s"), &first, now + pace * 2), None);
        assert_eq!(inquiries.answered_again(&site("t"), &second, now + pace * 2), None);
        let answered = inquiries.answered_again(&site("s"), &second, now + pace * 2);
        assert_eq!(answered, Some(run.clone()));
        assert_eq!(ask(89), Err(now + pace * 3), "a pace after the answer");
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
