//! The audit export as a stream: leaves from the database, tensor files from the blobs.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tributary_proto::channel::{CHUNK_BYTES, Role};
use tributary_shared::digest::Digest;
use tributary_shared::privacy::Reader;

use super::history::{self, LEAVES_AT_ONCE};
use super::status;
use crate::audit::{ExportError, ExportWriter, TensorFiles};
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;
use crate::round::event::RunEvent;
use crate::round::record::{Event, Record, Stream as Of};

type Piece = Result<Bytes, Status>;

/// Streams an export of the whole log as it stands now.
pub(super) async fn export(
    driver: &Driver,
    heads: &Heads,
    with_tensors: bool,
    role: Role,
) -> Result<impl Stream<Item = Piece> + Send + use<>, Status> {
    let head = driver.store().head().await.map_err(|e| status(DriverError::Store(e)))?;
    let note = driver.sign_head(heads, head.size, head.root).map_err(status)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let driver = driver.clone();
    tokio::spawn(async move {
        let export = Export { driver, sender: sender.clone(), size: head.size, role };
        if let Err(error) = export.write(&note, with_tensors).await {
            // A receiver that went away has hung up.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

struct Export {
    driver: Driver,
    sender: Sender<Piece>,
    size: u64,
    /// Role of the member that asks: not every run lets it have its deltas.
    role: Role,
}

impl Export {
    async fn write(&self, note: &str, with_tensors: bool) -> Result<(), Status> {
        let mut writer = ExportWriter::begin(Vec::new(), note, self.size).map_err(failed)?;
        let tensors = self.leaves(&mut writer).await?;
        if with_tensors {
            for digest in tensors {
                self.tensor(&mut writer, digest).await?;
            }
        }
        let rest = writer.finish().map_err(failed)?;
        self.send(rest).await
    }

    /// Writes every leaf; gives the tensor files that they name, have not given up, and may be fetched.
    async fn leaves(&self, writer: &mut ExportWriter<Vec<u8>>) -> Result<BTreeSet<Digest>, Status> {
        let mut tensors = TensorFiles::default();
        let mut withheld = Withheld::from(self.role);
        let mut from = 0;
        while from < self.size {
            let leaves = self.driver.store().leaves(from, LEAVES_AT_ONCE).await;
            let leaves = leaves.map_err(|e| status(DriverError::Store(e)))?;
            if leaves.is_empty() {
                let text = format!("the log ends at leaf {from} of {}", self.size);
                return Err(Status::data_loss(text));
            }
            for leaf in leaves.into_iter().filter(|leaf| leaf.index < self.size) {
                writer.leaf(&leaf.bytes, leaf.hash).map_err(failed)?;
                let record = Record::from_bytes(&leaf.bytes)
                    .map_err(|e| Status::internal(format!("leaf {}: {e}", leaf.index)))?;
                if !withheld.is(&record) {
                    tensors.take(&record);
                }
                from = leaf.index + 1;
                self.send_full(writer).await?;
            }
        }
        Ok(tensors.digests())
    }

    /// Writes one tensor file, if it is still kept.
    async fn tensor(
        &self,
        writer: &mut ExportWriter<Vec<u8>>,
        digest: Digest,
    ) -> Result<(), Status> {
        let blobs = self.driver.blobs();
        if !blobs.exists(digest) {
            return Ok(());
        }
        let io = |e| status(DriverError::io("reading a blob")(e));
        let bytes = blobs.size(digest).await.map_err(io)?;
        writer.tensor(digest, bytes).map_err(failed)?;
        let mut chunks = std::pin::pin!(history::blob_pieces(blobs, digest, 0));
        while let Some(chunk) = chunks.next().await {
            writer.tensor_data(&chunk?).map_err(failed)?;
            self.send_full(writer).await?;
        }
        Ok(())
    }

    /// Sends what has gathered, once it is a chunk's worth.
    async fn send_full(&self, writer: &mut ExportWriter<Vec<u8>>) -> Result<(), Status> {
        if writer.output().len() < CHUNK_BYTES {
            return Ok(());
        }
        self.send(std::mem::take(writer.output())).await
    }

    async fn send(&self, mut piece: Vec<u8>) -> Result<(), Status> {
        while !piece.is_empty() {
            let rest = piece.split_off(piece.len().min(2 * CHUNK_BYTES));
            let sent = self.sender.send(Ok(piece.into())).await;
            sent.map_err(|_| Status::cancelled("the receiver has gone"))?;
            piece = rest;
        }
        Ok(())
    }
}

fn failed(error: ExportError) -> Status {
    tracing::error!(error = %tributary_shared::outcome::chain(&error), "export failed");
    Status::internal(error.to_string())
}

/// The deltas that the manifests of their runs do not let a member have.
struct Withheld {
    reader: Option<Reader>,
    runs: BTreeSet<Of>,
}

impl Withheld {
    fn from(role: Role) -> Self {
        let reader = match role {
            Role::Operator => Some(Reader::Operator),
            Role::Auditor => Some(Reader::Auditor),
            Role::Site => None,
        };
        Self { reader, runs: BTreeSet::new() }
    }

    /// Says whether the tensor file that the next record of the history names is such a delta.
    fn is(&mut self, record: &Record) -> bool {
        if let Event::Run(RunEvent::RunStarted { manifest, .. }) = &record.event {
            let readers = &manifest.privacy.deltas_for;
            if !self.reader.is_some_and(|reader| readers.contains(&reader)) {
                self.runs.insert(record.stream.clone());
            }
        }
        let is_delta = matches!(record.event, Event::Run(RunEvent::DeltaAccepted { .. }));
        is_delta && self.runs.contains(&record.stream)
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::manifest::RunManifest;
    use tributary_shared::timestamp::Timestamp;

    use super::*;

    fn records(run: &str, more: &str) -> [Record; 2] {
        let manifest = RunManifest::from_toml(&format!(
            "schema_version = 1\nname = {run:?}\n\
             task = {{ kind = \"rehearsal\", payload_bytes = 4 }}\n\
             quorum = {{ sites = 1 }}\n\
             rounds = {{ count = 1, round_deadline_s = 9, stall_timeout_s = 9 }}\n{more}"
        ))
        .unwrap();
        let digest = Digest::of(run.as_bytes());
        let stream = Of::Run(run.parse().unwrap());
        let started = RunEvent::RunStarted {
            manifest: Box::new(manifest),
            manifest_digest: digest,
            contract: digest,
            adapter: digest,
            by: "operator/o".to_owned(),
        };
        let accepted = RunEvent::DeltaAccepted {
            round: 1,
            site: "s".parse().unwrap(),
            digest,
            cases: 1,
            norm: 1.0,
            bytes: 4,
            metrics: Default::default(),
        };
        let now = Timestamp::from_millis(1);
        [started, accepted].map(|event| Record::new(now, stream.clone(), 0, Event::Run(event)))
    }

    /// A14. Failed before: every operator and auditor was given every site's delta.
    #[test]
    fn deltas_are_for_those_whom_the_manifest_names() {
        let all = [
            records("usual", ""),
            records("audited", "privacy = { deltas_for = [\"auditor\"] }"),
            records("closed", "privacy = { deltas_for = [] }"),
        ];
        for (role, expected) in [
            (Role::Operator, [false, true, true]),
            (Role::Auditor, [false, false, true]),
            (Role::Site, [true, true, true]),
        ] {
            let mut withheld = Withheld::from(role);
            let found = all.each_ref().map(|[started, accepted]| {
                assert!(!withheld.is(started), "an adapter is everybody's");
                withheld.is(accepted)
            });
            assert_eq!(found, expected, "{role:?}");
        }
    }
}
