//! A history that was restored from a backup: the statement that explains it, and its acceptance.
//!
//! The statement alone changes nothing here. It must hold under the log's key and an operator's,
//! and the site's engineer (or `policy.toml`) must accept it by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tributary_proto::channel::{Identity, check_recovery, write_durably};
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::{RECOVERIES_MAX, Recovery, Statement};

use super::directory::recoveries_of;
use super::trouble::RECOVERY_ASKED;
use super::{Halt, Site};
use crate::clock;
use crate::config::policy::{OnRecovery, Policy};

/// Pause between two looks for the acceptance that the site waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Advice where a statement came that does not explain the head of this site.
const UNDERSTATED: &str = "the coordinator's recovery statement names fewer leaves than this site has seen, and the coordinator's log now says so: its operator runs `tributary-coordinator recover` again";
/// Beginning of the advice where a statement came that does not hold.
const REFUSED: &str = "the coordinator's recovery statement is refused: keep this site's directory, call the consortium; ";
/// Most statements kept in the site's directory that are read.
const FILES_MAX: usize = 1_000;

/// The two files of a statement in the site's directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The statement, as it came.
    pub statement: PathBuf,
    /// Written when the statement is accepted.
    pub accepted: PathBuf,
}

impl Files {
    /// The files of the statement `digest` of the site in `directory`.
    pub fn of(directory: &Path, digest: Digest) -> Self {
        let folder = recoveries_of(directory);
        let hex = digest.to_hex();
        Self {
            statement: folder.join(format!("{hex}.json")),
            accepted: folder.join(format!("{hex}.accepted")),
        }
    }

    /// Notes who accepted the statement, durably.
    pub fn accept(&self, by: &str) -> std::io::Result<()> {
        let text = format!("accepted by {by} at {}\n", clock::now());
        write_durably(&self.accepted, text.as_bytes(), 0o600)
    }
}

/// The statements that the running client was given and kept, each with its files, checked again
/// against the site's identity.
pub fn kept(directory: &Path, identity: &Identity) -> Result<Vec<(Recovery, Files)>, Failure> {
    let folder = recoveries_of(directory);
    let failed =
        |e: std::io::Error| Failure::invalid("directory", format!("{}: {e}", folder.display()));
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let recovery = Trust::of(identity).and_then(|trust| trust.checked(&bytes));
        let recovery = recovery.map_err(|problem| {
            Failure::invalid("recovery", format!("{}: {problem}", path.display()))
        })?;
        let files = Files::of(directory, recovery.statement.digest());
        found.push((recovery, files));
    }
    found.sort_by_key(|(recovery, _)| recovery.statement.at);
    Ok(found)
}

/// The part of an identity by which statements are checked.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// The log's key.
    pub(super) key: VerifierKey,
    /// Digest of the authority's certificate.
    pub(super) root: Digest,
}

impl Trust {
    /// That of `identity`, or the fault of its log key.
    fn of(identity: &Identity) -> Result<Self, String> {
        let key = identity.log_verifier_key.parse().map_err(|e| chain(&e))?;
        Ok(Self { key, root: Digest::of(&identity.root) })
    }

    /// Reads a statement and checks both signatures.
    fn checked(&self, bytes: &[u8]) -> Result<Recovery, String> {
        let recovery = Recovery::from_json(bytes, &self.key).map_err(|e| chain(&e))?;
        check_recovery(&recovery, &self.key, self.root).map_err(|e| chain(&e))?;
        Ok(recovery)
    }

    /// Of the statements that hold, the one that explains `held` and keeps the most; without one, the fault of those
    /// that were offered.
    pub(super) fn explanation(
        &self,
        held: &Checkpoint,
        offered: &[Bytes],
    ) -> Result<Recovery, Option<String>> {
        let (mut found, mut fault) = (None::<Recovery>, None);
        for bytes in offered.iter().take(RECOVERIES_MAX) {
            match self.checked(bytes) {
                Ok(recovery) if !recovery.statement.covers(held) => {
                    fault = Some(UNDERSTATED.to_owned());
                }
                Ok(recovery) => {
                    let keeps = |r: &Recovery| r.statement.kept.size;
                    if found.as_ref().is_none_or(|best| keeps(best) <= keeps(&recovery)) {
                        found = Some(recovery);
                    }
                }
                Err(problem) => {
                    tracing::warn!("a recovery statement is refused: {problem}");
                    fault.get_or_insert_with(|| format!("{REFUSED}{problem}"));
                }
            }
        }
        found.ok_or(fault)
    }
}

/// The meaning of a statement for this site, in one line.
fn told(said: &Statement, held: &Checkpoint) -> String {
    format!(
        "the coordinator's history was restored from a backup of {} leaves and this site has seen {}; \
         the log's key and {} have signed that: {}",
        said.kept.size, held.size, said.operator, said.reason
    )
}

impl Site {
    /// Leaves that accepted statements say were lost, over all of them.
    pub(super) fn lost_leaves(&self) -> u64 {
        let kept = kept(&self.config.directory, &self.identity).unwrap_or_default();
        let accepted = kept.iter().filter(|(_, files)| files.accepted.exists());
        accepted.map(|(recovery, _)| recovery.statement.lost_leaves()).sum()
    }

    /// Goes on from the head that an accepted statement keeps, or says why the site waits.
    pub(super) fn recover(&mut self, offered: &[Bytes], broken: Failure) -> Result<(), Halt> {
        let Some(held) = self.keeper.checkpoint().cloned() else { return Err(Halt::Wrong(broken)) };
        let trust = Trust::of(&self.identity)
            .map_err(|problem| Some(format!("the identity's log key: {problem}")));
        let explained = trust.and_then(|trust| trust.explanation(&held, offered));
        let recovery = explained.map_err(|fault| {
            Halt::Wrong(match fault {
                Some(fault) => broken.hint(fault),
                None => broken,
            })
        })?;
        let said = &recovery.statement;
        let files = Files::of(&self.config.directory, said.digest());
        let disk = |e: std::io::Error| Halt::disk("a recovery statement", &e);
        if !files.statement.exists() {
            write_durably(&files.statement, recovery.to_json().as_bytes(), 0o600).map_err(disk)?;
        }
        if !files.accepted.exists() {
            // A policy that cannot be read accepts nothing.
            let asks =
                Policy::load(&self.config.policy).map_or(OnRecovery::Ask, |policy| policy.recovery);
            if asks == OnRecovery::Ask {
                let config = self.config.file.display();
                let hint = format!(
                    "read it with `tributary-client recovery show --config {config}`; if the consortium confirms it, `tributary-client recovery accept --config {config}`"
                );
                self.awaited = Some(files.accepted);
                let failure = Failure::refused(RECOVERY_ASKED, told(said, &held)).hint(hint);
                return Err(Halt::Wrong(failure));
            }
            files.accept("policy.toml, recovery = \"accept\"").map_err(disk)?;
        }
        let evidence =
            self.keeper.resume(&recovery).map_err(|e| Halt::disk("the witness file", &e))?;
        tracing::warn!(
            "{}; accepted: going on from {} leaves, the head seen before is kept in {}",
            told(said, &held),
            said.kept.size,
            evidence.display()
        );
        Ok(())
    }

    /// Waits, at most until a statement that the site asks about was accepted.
    pub(super) async fn pause(&self, wait: Duration) {
        let accepted = async {
            let Some(path) = &self.awaited else { return std::future::pending().await };
            while !path.exists() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = accepted => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        SanType,
    };
    use ring::signature::Ed25519KeyPair;
    use tributary_proto::channel::sign_recovery;
    use tributary_shared::tlog::key::Signer;
    use tributary_shared::tlog::recovery::{Draft, Head, RECOVERY_SCHEMA};

    use super::*;

    /// A root of consortium `demo` and its operator `o`.
    fn operator() -> Identity {
        let named = |uri: &str| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            params.use_authority_key_identifier_extension = true;
            params
        };
        let (authority, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = named("tributary://demo");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&authority).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&root, authority).unwrap();
        let mut params = named("tributary://demo/operator/o");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Identity {
            consortium: "demo".parse().unwrap(),
            member: "operator/o".parse().unwrap(),
            address: "localhost:1".to_owned(),
            log_verifier_key: log().verifier_key().to_string(),
            certificate: params.signed_by(&key, &issuer).unwrap().der().clone(),
            root,
            key_pem: key.serialize_pem(),
        }
    }

    fn log() -> Signer {
        signer(7)
    }

    fn signer(seed: u8) -> Signer {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        Signer::new("log.example/demo", pair).unwrap()
    }

    fn head(size: u64) -> Head {
        let note = Checkpoint::sign(size, Digest::of(&size.to_le_bytes()), &log());
        Head::open(&note, &log().verifier_key()).unwrap()
    }

    /// The statement that ten leaves were lost down to `kept`.
    fn statement(kept: u64, operator: &Identity, signer: &Signer) -> Recovery {
        let statement = Statement {
            schema: RECOVERY_SCHEMA,
            log: log().verifier_key(),
            consortium: "demo".parse().unwrap(),
            lost: vec![head(10)],
            kept: head(kept),
            at: clock::now(),
            reason: "the disk failed".to_owned(),
            operator: "operator/o".to_owned(),
        };
        sign_recovery(Draft::sign(statement, signer), operator).unwrap()
    }

    fn sent(recoveries: &[&Recovery]) -> Vec<Bytes> {
        recoveries.iter().map(|recovery| Bytes::from(recovery.to_json())).collect()
    }

    #[test]
    fn of_statements_that_hold_the_one_that_keeps_the_most_explains_a_head() {
        let operator = operator();
        let trust = Trust::of(&operator).unwrap();
        let [few, many] = [3, 5].map(|kept| statement(kept, &operator, &log()));
        let seen = head(10).checkpoint();
        for order in [[&few, &many], [&many, &few]] {
            assert_eq!(trust.explanation(&seen, &sent(&order)), Ok(many.clone()));
        }
        assert_eq!(trust.explanation(&seen, &[]), Err(None));
        let beyond = head(11).checkpoint();
        let understated = Err(Some(UNDERSTATED.to_owned()));
        assert_eq!(trust.explanation(&beyond, &sent(&[&few])), understated);
    }

    #[test]
    fn a_forged_or_foreign_statement_explains_nothing_and_its_fault_is_told() {
        let operator = operator();
        let trust = Trust::of(&operator).unwrap();
        let good = statement(5, &operator, &log());
        let fault_of = |forged: &Recovery| {
            let found = trust.explanation(&head(10).checkpoint(), &sent(&[forged]));
            found.unwrap_err().expect("a statement was offered")
        };
        let changed = |change: &dyn Fn(&mut Recovery)| {
            let mut forged = good.clone();
            change(&mut forged);
            fault_of(&forged)
        };
        let words = changed(&|r| r.statement.reason = "another".to_owned());
        assert!(words.contains("not signed by the log's key"), "{words}");
        // The log's key alone: an operator's signature is missing.
        let alone = changed(&|r| r.operator_signature.clone_from(&r.log_signature));
        assert!(alone.contains("not signed by its operator's key"), "{alone}");
        // An operator alone: another key signed for the log.
        let other_log = fault_of(&statement(5, &operator, &signer(8)));
        assert!(other_log.contains("not signed by the log's key"), "{other_log}");
        // An operator of another consortium of the same name.
        let stranger = fault_of(&statement(5, &self::operator(), &log()));
        assert!(stranger.contains("is vouched for by root"), "{stranger}");
        let garbage = trust.explanation(&head(10).checkpoint(), &[Bytes::from_static(b"{}")]);
        assert!(garbage.unwrap_err().unwrap().starts_with(REFUSED));
        // A forged statement beside a true one takes nothing from it.
        let mut forged = good.clone();
        forged.statement.reason.push('!');
        let found = trust.explanation(&head(10).checkpoint(), &sent(&[&forged, &good]));
        assert_eq!(found, Ok(good));
    }
}
