//! `tributary-client data`: look at images, divide them, or draw synthetic ones.

mod page;

use std::path::{Path, PathBuf};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::ProgressBar;
use tributary_shared::manifest::{MANIFEST_BYTES_MAX, RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::text::printable;

use super::{Format, print};
use crate::config::reading::Reading;
use crate::config::site::SiteConfig;
use crate::data::census::{self, Census, Decoding, FollowUp};
use crate::data::divide::{self, DivideSpec, DividedCard};
use crate::data::synth::{self, Card, Modality, SynthSpec};
use crate::data::{DataSource, task_of};
use crate::site::source;

/// Everything about a site's images; none of it talks to anybody.
#[derive(Debug, clap::Subcommand)]
pub enum DataCommand {
    /// Count classes, patients and sizes, and list everything that would be refused
    #[command(visible_alias = "check")]
    Inspect(InspectArgs),
    /// Draw synthetic sites with known ground truth (for demos; no medical claim follows)
    Synth(SynthArgs),
    /// Divide a data set over sites by patient
    Split(SplitArgs),
}

/// Arguments of `data inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Refusals up to the share that training would allow are no failure
    #[arg(long)]
    lenient: bool,
    /// Also write a page with small pictures; it shows patients and must stay at the site
    #[arg(long)]
    html: Option<PathBuf>,
    /// Small pictures of each class on that page
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(0..=200))]
    thumbnails: u16,
}

/// Location of the images and how they are read.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// A folder with labels.csv or labels.parquet, one of these, or a .npz in the MedMNIST layout
    /// [default: the images of --config]
    #[arg(required_unless_present = "config")]
    path: Option<PathBuf>,
    /// This site.toml says where the images are, and how files are read: window, frames, slices
    /// [default: the usual way]
    #[arg(long, value_name = "site.toml")]
    config: Option<PathBuf>,
}

impl PlaceArgs {
    /// The images, and how files become pictures.
    fn find(&self) -> Result<(DataSource, Reading), Failure> {
        let environment: Vec<_> = std::env::vars().collect();
        let site = self.config.as_deref().map(|file| SiteConfig::read(file, &environment));
        let place = site.transpose()?.and_then(|site| site.data);
        let found = match (&self.path, &place) {
            (Some(path), _) => DataSource::detect(path)?,
            (None, Some(place)) => source(place)?,
            (None, None) => {
                return Err(Failure::invalid("data", "the site.toml has no [data]")
                    .hint("name the images, or in site.toml: [data] path = \"FOLDER\""));
            }
        };
        Ok((found, place.map(|place| place.reading).unwrap_or_default()))
    }
}

/// What the labels mean.
#[derive(Debug, clap::Args)]
pub struct LabelArgs {
    /// Class names in the order of the run, separated by commas [default: as the data name them]
    #[arg(long, value_delimiter = ',', conflicts_with = "run")]
    classes: Vec<String>,
    /// An image may show several of the classes, or none
    #[arg(long, requires = "classes")]
    multi_label: bool,
    /// Take the classes from this run.toml
    #[arg(long)]
    run: Option<PathBuf>,
}

/// Arguments of `data synth`.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// What the pictures imitate
    #[arg(long, value_enum)]
    modality: Modality,
    /// Hospitals
    #[arg(long, default_value_t = 3)]
    sites: usize,
    /// Patients of each hospital
    #[arg(long, default_value_t = 60)]
    patients: usize,
    /// Pictures of each patient
    #[arg(long, default_value_t = 2)]
    images_per_patient: usize,
    /// The same seed gives the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Side of a picture, pixels
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// 0: all classes equally often everywhere; 1: each hospital leans to its own; 3: nearly only
    #[arg(long, default_value_t = 0.0)]
    label_skew: f64,
    /// 0: all hospitals' pictures look alike; 1: as different as hospitals are
    #[arg(long, default_value_t = 0.0)]
    site_shift: f64,
    /// A new or empty folder
    #[arg(long)]
    out: PathBuf,
}

/// Arguments of `data split`.
#[derive(Debug, clap::Args)]
pub struct SplitArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Hospitals
    #[arg(long, default_value_t = 3)]
    sites: usize,
    /// 0: all classes equally often everywhere; 1: each hospital leans to its own; 3: nearly only
    #[arg(long, default_value_t = 0.0)]
    label_skew: f64,
    /// Who goes where
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A new or empty folder
    #[arg(long)]
    out: PathBuf,
}

/// Runs one `data` command.
pub fn run(command: DataCommand, format: Format) -> Result<(), Failure> {
    match command {
        DataCommand::Inspect(args) => inspect(&args, format),
        DataCommand::Synth(args) => synthesise(args, format),
        DataCommand::Split(args) => split(&args, format),
    }
}

fn inspect(args: &InspectArgs, format: Format) -> Result<(), Failure> {
    let (source, reading) = args.place.find()?;
    let mut thumbnails = 0;
    if let Some(file) = &args.html {
        page::check_free(file)?;
        thumbnails = usize::from(args.thumbnails);
    }
    let census = census::take(&source, &args.labels.task(&source)?, &reading, thumbnails)?;
    if let Some(file) = &args.html {
        page::write(&census, file)?;
    }
    let allowed = args.lenient && census.refused_share() <= reading.refused_share_max;
    if let Some(first) = census.refused.first().filter(|_| !allowed) {
        if format == Format::Text {
            print_census(&census);
        }
        let (bad, all) = (census.refused_count, census.refused_count + census.cases);
        let message = format!("{bad} of {all} images would be refused, the first: {first}");
        return Err(Failure::invalid("data_refused", message));
    }
    print(format, &census, || print_census(&census));
    Ok(())
}

fn print_census(census: &Census) {
    say!("{}: {} images of {} patients", census.source, census.cases, census.patients);
    if census.bags != census.patients && census.bags != census.cases {
        say!("  bags: {}", census.bags);
    }
    if let Some(FollowUp { events, time_min, time_max }) = census.follow_up {
        say!("  followed from {time_min} to {time_max}, {events} events seen");
    }
    let mut table = table(&["class", "images", "patients"]);
    for class in &census.classes {
        table.add_row([&class.class, &class.cases.to_string(), &class.patients.to_string()]);
    }
    if census.without_class > 0 {
        table.add_row(["(none)", &census.without_class.to_string(), ""]);
    }
    if table.row_count() > 0 {
        say!("{table}");
    }
    let mut sizes: Vec<_> = census.sizes.iter().collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(size.cases));
    for size in sizes.iter().take(8) {
        say!("  {} x {} pixels: {} images", size.width, size.height, size.cases);
    }
    if sizes.len() > 8 {
        say!("  and {} other sizes", sizes.len() - 8);
    }
    print_findings(census);
}

fn print_findings(census: &Census) {
    for (what, counts) in [("modality", &census.modalities), ("plane", &census.planes)] {
        for (name, cases) in counts.iter().filter(|(name, _)| *name != "unknown") {
            say!("  {what} {}: {cases} images", printable(name));
        }
    }
    if let Some(Decoding { median_ms, slowest_ms, slowest }) = &census.decoding {
        say!(
            "  decoding: {median_ms:.2} ms an image (median), at most {slowest_ms:.2} ms ({})",
            printable(slowest)
        );
    }
    if let Some([least, largest]) = census.spacing_mm {
        // A slide's are micrometres.
        let digits = if least < 0.01 { 6 } else { 3 };
        say!("  pixel spacing: {least:.digits$} to {largest:.digits$} mm");
    }
    let bars: String = census.levels.iter().map(|share| bar(*share, &census.levels)).collect();
    say!("  grey levels, black to white: {bars}");
    for (what, oddity) in &census.oddities {
        say!("  odd: {} images, {what} ({})", oddity.cases, printable(&oddity.examples.join(", ")));
    }
    for duplicate in &census.duplicates {
        let whose = if duplicate.several_patients { "of different patients" } else { "" };
        say!(
            "  equal: {} images {whose} ({})",
            duplicate.cases,
            printable(&duplicate.examples.join(", "))
        );
    }
    for (what, count) in &census.notes {
        say!("  note: {count} {}", printable(what));
    }
    for (why, count) in &census.passed_over {
        say!("  passed over: {count} files ({})", printable(why));
    }
    for line in &census.refused {
        say!("  refused: {}", printable(line));
    }
    let unsaid = census.refused_count - census.refused.len();
    if unsaid > 0 {
        say!("  refused: {unsaid} more");
    }
}

/// One of eight heights.
fn bar(share: f64, all: &[f64]) -> char {
    let highest = all.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let height = (share / highest * 7.0).round() as usize;
    ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][height.min(7)]
}

fn synthesise(args: SynthArgs, format: Format) -> Result<(), Failure> {
    let spec = SynthSpec {
        modality: args.modality,
        sites: args.sites,
        patients: args.patients,
        images_per_patient: args.images_per_patient,
        seed: args.seed,
        size: args.size,
        label_skew: args.label_skew,
        site_shift: args.site_shift,
    };
    // indicatif draws nothing when the error stream is no terminal.
    let pictures = spec.sites.saturating_mul(spec.patients).saturating_mul(spec.images_per_patient);
    let bar = ProgressBar::new(pictures as u64);
    let card = synth::write(&spec, &args.out, &|| bar.inc(1))?;
    bar.finish_and_clear();
    print(format, &card, || print_card(&card, &args.out));
    Ok(())
}

fn print_card(card: &Card, out: &Path) {
    let mut head = vec!["site", "patients", "images"];
    head.extend(card.classes.iter().map(String::as_str));
    head.push("oracle AUROC");
    let mut table = table(&head);
    for site in &card.sites {
        let mut row = vec![site.site.clone(), site.patients.to_string(), site.images.to_string()];
        row.extend(site.images_per_class.iter().map(usize::to_string));
        row.push(shown(site.oracle_auroc));
        table.add_row(row);
    }
    say!("{table}");
    say!("oracle AUROC over all sites: {}", shown(card.oracle_auroc));
    say!("{}", card.statement);
    say!("written to {}", out.display());
}

fn shown(auroc: Option<f64>) -> String {
    auroc.map_or_else(|| "-".to_owned(), |auroc| format!("{auroc:.3}"))
}

fn split(args: &SplitArgs, format: Format) -> Result<(), Failure> {
    let (source, reading) = args.place.find()?;
    let task = args.labels.task(&source)?;
    let spec = DivideSpec { sites: args.sites, label_skew: args.label_skew, seed: args.seed };
    let card = divide::write(&source, &task, &spec, &reading, &args.out)?;
    print(format, &card, || print_divided(&card, &args.out));
    Ok(())
}

fn print_divided(card: &DividedCard, out: &Path) {
    let mut head = vec!["site", "patients", "images"];
    head.extend(card.task.classes().iter().map(String::as_str));
    let mut table = table(&head);
    for site in &card.sites {
        let mut row = vec![site.site.clone(), site.patients.to_string(), site.images.to_string()];
        row.extend(site.images_per_class.iter().map(usize::to_string));
        table.add_row(row);
    }
    say!("{table}");
    say!("written to {}", out.display());
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head);
    table
}

impl LabelArgs {
    fn task(&self, source: &DataSource) -> Result<Task, Failure> {
        if let Some(path) = &self.run {
            return task_of_run(path);
        }
        if self.classes.is_empty() {
            return Ok(source.infer_task()?);
        }
        Ok(task_of(self.classes.clone(), self.multi_label))
    }
}

fn task_of_run(path: &Path) -> Result<Task, Failure> {
    let failure =
        |error: String| Failure::invalid("bad_manifest", format!("{}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| failure(error.to_string()))?;
    if metadata.len() > MANIFEST_BYTES_MAX as u64 {
        return Err(failure(format!("more than {MANIFEST_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failure(error.to_string()))?;
    let manifest = RunManifest::from_toml(&text).map_err(|error| failure(chain(&error)))?;
    Ok(manifest.task)
}
