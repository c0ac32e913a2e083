//! What a round costs, in real processes: a coordinator and N sites over mutual TLS on loopback,
//! where training is replaced by adding a known constant.
//!
//! 1. Idle: everything started and connected, nothing to do; resident memory.
//! 2. Timed: everything started cold, a run of R rounds; wall, processor time, peak memory.
//! 3. Checked: every published adapter against its closed form.
//! 4. Counted: one more round through a relay that counts bytes.
//! 5. Floor: the same bytes moved, enciphered and summed without us.

mod closed_form;
mod floor;
mod report;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tributary_shared::manifest::RunManifest;

use crate::binaries::Binaries;
use crate::command::Failed;
use crate::events::{Event, Follow};
use crate::federation::{Federation, Rehearsal, SiteOptions};
use crate::relay::Relay;
use crate::resources::{Usage, mb};
use floor::Floor;

pub use report::Report;
pub(crate) use report::median;

/// Longest wait for one event.
const EVENT_MAX: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchOptions {
    /// Sites, each a process
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub sites: u16,
    /// Size of the adapter and of every delta, MB (10^6 bytes)
    #[arg(long, default_value_t = 12.6, value_parser = payload_mb)]
    pub payload_mb: f64,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
}

fn payload_mb(text: &str) -> Result<f64, String> {
    let mb: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let fits = (0.000_01..=4000.0).contains(&mb);
    if fits { Ok(mb) } else { Err("between 0.00001 and 4000".to_owned()) }
}

impl BenchOptions {
    fn sites(&self) -> usize {
        usize::from(self.sites)
    }

    /// A whole number of f32 values.
    fn payload_bytes(&self) -> u64 {
        (self.payload_mb * 1e6 / 4.0).round() as u64 * 4
    }

    fn manifest(&self, name: &str, rounds: u32) -> String {
        let (payload, sites) = (self.payload_bytes(), self.sites);
        format!(
            "schema_version = 1\nname = \"{name}\"\n\
             task = {{ kind = \"rehearsal\", payload_bytes = {payload} }}\n\
             rounds = {{ count = {rounds}, round_deadline_s = 3600, stall_timeout_s = 600 }}\n\
             quorum = {{ sites = {sites} }}\n\
             limits = {{ delta_norm_max = 1e9 }}\n"
        )
    }
}

/// Measures; `say` hears what is being done.
pub fn measure(options: &BenchOptions, say: &dyn Fn(&str)) -> Result<Report, Failed> {
    say("building the programs");
    let binaries = Binaries::build()?;
    let folder = tempfile::tempdir().map_err(|e| Failed::io("making a folder", &e))?;
    say(&format!("enrolling {} sites", options.sites));
    let mut federation = enrolled(&binaries, folder.path(), options)?;

    say("idle: connected, nothing to do");
    let idle = idle(&mut federation)?;
    say(&format!("timed: {} rounds from a cold start", options.rounds));
    let timed = timed(&mut federation, options)?;
    say("checking every published adapter");
    let max_abs_error = check(&federation, options)?;
    say("counting the bytes of one more round");
    let wire_bytes = counted(&mut federation, options)?;
    drop(federation);
    say("measuring the floor");
    let floor = Floor::measure(options.sites(), options.payload_bytes())?;
    Ok(Report::new(options, &idle, &timed, max_abs_error, wire_bytes, &floor))
}

fn enrolled(
    binaries: &Binaries,
    folder: &Path,
    options: &BenchOptions,
) -> Result<Federation, Failed> {
    let mut federation = Federation::found(binaries, folder)?;
    federation.start_coordinator()?;
    for index in 0..options.sites() {
        let (add, cases) = (closed_form::addend(index), closed_form::cases(index));
        let rehearsal = Some(Rehearsal { add, cases, coordinate: None });
        let site = SiteOptions { rehearsal, ..SiteOptions::default() };
        federation.enroll(&format!("site-{:03}", index + 1), &site)?;
    }
    federation.kill_all();
    Ok(federation)
}

/// Memory of connected processes without work.
struct Idle {
    server: Usage,
    sites: Vec<Usage>,
}

fn idle(federation: &mut Federation) -> Result<Idle, Failed> {
    start_all(federation, &[])?;
    federation.wait_connected()?;
    let (server, sites) = usage(federation)?;
    federation.kill_all();
    Ok(Idle { server, sites })
}

fn start_all(federation: &mut Federation, environment: &[(&str, &str)]) -> Result<(), Failed> {
    if federation.coordinator().is_none() {
        federation.start_coordinator()?;
    }
    (0..federation.sites().len()).try_for_each(|i| federation.start_site_with(i, environment))
}

fn usage(federation: &Federation) -> Result<(Usage, Vec<Usage>), Failed> {
    let unknown = || Failed::new("reading /proc", None, "the bench needs Linux's /proc");
    let server = federation.coordinator().and_then(|p| p.usage()).ok_or_else(unknown)?;
    let sites = federation.sites().iter().filter_map(|site| site.process()?.usage()).collect();
    Ok((server, sites))
}

/// What a run of R rounds took.
struct Timed {
    start_to_first_round: Duration,
    /// From each round's opening to its publication.
    rounds: Vec<Duration>,
    /// Of the rounds after the first (of all when there is only one).
    server_cpu_s_per_round: f64,
    server: Usage,
    sites: Vec<Usage>,
}

fn timed(federation: &mut Federation, options: &BenchOptions) -> Result<Timed, Failed> {
    let began = Instant::now();
    start_all(federation, &[])?;
    let mut follow = start_run(federation, options, "timed", options.rounds)?;
    let mut start_to_first_round = Duration::ZERO;
    let mut first_cpu_s = 0.0;
    let mut opened_ms = 0;
    let mut rounds = Vec::new();
    while let Some(event) = follow.next(EVENT_MAX)? {
        match event.kind.as_str() {
            "round_opened" => opened_ms = event.at_ms,
            "adapter_published" => {
                rounds.push(Duration::from_millis((event.at_ms - opened_ms).max(0) as u64));
                if rounds.len() == 1 {
                    start_to_first_round = began.elapsed();
                    first_cpu_s = usage(federation)?.0.cpu_s;
                }
            }
            "run_ended" => completed(&event)?,
            _ => {}
        }
    }
    let (server, sites) = usage(federation)?;
    let server_cpu_s_per_round = match rounds.len() {
        0 | 1 => server.cpu_s,
        count => (server.cpu_s - first_cpu_s) / (count - 1) as f64,
    };
    Ok(Timed { start_to_first_round, rounds, server_cpu_s_per_round, server, sites })
}

fn start_run(
    federation: &mut Federation,
    options: &BenchOptions,
    name: &str,
    rounds: u32,
) -> Result<Follow, Failed> {
    let file = federation.root().join(format!("{name}.toml"));
    std::fs::write(&file, options.manifest(name, rounds)).map_err(|e| Failed::file(&file, &e))?;
    federation.operator(["run", "start", &file.to_string_lossy(), "--anyway"])?;
    federation.follow(name)
}

/// A run that ended in any other way was not measured.
fn completed(event: &Event) -> Result<(), Failed> {
    let state = event.fields["state"].as_str().unwrap_or("in no known state");
    if state == "completed" {
        return Ok(());
    }
    let detail = event.fields["detail"].as_str().unwrap_or("");
    Err(Failed::new("the bench's run", None, &format!("ended {state}: {detail}")))
}

/// The largest error of any element of any published adapter.
fn check(federation: &Federation, options: &BenchOptions) -> Result<f64, Failed> {
    let broken = |e| Failed::new("the bench's manifest", None, &format!("{e}"));
    let manifest = RunManifest::from_toml(&options.manifest("timed", options.rounds));
    let manifest = manifest.map_err(broken)?;
    let mut largest: f64 = 0.0;
    for version in 1..=options.rounds {
        let out = federation.root().join("pulled");
        let (text, path) = (version.to_string(), out.to_string_lossy().into_owned());
        federation.operator(["run", "pull", "timed", "--version", &text, "--out", &path])?;
        let file = out.join("adapter.tensors");
        let error = closed_form::largest_error(&file, &manifest, options.sites(), version)?;
        largest = largest.max(error);
        std::fs::remove_dir_all(&out).map_err(|e| Failed::file(&out, &e))?;
    }
    Ok(largest)
}

/// Bytes over the wire in one round, both directions.
fn counted(federation: &mut Federation, options: &BenchOptions) -> Result<u64, Failed> {
    let failed = |e: std::io::Error| Failed::io("opening the counting relay", &e);
    let target: SocketAddr = federation.address().parse().map_err(|_| {
        Failed::new("opening the counting relay", None, "the coordinator has no address")
    })?;
    let relay = Relay::open(target).map_err(failed)?;
    for index in 0..federation.sites().len() {
        federation.kill_site(index);
    }
    start_all(federation, &[("TRIBUTARY__ADDRESS", &relay.address().to_string())])?;
    federation.wait_connected()?;
    let before = relay.bytes();
    let mut follow = start_run(federation, options, "counted", 1)?;
    for event in follow.rest(EVENT_MAX)? {
        if event.kind == "run_ended" {
            completed(&event)?;
        }
    }
    Ok(relay.bytes() - before)
}

/// The largest of some usages' measure, MB.
fn largest_mb(usages: &[Usage], measure: impl Fn(&Usage) -> u64) -> f64 {
    mb(usages.iter().map(measure).max().unwrap_or(0))
}
