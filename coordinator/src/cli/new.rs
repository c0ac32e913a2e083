//! `run new`: writes a manifest to begin with, filled in from the backbone's file and the sites
//! that are enrolled.

mod facts;
mod text;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tributary_proto::v1::{ListRunsRequest, ListSitesRequest};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::outcome::{ExitCode, Failure};

use self::facts::Given;
use self::text::Parts;
use super::new_file::{taken, write_new};
use super::session::{Globals, Session};
use super::{Answer, manifest};

/// Kind of task that a new run learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Kind {
    /// One of two classes
    Binary,
    /// One of several classes
    MultiClass,
    /// Any subset of the classes
    MultiLabel,
    /// One of several grades in an order
    Ordinal,
    /// Time to an event that may not have been seen
    Survival,
    /// One of several classes for each pixel
    Segmentation,
    /// Images without labels: masked autoencoding
    #[value(alias = "self_supervised")]
    Mae,
    /// Images without labels: contrast of views
    #[value(name = "simclr")]
    SimClr,
    /// Images without labels: self-distillation
    Dino,
    /// No model and no image: exercises network, storage and aggregation
    Rehearsal,
}

impl Kind {
    /// The task's kind in a manifest.
    fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::MultiClass => "multi_class",
            Self::MultiLabel => "multi_label",
            Self::Ordinal => "ordinal",
            Self::Survival => "survival",
            Self::Segmentation => "segmentation",
            Self::Mae | Self::SimClr | Self::Dino => "self_supervised",
            Self::Rehearsal => "rehearsal",
        }
    }

    fn has_classes(self) -> bool {
        match self {
            Self::Binary
            | Self::MultiClass
            | Self::MultiLabel
            | Self::Ordinal
            | Self::Segmentation => true,
            Self::Survival | Self::Mae | Self::SimClr | Self::Dino | Self::Rehearsal => false,
        }
    }
}

/// Parts of the manifest and the path of its file.
#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// The frozen backbone (safetensors), with the card that `backbone import` or `pretrain` wrote
    /// beside it; a rehearsal needs none
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// Kind of task that the run learns
    #[arg(long, value_enum)]
    task: Kind,
    /// The names of the classes, in the order of docs/objectives.md
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    classes: Vec<String>,
    /// The run's name [default: the task's kind and the first free number]
    #[arg(long)]
    name: Option<RunName>,
    /// The sites asked [default: every site that is enrolled now]
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    sites: Vec<SiteName>,
    /// Subtracted from pixels in [0, 1], one number a channel, where no card says it
    #[arg(long, value_name = "M,M,M", value_delimiter = ',', requires = "std")]
    mean: Vec<f64>,
    /// Divided by, one number a channel, where no card says it
    #[arg(long, value_name = "S,S,S", value_delimiter = ',', requires = "mean")]
    std: Vec<f64>,
    /// File to write the manifest to; an existing file is never overwritten
    #[arg(long, value_name = "FILE", default_value = "run.toml")]
    out: PathBuf,
}

/// Enrolled sites and taken run names. Both are empty when the coordinator cannot be asked.
#[derive(Default)]
struct Known {
    sites: Vec<SiteName>,
    runs: Vec<String>,
    /// Reason the coordinator could not be asked, if there is one.
    offline: Option<String>,
}

/// Writes the manifest.
pub(super) async fn new(args: NewArgs, globals: &Globals) -> Result<Answer, Failure> {
    if args.out.exists() {
        return Err(taken(&args.out));
    }
    let backbone = match (&args.backbone, args.task) {
        (None, Kind::Rehearsal) => None,
        (Some(_), Kind::Rehearsal) => {
            let message = "a rehearsal has no model; leave --backbone out";
            return Err(Failure::invalid("arguments", message));
        }
        (None, _) => {
            let message = format!("--task {} needs --backbone FILE", args.task.as_str());
            return Err(Failure::invalid("arguments", message)
                .hint("`tributary-client backbone import` makes such a file"));
        }
        (Some(file), _) => {
            let given = Given { mean: args.mean.clone(), std: args.std.clone() };
            Some(facts::read(file, &given)?)
        }
    };
    if args.task.has_classes() == args.classes.is_empty() {
        let message = match args.classes.is_empty() {
            true => format!("--task {} needs --classes A,B", args.task.as_str()),
            false => format!("a {} task has no classes; leave --classes out", args.task.as_str()),
        };
        return Err(
            Failure::invalid("arguments", message).hint("docs/objectives.md lists the tasks")
        );
    }
    let known = ask(globals).await;
    let sites = if args.sites.is_empty() { known.sites.clone() } else { args.sites.clone() };
    let parts = Parts {
        name: args.name.clone().map_or_else(|| free_name(args.task, &known.runs), Ok)?,
        kind: args.task,
        classes: args.classes.clone(),
        backbone,
        quorum: quorum(sites.len()),
        sites,
    };
    let text = parts.to_text();
    let manifest = RunManifest::read_toml(&text).map_err(|e| {
        Failure::new(ExitCode::Bug, "bug", format!("the new manifest does not parse: {e}"))
    })?;
    let problems = manifest.problems();
    if !problems.is_empty() {
        return Err(manifest::problems_failure(Path::new("the new manifest"), &problems));
    }
    write_new(&args.out, &text)?;
    Ok(told(&args.out, &manifest, &known))
}

fn told(out: &Path, manifest: &RunManifest, known: &Known) -> Answer {
    let file = out.display();
    let (name, quorum) = (&manifest.name, manifest.quorum.sites);
    let mut text = format!("Wrote {file}: run {name}, ");
    let asked = manifest.cohort.as_ref().map_or(0, |cohort| cohort.sites.len());
    let _ = match asked {
        0 => write!(text, "every active site is asked"),
        asked => write!(text, "{asked} sites are asked"),
    };
    let _ = write!(text, ", {quorum} make a quorum.");
    if let Some(reason) = &known.offline {
        let _ = write!(text, "\nThe coordinator was not asked who is enrolled: {reason}");
    }
    let _ = write!(text, "\nNext: tributary run check {file}");
    Answer::new(
        json!({
            "file": file.to_string(),
            "run": name,
            "manifest_digest": manifest.digest(),
            "sites": manifest.cohort.as_ref().map(|cohort| &cohort.sites),
            "quorum": quorum,
            "offline": known.offline,
        }),
        text,
    )
}

/// Asks who is enrolled; a coordinator that cannot be asked is no trouble.
async fn ask(globals: &Globals) -> Known {
    let asked = async {
        let session = Session::open(globals).await?;
        let sites = session.ask(session.client.clone().list_sites(ListSitesRequest {})).await?;
        let runs = session.ask(session.client.clone().list_runs(ListRunsRequest {})).await?;
        let active = sites.sites.iter().filter(|site| site.state == "active");
        Ok(Known {
            sites: active.filter_map(|site| site.name.parse().ok()).collect(),
            runs: runs.runs.into_iter().map(|run| run.name).collect(),
            offline: None,
        })
    };
    asked.await.unwrap_or_else(|failure: Failure| Known {
        offline: Some(failure.message),
        ..Known::default()
    })
}

/// Two thirds of the sites asked, at least two where there may be two.
fn quorum(sites: usize) -> usize {
    match sites {
        0 => 2,
        sites => sites - sites / 3,
    }
}

fn free_name(task: Kind, runs: &[String]) -> Result<RunName, Failure> {
    let kind = task.as_str().replace('_', "-");
    let mut names = (1..=runs.len() + 1).map(|number| format!("{kind}-{number}"));
    let free = names.find(|name| !runs.contains(name)).unwrap_or(kind);
    free.parse().map_err(|e| Failure::invalid("arguments", format!("{e}")).hint("give --name"))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_kind_of_task_makes_a_manifest_without_a_problem() {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/backbone/backbone.safetensors");
        let backbone = facts::read(&file, &Given::default()).unwrap();
        for kind in Kind::value_variants() {
            let classes = ["no \"dose\"", "yes"].map(str::to_owned).to_vec();
            let parts = Parts {
                name: free_name(*kind, &[]).unwrap(),
                kind: *kind,
                classes: if kind.has_classes() { classes.clone() } else { Vec::new() },
                backbone: (*kind != Kind::Rehearsal).then(|| backbone.clone()),
                sites: vec!["a".parse().unwrap(), "b".parse().unwrap()],
                quorum: quorum(2),
            };
            let text = parts.to_text();
            let manifest = RunManifest::from_toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(manifest.task.as_str(), kind.as_str());
            assert_eq!(manifest.backbone, parts.backbone);
            assert_eq!(manifest.task.classes(), parts.classes);
            assert_eq!(manifest.cohort.unwrap().sites.len(), 2);
        }
    }

    #[test]
    fn a_name_that_is_taken_is_not_proposed() {
        let taken = ["binary-1".to_owned(), "binary-3".to_owned()];
        assert_eq!(free_name(Kind::Binary, &taken).unwrap().as_str(), "binary-2");
        assert_eq!([0, 1, 2, 3, 6].map(quorum), [2, 1, 2, 2, 4]);
    }
}
