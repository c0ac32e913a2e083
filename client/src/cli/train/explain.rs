//! `explain`: where an adapted model looked, as pictures that stay at the site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;
use serde_json::json;
use tributary_proto::channel::write_durably;
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};

use super::evaluate::read_adapter;
use super::overlay::overlay;
use super::progress::Display;
use super::{Adapted, Images, Threads, shown};
use crate::cli::{Format, print};
use crate::data::{Dataset, marked};
use crate::metrics::Pointing;
use crate::model::Compute;
use crate::trainer::{Control, Explained, Explainer, Inference, NotExplained, stretched};

/// Cases explained when none is named.
const CASES_DEFAULT: usize = 16;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    adapted: Adapted,
    #[command(flatten)]
    images: Images,
    /// Cases to explain, by the names that `evaluate --predictions` gives them
    /// [default: the first of the patients that training never sees]
    #[arg(long = "case", value_name = "ID", num_args = 1..)]
    cases: Vec<String>,
    /// Bags to explain, of a run on bags: the images that the run's attention weighs the most
    #[arg(long = "bag", value_name = "ID", num_args = 1.., conflicts_with = "cases")]
    bags: Vec<String>,
    /// How many cases, where none is named; with --bag, of each bag
    #[arg(long, value_name = "N", default_value_t = CASES_DEFAULT)]
    most: usize,
    /// The class to explain [default: the most likely one of each case]
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Grey pictures named as the images, 0 outside of what was to be found
    /// [default: `masks` in the folder of a single --data, if it is there]
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Share of the pixels that counts as hottest, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    top: f64,
    /// Directory to make; readable by its owner alone
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    threads: Threads,
}

/// What is told of one case.
#[derive(Debug, Serialize)]
struct Told {
    case: String,
    /// Of a run on bags: the image's bag, and how much it counts there.
    bag: Option<String>,
    bag_share: Option<f32>,
    class: Option<String>,
    prediction: Vec<f32>,
    rollout: Option<Pointing>,
    gradient: Option<Pointing>,
    files: [PathBuf; 2],
}

pub(super) fn run(args: &ExplainArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    if !(args.top > 0.0 && args.top <= 100.0) {
        let line = format!("--top {}: must be above 0 and at most 100", args.top);
        return Err(Failure::invalid("arguments", line));
    }
    if args.most == 0 {
        return Err(Failure::invalid("arguments", "--most 0: must be at least 1"));
    }
    let manifest = args.adapted.manifest()?;
    let class = class_of(args.class.as_deref(), &manifest.task)?;
    if manifest.bags.is_none() && !args.bags.is_empty() {
        let line = "--bag: the run has no bags; name images by --case";
        return Err(Failure::invalid("arguments", line));
    }
    let unfit = |e: NotExplained| Failure::invalid("task", e.to_string());
    NotExplained::check(&manifest).map_err(unfit)?;
    let backbone = args.adapted.backbone.of_run(&args.images, &manifest)?;
    let values = read_adapter(&args.adapted.adapter, &manifest)?;
    let compute = Compute::cpu();
    let dataset = args.images.of_run(&manifest)?;
    let mut cases = chosen(args, &manifest, &dataset)?;
    let inference = Inference {
        backbone: &backbone,
        manifest: &manifest,
        values: &values,
        dataset: &dataset,
        compute: &compute,
    };
    let shares = shares_in_bags(&inference, &cases)?;
    if !args.bags.is_empty() {
        cases = heaviest(&dataset, cases, &shares, args.most);
    }
    // After the shares, whose own copy of the frozen weights is gone by now.
    let explainer = Explainer::new(&backbone, &manifest, &values, &compute).map_err(unfit)?;
    make_private(&args.out)?;
    let (task, dataset) = (&manifest.task, &dataset);
    let explaining = Explaining { args, task, explainer, dataset, class, shares };
    let told: Result<Vec<Told>, Failure> =
        cases.into_iter().map(|index| explaining.one_case(index)).collect();
    if told.is_err() {
        // All pictures or none; the first error is the one to tell.
        let _ = std::fs::remove_dir_all(&args.out);
    }
    report(&told?, &args.out, args.top, format);
    Ok(())
}

/// How much each image of the bags of `cases` counts in its bag; empty where the run has none.
fn shares_in_bags(
    inference: &Inference<'_>,
    cases: &[usize],
) -> Result<BTreeMap<usize, f32>, Failure> {
    let mut display = Display::new();
    let shares = inference
        .bag_shares(cases, &Control::default(), &mut |progress| display.show(progress))
        .map_err(|e| Failure::invalid("explanation", chain(&e)))?;
    Ok(shares.into_iter().collect())
}

/// The `most` cases of each bag that count the most in it, bag after bag.
fn heaviest(
    dataset: &Dataset,
    mut cases: Vec<usize>,
    shares: &BTreeMap<usize, f32>,
    most: usize,
) -> Vec<usize> {
    let bag = |case: usize| dataset.cases()[case].bag.as_str();
    cases.sort_by(|a, b| bag(*a).cmp(bag(*b)).then(shares[b].total_cmp(&shares[a])));
    cases
        .chunk_by(|a, b| bag(*a) == bag(*b))
        .flat_map(|of_bag| of_bag.iter().take(most))
        .copied()
        .collect()
}

/// What all cases of one command share.
struct Explaining<'a> {
    args: &'a ExplainArgs,
    task: &'a Task,
    explainer: Explainer<'a>,
    dataset: &'a Dataset,
    class: Option<usize>,
    /// How much an image counts in its bag, of a run on bags.
    shares: BTreeMap<usize, f32>,
}

impl Explaining<'_> {
    /// Explains one case and writes its pictures.
    fn one_case(&self, index: usize) -> Result<Told, Failure> {
        let mut image = vec![0.0; self.dataset.input().numbers()];
        self.dataset.pixels(index, &mut image).map_err(|e| Failure::invalid("data", chain(&e)))?;
        let explained = self
            .explainer
            .explain(&image, self.class)
            .map_err(|e| Failure::invalid("explanation", chain(&e)))?;
        let mask = self.mask_of(index)?;
        let files = self.write_pictures(index, (&image, &explained, mask.as_deref()))?;
        Ok(self.tell(index, explained, mask.as_deref(), files))
    }

    /// The case's mask on the grid of the image. A directory that was named must have it.
    fn mask_of(&self, index: usize) -> Result<Option<Vec<bool>>, Failure> {
        let beside = match &self.args.images.data[..] {
            [folder] => Some(folder.join("masks")),
            _ => None,
        };
        let Some(masks) = self.args.masks.clone().or(beside) else { return Ok(None) };
        let id = &self.dataset.cases()[index].id;
        let path = Path::new(id).file_name().map(|name| masks.join(name).with_extension("png"));
        let Some(path) = path.filter(|path| self.args.masks.is_some() || path.exists()) else {
            return Ok(None);
        };
        let mask = marked(&path, self.dataset.input());
        mask.map(Some).map_err(|e| Failure::invalid("mask", chain(&e)))
    }

    fn write_pictures(
        &self,
        index: usize,
        (image, explained, mask): (&[f32], &Explained, Option<&[bool]>),
    ) -> Result<[PathBuf; 2], Failure> {
        let id = &self.dataset.cases()[index].id;
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
        let name: String = id.trim_end_matches(".png").chars().map(plain).collect();
        // The number keeps apart what the plain letters make alike.
        let file = |how: &str| self.args.out.join(format!("{index}-{name}-{how}.png"));
        let files = [file("rollout"), file("gradient")];
        for (file, heat) in files.iter().zip([&explained.rollout, &explained.gradient]) {
            let failed = |problem: String| {
                Failure::invalid("output", format!("{}: {problem}", file.display()))
            };
            let picture = overlay(self.dataset.input(), image, heat, mask);
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture
                .write_to(&mut bytes, image::ImageFormat::Png)
                .map_err(|e| failed(e.to_string()))?;
            // It shows a patient.
            write_durably(file, bytes.get_ref(), 0o600).map_err(|e| failed(e.to_string()))?;
        }
        Ok(files)
    }

    fn tell(
        &self,
        index: usize,
        explained: Explained,
        mask: Option<&[bool]>,
        files: [PathBuf; 2],
    ) -> Told {
        let side = self.dataset.input().image_size;
        let point =
            |heat: &[f32]| Pointing::of(&stretched(heat, side), mask?, self.args.top / 100.0);
        let case = &self.dataset.cases()[index];
        let bag_share = self.shares.get(&index).copied();
        Told {
            case: case.id.clone(),
            bag: bag_share.map(|_| case.bag.clone()),
            bag_share,
            class: explained.class.and_then(|class| self.task.classes().get(class).cloned()),
            rollout: point(&explained.rollout),
            gradient: point(&explained.gradient),
            prediction: explained.prediction,
            files,
        }
    }
}

fn class_of(name: Option<&str>, task: &Task) -> Result<Option<usize>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let invalid = |line: String| Failure::invalid("arguments", format!("--class {name}: {line}"));
    if matches!(task, Task::Ordinal { .. } | Task::Survival {}) {
        let line = format!("a {} run says one number of an image, no class's", task.as_str());
        return Err(invalid(line));
    }
    let at = task.classes().iter().position(|class| class == name);
    let known = || invalid(format!("the run has {}", task.classes().join(", ")));
    at.map(Some).ok_or_else(known)
}

fn chosen(
    args: &ExplainArgs,
    manifest: &RunManifest,
    dataset: &Dataset,
) -> Result<Vec<usize>, Failure> {
    if !args.bags.is_empty() {
        return in_bags(args, dataset);
    }
    if args.cases.is_empty() {
        let holdout = manifest.training.as_ref().map_or(0.0, |t| t.holdout);
        let mut cases = args.images.split(dataset, holdout)?.holdout;
        cases.truncate(args.most);
        let none = || {
            let line = "training sees every patient, and no case is named".to_owned();
            Failure::invalid("case", line).hint("--case ID")
        };
        return if cases.is_empty() { Err(none()) } else { Ok(cases) };
    }
    let find = |id: &String| {
        let at = dataset.cases().iter().position(|case| case.id == *id);
        at.ok_or_else(|| {
            Failure::invalid("case", format!("the images have no case `{id}`"))
                .hint("`evaluate --predictions` writes every case's name")
        })
    };
    args.cases.iter().map(find).collect()
}

/// Every case of the bags that are named.
fn in_bags(args: &ExplainArgs, dataset: &Dataset) -> Result<Vec<usize>, Failure> {
    let cases = dataset.cases();
    if let Some(id) = args.bags.iter().find(|id| cases.iter().all(|case| case.bag != **id)) {
        return Err(Failure::invalid("bag", format!("the images have no bag `{id}`"))
            .hint("`evaluate --predictions` writes every bag's name"));
    }
    Ok((0..cases.len()).filter(|&case| args.bags.contains(&cases[case].bag)).collect())
}

fn make_private(folder: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|e| {
        Failure::invalid("output", format!("{}: {e}", folder.display()))
            .hint("name a directory that does not exist, in one that does")
    })
}

/// Means over the cases with a mask.
#[derive(Serialize)]
struct Means {
    cases: usize,
    hits: f64,
    inside: f64,
    area: f64,
    ratio: f64,
}

fn means(told: &[Told], of: fn(&Told) -> Option<Pointing>) -> Option<Means> {
    let all: Vec<Pointing> = told.iter().filter_map(of).collect();
    let mean = |of: &dyn Fn(&Pointing) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| {
        let (inside, area) = (mean(&|p| p.inside), mean(&|p| p.area));
        let hits = mean(&|p| f64::from(u8::from(p.hit)));
        Means { cases: all.len(), hits, inside, area, ratio: inside / area }
    })
}

fn report(told: &[Told], out: &Path, top: f64, format: Format) {
    let means = [means(told, |told| told.rollout), means(told, |told| told.gradient)];
    let data = json!({
        "out": out,
        "top_percent": top,
        "cases": told,
        "rollout": means[0],
        "gradient": means[1],
    });
    print(format, data, || {
        let mut table = Table::new();
        table.load_preset(NOTHING);
        // Of a run on bags.
        let shares = told.iter().any(|told| told.bag.is_some());
        let columns = ["CASE", "CLASS", "MARKED", "ROLLOUT", "GRADIENT"];
        let of_bags = if shares { &["BAG", "IN BAG"][..] } else { &[] };
        table.set_header(columns.iter().chain(of_bags));
        let inside = |pointing: Option<Pointing>| {
            let hit = |p: Pointing| {
                format!("{}{}", shown(Some(p.inside)), if p.hit { " hit" } else { "" })
            };
            pointing.map_or_else(|| "-".to_owned(), hit)
        };
        for told in told {
            let mut row = vec![
                told.case.clone(),
                told.class.clone().unwrap_or_else(|| "-".to_owned()),
                shown(told.rollout.map(|p| p.area)),
                inside(told.rollout),
                inside(told.gradient),
            ];
            if let (Some(bag), Some(share)) = (&told.bag, told.bag_share) {
                row.extend([bag.clone(), format!("{:.1} %", 100.0 * share)]);
            }
            table.add_row(row);
        }
        say!("{table}");
        for (name, means) in ["rollout", "gradient"].into_iter().zip(&means) {
            if let Some(m) = means {
                say!(
                    "{name:<9} {:.1} % of the hottest {top} % is marked, {:.1} % of all: {:.2} times; {} of {} hottest pixels are",
                    100.0 * m.inside,
                    100.0 * m.area,
                    m.ratio,
                    (m.hits * m.cases as f64).round(),
                    m.cases
                );
            }
        }
        say!("{} pictures in {}; they stay here", 2 * told.len(), out.display());
    });
}
