//! `enroll`: an invited operator or auditor makes a key here and gets a certificate for it.

use std::path::Path;

use serde_json::json;
use tributary_proto::channel::{
    ConnectOptions, EnrollOptions, Identity, Role, StartupKit, certified,
};
use tributary_shared::outcome::{Failure, chain};

use super::Answer;
use super::present::{time, time_or_none};
use super::session::Globals;

/// Uses the startup kit; the identity goes where `--identity` says, else into ./operator or ./auditor.
pub(super) async fn enroll(
    kit_file: &Path,
    renew: bool,
    globals: &Globals,
) -> Result<Answer, Failure> {
    let mut kit = StartupKit::load(kit_file).map_err(|e| {
        Failure::invalid("kit", format!("{}: {}", kit_file.display(), chain(&e)))
            .hint("use the file that `site invite`, `operator invite` or `auditor invite` wrote")
    })?;
    if kit.member.role == Role::Site {
        return Err(Failure::invalid("kit", format!("this kit is for {}", kit.member))
            .hint("enrol a site with: tributary-client enroll KIT"));
    }
    if let Some(address) = &globals.address {
        kit.address.clone_from(address);
    }
    let mut connect = ConnectOptions::default();
    if let Some(timeout) = globals.timeout {
        connect.connect_timeout = timeout;
    }
    let directory = globals.named().unwrap_or_else(|| kit.member.role.as_str().into());
    let options = EnrollOptions { renew, connect };
    let identity = tributary_proto::channel::enroll(&kit, &directory, &options)
        .await
        .map_err(|e| e.failure())?;
    Ok(answer(&identity, &directory))
}

fn answer(identity: &Identity, directory: &Path) -> Answer {
    let expires = certified(&identity.certificate).map_or(0, |c| c.expires.as_millis());
    let text = format!(
        "Enrolled as {} of {} at {}, until {}.\nThe identity is in {}; keep its key.pem private.",
        identity.member,
        identity.consortium,
        identity.address,
        time(expires),
        directory.display()
    );
    let data = json!({
        "member": identity.member.to_string(),
        "consortium": identity.consortium,
        "address": identity.address,
        "identity": directory,
        "expires": time_or_none(expires),
        "log_verifier_key": identity.log_verifier_key,
    });
    Answer::new(data, text)
}
