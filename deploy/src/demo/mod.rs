//! A whole federation on one machine, step by step: three hospitals, one coordinator, real
//! processes, real enrolment, real training, an adapter and a verified history.

mod arms;
mod federated;
mod finish;
mod folder;
mod hospitals;
mod plan;
mod summary;
mod teller;

use std::path::PathBuf;
use std::time::Instant;

use tributary_client::data::synth::Modality;

use crate::binaries::Binaries;
use crate::command::Failed;
use crate::federation::{Federation, SiteOptions};
use plan::Plan;

pub use summary::Summary;
pub use teller::Teller;

/// The hospitals. Trees, so that nobody takes them for real ones.
pub(crate) const HOSPITALS: [&str; 3] = ["alder", "birch", "cedar"];
/// The run.
pub(crate) const RUN: &str = "demo";
/// Steps that [`Teller`] counts.
const STEPS: usize = 9;

/// What is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Where everything goes; emptied first if an earlier demo made it
    #[arg(long, default_value = "demo-federation", value_name = "DIR")]
    pub out: PathBuf,
    /// Real images instead of synthetic ones: a folder with labels.csv, or a .npz in the MedMNIST
    /// layout; divided over the three sites by patient
    #[arg(long, value_name = "DIR|FILE.npz")]
    pub data: Option<PathBuf>,
    /// The frozen backbone (safetensors) [default: the one in deploy/backbone]
    #[arg(long, value_name = "FILE")]
    pub backbone: Option<PathBuf>,
    /// What synthetic images imitate
    #[arg(long, value_enum, default_value_t = Modality::Histology, conflicts_with = "data")]
    pub modality: Modality,
    /// Federated rounds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Passes over each site's images in a round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub epochs: u32,
    /// Patients of each hospital when the images are synthetic
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(12..=10_000))]
    pub patients: u32,
    /// Names every random choice
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=u64::from(u32::MAX)))]
    pub seed: u64,
    /// Leave the federation running at the end, until interrupted
    #[arg(long)]
    pub keep: bool,
}

/// The federation of a finished demo, still running, and what came of it.
#[derive(Debug)]
pub struct Shown {
    /// Dropping it ends every process.
    pub federation: Federation,
    /// What came of it.
    pub summary: Summary,
}

/// Shows everything.
pub fn show(options: &DemoOptions, teller: &mut Teller) -> Result<Shown, Failed> {
    let began = Instant::now();
    teller.step("Building the programs (the first time this takes minutes)");
    let binaries = Binaries::build()?;
    let root = folder::fresh(&options.out)?;
    let built = Instant::now();

    let mut federation = Federation::found(&binaries, &root)?;
    teller.step("Preparing three hospitals' images");
    let images = hospitals::prepare(options, &federation, teller)?;
    let plan = Plan::make(options, &federation, images)?;

    teller.step("Founding the consortium");
    federation.start_coordinator()?;
    teller.note(&format!("coordinator listens on {}, mutual TLS 1.3", federation.address()));

    teller.step("Inviting and enrolling three sites");
    for (name, data) in HOSPITALS.iter().zip(&plan.images.folders) {
        let threads = plan.threads_of_a_site();
        let backbone = Some(plan.backbone.clone());
        let data = Some(data.clone());
        federation
            .enroll(name, &SiteOptions { data, backbone, threads, ..SiteOptions::default() })?;
        teller.note(&format!("{name}: key made at the site, certificate signed, kit used up"));
    }
    (0..HOSPITALS.len()).try_for_each(|site| federation.start_site(site))?;
    federation.wait_connected()?;

    let trained = federated::run(&plan, &mut federation, teller)?;
    let arms = arms::compare(&plan, &federation, teller)?;
    let kept = finish::keep(&plan, &federation, teller)?;
    let wall_s = built.elapsed().as_secs_f64();
    let build_s = built.duration_since(began).as_secs_f64();
    let summary = Summary::make(&plan, trained, arms, kept, (wall_s, build_s));
    summary.write_report()?;
    Ok(Shown { federation, summary })
}

/// What to try with a federation that is left running, and how to stop it.
pub fn invitation(federation: &Federation) -> String {
    let programs = federation.binaries();
    let (operator, client) = (programs.operator.display(), programs.client.display());
    let (root, address) = (federation.root().display(), federation.address());
    let identity = federation.operator_identity();
    let ask = format!("--identity {} --address {address}", identity.display());
    format!(
        "The federation goes on at {address}. In another terminal:\n\n  \
         # the operator: who takes part, and what came of the run\n  \
         {operator} site list {ask}\n  \
         {operator} run show {RUN} {ask}\n\n  \
         # a fourth hospital: invite, enrol\n  \
         {operator} site invite elm --out {root}/kits/elm.kit {ask}\n  \
         {client} enroll {root}/kits/elm.kit --directory {root}/sites/elm\n\n  \
         # the auditor: the whole history, offline\n  \
         {operator} audit verify --file {root}/history.export --key {}\n\n\
         Ctrl-C here stops everything.",
        identity.join("log.vkey").display()
    )
}
