//! The release step: builds what a site says of its work, each message from an entry that is on
//! the disk.

use tributary_proto::v1;
use tributary_shared::check::CheckAnswer;
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::refusal::{Refusal, RefusalClass};

use super::{Entry, Event, Ledger, LedgerError, Standing};

/// A message that may leave the site, because the ledger holds what it says.
///
/// Built by the `release_` methods of [`Ledger`] alone; the transport takes such messages in no
/// other form. Other code can name the type:
///
/// ```
/// use tributary_client::ledger::Released;
///
/// fn sent<T>(_message: &Released<T>) {}
/// ```
///
/// It cannot make one:
///
/// ```compile_fail,E0423
/// use tributary_client::ledger::Released;
///
/// let forged = Released("3000 cases");
/// ```
#[derive(Debug)]
pub struct Released<T>(T);

impl<T> Released<T> {
    /// The message, to be sent or looked at.
    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

/// A delta that may leave, and all that is said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Names the delta where its bytes are sent.
    pub(crate) subject: v1::UploadStatusRequest,
    /// Asks for the delta to be counted.
    pub(crate) submission: v1::SubmitRequest,
}

impl Ledger {
    /// The yes to a round, as it was recorded.
    ///
    /// # Errors
    ///
    /// Gives [`LedgerError::NotRecorded`] unless the round's last entry is `agreed`.
    pub fn release_terms(
        &self,
        run: &RunName,
        round: u32,
    ) -> Result<Released<v1::AcceptTermsRequest>, LedgerError> {
        let Some(Standing::Agreed { manifest, base, cases }) = self.standing(run, round) else {
            return Err(self.not_recorded("agreed", format!("round {round} of {run}")));
        };
        Ok(Released(v1::AcceptTermsRequest {
            run: run.to_string(),
            round,
            manifest_digest: wire(*manifest),
            base_digest: wire(*base),
            cases: *cases,
        }))
    }

    /// The no to a round, with the recorded reason; of a round that is over, that it is.
    ///
    /// # Errors
    ///
    /// Gives [`LedgerError::NotRecorded`] unless the round's last entry is `declined` or `answered`.
    pub fn release_decline(
        &self,
        run: &RunName,
        round: u32,
    ) -> Result<Released<v1::DeclineRequest>, LedgerError> {
        let Some(reason) = self.standing(run, round).and_then(Standing::refusal) else {
            return Err(self.not_recorded("declined", format!("round {round} of {run}")));
        };
        let reason = Some((&reason).into());
        Ok(Released(v1::DeclineRequest { run: run.to_string(), round, reason }))
    }

    /// The delta of a round: permission to send its bytes, and what is said of it, as it was recorded.
    ///
    /// # Errors
    ///
    /// Gives [`LedgerError::NotRecorded`] unless the round has a `trained` and a `released` entry
    /// and no answer.
    pub fn release_delta(&self, run: &RunName, round: u32) -> Result<Released<Delta>, LedgerError> {
        let Some(Standing::Owed { trained, released: true }) = self.standing(run, round) else {
            return Err(self.not_recorded("released", format!("round {round} of {run}")));
        };
        let (run, digest, cases) = (run.to_string(), wire(trained.digest), trained.cases);
        let metrics_json = serde_json::to_string(&trained.metrics).expect("metrics are plain data");
        let (bytes, of) = (trained.bytes, digest.clone());
        let subject = v1::UploadStatusRequest { run: run.clone(), round, digest: of, cases, bytes };
        let submission = v1::SubmitRequest { run, round, digest, cases, metrics_json };
        Ok(Released(Delta { subject, submission }))
    }

    /// The answer to question `id`, whether a declined run of `manifest` would be taken part in now.
    ///
    /// # Errors
    ///
    /// Gives [`LedgerError::NotRecorded`] unless the last entry of the run is `declined` or
    /// `willing`, for this manifest.
    pub fn release_answer(
        &self,
        id: &str,
        run: &RunName,
        manifest: Digest,
    ) -> Result<Released<v1::AnswerInquiryRequest>, LedgerError> {
        match self.declined(run) {
            Some((_, of, answer)) if of == Some(manifest) => Ok(answered(id, answer, Vec::new())),
            Some(_) | None => Err(self.not_recorded("declined", of_manifest(run, manifest))),
        }
    }

    /// The answer to question `id`, an operator's check of a run: the class and the warnings that
    /// were recorded. One entry answers every check above the limit, whatever run it is about.
    ///
    /// # Errors
    ///
    /// Gives [`LedgerError::NotRecorded`] unless the last `checked` entry is of this run and
    /// manifest, or says that the limit is reached.
    pub fn release_check(
        &self,
        id: &str,
        run: &RunName,
        manifest: Digest,
    ) -> Result<Released<v1::AnswerInquiryRequest>, LedgerError> {
        if let Some(Entry { run: of_run, event, .. }) = &self.last_check
            && let Event::Checked { manifest: of, answer, warnings } = event
            && (*answer == CheckAnswer::ChecksPerDay || (of_run, *of) == (run, manifest))
        {
            let warnings = warnings.iter().map(ToString::to_string).collect();
            return Ok(answered(id, refusal(*answer).as_ref(), warnings));
        }
        Err(self.not_recorded("checked", of_manifest(run, manifest)))
    }

    fn not_recorded(&self, missing: &'static str, subject: String) -> LedgerError {
        LedgerError::NotRecorded { file: self.path.clone(), missing, subject }
    }
}

fn answered(
    id: &str,
    refusal: Option<&Refusal>,
    warnings: Vec<String>,
) -> Released<v1::AnswerInquiryRequest> {
    let refusal = refusal.map(Into::into);
    Released(v1::AnswerInquiryRequest { id: id.to_owned(), refusal, warnings })
}

fn of_manifest(run: &RunName, manifest: Digest) -> String {
    format!("{run} with manifest {}", manifest.short())
}

fn wire(digest: Digest) -> bytes::Bytes {
    digest.as_bytes().to_vec().into()
}

/// The answer to a check as the wire has it; `None` for [`CheckAnswer::Ready`].
fn refusal(answer: CheckAnswer) -> Option<Refusal> {
    let class = match answer {
        CheckAnswer::Ready => return None,
        CheckAnswer::Passing | CheckAnswer::ChecksPerDay => RefusalClass::Passing,
        CheckAnswer::Policy
        | CheckAnswer::Backbone
        | CheckAnswer::Data
        | CheckAnswer::Cases
        | CheckAnswer::Other
        | CheckAnswer::NotConnected
        | CheckAnswer::NoAnswer
        | CheckAnswer::NotEnrolled
        | CheckAnswer::Suspended => RefusalClass::UntilChanged,
    };
    Some(Refusal::SiteFailed { reason: answer.as_str().to_owned(), class })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tributary_proto::convert::verdict;
    use tributary_shared::check::CheckWarning;
    use tributary_shared::terms::SiteMetrics;
    use tributary_shared::timestamp::Timestamp;

    use super::super::{Trained, read};
    use super::*;

    struct Desk {
        _folder: tempfile::TempDir,
        path: PathBuf,
        ledger: Ledger,
        run: RunName,
    }

    impl Desk {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(super::super::FILE_NAME);
            let ledger = Ledger::open(&path).unwrap();
            Self { _folder: folder, path, ledger, run: "run".parse().unwrap() }
        }

        fn entry(&self, round: u32, event: Event) -> Entry {
            Entry { at: Timestamp::from_millis(1), run: self.run.clone(), round, event }
        }

        fn append(&mut self, round: u32, event: Event) {
            self.ledger.append(&self.entry(round, event)).unwrap();
        }

        fn append_news(&mut self, round: u32, event: Event) {
            self.ledger.append_news(&self.entry(round, event)).unwrap();
        }

        /// What `released` gives now, and the same after the ledger was opened anew.
        fn twice<T: Clone + PartialEq + std::fmt::Debug>(
            &mut self,
            released: impl Fn(&Ledger, &RunName) -> Result<Released<T>, LedgerError>,
        ) -> T {
            let first = released(&self.ledger, &self.run).unwrap().get().clone();
            self.ledger = Ledger::open(&self.path).unwrap();
            assert_eq!(*released(&self.ledger, &self.run).unwrap().get(), first);
            first
        }
    }

    fn manifest() -> Digest {
        Digest::of(b"manifest")
    }

    fn agreed(cases: u64) -> Event {
        let (manifest, base) = (manifest(), Digest::of(b"base"));
        Event::Agreed { manifest, base, cohort_size: 3, cases }
    }

    fn trained() -> Trained {
        Trained {
            base: Digest::of(b"base"),
            digest: Digest::of(b"delta"),
            bytes: 9,
            norm: 0.1,
            cases: 40,
            metrics: SiteMetrics { steps: 7, train_loss: Some(0.1 + 0.2), ..Default::default() },
        }
    }

    fn declined(reason: Refusal) -> Event {
        Event::Declined { manifest: Some(manifest()), reason }
    }

    fn cohort(size: u32) -> Refusal {
        Refusal::Cohort { size, min: 3 }
    }

    fn missing<T: std::fmt::Debug>(released: Result<Released<T>, LedgerError>) -> String {
        match released.unwrap_err() {
            error @ LedgerError::NotRecorded { .. } => error.to_string(),
            error @ (LedgerError::Io { .. } | LedgerError::Damaged { .. }) => panic!("{error}"),
        }
    }

    #[test]
    fn nothing_is_released_without_its_entry_and_the_error_names_the_entry() {
        let mut desk = Desk::new();
        let run = desk.run.clone();
        let says = |text: String, entry: &str, subject: &str| {
            assert!(text.contains(&format!("no `{entry}` entry for {subject}")), "{text}");
        };
        // In each state, all but what that state allows is refused.
        says(missing(desk.ledger.release_terms(&run, 2)), "agreed", "round 2 of run");
        says(missing(desk.ledger.release_decline(&run, 2)), "declined", "round 2 of run");
        says(missing(desk.ledger.release_delta(&run, 2)), "released", "round 2 of run");
        let (answer, check) = (
            desk.ledger.release_answer("1", &run, manifest()),
            desk.ledger.release_check("1", &run, manifest()),
        );
        says(missing(answer), "declined", "run with manifest");
        says(missing(check), "checked", "run with manifest");
        desk.append(2, agreed(40));
        missing(desk.ledger.release_decline(&run, 2));
        missing(desk.ledger.release_delta(&run, 2));
        missing(desk.ledger.release_terms(&run, 3));
        desk.append(2, Event::Trained(trained()));
        missing(desk.ledger.release_terms(&run, 2));
        missing(desk.ledger.release_delta(&run, 2));
        desk.append(2, Event::Released { digest: trained().digest, bytes: 9 });
        desk.ledger.release_delta(&run, 2).unwrap();
        desk.append(2, Event::Answered { digest: trained().digest, refusal: None });
        missing(desk.ledger.release_delta(&run, 2));
        desk.append(3, declined(cohort(1)));
        missing(desk.ledger.release_terms(&run, 3));
        missing(desk.ledger.release_answer("1", &run, Digest::of(b"another manifest")));
    }

    #[test]
    fn an_entry_that_could_not_be_written_releases_nothing() {
        let mut desk = Desk::new();
        desk.ledger.file = std::fs::File::open(&desk.path).unwrap();
        desk.ledger.append_news(&desk.entry(1, agreed(40))).unwrap_err();
        missing(desk.ledger.release_terms(&desk.run, 1));
        desk.append_news(1, agreed(40));
        desk.ledger.release_terms(&desk.run, 1).unwrap();
    }

    #[test]
    fn terms_and_their_cases_are_those_of_the_last_entry() {
        let mut desk = Desk::new();
        for (cases, entries) in [(40, 1), (40, 1), (41, 2)] {
            desk.append_news(2, agreed(cases));
            let told = desk.twice(|ledger, run| ledger.release_terms(run, 2));
            let expected = v1::AcceptTermsRequest {
                run: "run".to_owned(),
                round: 2,
                manifest_digest: wire(manifest()),
                base_digest: wire(Digest::of(b"base")),
                cases,
            };
            assert_eq!(told, expected);
            assert_eq!(read(&desk.path).unwrap().len(), entries);
        }
    }

    #[test]
    fn a_delta_is_what_its_entry_says() {
        let mut desk = Desk::new();
        desk.append(2, agreed(40));
        desk.append(2, Event::Trained(trained()));
        for _ in 0..2 {
            desk.append_news(2, Event::Released { digest: trained().digest, bytes: 9 });
        }
        assert_eq!(read(&desk.path).unwrap().len(), 3);
        let Delta { subject, submission } = desk.twice(|ledger, run| ledger.release_delta(run, 2));
        let named = (subject.run.as_str(), subject.round, &subject.digest[..], subject.cases);
        assert_eq!(named, ("run", 2, &trained().digest.as_bytes()[..], 40));
        assert_eq!(subject.bytes, 9);
        let same = (&submission.run, submission.round, &submission.digest[..], submission.cases);
        assert_eq!(same, (&subject.run, subject.round, &subject.digest[..], subject.cases));
        let metrics: SiteMetrics = serde_json::from_str(&submission.metrics_json).unwrap();
        assert_eq!(metrics, trained().metrics);
    }

    #[test]
    fn a_round_is_declined_with_the_recorded_reason_and_one_that_is_over_because_it_is() {
        let mut desk = Desk::new();
        desk.append(1, Event::Trained(trained()));
        desk.append(1, Event::Answered { digest: trained().digest, refusal: None });
        desk.append(2, declined(Refusal::Suspended));
        let told = desk.twice(|ledger, run| ledger.release_decline(run, 2));
        assert_eq!((told.run.as_str(), told.round), ("run", 2));
        assert_eq!(verdict(told.reason), Err(Refusal::Suspended));
        let over = verdict(desk.twice(|ledger, run| ledger.release_decline(run, 1)).reason);
        let over = over.unwrap_err();
        assert!(!over.may_end(), "{over}");
        let text = format!("delta {} was already answered", trained().digest);
        assert!(over.to_string().contains(&text), "{over}");
    }

    /// Failed before: a yes, and a no that holds for its round, left without an entry.
    #[test]
    fn a_changed_answer_is_recorded_each_time_and_the_same_one_is_not_repeated() {
        let mut desk = Desk::new();
        let never = Refusal::SiteFailed { reason: "a bug".to_owned(), class: RefusalClass::Never };
        let mut entries = Vec::new();
        for answer in [Some(cohort(1)), Some(cohort(2)), None, Some(cohort(2)), Some(never), None] {
            let event = answer.clone().map_or(Event::Willing { manifest: manifest() }, declined);
            entries.push(desk.entry(4, event.clone()));
            for id in ["1", "2"] {
                desk.append_news(4, event.clone());
                let told = desk.twice(|ledger, run| ledger.release_answer(id, run, manifest()));
                assert_eq!(told.id, id);
                assert_eq!(verdict(told.refusal).err(), answer);
            }
            assert_eq!(read(&desk.path).unwrap(), entries);
        }
    }

    #[test]
    fn a_check_is_answered_by_its_entry_and_above_the_limit_by_one_entry_for_all() {
        let mut desk = Desk::new();
        let other: RunName = "other".parse().unwrap();
        let warnings = vec![CheckWarning::WarmupTooLong];
        let checked = |answer, warnings| Event::Checked { manifest: manifest(), answer, warnings };
        desk.append(0, checked(CheckAnswer::Ready, warnings));
        let told = desk.twice(|ledger, run| ledger.release_check("7", run, manifest()));
        let expected = v1::AnswerInquiryRequest {
            id: "7".to_owned(),
            refusal: None,
            warnings: vec!["warmup_too_long".to_owned()],
        };
        assert_eq!(told, expected);
        missing(desk.ledger.release_check("7", &other, manifest()));
        missing(desk.ledger.release_check("7", &desk.run, Digest::of(b"another manifest")));
        desk.append(0, checked(CheckAnswer::ChecksPerDay, Vec::new()));
        let told = desk.twice(|ledger, _| ledger.release_check("8", &other, manifest()));
        let refusal = verdict(told.refusal).unwrap_err();
        assert_eq!(refusal.class(), RefusalClass::Passing);
        assert!(refusal.to_string().ends_with("checks_per_day"), "{refusal}");
        // A check below the limit is the last one again: the next above it has an entry of its own.
        desk.append(0, checked(CheckAnswer::Data, Vec::new()));
        missing(desk.ledger.release_check("9", &other, manifest()));
        let day = std::time::Duration::from_secs(86_400);
        let checks = desk.ledger.checks_within(Timestamp::from_millis(2), day);
        assert_eq!((checks.answered, checks.over), (2, 0));
        let told = desk.twice(|ledger, run| ledger.release_check("9", run, manifest()));
        assert_eq!(verdict(told.refusal).unwrap_err().class(), RefusalClass::UntilChanged);
    }
}
