//! `doctor`: everything that taking part needs, one line each, with what mends it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tributary_proto::channel::{Identity, certified};
use tributary_proto::v1::HelloReply;
use tributary_shared::checkup::{Check, verdict};
use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::text::printable;

use super::{ConfigArgs, runtime};
use crate::cli::{Format, print};
use crate::clock;
use crate::config::policy::{Backbones, Policy};
use crate::config::site::SiteConfig;
use crate::data::{Dataset, InputSpec};
use crate::site::addresses::Addresses;
use crate::site::directory::{identity_of, is_held};
use crate::site::status::Status;
use crate::site::trouble::{Trouble, TroubleClass, free_bytes};
use crate::site::{source, suspended};
use crate::transport::{CallError, Coordinator};

/// A certificate that ends sooner is worth renewing.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);
/// Clock differences above this make certificates and deadlines go wrong.
const SKEW_MAX: Duration = Duration::from_secs(60);
/// Room for a few large adapters and deltas.
const DISK_FREE_MIN: u64 = 1 << 30;

/// Size of the file that tries whether the directory can be written.
const PROBE_BYTES: usize = 256 * 1024;

/// What was found, or what is wrong.
type Found = Result<String, Failure>;

pub(super) fn run(args: &ConfigArgs, format: Format) -> Result<(), Failure> {
    let config = args.load();
    let mut findings = vec![("configuration", config.as_ref().map(told).map_err(copied))];
    if let Ok(config) = &config {
        let identity = Identity::load(&identity_of(&config.directory))
            .map_err(|e| Failure::invalid("identity", chain(&e)));
        findings.push(("policy", policy(config)));
        findings.push(("directory", directory(&config.directory)));
        findings.push(("disk", disk(&config.directory)));
        findings.push(("client", running(&config.directory)));
        findings.push(("identity", identity.as_ref().map_err(copied).and_then(valid_until)));
        if let Ok(identity) = &identity {
            findings.push(("coordinator", coordinator(config, identity)));
        }
        findings.push(("backbone", backbone(config)));
        findings.push(("data", data(config)));
    }
    let checks: Vec<Check> =
        findings.into_iter().map(|(name, found)| Check::new(name, found)).collect();
    print(format, &checks, || checks.iter().for_each(|check| say!("{check}")));
    verdict(&checks)
}

fn copied(failure: &Failure) -> Failure {
    let Failure { exit, code, message, hint, details, data } = failure;
    let (message, hint) = (message.clone(), hint.clone());
    let (details, data) = (details.clone(), data.clone());
    Failure { exit: *exit, code, message, hint, details, data }
}

fn told(config: &SiteConfig) -> String {
    format!("{} parses", config.file.display())
}

fn policy(config: &SiteConfig) -> Found {
    let policy = Policy::load(&config.policy)?;
    let backbones = match &policy.backbones {
        Backbones::Any => "any backbone".to_owned(),
        Backbones::Listed(listed) if listed.is_empty() && !policy.allow_rehearsal => {
            let message = format!("{}: no backbone and no rehearsal", config.policy.display());
            return Err(Failure::invalid("policy", message)
                .hint("it would decline every round; list the backbone's digest in `backbones`"));
        }
        Backbones::Listed(listed) => format!("{} backbones", listed.len()),
    };
    let (cohort, rounds) = (policy.cohort_min, policy.rounds_max);
    Ok(format!("{backbones}, cohorts of {cohort} or more, up to {rounds} rounds"))
}

fn directory(directory: &Path) -> Found {
    let failed = |e: String| {
        Failure::invalid("directory", format!("{}: {e}", directory.display()))
            .hint("site.toml's `directory` must be a folder that this user may write")
    };
    if is_held(directory) {
        return Ok(format!("{} is in use by a running client", directory.display()));
    }
    private_probe(directory).map_err(|e| failed(e.to_string()))?;
    Ok(format!("{} can be written", directory.display()))
}

/// Makes a file and removes it.
fn private_probe(directory: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(directory).map(drop)
}

/// Room on the disk, also under a running client: asked for, and tried.
fn disk(directory: &Path) -> Found {
    let place = directory.display();
    let short = |message: String| {
        Failure::invalid("disk", message).hint("make room for adapters and deltas")
    };
    let written = tempfile::tempfile_in(directory).and_then(|mut file| {
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_all()
    });
    written.map_err(|e| short(format!("{place}: {e}")))?;
    let Some(free) = free_bytes(directory) else {
        return Ok(format!("{place} takes {PROBE_BYTES} bytes"));
    };
    let free_gb = free as f64 / 1e9;
    if free < DISK_FREE_MIN {
        return Err(short(format!("{place}: {free_gb:.2} GB free")));
    }
    Ok(format!("{free_gb:.1} GB free"))
}

/// State that the running client reports.
fn running(directory: &Path) -> Found {
    if !is_held(directory) {
        return Ok("not running".to_owned());
    }
    let status = Status::read(directory)
        .map_err(|e| Failure::invalid("status", format!("{}: {e}", directory.display())))?;
    let Some(status) = status else { return Ok("runs, and has said nothing yet".to_owned()) };
    let mut troubles: Vec<String> = status.troubles.iter().map(brief).collect();
    let waits = &status.activity.trouble;
    if troubles.is_empty() && !waits.is_empty() {
        troubles.push(waits.clone());
    }
    if troubles.is_empty() {
        return Ok(format!("process {} runs without trouble", status.process));
    }
    let message = format!("process {} reports {}", status.process, troubles.join("; "));
    Err(Failure::refused("client_trouble", message))
}

/// A trouble as the line of the client has it: the class alone where doctor has a line of its own.
fn brief(trouble: &Trouble) -> String {
    match trouble.class {
        TroubleClass::DataMissing
        | TroubleClass::BackboneMissing
        | TroubleClass::PolicyUnreadable => trouble.class.as_str().to_owned(),
        TroubleClass::DiskFull
        | TroubleClass::ClockWrong
        | TroubleClass::SharedIdentity
        | TroubleClass::HistoryNotContinued
        | TroubleClass::RecoveryNotAccepted
        | TroubleClass::Certificate
        | TroubleClass::Network
        | TroubleClass::Other => trouble.to_string(),
    }
}

fn valid_until(identity: &Identity) -> Found {
    let certified = certified(&identity.certificate)
        .map_err(|e| Failure::invalid("identity", e.to_string()))?;
    let left = certified.expires.since(clock::now());
    let (member, expires) = (&identity.member, certified.expires);
    if left < EXPIRY_WARNING {
        let message = format!("{member}: the certificate ends at {expires}");
        return Err(Failure::invalid("identity", message)
            .hint("ask the operator for a new kit and run `enroll KIT --renew`"));
    }
    Ok(format!("{member} of {}, good until {expires}", identity.consortium))
}

fn coordinator(config: &SiteConfig, identity: &Identity) -> Found {
    let asked = runtime()?.block_on(ask(config, identity));
    let (address, reply) = asked.map_err(|e| copied(e.failure()))?;
    if reply.log_verifier_key != identity.log_verifier_key {
        let message = format!("{address}: its log has another key than at enrolment");
        return Err(Failure::refused("log_key", message).hint("call the consortium"));
    }
    if reply.suspended {
        return Err(suspended(&reply.suspend_reason));
    }
    let skew = clock::skew(reply.now_ms);
    let skew_s = skew.as_secs_f64();
    if skew > SKEW_MAX {
        let message = format!("{address}: its clock and this machine's differ by {skew_s:.0} s");
        return Err(Failure::invalid("clock", message).hint("set the clock, best by NTP"));
    }
    let version = printable(&reply.coordinator_version);
    Ok(format!("{address} answers, version {version}, clocks differ by {skew_s:.1} s"))
}

/// The hello of the first address that answers.
async fn ask(config: &SiteConfig, identity: &Identity) -> Result<(String, HelloReply), CallError> {
    let mut first = None;
    for address in Addresses::load(config, identity).in_order() {
        let connected =
            Coordinator::connect(&address, identity, config.proxy.as_deref(), None).await;
        let hello = match connected {
            Ok(connected) => connected.hello("", Vec::new()).await,
            Err(error) => Err(error),
        };
        match hello {
            Ok(reply) => return Ok((address, reply)),
            Err(error @ CallError::Unreachable(_)) => drop(first.get_or_insert(error)),
            Err(error @ (CallError::Rejected(_) | CallError::Busy(_) | CallError::Fatal(_))) => {
                return Err(error);
            }
        }
    }
    let nowhere = || CallError::Unreachable(Failure::connection("no address is known"));
    Err(first.unwrap_or_else(nowhere))
}

fn backbone(config: &SiteConfig) -> Found {
    let Some(path) = &config.backbone else {
        return Ok("none configured; enough for rehearsals".to_owned());
    };
    let digest = digest_of(path).map_err(|e| {
        Failure::invalid("backbone", format!("{}: {e}", path.display()))
            .hint("copy the run's backbone file there, or correct [backbone] path in site.toml")
    })?;
    if let Ok(Policy { backbones: Backbones::Listed(listed), .. }) = Policy::load(&config.policy)
        && !listed.contains(&digest)
    {
        let message = format!("{}: {digest} is not among the policy's backbones", path.display());
        let mend = format!("to train on it, add \"{digest}\" to `backbones` in policy.toml");
        return Err(Failure::refused("backbone", message).hint(mend));
    }
    Ok(format!("{} is {digest}", path.display()))
}

fn digest_of(path: &Path) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut block = vec![0; 64 * 1024];
    loop {
        match std::io::Read::read(&mut file, &mut block)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&block[..read]),
        }
    }
}

fn data(config: &SiteConfig) -> Found {
    let Some(place) = &config.data else {
        return Ok("none configured; enough for rehearsals".to_owned());
    };
    // The smallest input: what matters is that every image decodes.
    let input = InputSpec::plain(8, 3, 0.0, 1.0);
    let dataset = source(place)
        .and_then(|source| Dataset::open_unlabelled_as(&source, &input, &place.reading))
        .map_err(|e| {
            Failure::invalid("data", chain(&e))
                .hint("`tributary-client data inspect` lists everything that would be refused")
        })?;
    if let Some(patient) = dataset.only_patient() {
        let (path, cases) = (place.path.display(), dataset.len());
        let message = format!("{path}: all {cases} images have one patient id, `{patient}`");
        return Err(Failure::invalid("data", message).hint(
            "give each patient an id of its own in the manifest's column `patient`: runs that hold \
             patients out are declined",
        ));
    }
    let patients: std::collections::BTreeSet<_> =
        dataset.cases().iter().map(|case| &case.patient).collect();
    let (path, cases) = (place.path.display(), dataset.len());
    let refused = match dataset.report().refused() {
        0 => String::new(),
        refused => format!(", {refused} refused (see `data inspect`)"),
    };
    Ok(format!("{path} holds {cases} images of {} patients{refused}", patients.len()))
}

#[cfg(test)]
mod tests {
    use tributary_shared::outcome::ExitCode;

    use super::*;

    /// Failed before: the line of the client repeated the path and the remedy of every missing file.
    #[test]
    fn the_line_of_the_client_names_a_missing_file_by_its_class_alone() {
        let trouble = |class| Trouble { class, detail: "/srv/x: gone".to_owned() };
        assert_eq!(brief(&trouble(TroubleClass::BackboneMissing)), "backbone_missing");
        assert_eq!(brief(&trouble(TroubleClass::Other)), "other: /srv/x: gone");
    }

    #[test]
    fn a_missing_backbone_says_where_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let text = "directory = \".\"\npolicy = \"p.toml\"\n[backbone]\npath = \"b.safetensors\"";
        let mut config = SiteConfig::from_toml(&file, text, &[]).unwrap();
        let failure = backbone(&config).unwrap_err();
        assert!(failure.message.contains("b.safetensors"), "{failure}");
        assert_eq!(failure.exit, ExitCode::Invalid);

        std::fs::write(folder.path().join("b.safetensors"), b"abc").unwrap();
        std::fs::write(folder.path().join("p.toml"), "backbones = []\nstrategies = []").unwrap();
        let failure = backbone(&config).unwrap_err();
        let digest = Digest::of(b"abc").to_string();
        assert!(failure.hint.unwrap().contains(&digest));
        std::fs::write(folder.path().join("p.toml"), "backbones = \"any\"\nstrategies = []")
            .unwrap();
        assert!(backbone(&config).unwrap().contains(&digest));
        config.backbone = None;
        assert!(backbone(&config).is_ok());
    }
}
