//! Runs and members as rows of the wire.

use tributary_proto::channel::{Member, Role};
use tributary_proto::v1;
use tributary_shared::name::SiteName;
use tributary_shared::timestamp::Timestamp;

use crate::clock;
use crate::driver::Snapshot;
use crate::driver::presence::Word;
use crate::round::divergence::{self, base_versions};
use crate::round::seat::Seat;
use crate::round::weights::{Weight, weigh};
use crate::round::{PastRound, Phase, Run, Tally};
use crate::space::Room;
use crate::store::{Invitation, MemberRow};

/// Enrolled sites, then those invited and not enrolled yet.
pub(super) fn sites(
    members: &[MemberRow],
    invitations: &[Invitation],
    tally: &Tally,
    word: impl Fn(&SiteName) -> Word,
) -> Vec<v1::SiteRow> {
    let mut rows: Vec<v1::SiteRow> = members
        .iter()
        .filter(|row| row.member.role == Role::Site)
        .map(|row| {
            let counts = tally.of(&row.member.name);
            let Word { version, trouble, .. } = word(&row.member.name);
            v1::SiteRow {
                name: row.member.name.to_string(),
                state: row.state.as_str().to_owned(),
                last_seen_ms: row.last_seen.map_or(0, Timestamp::as_millis),
                certificate_serial: row.serial_hex.clone(),
                certificate_expires_ms: row.expires.as_millis(),
                accepted: counts.accepted,
                refused: counts.refused,
                lost: counts.lost,
                declined: counts.declined,
                version,
                trouble,
                invitations: open(invitations, &row.member),
            }
        })
        .collect();
    for invitation in invitations.iter().filter(|i| i.used.is_none() && i.member.role == Role::Site)
    {
        let name = invitation.member.name.as_str();
        if rows.iter().all(|row| row.name != name) {
            rows.push(v1::SiteRow {
                name: name.to_owned(),
                state: "invited".to_owned(),
                certificate_expires_ms: invitation.expires.as_millis(),
                invitations: open(invitations, &invitation.member),
                ..v1::SiteRow::default()
            });
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

/// The number of invitations of `member` that can still be used.
fn open(invitations: &[Invitation], member: &Member) -> u32 {
    let open = invitations.iter().filter(|i| i.used.is_none() && i.member == *member).count();
    u32::try_from(open).unwrap_or(u32::MAX)
}

/// Enrolled persons of one role, and those who are only invited.
pub(super) fn persons(
    role: Role,
    members: &[MemberRow],
    invitations: &[Invitation],
) -> Vec<v1::PersonRow> {
    let enrolled = members.iter().filter(|row| row.member.role == role).map(|row| v1::PersonRow {
        name: row.member.name.to_string(),
        state: row.state.as_str().to_owned(),
        last_seen_ms: row.last_seen.map_or(0, Timestamp::as_millis),
        certificate_serial: row.serial_hex.clone(),
        certificate_expires_ms: row.expires.as_millis(),
        invitations: open(invitations, &row.member),
    });
    let mut rows: Vec<v1::PersonRow> = enrolled.collect();
    for invitation in invitations.iter().filter(|i| i.used.is_none() && i.member.role == role) {
        let name = invitation.member.name.as_str();
        if rows.iter().all(|row| row.name != name) {
            rows.push(v1::PersonRow {
                name: name.to_owned(),
                state: "invited".to_owned(),
                certificate_expires_ms: invitation.expires.as_millis(),
                invitations: open(invitations, &invitation.member),
                ..v1::PersonRow::default()
            });
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

/// The disk.
pub(super) fn disk(room: &Room) -> v1::Disk {
    v1::Disk {
        free_bytes: room.free_bytes,
        reserve_bytes: room.reserve_bytes,
        short: room.short_since.is_some(),
        short_since_ms: room.short_since.map_or(0, Timestamp::as_millis),
        arriving_bytes: room.arriving_bytes,
    }
}

/// A run as one line.
pub(super) fn run(run: &Run, trouble: String) -> v1::RunRow {
    let (state, ended_ms, detail) = match run.phase() {
        Phase::Waiting => ("waiting", 0, run.waits_for(clock::now())),
        Phase::Collecting(_) => ("collecting", 0, String::new()),
        Phase::Aggregating(_) => ("aggregating", 0, String::new()),
        Phase::Ended { state, detail, at } => (state.as_str(), at.as_millis(), detail.clone()),
    };
    v1::RunRow {
        name: run.manifest().name.to_string(),
        state: state.to_owned(),
        rounds_published: run.rounds_published(),
        rounds_asked: run.manifest().rounds.count,
        started_ms: run.started().as_millis(),
        ended_ms,
        detail,
        warnings: divergence::warnings(run),
        trouble,
    }
}

/// A run whole: the open round's seats with their progress, and every closed round.
pub(super) fn show(
    snapshot: &Snapshot,
    received: impl Fn(&SiteName) -> u64,
    word: impl Fn(&SiteName) -> Word,
) -> v1::ShowRunReply {
    let Snapshot { run, leases, trouble } = snapshot;
    let mut reply = v1::ShowRunReply {
        run: Some(self::run(run, trouble.clone())),
        manifest_digest: run.manifest_digest().as_bytes().to_vec().into(),
        manifest_json: run.manifest().to_json().into(),
        round: run.round(),
        deadline_ms: 0,
        seats: Vec::new(),
        rounds: base_versions(run)
            .map(|(round, base, past)| {
                past_round(round, base, past, run.manifest().limits.share_max)
            })
            .collect(),
    };
    if let Phase::Collecting(collecting) = run.phase() {
        reply.deadline_ms = collecting.deadline.as_millis();
        for (site, seat) in &collecting.seats {
            // A settled site's last heartbeat says nothing any more.
            let progress = leases.progress(site).filter(|_| !seat.is_final());
            let progress = progress.cloned().unwrap_or_default();
            reply.seats.push(v1::SeatRow {
                site: site.to_string(),
                state: seat.as_str().to_owned(),
                detail: seat_detail(seat, &word(site)),
                phase: progress.phase,
                step: progress.step,
                steps: progress.steps,
                eta_s: progress.eta_s,
                cases: seat.cases().unwrap_or(0),
                uploaded_bytes: sent(seat).unwrap_or_else(|| received(site)),
            });
        }
    }
    reply
}

/// Reason a site does not contribute, and the trouble that it reports while it may.
fn seat_detail(seat: &Seat, word: &Word) -> String {
    let detail = seat.detail();
    match (seat.is_final() || word.trouble.is_empty(), detail.is_empty()) {
        (true, _) => detail,
        (false, true) => format!("reports {}", word.trouble),
        (false, false) => format!("{detail}; reports {}", word.trouble),
    }
}

/// Sites with trouble, for the coordinator's status.
pub(super) fn troubles(troubles: Vec<(SiteName, Word)>) -> Vec<v1::SiteTrouble> {
    let row = |(site, word): (SiteName, Word)| v1::SiteTrouble {
        site: site.to_string(),
        trouble: word.trouble,
        since_ms: word.since.map_or(0, Timestamp::as_millis),
    };
    troubles.into_iter().map(row).collect()
}

/// Bytes of a site's counted delta.
fn sent(seat: &Seat) -> Option<u64> {
    match seat {
        Seat::Accepted(accepted) | Seat::Excluded { accepted, .. } => Some(accepted.bytes),
        Seat::Asked
        | Seat::Training { .. }
        | Seat::Refused { .. }
        | Seat::Declined { .. }
        | Seat::Lost { .. } => None,
    }
}

fn past_round(
    round: u32,
    base_version: u32,
    past: &PastRound,
    share_max: Option<f64>,
) -> v1::RoundRow {
    let weights = weigh(past.accepted(), share_max);
    let contributions: Vec<_> =
        past.seats.iter().map(|(site, seat)| contribution(past, site, seat, &weights)).collect();
    v1::RoundRow {
        round,
        adapter_digest: past
            .published
            .map(|(digest, _)| digest.as_bytes().to_vec())
            .unwrap_or_default()
            .into(),
        opened_ms: past.opened.as_millis(),
        published_ms: past.published.map_or(0, |(_, at)| at.as_millis()),
        contributions,
        upload_bytes: past.seats.values().filter_map(sent).sum(),
        base_version,
    }
}

fn contribution(
    past: &PastRound,
    site: &SiteName,
    seat: &Seat,
    weights: &[Weight],
) -> v1::ContributionRow {
    let missing = past.missing.iter().find(|m| m.site == *site);
    let cut = weights.iter().find(|w| w.site == *site && w.used < w.declared);
    let cut = cut.map(|w| format!("weighs as {} cases, by limits.share_max", w.used));
    let detail = missing.map(|m| m.reason.clone()).or(cut);
    let mut row = v1::ContributionRow {
        site: site.to_string(),
        state: seat.as_str().to_owned(),
        detail: detail.unwrap_or_else(|| seat.detail()),
        cases: seat.cases().unwrap_or(0),
        ..v1::ContributionRow::default()
    };
    if let Seat::Accepted(accepted) = seat {
        row.delta_digest = accepted.digest.as_bytes().to_vec().into();
        row.metrics_json =
            serde_json::to_string(&accepted.metrics).expect("metrics are plain data");
    }
    row
}

#[cfg(test)]
mod tests;
