//! An event in one line for people.

use tributary_shared::check::SiteCheck;

use crate::round::event::{Missing, RegistryEvent, RunEvent};
use crate::round::record::Event;

use super::present::bytes;

/// What happened, in words.
pub(super) fn narrate(event: &Event) -> String {
    match event {
        Event::Run(event) => run(event),
        Event::Registry(event) => registry(event),
    }
}

fn run(event: &RunEvent) -> String {
    match event {
        RunEvent::RunStarted { manifest, manifest_digest, by, .. } => format!(
            "started by {by}: {} rounds, {}, terms {manifest_digest}",
            manifest.rounds.count,
            manifest.strategy.as_str()
        ),
        RunEvent::RoundOpened { round, cohort, deadline, passed_over, .. } => {
            let names: Vec<&str> = cohort.iter().map(|site| site.as_str()).collect();
            let opened =
                format!("round {round} opened to {}, until {deadline} at most", names.join(", "));
            match passed_over.is_empty() {
                true => opened,
                false => format!("{opened}; passed over: {}", in_words(passed_over)),
            }
        }
        RunEvent::SiteAvailable { site } => format!("{site} may be asked again"),
        RunEvent::RefusalChanged { site, reason } => format!("{site} still refuses: {reason}"),
        RunEvent::RoundWithdrawn { round, reasons } => {
            format!("round {round} withdrawn (no site took part): {}", in_words(reasons))
        }
        RunEvent::RunResumed { by, reason } => format!("resumed by {by}: {reason}"),
        RunEvent::TermsAccepted { round, site, cases } => {
            format!("round {round}: {site} trains on {cases} cases")
        }
        RunEvent::Declined { round, site, reason } => {
            format!("round {round}: {site} declined: {reason}")
        }
        RunEvent::SiteLost { round, site, cause } => format!("round {round}: {site} lost: {cause}"),
        RunEvent::SiteReturned { round, site } => format!("round {round}: {site} is back"),
        RunEvent::DeltaRefused { round, site, digest, reason } => {
            format!("round {round}: delta {} of {site} refused: {reason}", digest.short())
        }
        RunEvent::DeltaAccepted { round, site, digest, cases, norm, bytes: size, .. } => format!(
            "round {round}: delta {} of {site} accepted: {cases} cases, norm {norm:.4}, {}",
            digest.short(),
            bytes(*size)
        ),
        RunEvent::RoundClosed { round, quorum_met, missing } => {
            let verdict = if *quorum_met { "closed" } else { "void, below quorum" };
            match missing.is_empty() {
                true => format!("round {round} {verdict}"),
                false => format!("round {round} {verdict}; without {}", in_words(missing)),
            }
        }
        RunEvent::DeltaExcluded { round, site, digest, reason, quorum_met } => {
            let end = if *quorum_met { "the round goes on" } else { "the round is void" };
            format!("round {round}: delta {digest} of {site} excluded: {reason}; {end}")
        }
        RunEvent::AdapterPublished { round, version, adapter, strategy, cases, .. } => format!(
            "round {round}: adapter version {version} published by {strategy} over {cases} cases: \
             {adapter}"
        ),
        RunEvent::DeltasRemoved { to } => {
            format!("the counted deltas of the rounds up to {to} are removed, by [retention]")
        }
        RunEvent::RoundsSkipped { to, site, recovery } => format!(
            "rounds up to {to} skipped: {site} holds a delta of round {to} from before recovery {}",
            recovery.short()
        ),
        RunEvent::RunEnded { state, detail } if detail.is_empty() => {
            format!("ended: {}", state.as_str())
        }
        RunEvent::RunEnded { state, detail } => format!("ended: {}: {detail}", state.as_str()),
    }
}

fn in_words(missing: &[Missing]) -> String {
    let words: Vec<String> = missing.iter().map(|m| format!("{} ({})", m.site, m.reason)).collect();
    words.join(", ")
}

fn registry(event: &RegistryEvent) -> String {
    match event {
        RegistryEvent::Founded { consortium, root } => {
            format!("consortium {consortium} founded, root certificate {root}")
        }
        RegistryEvent::Invited { member, expires, by, replaces } => {
            let again = if *replaces { ", in place of its present certificate" } else { "" };
            format!("{member} invited by {by}, until {expires}{again}")
        }
        RegistryEvent::InvitationsWithdrawn { member, count, by } => {
            format!("{count} open invitations of {member} withdrawn by {by}")
        }
        RegistryEvent::TokenReused { member } => {
            format!("ALARM: the used token of {member}'s kit came again with another key")
        }
        RegistryEvent::Enrolled { member, certificate } => {
            format!("{member} enrolled, certificate {}", certificate.short())
        }
        RegistryEvent::Suspended { member, reason, by } => {
            format!("{member} suspended by {by}: {reason}")
        }
        RegistryEvent::Reinstated { member, by } => format!("{member} reinstated by {by}"),
        RegistryEvent::Recovered { recovery } => {
            let said = &recovery.statement;
            let heads = said.lost.iter().map(|h| format!("{} (root {})", h.size, h.root.short()));
            format!(
                "history recovered by {}: {} leaves are kept, the lost heads are {}: {}",
                said.operator,
                said.kept.size,
                heads.collect::<Vec<_>>().join(", "),
                said.reason
            )
        }
        RegistryEvent::RunChecked { by, run, manifest, asked } => {
            let names: Vec<&str> = asked.iter().map(|site| site.as_str()).collect();
            let asked = if names.is_empty() { "no site".to_owned() } else { names.join(", ") };
            format!("run {run}, terms {}, checked by {by}: {asked} asked", manifest.short())
        }
        RegistryEvent::CheckAnswered { run, answers, .. } => {
            let answer = |check: &SiteCheck| {
                let warnings = check.warnings.iter().map(|warning| format!(", {warning}"));
                format!("{} {}{}", check.site, check.answer, warnings.collect::<String>())
            };
            let answers: Vec<String> = answers.iter().map(answer).collect();
            format!("check of run {run} answered: {}", answers.join("; "))
        }
        RegistryEvent::Revoked { member, reason, by } => {
            format!("{member} revoked by {by}: {reason}")
        }
    }
}
