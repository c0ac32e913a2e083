//! Divides a real data set over sites by patient, for demonstrations on one machine.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tributary_shared::manifest::Task;

use super::npz::Sink;
use super::pixels::Picture;
use super::staging::{Staging, copy, write_error, write_synced};
use super::synth::{counts, priors};
use super::{Case, DataError, DataSource, Label, folder, mask, npz, slide};
use crate::config::reading::Reading;

/// How to divide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivideSpec {
    /// Hospitals.
    pub sites: usize,
    /// As in [`super::synth::SynthSpec::label_skew`].
    pub label_skew: f64,
    /// Names the random stream.
    pub seed: u64,
}

/// `card.json` of a divided data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DividedCard {
    /// Version of this file's layout.
    pub schema_version: u32,
    /// What was divided.
    pub source: String,
    /// Every knob.
    pub spec: DivideSpec,
    /// What the labels are for: the `[task]` table of a run over these sites.
    pub task: Task,
    /// Each site.
    pub sites: Vec<DividedSite>,
}

/// One site of a [`DividedCard`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DividedSite {
    /// Its folder.
    pub site: String,
    /// Patients.
    pub patients: usize,
    /// Images.
    pub images: usize,
    /// Images of each class.
    pub images_per_class: Vec<usize>,
}

/// Writes `out/site-N` folders with a `labels.csv` each, and `out/card.json`; all or nothing.
/// Image files are copied as they are; arrays are written as PNG. `reading` says which files are
/// sound and which windows arrays are written through.
pub fn write(
    source: &DataSource,
    task: &Task,
    spec: &DivideSpec,
    reading: &Reading,
    out: &Path,
) -> Result<DividedCard, DataError> {
    spec.check()?;
    let staging = Staging::begin(out)?;
    let placed = match source {
        DataSource::Npz(path) => place_npz(path, task, spec, reading, staging.path())?,
        DataSource::Folder { root, manifest } => {
            place_folder([root, manifest], task, spec, reading, staging.path())?
        }
    };
    let card = DividedCard {
        schema_version: 1,
        source: source.path().display().to_string(),
        spec: spec.clone(),
        task: task.clone(),
        sites: (0..spec.sites).map(|site| site_card(&placed, site, task)).collect(),
    };
    for site in 0..spec.sites {
        let labels = labels_csv(&placed, site, task);
        write_synced(&site_folder(staging.path(), site).join("labels.csv"), &labels)?;
    }
    let json = serde_json::to_vec_pretty(&card).expect("a card is plain data");
    write_synced(&staging.path().join("card.json"), &json)?;
    staging.commit()?;
    Ok(card)
}

impl DivideSpec {
    fn check(&self) -> Result<(), DataError> {
        if !(1..=1000).contains(&self.sites) {
            let problem = format!("{} is not between 1 and 1000", self.sites);
            return Err(DataError::Argument { argument: "--sites", problem });
        }
        if !(0.0..=10.0).contains(&self.label_skew) {
            let problem = format!("{} is not between 0 and 10", self.label_skew);
            return Err(DataError::Argument { argument: "--label-skew", problem });
        }
        Ok(())
    }
}

/// A case, its site, and its file in the site's folder.
struct Placed {
    case: Case,
    site: usize,
    file: String,
    /// The case's mask there.
    mask: Option<String>,
}

fn site_folder(out: &Path, site: usize) -> PathBuf {
    out.join(format!("site-{}", site + 1))
}

fn place_folder(
    [root, manifest]: [&Path; 2],
    task: &Task,
    spec: &DivideSpec,
    reading: &Reading,
    out: &Path,
) -> Result<Vec<Placed>, DataError> {
    let listing = folder::list(root, manifest, Some(task), reading)?;
    listing.report.strict()?;
    for entry in &listing.entries {
        if let Some(ending) = slide::several_files(&entry.place.path) {
            let problem = format!("{}: a {ending} is of several files; save it as one", entry.file);
            return Err(DataError::Argument { argument: "PATH", problem });
        }
    }
    let sites = assign(listing.entries.iter().map(|entry| &entry.case), task, spec)?;
    for site in 0..spec.sites {
        let folder = site_folder(out, site);
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
    }
    let real = root.canonicalize().map_err(folder::unreadable(root))?;
    let mut placed = Vec::new();
    // Looked at once: a data set that is handed to sites must be sound.
    folder::each(
        listing.entries,
        reading,
        |entry, _| match &entry.case.label {
            Label::Mask { path, classes } => mask::check(path, *classes),
            Label::Class(_) | Label::Many(_) | Label::FollowUp { .. } | Label::Unlabelled => Ok(()),
        },
        |decoded| {
            let (entry, sound) = decoded?;
            sound?;
            placed.push(entry);
            Ok(())
        },
    )?;
    // Frames and slices travel with their file.
    placed.dedup_by(|next, first| next.file == first.file);
    let copied = placed.into_iter().map(|entry| {
        let site = sites[&entry.case.patient];
        let file = entry.file.to_string();
        let place = |from: &Path, file: &str| {
            let target = site_folder(out, site).join(file);
            let folder = target.parent().unwrap_or(out);
            fs::create_dir_all(folder).map_err(write_error(folder))?;
            copy(from, &target).map_err(write_error(&target))
        };
        place(&entry.place.path, &file)?;
        let mask = match &entry.case.label {
            Label::Mask { path, .. } => {
                // Where it lay; `list` took no mask from outside the folder.
                let mask = path.strip_prefix(&real).unwrap_or(path).display().to_string();
                place(path, &mask)?;
                Some(mask)
            }
            Label::Class(_) | Label::Many(_) | Label::FollowUp { .. } | Label::Unlabelled => None,
        };
        Ok(Placed { file, case: entry.case, site, mask })
    });
    copied.collect()
}

fn place_npz(
    path: &Path,
    task: &Task,
    spec: &DivideSpec,
    reading: &Reading,
    out: &Path,
) -> Result<Vec<Placed>, DataError> {
    // Twice through the file: who goes where is known only after all labels, and keeping every
    // image meanwhile could fill memory.
    if npz::holds_volumes(path)? {
        return Err(DataError::VolumesOfNpz { path: path.display().to_string() });
    }
    let cases = npz::read_each(path, Some(task), reading, &mut npz::Discard)?.cases;
    let sites = assign(cases.iter(), task, spec)?;
    let placed: Vec<Placed> = cases
        .into_iter()
        .map(|case| Placed {
            site: sites[&case.patient],
            file: format!("images/{}.png", case.id.replace('/', "-")),
            mask: None,
            case,
        })
        .collect();
    for site in 0..spec.sites {
        let images = site_folder(out, site).join("images");
        fs::create_dir_all(&images).map_err(write_error(&images))?;
    }
    npz::read_each(path, Some(task), reading, &mut PngWriter { placed: &placed, next: 0, out })?;
    Ok(placed)
}

/// The site of each patient: within each class whole patients by largest remainder, so that the
/// shares are those of [`priors`] without sampling noise.
fn assign<'a>(
    cases: impl Iterator<Item = &'a Case>,
    task: &Task,
    spec: &DivideSpec,
) -> Result<HashMap<String, usize>, DataError> {
    let classes = task.classes().len();
    // A patient counts under the first class that their first image shows; under none, last.
    let mut class_of = BTreeMap::new();
    for case in cases {
        let class = || case.label.first_class().unwrap_or(classes);
        class_of.entry(case.patient.as_str()).or_insert_with(class);
    }
    if class_of.len() < spec.sites {
        let problem = format!("{} patients cannot be at {} sites", class_of.len(), spec.sites);
        return Err(DataError::Argument { argument: "--sites", problem });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
    let mut sites = HashMap::new();
    for class in 0..=classes {
        let mut patients: Vec<&str> =
            class_of.iter().filter(|(_, c)| **c == class).map(|(patient, _)| *patient).collect();
        patients.shuffle(&mut rng);
        let weights: Vec<f64> = (0..spec.sites)
            .map(|site| priors(classes + 1, site, spec.sites, spec.label_skew)[class])
            .collect();
        let total: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let mut patients = patients.into_iter();
        for (site, count) in counts(&shares, patients.len()).into_iter().enumerate() {
            sites.extend(patients.by_ref().take(count).map(|p| (p.to_owned(), site)));
        }
    }
    Ok(sites)
}

struct PngWriter<'a> {
    placed: &'a [Placed],
    next: usize,
    out: &'a Path,
}

impl Sink for PngWriter<'_> {
    fn expect(&mut self, _images: usize) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, picture: Picture) -> Result<(), DataError> {
        let placed = self.placed.get(self.next);
        let placed = placed.ok_or(DataError::SourceChanged)?;
        self.next += 1;
        let path = site_folder(self.out, placed.site).join(&placed.file);
        DynamicImage::from(picture)
            .save(&path)
            .map_err(|error| write_error(&path)(std::io::Error::other(error)))
    }
}

fn of_site(placed: &[Placed], site: usize) -> impl Iterator<Item = &Placed> {
    placed.iter().filter(move |placed| placed.site == site)
}

fn site_card(placed: &[Placed], site: usize, task: &Task) -> DividedSite {
    let count =
        |class| of_site(placed, site).filter(|placed| placed.case.label.shows(class)).count();
    let patients: std::collections::BTreeSet<&str> =
        of_site(placed, site).map(|placed| placed.case.patient.as_str()).collect();
    DividedSite {
        site: format!("site-{}", site + 1),
        patients: patients.len(),
        images: of_site(placed, site).count(),
        images_per_class: (0..task.classes().len()).map(count).collect(),
    }
}

/// The columns that the task learns from; `bag` where a manifest gathered images otherwise than by
/// patient.
fn labels_csv(placed: &[Placed], site: usize, task: &Task) -> Vec<u8> {
    let bags = placed.iter().any(|placed| placed.case.bag != placed.case.patient);
    let mut header = vec!["file", "patient"];
    if bags {
        header.push("bag");
    }
    header.extend(match task {
        Task::Survival {} => &["time", "event"][..],
        Task::Segmentation { .. } => &["mask"],
        Task::SelfSupervised { .. } => &[],
        Task::Binary { .. }
        | Task::MultiClass { .. }
        | Task::MultiLabel { .. }
        | Task::Ordinal { .. }
        | Task::Rehearsal { .. } => &["label"],
    });
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = header.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let rows = of_site(placed, site).map(|Placed { case, file, mask, .. }| {
        let mut row = vec![file.clone(), case.patient.clone()];
        if bags {
            row.push(case.bag.clone());
        }
        match (&case.label, mask) {
            (Label::FollowUp { time, event }, _) => {
                row.extend([time.to_string(), u8::from(*event).to_string()]);
            }
            (_, Some(mask)) => row.push(mask.clone()),
            (Label::Unlabelled, None) => {}
            (label, None) => row.push(label.text(task.classes())),
        }
        row
    });
    for row in std::iter::once(header).chain(rows) {
        writer.write_record(&row).expect("memory takes every row of as many fields");
    }
    writer.into_inner().expect("memory can be flushed")
}
