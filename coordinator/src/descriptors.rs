//! File descriptors: as many as the system lets this process have, known before the first
//! connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tributary_proto::channel::Limits;
use tributary_shared::outcome::Failure;

/// Raises the limit of open files to what the system allows, and divides it: how many connections
/// there may be beside the database, the spool and the files being read.
pub fn divide() -> Result<Limits, Failure> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Raising to what is allowed cannot fail; where it does, what there is counts.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    let limits = Limits::of_descriptors(limit).ok_or_else(|| {
        let least = Limits::DESCRIPTORS_MIN;
        let text = format!("this process may have {limit} files open; it needs at least {least}");
        Failure::invalid("descriptors", text)
            .hint("raise the hard limit: `ulimit -Hn 65536` in the shell that starts it, LimitNOFILE=65536 in a systemd unit")
    })?;
    let (connections, before) = (limits.connections, current.unwrap_or(u64::MAX));
    tracing::info!("up to {limit} open files (it began with {before}): {connections} connections");
    Ok(limits)
}
