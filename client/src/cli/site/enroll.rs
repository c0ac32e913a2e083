//! `enroll`: the kit becomes an identity, and two commented files say what to do next.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tributary_proto::channel::{
    ConnectOptions, EnrollOptions, Identity, Role, StartupKit, certified, enroll, write_durably,
};
use tributary_shared::outcome::{Failure, chain};

use super::runtime;
use crate::cli::{Format, print};
use crate::site::directory::identity_of;
use crate::site::salt;

/// The commented samples, as they lie in the repository and are parsed in tests.
const SITE: &str = include_str!("../../../../deploy/site.toml");
const POLICY: &str = include_str!("../../../../deploy/policy.toml");

/// How to enrol.
#[derive(Debug, clap::Args)]
pub struct EnrollArgs {
    /// The startup kit from the operator.
    kit: PathBuf,
    /// The folder for identity, ledger and outbox; site.toml and policy.toml are written there.
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Renew the certificate of the same site with a new kit, keeping its key.
    #[arg(long)]
    renew: bool,
    /// A proxy that allows CONNECT, http://host:port; one with a password belongs in HTTPS_PROXY, because other users of
    /// this machine can read a program's arguments [default: what HTTPS_PROXY says]
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Enrolled {
    member: String,
    consortium: String,
    coordinator: String,
    certificate_expires: String,
    directory: PathBuf,
    written: Vec<PathBuf>,
}

pub(super) fn run(args: &EnrollArgs, format: Format) -> Result<(), Failure> {
    let kit = StartupKit::load(&args.kit).map_err(|e| {
        Failure::invalid("kit", chain(&e)).hint("use the file that the operator sent, unchanged")
    })?;
    if kit.member.role != Role::Site {
        let message = format!("the kit is for {}, not for a site", kit.member);
        return Err(Failure::invalid("kit", message).hint("enrol it with `tributary enroll`"));
    }
    let connect = ConnectOptions { proxy: args.proxy.clone(), ..Default::default() };
    let options = EnrollOptions { renew: args.renew, connect };
    let folder = identity_of(&args.directory);
    let identity = runtime()?.block_on(enroll(&kit, &folder, &options)).map_err(|e| e.failure())?;
    salt::read_or_make(&args.directory)?;
    let written = samples(&args.directory)?;
    let enrolled = summary(&identity, &args.directory, written);
    print(format, &enrolled, || {
        tell(&enrolled);
        say!("{}", next(&args.directory, args.renew));
    });
    Ok(())
}

/// Writes the samples that are not there yet.
fn samples(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut written = Vec::new();
    for (name, text) in [("site.toml", SITE), ("policy.toml", POLICY)] {
        let path = directory.join(name);
        if !path.exists() {
            write_durably(&path, text.as_bytes(), 0o600)
                .map_err(|e| Failure::invalid("directory", format!("{}: {e}", path.display())))?;
            written.push(path);
        }
    }
    Ok(written)
}

fn summary(identity: &Identity, directory: &Path, written: Vec<PathBuf>) -> Enrolled {
    let expires = certified(&identity.certificate).map(|c| c.expires.to_string());
    Enrolled {
        member: identity.member.to_string(),
        consortium: identity.consortium.to_string(),
        coordinator: identity.address.clone(),
        certificate_expires: expires.unwrap_or_default(),
        directory: directory.to_owned(),
        written,
    }
}

fn tell(enrolled: &Enrolled) {
    let Enrolled { member, consortium, coordinator, certificate_expires, written, .. } = enrolled;
    say!("Enrolled as {member} of {consortium} at {coordinator}.");
    say!("The certificate is good until {certificate_expires}.");
    for path in written {
        say!("Wrote {}", path.display());
    }
}

/// The next steps; a renewed certificate needs no more than a running client.
fn next(directory: &Path, renewed: bool) -> String {
    let (site, policy) = (directory.join("site.toml"), directory.join("policy.toml"));
    let (site, policy) = (site.display(), policy.display());
    if renewed {
        return format!(
            "A running client takes the new certificate up by itself; else start it:\n  \
             tributary-client run --config {site}"
        );
    }
    format!(
        "Next: name your data and backbone in {site}, allow the backbone\nin {policy}, then\n  \
         tributary-client doctor --config {site}\n  tributary-client run --config {site}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before: a renewal ended with the newcomer's steps.
    #[test]
    fn a_renewal_does_not_ask_to_name_data_again() {
        assert!(next(Path::new("alpha"), false).contains("name your data"));
        let renewed = next(Path::new("alpha"), true);
        assert!(!renewed.contains("data") && renewed.contains("alpha/site.toml"), "{renewed}");
    }
}
