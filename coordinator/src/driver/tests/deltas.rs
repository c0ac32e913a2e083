//! The life of a delta: sent, checked, counted or removed, folded or excluded.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use tributary_shared::tensors::{Header, encode};
use tributary_shared::terms::SiteMetrics;

use super::*;
use crate::blobs::SpoolKey;
use crate::round::Phase;

/// A coordinator whose sites are members, with one rehearsal of four values.
struct Trial {
    directory: tempfile::TempDir,
    driver: Driver,
    run: RunName,
}

fn manifest(name: &str, rounds: u32, quorum: u32) -> RunManifest {
    let mut manifest = rehearsal(name);
    manifest.rounds.count = rounds;
    manifest.rounds.void_pause_s = 0;
    manifest.quorum.sites = quorum;
    manifest
}

impl Trial {
    async fn start(manifest: RunManifest, sites: &[&str]) -> Self {
        Self::start_keeping(manifest, sites, Keeping::default()).await
    }

    async fn start_keeping(manifest: RunManifest, sites: &[&str], keeping: Keeping) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let driver = driver_keeping(directory.path(), keeping).await;
        for site in sites {
            enroll(&driver, site).await;
        }
        let run = manifest.name.clone();
        driver.start_run(manifest, &operator()).await.unwrap();
        Self { directory, driver, run }
    }

    /// A run whose one site has agreed to the terms of round 1; the site and the header of its delta.
    async fn awaiting_a_delta() -> (Self, SiteName, Header) {
        let trial = Self::start(manifest("run", 1, 1), &["a"]).await;
        trial.agree("a", 5).await.unwrap();
        let site = "a".parse().unwrap();
        let header = trial.live().await.read(|run| run.expected_delta(&site, 1, 5)).unwrap();
        (trial, site, header)
    }

    /// Begins an upload for round 1 that is announced as `bytes` bytes.
    async fn begin(
        &self,
        site: &SiteName,
        header: &Header,
        digest: Digest,
        bytes: u64,
    ) -> Result<Upload, DriverError> {
        Upload::begin(&self.driver, site, &self.run, 1, digest, header.clone(), bytes).await
    }

    async fn live(&self) -> Arc<LiveRun> {
        self.driver.run(&self.run).await.unwrap()
    }

    /// Agrees to the terms of the round that is open, or opens next.
    async fn agree(&self, site: &str, cases: u64) -> Result<(), DriverError> {
        self.until(|run| matches!(run.phase(), Phase::Collecting(_))).await;
        let live = self.live().await;
        let terms = terms(&live, site, cases);
        live.command(&self.driver, terms).await
    }

    async fn decline(&self, site: &str) {
        let live = self.live().await;
        let class = tributary_shared::refusal::RefusalClass::Never;
        let reason = Refusal::Policy { reason: "no".to_owned(), class };
        let (site, round) = (site.parse().unwrap(), live.read(Run::round));
        live.command(&self.driver, Command::Decline { site, round, reason }).await.unwrap();
    }

    /// Uploads `value` four times, under the header of the open round.
    async fn upload(&self, site: &str, cases: u64, value: f32) -> Digest {
        let (site, round) = (site.parse().unwrap(), self.live().await.read(Run::round));
        let header = self.live().await.read(|run| run.expected_delta(&site, round, cases)).unwrap();
        let bytes = encode(&header, &[vec![value; 4]]);
        let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
        let upload = Upload::begin(&self.driver, &site, &self.run, round, digest, header, total);
        let mut upload = upload.await.unwrap();
        upload.push(Bytes::from(bytes)).await.unwrap();
        assert_eq!(upload.finish(&self.driver).await.unwrap(), total);
        digest
    }

    async fn submit(&self, site: &str, digest: Digest, cases: u64) -> Result<(), DriverError> {
        let (site, round) = (site.parse().unwrap(), self.live().await.read(Run::round));
        let metrics = SiteMetrics::default();
        self.driver.submit(&site, &self.run, round, digest, cases, metrics).await
    }

    async fn contribute(&self, site: &str, cases: u64, value: f32) -> Digest {
        self.agree(site, cases).await.unwrap();
        let digest = self.upload(site, cases, value).await;
        self.submit(site, digest, cases).await.unwrap();
        digest
    }

    /// Waits until the run's fold is as `wanted`.
    async fn until(&self, wanted: impl Fn(&Run) -> bool) {
        let mut log = self.driver.store().follow();
        let live = self.live().await;
        let reached = async {
            while !live.read(&wanted) {
                log.changed().await.unwrap();
                // The log grows a moment before the fold does.
                drop(live.turn.lock().await);
            }
        };
        let hang = std::time::Duration::from_secs(60);
        tokio::time::timeout(hang, reached).await.expect("the run comes there");
    }

    fn parts(&self) -> usize {
        self.driver.blobs().parts().unwrap().len()
    }

    async fn names(&self) -> Vec<String> {
        kinds(&self.driver, self.run.as_str()).await
    }

    fn blob(&self, digest: Digest) -> std::path::PathBuf {
        let hex = digest.to_hex();
        self.directory.path().join("blobs").join(&hex[..2]).join(hex)
    }
}

fn words(result: Result<(), DriverError>) -> String {
    result.unwrap_err().to_string()
}

/// A1: failed before: what was learned of bytes that say 5 cases was used to count 50, and the
/// aggregation failed for ever.
#[tokio::test]
async fn a_verdict_holds_for_the_cases_that_were_checked() {
    let trial = Trial::start(manifest("run", 1, 2), &["a", "b"]).await;
    trial.agree("a", 5).await.unwrap();
    let digest = trial.upload("a", 5, 1.0).await;
    assert_eq!(words(trial.agree("a", 50).await), "cases: expected 5, found 50");
    assert_eq!(words(trial.submit("a", digest, 50).await), "cases: expected 5, found 50");
    trial.submit("a", digest, 5).await.unwrap();
    trial.submit("a", digest, 5).await.expect("the same answer for all time");
    trial.contribute("b", 5, 1.0).await;
    trial.until(|run| run.rounds_published() == 1).await;
}

/// A1: failed before: counted in round 2 with the bytes of round 1.
#[tokio::test]
async fn a_delta_that_was_not_submitted_is_gone_with_its_round() {
    let trial = Trial::start(manifest("run", 2, 1), &["a", "b"]).await;
    trial.agree("a", 5).await.unwrap();
    let digest = trial.upload("a", 5, 1.0).await;
    assert_eq!(trial.parts(), 1);
    trial.decline("a").await;
    assert_eq!(trial.parts(), 0, "of no use to the round any more");
    trial.contribute("b", 5, 1.0).await;
    trial.until(|run| run.round() == 2).await;
    trial.agree("a", 5).await.unwrap();
    let late = trial.submit("a", digest, 5).await;
    assert!(matches!(late, Err(DriverError::NotUploaded(_))), "{late:?}");
    trial.contribute("b", 5, 1.0).await;
    let own = trial.upload("a", 5, 1.0).await;
    trial.submit("a", own, 5).await.unwrap();
    trial.until(|run| run.rounds_published() == 2).await;
}

/// A1: failed before: counted in one run with the bytes of another.
#[tokio::test]
async fn a_delta_of_one_run_counts_in_no_other() {
    let mut trial = Trial::start(manifest("one", 1, 1), &["a"]).await;
    trial.driver.start_run(manifest("two", 1, 1), &operator()).await.unwrap();
    trial.agree("a", 5).await.unwrap();
    let digest = trial.upload("a", 5, 1.0).await;
    trial.run = "two".parse().unwrap();
    trial.agree("a", 5).await.unwrap();
    let stray = trial.submit("a", digest, 5).await;
    assert!(matches!(stray, Err(DriverError::NotUploaded(_))), "{stray:?}");
    trial.contribute("a", 5, 2.0).await;
    trial.until(|run| run.rounds_published() == 1).await;
    trial.run = "one".parse().unwrap();
    trial.submit("a", digest, 5).await.unwrap();
    trial.until(|run| run.rounds_published() == 1).await;
}

/// A4: failed before: each was a blob, for ever.
#[tokio::test]
async fn a_site_that_uploads_and_never_submits_takes_the_room_of_one_delta() {
    let trial = Trial::start(manifest("run", 1, 1), &["a", "b"]).await;
    trial.agree("a", 5).await.unwrap();
    let blobs = trial.driver.blobs().list().unwrap();
    for value in 0..20u8 {
        trial.upload("a", 5, f32::from(value)).await;
        assert_eq!(trial.parts(), 1);
    }
    assert_eq!(trial.driver.blobs().list().unwrap(), blobs);
    // A delta that is refused goes too.
    let large = trial.upload("a", 5, 1e9).await;
    assert!(words(trial.submit("a", large, 5).await).starts_with("norm "));
    assert_eq!(trial.parts(), 0);
    assert_eq!(trial.driver.blobs().list().unwrap(), blobs);
    trial.contribute("b", 5, 1.0).await;
    trial.until(|run| run.rounds_published() == 1).await;
}

/// As after a coordinator that was killed between the commit and the rename, beside parts of a round
/// and of a run that are over.
#[tokio::test]
async fn a_restart_makes_blobs_of_what_is_counted_and_removes_the_rest() {
    let trial = Trial::start(manifest("run", 1, 2), &["a", "b"]).await;
    let counted = trial.contribute("a", 5, 1.0).await;
    trial.agree("b", 5).await.unwrap();
    let wanted = trial.upload("b", 5, 1.0).await;
    let spool = trial.directory.path().join("spool");
    let part = |run: &str, round: u32, site: &str, digest: Digest| {
        spool.join(format!("{run}.{round}.{site}.{}.part", digest.to_hex()))
    };
    fs::rename(trial.blob(counted), part("run", 1, "a", counted)).unwrap();
    fs::write(part("run", 7, "a", counted), b"another round").unwrap();
    fs::write(part("gone", 1, "a", counted), b"another run").unwrap();
    let Trial { directory, driver: first, run } = trial;
    first.stopping().cancel();
    first.store().close().await;
    drop(first);
    let driver = driver(directory.path()).await;
    let trial = Trial { directory, driver, run };
    assert!(trial.driver.blobs().exists(counted));
    let left = trial.driver.blobs().parts().unwrap();
    assert_eq!(left.iter().map(|key| key.digest).collect::<Vec<_>>(), [wanted]);
    // Nothing is remembered: it is read again.
    trial.submit("b", wanted, 5).await.unwrap();
    trial.until(|run| run.rounds_published() == 1).await;
}

/// A4: failed before: every counted delta was kept for ever.
#[tokio::test]
async fn deltas_that_are_no_longer_kept_are_removed_by_an_event() {
    let retention = Retention::Last(1.try_into().unwrap());
    let keeping = Keeping { retention, ..Keeping::default() };
    let trial = Trial::start_keeping(manifest("run", 3, 1), &["a"], keeping).await;
    let mut sent = Vec::new();
    for round in 1..=3 {
        sent.push(trial.contribute("a", 5, 1.0).await);
        trial.until(|run| run.rounds_published() == round).await;
    }
    trial.until(|run| run.removed_to() == 2).await;
    trial.live().await.act(&trial.driver).await.unwrap();
    let there: Vec<bool> = sent.iter().map(|digest| trial.driver.blobs().exists(*digest)).collect();
    assert_eq!(there, [false, false, true]);
    let removals = trial.names().await.iter().filter(|name| *name == "deltas_removed").count();
    assert_eq!(removals, 2);
}

/// A4: failed before: nothing bounded what a site may leave in the spool.
#[tokio::test]
async fn a_site_sends_for_one_run_at_a_time_where_two_deltas_are_too_much() {
    let keeping = Keeping { unsettled_bytes_max: 1, ..Keeping::default() };
    let mut trial = Trial::start_keeping(manifest("one", 1, 1), &["a"], keeping).await;
    trial.driver.start_run(manifest("two", 1, 1), &operator()).await.unwrap();
    trial.agree("a", 5).await.unwrap();
    let first = trial.upload("a", 5, 1.0).await;
    trial.run = "two".parse().unwrap();
    trial.agree("a", 5).await.unwrap();
    let live = trial.live().await;
    let header = live.read(|run| run.expected_delta(&"a".parse().unwrap(), 1, 5)).unwrap();
    let site = "a".parse().unwrap();
    let begun = Upload::begin(&trial.driver, &site, &trial.run, 1, first, header, 9).await;
    let Err(refused) = begun else { panic!("the quota is full") };
    assert!(refused.to_string().contains("and 1 are allowed"), "{refused}");
    trial.run = "one".parse().unwrap();
    trial.submit("a", first, 5).await.unwrap();
    trial.run = "two".parse().unwrap();
    trial.contribute("a", 5, 1.0).await;
}

/// Failed before: a whole delta that was sent again without a byte was read again each time.
#[tokio::test]
async fn a_whole_delta_is_known_until_its_round_has_no_use_for_it() {
    let trial = Trial::start(manifest("run", 1, 1), &["a", "b"]).await;
    trial.agree("a", 5).await.unwrap();
    let digest = trial.upload("a", 5, 1.0).await;
    let (live, site) = (trial.live().await, "a".parse().unwrap());
    let header = live.read(|run| run.expected_delta(&site, 1, 5)).unwrap();
    let mut other = header.clone();
    other.tensors[0].name.push('x');
    let key = SpoolKey { run: trial.run.clone(), round: 1, site, digest };
    let uploads = trial.driver.uploads();
    assert!(uploads.is_whole(&key, &header) && !uploads.is_whole(&key, &other));
    trial.decline("a").await;
    assert!(!uploads.is_whole(&key, &header));
}

/// Failed before: each stream read the part again.
#[tokio::test]
async fn a_stream_that_breaks_off_leaves_what_is_known_to_the_next() {
    let (trial, site, header) = Trial::awaiting_a_delta().await;
    let bytes = encode(&header, &[vec![1.0; 4]]);
    let begin = || trial.begin(&site, &header, Digest::of(&bytes), bytes.len() as u64);
    // The header and one value.
    let cut = bytes.len() - 12;
    let mut broken = begin().await.unwrap();
    broken.push(Bytes::copy_from_slice(&bytes[..cut])).await.unwrap();
    drop(broken);
    // Damage that shows only if the part is read.
    let part = fs::read_dir(trial.directory.path().join("spool")).unwrap().next().unwrap();
    fs::write(part.unwrap().path(), vec![0; cut]).unwrap();
    let mut next = begin().await.unwrap();
    assert_eq!(next.received(), cut as u64);
    next.push(Bytes::copy_from_slice(&bytes[cut..])).await.unwrap();
    assert_eq!(next.finish(&trial.driver).await.unwrap(), bytes.len() as u64);
}

/// Failed before: a part of a header stayed in memory until its round closed, one for each site and run.
#[tokio::test]
async fn of_a_stream_that_breaks_off_within_the_header_nothing_is_kept_in_memory() {
    let (trial, site, header) = Trial::awaiting_a_delta().await;
    let bytes = encode(&header, &[vec![1.0; 4]]);
    let begin = || trial.begin(&site, &header, Digest::of(&bytes), bytes.len() as u64);
    let mut broken = begin().await.unwrap();
    broken.push(Bytes::copy_from_slice(&bytes[..40])).await.unwrap();
    drop(broken);
    let part = fs::read_dir(trial.directory.path().join("spool")).unwrap().next().unwrap();
    fs::write(part.unwrap().path(), [0; 40]).unwrap();
    let mut next = begin().await.unwrap();
    assert_eq!(next.received(), 0, "the part was read, and it is damaged");
    next.push(Bytes::copy_from_slice(&bytes)).await.unwrap();
    assert_eq!(next.finish(&trial.driver).await.unwrap(), bytes.len() as u64);
}

/// Failed before: disk was reserved for the size that a site claimed, before it was compared with the contract, and on a
/// disk without so much room every deadline stood still.
#[tokio::test]
async fn a_size_beyond_the_contract_reserves_nothing() {
    let (trial, site, header) = Trial::awaiting_a_delta().await;
    let _filled = fill(&trial.driver);
    for claimed in [u64::MAX, 1 << 62] {
        let begun = trial.begin(&site, &header, Digest::of(b"claimed"), claimed);
        // On a disk with room it would be refused by its size too, and not for want of room.
        let refused = begun.await.err().unwrap();
        let DriverError::Refused(Refusal::Size { found, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(found, claimed);
    }
}

/// A part that a power failure damaged is not held against its site.
#[tokio::test]
async fn a_part_that_lost_bytes_has_not_arrived() {
    let trial = Trial::start(manifest("run", 1, 1), &["a"]).await;
    trial.agree("a", 5).await.unwrap();
    let digest = trial.upload("a", 5, 1.0).await;
    trial.driver.uploads().forget(&trial.run, |_, _| false);
    let part = fs::read_dir(trial.directory.path().join("spool")).unwrap().next().unwrap();
    let part = part.unwrap().path();
    let length = fs::metadata(&part).unwrap().len() as usize;
    fs::write(&part, vec![0; length]).unwrap();
    let damaged = trial.submit("a", digest, 5).await;
    assert!(matches!(damaged, Err(DriverError::NotUploaded(_))), "{damaged:?}");
    assert_eq!(trial.parts(), 0);
    let again = trial.upload("a", 5, 1.0).await;
    trial.submit("a", again, 5).await.unwrap();
    trial.until(|run| run.rounds_published() == 1).await;
}

/// A10: failed before: the damaged bytes were published, or the run stood still.
#[tokio::test]
async fn a_delta_that_the_disk_damaged_is_excluded_and_the_others_are_folded() {
    excluded_after(|file| {
        let mut bytes = fs::read(file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file, bytes).unwrap();
    })
    .await;
}

/// Failed before: the aggregation was tried for ever, as after a backup that was made between the
/// commit of a delta and its rename.
#[tokio::test]
async fn a_delta_whose_file_is_gone_is_excluded_and_the_others_are_folded() {
    excluded_after(|file| fs::remove_file(file).unwrap()).await;
}

async fn excluded_after(damage: impl Fn(&Path)) {
    let trial = Trial::start(manifest("run", 1, 2), &["a", "b", "c"]).await;
    let damaged = trial.contribute("a", 5, 1.0).await;
    let file = trial.blob(damaged);
    damage(&file);
    trial.contribute("b", 5, 1.0).await;
    trial.contribute("c", 5, 1.0).await;
    trial.until(|run| run.rounds_published() == 1).await;
    let names = trial.names().await;
    let end = ["round_closed", "delta_excluded", "adapter_published", "run_ended"];
    assert_eq!(names[names.len() - 4..], end);
    assert!(!file.exists(), "no export carries it");
    let detail = trial.live().await.read(|run| {
        let Phase::Ended { detail, .. } = run.phase() else { panic!("the run has ended") };
        detail.clone()
    });
    let why = "its delta was counted, and its stored bytes are damaged";
    assert_eq!(detail, format!("a missing in round 1: {why}"));
    trial.live().await.read(|run| {
        assert_eq!(run.verdict(&"a".parse().unwrap(), 1, damaged), Some(Ok(())));
    });
}

/// A10: failed before: the aggregation was tried for ever.
#[tokio::test]
async fn a_delta_that_drives_the_adapter_out_of_its_range_is_excluded() {
    let mut manifest = manifest("run", 2, 2);
    manifest.limits.delta_norm_max = 1e300;
    let trial = Trial::start(manifest, &["a", "b", "mallory"]).await;
    for round in 1..=2 {
        trial.contribute("a", 100, 1.0).await;
        trial.contribute("b", 100, 1.0).await;
        trial.contribute("mallory", 10_000_000, 3e38).await;
        trial.until(|run| run.rounds_published() == round).await;
    }
    let live = trial.live().await;
    let missing = live.read(|run| run.past()[&2].missing.clone());
    let [missing] = &missing[..] else { panic!("{missing:?}") };
    assert_eq!(missing.site.as_str(), "mallory");
    let why = "its delta was counted, and with it value 0 of the adapter would be inf";
    assert_eq!(missing.reason, why);
}

/// Failed before in four of nine runs: of deltas that were submitted at one moment, the aggregation
/// began before the last one was in the blob store, logged an error and was tried again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_aggregation_begins_once_every_counted_delta_is_stored() {
    const ROUNDS: u32 = 200;
    let sites = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let trial = Arc::new(Trial::start(manifest("run", ROUNDS, 8), &sites).await);
    let live = trial.live().await;
    for round in 1..=ROUNDS {
        trial.until(|run| run.round() == round).await;
        let mut submissions = Vec::new();
        for site in sites {
            trial.agree(site, 5).await.unwrap();
            let digest = trial.upload(site, 5, 1.0).await;
            let trial = trial.clone();
            let submit = async move { trial.submit(site, digest, 5).await };
            submissions.push(tokio::spawn(submit));
        }
        for submission in submissions {
            submission.await.unwrap().unwrap();
        }
        while live.read(Run::rounds_published) < round {
            assert_eq!(live.trouble(), "", "round {round}");
            tokio::task::yield_now().await;
        }
    }
}
