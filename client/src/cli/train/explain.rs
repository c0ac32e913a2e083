//! `explain`: where an adapted model looked, as pictures that stay at the site.

use std::path::{Path, PathBuf};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;
use serde_json::json;
use tributary_proto::channel::write_durably;
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};

use super::evaluate::read_adapter;
use super::overlay::overlay;
use super::{Adapted, Images, Threads, read_backbone, shown};
use crate::cli::{Format, print};
use crate::data::{Dataset, marked};
use crate::metrics::Pointing;
use crate::model::Compute;
use crate::trainer::{Explained, Explainer, stretched};

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
    /// How many cases, where none is named
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
    let manifest = args.adapted.manifest()?;
    let class = class_of(args.class.as_deref(), &manifest.task)?;
    let backbone = read_backbone(&args.adapted.backbone, &manifest)?;
    let values = read_adapter(&args.adapted.adapter, &manifest)?;
    let compute = Compute::cpu();
    let explainer = Explainer::new(&backbone, &manifest, &values, &compute)
        .map_err(|e| Failure::invalid("task", e.to_string()))?;
    let dataset = args.images.of_run(&manifest)?;
    let cases = chosen(args, &manifest, &dataset)?;
    make_private(&args.out)?;
    let told = cases
        .into_iter()
        .map(|index| one_case(args, &manifest.task, &explainer, &dataset, index, class))
        .collect::<Result<Vec<Told>, Failure>>();
    if told.is_err() {
        // All pictures or none; the first error is the one to tell.
        let _ = std::fs::remove_dir_all(&args.out);
    }
    report(&told?, &args.out, args.top, format);
    Ok(())
}

/// Explains one case and writes its pictures.
fn one_case(
    args: &ExplainArgs,
    task: &Task,
    explainer: &Explainer<'_>,
    dataset: &Dataset,
    index: usize,
    class: Option<usize>,
) -> Result<Told, Failure> {
    let mut image = vec![0.0; dataset.input().numbers()];
    dataset.pixels(index, &mut image).map_err(|e| Failure::invalid("data", chain(&e)))?;
    let explained =
        explainer.explain(&image, class).map_err(|e| Failure::invalid("explanation", chain(&e)))?;
    let mask = mask_of(args, dataset, index)?;
    let files = write_pictures(args, dataset, index, (&image, &explained, mask.as_deref()))?;
    Ok(tell(args, task, dataset, index, (explained, mask, files)))
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
    if args.cases.is_empty() {
        let holdout = manifest.training.as_ref().map_or(0.0, |t| t.holdout);
        let mut cases = dataset.split(holdout).holdout;
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

fn make_private(folder: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|e| {
        Failure::invalid("output", format!("{}: {e}", folder.display()))
            .hint("name a directory that does not exist, in one that does")
    })
}

/// The case's mask on the grid of the image. A directory that was named must have it.
fn mask_of(
    args: &ExplainArgs,
    dataset: &Dataset,
    index: usize,
) -> Result<Option<Vec<bool>>, Failure> {
    let beside = match &args.images.data[..] {
        [folder] => Some(folder.join("masks")),
        _ => None,
    };
    let Some(masks) = args.masks.clone().or(beside) else { return Ok(None) };
    let id = &dataset.cases()[index].id;
    let path = Path::new(id).file_name().map(|name| masks.join(name).with_extension("png"));
    let Some(path) = path.filter(|path| args.masks.is_some() || path.exists()) else {
        return Ok(None);
    };
    let mask = marked(&path, dataset.input());
    mask.map(Some).map_err(|e| Failure::invalid("mask", chain(&e)))
}

fn write_pictures(
    args: &ExplainArgs,
    dataset: &Dataset,
    index: usize,
    (image, explained, mask): (&[f32], &Explained, Option<&[bool]>),
) -> Result<[PathBuf; 2], Failure> {
    let id = &dataset.cases()[index].id;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
    let name: String = id.trim_end_matches(".png").chars().map(plain).collect();
    // The number keeps apart what the plain letters make alike.
    let file = |how: &str| args.out.join(format!("{index}-{name}-{how}.png"));
    let files = [file("rollout"), file("gradient")];
    for (file, heat) in files.iter().zip([&explained.rollout, &explained.gradient]) {
        let failed =
            |problem: String| Failure::invalid("output", format!("{}: {problem}", file.display()));
        let picture = overlay(dataset.input(), image, heat, mask);
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| failed(e.to_string()))?;
        // It shows a patient.
        write_durably(file, bytes.get_ref(), 0o600).map_err(|e| failed(e.to_string()))?;
    }
    Ok(files)
}

fn tell(
    args: &ExplainArgs,
    task: &Task,
    dataset: &Dataset,
    index: usize,
    (explained, mask, files): (Explained, Option<Vec<bool>>, [PathBuf; 2]),
) -> Told {
    let side = dataset.input().image_size;
    let point =
        |heat: &[f32]| Pointing::of(&stretched(heat, side), mask.as_deref()?, args.top / 100.0);
    Told {
        case: dataset.cases()[index].id.clone(),
        class: explained.class.and_then(|class| task.classes().get(class).cloned()),
        rollout: point(&explained.rollout),
        gradient: point(&explained.gradient),
        prediction: explained.prediction,
        files,
    }
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
        table.set_header(["CASE", "CLASS", "MARKED", "ROLLOUT", "GRADIENT"]);
        let inside = |pointing: Option<Pointing>| {
            let hit = |p: Pointing| {
                format!("{}{}", shown(Some(p.inside)), if p.hit { " hit" } else { "" })
            };
            pointing.map_or_else(|| "-".to_owned(), hit)
        };
        for told in told {
            table.add_row([
                told.case.clone(),
                told.class.clone().unwrap_or_else(|| "-".to_owned()),
                shown(told.rollout.map(|p| p.area)),
                inside(told.rollout),
                inside(told.gradient),
            ]);
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
