//! Messages of both sides, and the kit that a member starts with.

use tributary_coordinator::rpc::check_request;
use tributary_proto::calls::Call;
use tributary_proto::channel::StartupKit;

use crate::{Outcome, log, replies};

/// A message of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// What a member sends.
    Request(Call),
    /// What the coordinator answers a site.
    Reply(Call),
}

/// Every message that has a reader: the requests of all calls, then the replies to a site's.
pub fn spoken() -> impl Iterator<Item = Spoken> {
    let of_sites = |call: &Call| !call.path().starts_with("/tributary.v1.Operator/");
    let requests = Call::ALL.into_iter().map(Spoken::Request);
    requests.chain(Call::ALL.into_iter().filter(of_sites).map(Spoken::Reply))
}

/// The first byte is the place of a message in [`spoken`]; the others are the message.
pub(crate) fn wire(data: &[u8]) -> Outcome {
    let Some((choice, body)) = data.split_first() else { return Outcome::Refused };
    match spoken().nth(usize::from(*choice) % spoken().count()) {
        Some(Spoken::Request(call)) => {
            Outcome::of(check_request(call, body, &log::signer().verifier_key()))
        }
        Some(Spoken::Reply(call)) => replies::reply(call, body),
        None => Outcome::Refused,
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
