//! `tributary-coordinator recover`: a restored history goes on after saying, under two signatures,
//! what it lost.

use std::path::{Path, PathBuf};

use tributary_proto::channel::{Identity, check_recovery, sign_recovery};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::recovery::{
    Draft, Head, LOST_MAX, RECOVERY_BYTES_MAX, RECOVERY_SCHEMA, Recovery, Statement,
};

use super::check::{Stands, known_heads, refuse_missing, stands, unreadable_head};
use super::made::{made, remember};
use super::{Place, RESTORED_HEAD};
use crate::clock;
use crate::config::read_text;
use crate::driver::recoveries;
use crate::heads::Heads;
use crate::membership::Authority;
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Stream};
use crate::store::{MemberState, Store};

/// A history that is about to be recovered, locked against other processes.
pub struct Recovering {
    store: Store,
    authority: Authority,
    heads: Heads,
    place: Place,
}

/// A finished recovery.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// The statement, as it stands in the history.
    pub recovery: Recovery,
    /// The leaf that holds it.
    pub leaf: u64,
}

impl Recovering {
    /// Opens the restored database of `place`; refused while a coordinator runs.
    pub async fn open(place: &Place) -> Result<Self, Failure> {
        refuse_missing(place)?;
        let authority = Authority::load(&place.directory).map_err(|e| e.failure())?;
        let signer = std::sync::Arc::new(authority.log_signer().map_err(|e| e.failure())?);
        let heads = Heads::open(&place.directory, signer)
            .map_err(|e| unreadable_head(&place.directory, &e))?;
        let store = Store::open(&place.database)
            .await
            .map_err(|e| Failure::invalid("database", chain(&e)))?;
        Ok(Self { store, authority, heads, place: place.clone() })
    }

    /// A statement of the lost and the kept head, signed by the log's key. `kept` says where the branches part; else
    /// the last restore has written it down, or the restored head is it.
    pub async fn draft(
        &self,
        operator: String,
        reason: String,
        kept: Option<u64>,
    ) -> Result<Draft, Failure> {
        let statements = recoveries(&self.store).await.map_err(|e| store_failed(&e))?;
        let mut lost: Vec<Head> = Vec::new();
        for head in known_heads(&self.place.directory, &self.heads)? {
            let stands = stands(&self.store, &statements, &head).await;
            match stands.map_err(|e| store_failed(&e))? {
                Stands::Continued | Stands::Explained => {}
                Stands::Understated | Stands::Lost => lost.push(head),
            }
        }
        if lost.is_empty() {
            let message = "this history continues every head that its log is known to have signed";
            return Err(Failure::refused("nothing_lost", message)
                .hint("serve it; if a site has seen more, the coordinator learns it and says so"));
        }
        lost.sort_by_key(|head| std::cmp::Reverse((head.size, head.root)));
        lost.dedup();
        lost.truncate(LOST_MAX);
        let kept = self.kept(kept, &statements).await?;
        let signer = self.heads.signer();
        let statement = Statement {
            schema: RECOVERY_SCHEMA,
            log: signer.verifier_key(),
            consortium: self.authority.consortium().clone(),
            lost,
            kept,
            at: clock::now(),
            reason,
            operator,
        };
        statement.check(&signer.verifier_key()).map_err(|e| {
            Failure::invalid("recovery", chain(&e))
                .hint("--kept SIZE says how many leaves the backup had when it was restored")
        })?;
        Ok(Draft::sign(statement, signer))
    }

    /// The head at which the branches part: what was asked for, or the smallest of the head that the last restore
    /// brought and the heads that forgotten statements kept.
    async fn kept(&self, asked: Option<u64>, statements: &[Recovery]) -> Result<Head, Failure> {
        let own = self.store.head().await.map_err(|e| store_failed(&e))?;
        let noted = restored_head(&self.place.directory, &self.heads)?;
        let made = made(&self.place.directory, &self.heads.signer().verifier_key())?;
        let forgotten = made.into_iter().filter(|recovery| !statements.contains(recovery));
        let forks = noted.into_iter().chain(forgotten.map(|recovery| recovery.statement.kept));
        let fork = forks.map(|head| head.size).chain([own.size]).min();
        let size = asked.or(fork).unwrap_or(own.size);
        if size == 0 || size > own.size {
            let message = format!("--kept: {size} is not between 1 and {} leaves", own.size);
            return Err(Failure::invalid("arguments", message));
        }
        let root = self.store.root_at(size).await.map_err(|e| store_failed(&e))?;
        let note = Checkpoint::sign(size, root, self.heads.signer());
        Ok(Head { size, root, note })
    }

    /// Signs with the operator's identity that lies in `directory`.
    pub async fn sign(
        &self,
        directory: &Path,
        reason: String,
        kept: Option<u64>,
    ) -> Result<Recovery, Failure> {
        let identity =
            Identity::load(directory).map_err(|e| Failure::invalid("identity", chain(&e)))?;
        let draft = self.draft(identity.member.to_string(), reason, kept).await?;
        sign_recovery(draft, &identity).map_err(|e| Failure::refused("recovery", chain(&e)))
    }

    /// Writes the statement into the history. From then on the coordinator serves again.
    pub async fn accept(&self, recovery: Recovery) -> Result<Recovered, Failure> {
        let refused = |message: String| Failure::refused("recovery", message);
        let key = self.heads.signer().verifier_key();
        let operator = check_recovery(&recovery, &key, self.authority.root_fingerprint())
            .map_err(|e| refused(chain(&e)))?;
        let members = self.store.members().await.map_err(|e| store_failed(&e))?;
        let enrolled = members.iter().any(|row| {
            row.member == operator.peer.member
                && row.state == MemberState::Active
                && row.serial_hex == operator.peer.serial_hex
        });
        if !enrolled {
            return Err(refused(format!(
                "the restored history does not know {} by this certificate; sign as an operator whom it knows",
                operator.peer.member
            )));
        }
        let said = &recovery.statement;
        let own = self.store.head().await.map_err(|e| store_failed(&e))?;
        let root = if said.kept.size <= own.size {
            Some(self.store.root_at(said.kept.size).await.map_err(|e| store_failed(&e))?)
        } else {
            None
        };
        if root != Some(said.kept.root) {
            return Err(refused(format!(
                "the statement keeps {} leaves of root {}, which this history does not begin with",
                said.kept.size, said.kept.root
            )));
        }
        let mut statements = recoveries(&self.store).await.map_err(|e| store_failed(&e))?;
        statements.push(recovery.clone());
        for head in known_heads(&self.place.directory, &self.heads)? {
            let stands = stands(&self.store, &statements, &head).await;
            let stands = stands.map_err(|e| store_failed(&e))?;
            if matches!(stands, Stands::Lost | Stands::Understated) {
                return Err(refused(format!(
                    "the statement's lost head has {} leaves, a larger signed one has {}; make a new one",
                    said.lost_size(),
                    head.size
                )));
            }
        }
        self.append(recovery).await
    }

    async fn append(&self, recovery: Recovery) -> Result<Recovered, Failure> {
        // First the file: a statement in the history that this directory does not remember would be forgotten with it.
        remember(&self.place.directory, &recovery)?;
        let stream = Stream::Registry;
        let seq = self.store.records(&stream).await.map_err(|e| store_failed(&e))?.len() as u64;
        let event =
            Event::Registry(RegistryEvent::Recovered { recovery: Box::new(recovery.clone()) });
        let committed = self.store.commit(clock::now(), &stream, seq, &[event]).await;
        let committed = committed.map_err(|e| Failure::invalid("database", chain(&e)))?;
        let leaf = committed.first().map_or(0, |(leaf, _)| *leaf);
        let head = self.store.head().await.map_err(|e| store_failed(&e))?;
        self.heads
            .begin_anew(head.size, head.root)
            .map_err(|e| file_failure(&self.place.directory, &e.to_string()))?;
        Ok(Recovered { recovery, leaf })
    }

    /// Reads a statement that an operator has signed.
    pub fn read(&self, file: &Path) -> Result<Recovery, Failure> {
        let text = read_statement(file)?;
        Recovery::from_json(text.as_bytes(), &self.heads.signer().verifier_key())
            .map_err(|e| Failure::invalid("recovery", format!("{}: {}", file.display(), chain(&e))))
    }

    /// Lets go of the database.
    pub async fn close(self) {
        self.store.close().await;
    }
}

/// A statement's file as text, signed or not.
pub fn read_statement(file: &Path) -> Result<String, Failure> {
    read_text(
        file,
        RECOVERY_BYTES_MAX as u64,
        "`tributary-coordinator recover --out FILE` writes one",
    )
}

fn restored_head(directory: &Path, heads: &Heads) -> Result<Option<Head>, Failure> {
    let path: PathBuf = directory.join(RESTORED_HEAD);
    match std::fs::read_to_string(&path) {
        Ok(note) => Head::open(&note, &heads.signer().verifier_key())
            .map(Some)
            .map_err(|e| file_failure(&path, &chain(&e))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_failure(&path, &e.to_string())),
    }
}

fn file_failure(path: &Path, problem: &str) -> Failure {
    Failure::invalid("file", format!("{}: {problem}", path.display()))
}

fn store_failed(error: &crate::store::StoreError) -> Failure {
    Failure::invalid("database", chain(error))
}
