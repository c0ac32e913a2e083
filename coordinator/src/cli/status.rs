//! `status`: how the coordinator is.

use serde::Serialize;
use tributary_proto::v1::{Disk, SiteTrouble, StatusReply, StatusRequest};

use super::Answer;
use super::present::{ago, bytes, time, time_or_none};
use super::runs::{NO_RUNS, RunLine, run_table};
use super::session::{Globals, Session};
use tributary_shared::outcome::Failure;
use tributary_shared::text::printable;

/// The coordinator for machines.
#[derive(Serialize)]
struct StatusData<'s> {
    version: &'s str,
    started: Option<String>,
    disk: DiskData,
    runs: Vec<RunLine<'s>>,
    sites_in_trouble: Vec<TroubleData<'s>>,
}

#[derive(Serialize)]
struct TroubleData<'s> {
    site: &'s str,
    trouble: &'s str,
    since: Option<String>,
}

#[derive(Serialize)]
struct DiskData {
    free_bytes: u64,
    reserve_bytes: u64,
    arriving_bytes: u64,
    short: bool,
    short_since: Option<String>,
}

/// Fetches the coordinator's status.
pub(super) async fn status(globals: &Globals) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let reply = session.ask(session.client.clone().status(StatusRequest {})).await?;
    let disk = reply.disk.unwrap_or_default();
    let data = StatusData {
        version: &reply.version,
        started: time_or_none(reply.started_ms),
        disk: DiskData {
            free_bytes: disk.free_bytes,
            reserve_bytes: disk.reserve_bytes,
            arriving_bytes: disk.arriving_bytes,
            short: disk.short,
            short_since: time_or_none(disk.short_since_ms),
        },
        runs: reply.runs.iter().map(RunLine::from).collect(),
        sites_in_trouble: reply.sites.iter().map(trouble).collect(),
    };
    Ok(Answer::new(data, text(&reply)))
}

fn trouble(row: &SiteTrouble) -> TroubleData<'_> {
    TroubleData { site: &row.site, trouble: &row.trouble, since: time_or_none(row.since_ms) }
}

/// The sites that report trouble, one line each.
fn troubles_text(sites: &[SiteTrouble]) -> String {
    let line = |row: &SiteTrouble| {
        let SiteTrouble { site, trouble, since_ms } = row;
        format!(
            "\ntrouble at {}: {}, since {}",
            printable(site),
            printable(trouble),
            time(*since_ms)
        )
    };
    sites.iter().map(line).collect()
}

fn text(reply: &StatusReply) -> String {
    let (version, started) = (printable(&reply.version), reply.started_ms);
    let runs = if reply.runs.is_empty() { NO_RUNS.to_owned() } else { run_table(&reply.runs) };
    let disk = disk_text(&reply.disk.unwrap_or_default());
    format!(
        "coordinator {version}, up since {} ({})\n{disk}{}\n\n{runs}",
        time(started),
        ago(started),
        troubles_text(&reply.sites)
    )
}

fn disk_text(disk: &Disk) -> String {
    let mut line =
        format!("disk: {} free, {} in reserve", bytes(disk.free_bytes), bytes(disk.reserve_bytes));
    if disk.arriving_bytes > 0 {
        line += &format!(", {} arriving", bytes(disk.arriving_bytes));
    }
    if disk.short {
        line += &format!(
            "\nSHORT OF DISK SPACE since {}: new uploads, rounds, invitations and runs wait; \
             free some and they go on by themselves",
            time(disk.short_since_ms)
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_in_trouble_is_a_line_under_the_disk() {
        let site = SiteTrouble { site: "a".into(), trouble: "disk_full".into(), since_ms: 1_000 };
        let text = text(&StatusReply { sites: vec![site], ..StatusReply::default() });
        let line = "\ntrouble at a: disk_full, since 1970-01-01 00:00:01Z\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_short_disk_is_said_in_words() {
        let room = Disk { free_bytes: 3 << 30, reserve_bytes: 64 << 20, ..Disk::default() };
        assert_eq!(disk_text(&room), "disk: 3.00 GiB free, 64.00 MiB in reserve");
        let short = Disk { short: true, short_since_ms: 1_000, arriving_bytes: 2_048, ..room };
        let text = disk_text(&short);
        assert!(text.contains("2.00 KiB arriving"), "{text}");
        assert!(text.contains("SHORT OF DISK SPACE since 1970-01-01 00:00:01Z"), "{text}");
    }
}
