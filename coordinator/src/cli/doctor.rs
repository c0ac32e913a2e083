//! `doctor`: everything that serving needs, one line each, with what mends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tributary_proto::channel::{connect_failure, presented};
use tributary_shared::checkup::{Check, verdict};
use tributary_shared::outcome::{Failure, chain, ok_envelope};

use super::present::bytes;
use super::{Answer, Format, emit};
use crate::blobs::Blobs;
use crate::clock;
use crate::config::CoordinatorConfig;
use crate::membership::{Authority, EXPIRY_WARNING, ServerCertificate, mismatch, server_identity};
use crate::recovery::{Place, check};
use crate::serve::{ADDRESS, database_folder};
use crate::space::Space;
use crate::store::{Inspection, is_in_use};

/// Longest wait for the listener's answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Result of one check: the finding, or the fault.
type Found = Result<String, Failure>;

/// Looks at everything and prints one line each.
pub(super) async fn doctor(
    file: &Path,
    config: Result<CoordinatorConfig, Failure>,
    format: Format,
) -> Result<Answer, Failure> {
    let checks = match config {
        Err(failure) => vec![Check::new("configuration", Err(failure))],
        Ok(config) => {
            let mut checks =
                vec![Check::new("configuration", Ok(format!("{} parses", file.display())))];
            checks.extend(look(&config).await);
            checks
        }
    };
    match format {
        Format::Json => emit(&ok_envelope(&checks).to_string()),
        Format::Text => checks.iter().for_each(|check| emit(&check.to_string())),
    }
    verdict(&checks).map(|()| Answer::Printed)
}

async fn look(config: &CoordinatorConfig) -> Vec<Check> {
    let mut checks = vec![Check::new("authority", authority(config))];
    let running = is_in_use(&config.database);
    let bound = if running { bound(config) } else { None };
    match ServerCertificate::load(&config.directory) {
        Err(error) => checks.push(Check::new("certificate", Err(error.failure()))),
        Ok(certificate) => {
            checks.push(self::certificate(config, &certificate));
            checks.push(address(config, &certificate, bound));
            checks.push(listener(config, &certificate, (running, bound)).await);
        }
    }
    let (database, found) = database(config, running).await;
    checks.push(Check::new("database", database));
    checks.push(Check::new("blobs", blobs(config, running, &found)));
    checks.push(Check::new("disk", disk(config)));
    checks
}

fn authority(config: &CoordinatorConfig) -> Found {
    let authority = Authority::load(&config.directory).map_err(|e| e.failure())?;
    Ok(format!("consortium {}, root {}", authority.consortium(), authority.root_fingerprint()))
}

/// The names in the certificate and the time left, and the key beside it.
fn certificate(config: &CoordinatorConfig, certificate: &ServerCertificate) -> Check {
    let now = clock::now();
    let (names, until) = (certificate.names().join(", "), certificate.until());
    let days = until.since(now).as_secs() / (24 * 3600);
    let name = "certificate";
    // Of the time alone: the address has a line of its own.
    let host = certificate.names().first().map(|name| if_ipv6_bracketed(name));
    let judged = host.map(|host| certificate.check(&format!("{host}:1"), now));
    if let Some(Err(unworkable)) = judged {
        return Check::new(name, Err(unworkable.failure(&config.directory)));
    }
    let identity = server_identity(&config.directory).map_err(|e| e.failure());
    let usable = identity.and_then(|identity| {
        let made = tributary_proto::channel::Acceptor::new(&identity);
        made.map(drop).map_err(|e| {
            Failure::invalid("server_certificate", chain(&e))
                .hint("`tributary-coordinator renew-server` makes a new one, with its key")
        })
    });
    match usable {
        Err(failure) => Check::new(name, Err(failure)),
        Ok(()) if until.since(now) < EXPIRY_WARNING => {
            let mend = "renew it before that: tributary-coordinator renew-server";
            Check::warn(name, format!("for {names}, ends in {days} days, at {until}"), mend)
        }
        Ok(()) => Check::new(name, Ok(format!("for {names}, {days} days left"))),
    }
}

fn if_ipv6_bracketed(name: &str) -> String {
    if name.contains(':') { format!("[{name}]") } else { name.to_owned() }
}

/// Address that a running coordinator listens on, read from the file that it wrote.
fn bound(config: &CoordinatorConfig) -> Option<SocketAddr> {
    let written = std::fs::read_to_string(config.directory.join(ADDRESS)).ok()?;
    written.trim().parse().ok()
}

/// Checks the address that members are told against the certificate and the listener.
fn address(
    config: &CoordinatorConfig,
    certificate: &ServerCertificate,
    bound: Option<SocketAddr>,
) -> Check {
    let told = bound.map_or_else(|| config.address_expected(), |bound| config.address_at(bound));
    if let Err(unworkable) = certificate.check(&told, clock::now()) {
        return Check::new("address", Err(unworkable.failure(&config.file)));
    }
    match mismatch(&told, bound.unwrap_or(config.listen)) {
        Some(found) => {
            Check::warn("address", found, "right only where something in between forwards")
        }
        None => Check::new(
            "address",
            Ok(format!("members are told {told}, which the certificate names")),
        ),
    }
}

/// The listener: answering with this certificate when the coordinator runs, free when not.
async fn listener(
    config: &CoordinatorConfig,
    certificate: &ServerCertificate,
    (running, bound): (bool, Option<SocketAddr>),
) -> Check {
    let name = "listener";
    let Some(bound) = bound else {
        if running {
            let text = "the coordinator is starting or stopping; it listens nowhere now";
            return Check::warn(name, text, "look again in a moment");
        }
        let free = TcpListener::bind(config.listen).await;
        return Check::new(
            name,
            match free {
                Ok(_) => Ok(format!("the coordinator is not running; {} is free", config.listen)),
                Err(e) => Err(Failure::invalid("listen", format!("{}: {e}", config.listen))
                    .hint("another program listens there, or this machine has no such address")),
            },
        );
    };
    let told = config.address_at(bound);
    let asked = presented(reachable(bound), &told, certificate.root(), ANSWER_MAX).await;
    match asked {
        Err(error) => Check::new(name, Err(connect_failure(&error))),
        Ok(leaf) if leaf == *certificate.leaf() => {
            Check::new(name, Ok(format!("{bound} answers with this certificate")))
        }
        Ok(_) => {
            let text = format!("{bound} answers with another certificate than the one on disk");
            Check::warn(name, text, "send the coordinator SIGHUP, and it takes the new one")
        }
    }
}

/// A listener on every address is reached over the loopback.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, bound.port())
}

async fn database(config: &CoordinatorConfig, running: bool) -> (Found, Inspection) {
    let path = config.database.display();
    match check::inspect(&Place::of(config)).await {
        Err(failure) => (Err(failure), Inspection::default()),
        Ok(None) => (Ok(format!("{path} is not there; serve begins one")), Inspection::default()),
        Ok(Some(found)) => {
            let (leaves, runs) = (found.leaves, found.adapters.len());
            let state = if running { "in use by the running coordinator" } else { "not in use" };
            (Ok(format!("{path} is whole, {leaves} leaves, {runs} open runs, {state}")), found)
        }
    }
}

/// The blobs that open runs go on from.
fn blobs(config: &CoordinatorConfig, running: bool, found: &Inspection) -> Found {
    let folder = config.directory.join("blobs");
    let failed = |e: &std::io::Error| {
        Failure::invalid("blobs", format!("{}: {e}", folder.display()))
            .hint("is the directory there and writable, and has the disk room?")
    };
    if !folder.exists() && found.adapters.is_empty() {
        return Ok(format!("{} is not there; serve makes it", folder.display()));
    }
    let blobs = Blobs::look(&config.directory);
    let gone: Vec<&str> = found
        .adapters
        .iter()
        .filter(|(_, digest)| !blobs.exists(**digest))
        .map(|(run, _)| run.as_str())
        .collect();
    if !gone.is_empty() {
        let message = format!(
            "{}: the newest adapter of {} is gone; the run cannot go on",
            folder.display(),
            gone.join(", ")
        );
        return Err(Failure::invalid("blobs", message).hint("restore blobs/ from a backup"));
    }
    if !running {
        tempfile::tempfile_in(&folder).map_err(|e| failed(&e))?;
    }
    let count = blobs.list().map_err(|e| failed(&e))?.len();
    Ok(format!("{} holds {count} blobs and every adapter that open runs need", folder.display()))
}

fn disk(config: &CoordinatorConfig) -> Found {
    let folders = [database_folder(config), &config.directory];
    let room = Space::to_look_at(&folders, config.reserve_bytes).look(clock::now());
    let (free, reserve) = (bytes(room.free_bytes), bytes(room.reserve_bytes));
    if room.short_since.is_some() {
        let message = format!("{}: {free} free, reserve {reserve}", config.directory.display());
        return Err(Failure::invalid("disk", message)
            .hint("make room: new uploads are refused until there is some"));
    }
    Ok(format!("{free} free, {reserve} in reserve"))
}
