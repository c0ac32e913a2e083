//! Messages of both sides, and the kit that a member starts with.

use prost::Message;
use tributary_coordinator::round::record::Record;
use tributary_coordinator::rpc::check_request;
use tributary_proto::calls::Call;
use tributary_proto::channel::StartupKit;
use tributary_proto::{convert, v1};
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;

use crate::{Outcome, log};

/// Replies that a site parses, by their places: of `NextAssignment`, `Submit`, `Evidence`, `Hello`.
pub const REPLIES: u8 = 4;

/// The first byte chooses a message: a reply, or after those the request of a [`Call`]. The others
/// are the message.
pub(crate) fn wire(data: &[u8]) -> Outcome {
    let Some((choice, body)) = data.split_first() else { return Outcome::Refused };
    let choice = usize::from(*choice) % (usize::from(REPLIES) + Call::ALL.len());
    match choice.checked_sub(usize::from(REPLIES)) {
        Some(call) => {
            let key = log::signer().verifier_key();
            Outcome::of(check_request(Call::ALL[call], body, &key))
        }
        None => reply(choice, body),
    }
}

fn reply(choice: usize, body: &[u8]) -> Outcome {
    match choice {
        0 => match v1::NextAssignmentReply::decode(body) {
            Ok(reply) => {
                let asked = reply.inquiry.map(|i| RunManifest::from_json(&i.manifest_json));
                let given = reply.assignment.map(|a| {
                    (RunManifest::from_json(&a.manifest_json), Digest::try_from(&a.base_digest[..]))
                });
                let sound = asked.is_none_or(|asked| asked.is_ok())
                    && given.is_none_or(|(manifest, base)| manifest.is_ok() && base.is_ok());
                Outcome::of(sound.then_some(()).ok_or(()))
            }
            Err(_) => Outcome::Refused,
        },
        1 => {
            let reply = v1::SubmitReply::decode(body);
            Outcome::of(reply.map(|reply| convert::verdict(reply.refusal)))
        }
        2 => match v1::EvidenceReply::decode(body) {
            Ok(reply) => {
                let read = |leaf: &v1::ProvenLeaf| Record::from_bytes(&leaf.record_json).is_ok();
                Outcome::of(reply.leaves.iter().all(read).then_some(()).ok_or(()))
            }
            Err(_) => Outcome::Refused,
        },
        _ => Outcome::of(v1::HelloReply::decode(body)),
    }
}

/// A startup kit; one that is read is written and read again.
pub(crate) fn kit(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    let kit = StartupKit::parse(text);
    if let Ok(kit) = &kit {
        kit.to_toml().expect("a kit can be written");
    }
    Outcome::of(kit)
}
