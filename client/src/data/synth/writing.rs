//! Synthetic sites on disk: `site-N/{images/*.png, masks/*.png, labels.csv, truth.csv}` and
//! `card.json`; masks where there are lesions to find.

use std::fs;
use std::path::Path;

use image::{DynamicImage, GrayImage, Luma};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::canvas::Point;
use super::population::{self, oracle_probabilities};
use super::{Lesion, Modality, Subject, SynthSpec, draw};
use crate::data::staging::{Staging, write_error, write_synced};
use crate::data::{DataError, Label};
use crate::metrics::macro_auroc;

const STATEMENT: &str = "Synthetic pictures with known ground truth, for demonstrations, tests and \
    benchmarks. They show no patient, and no medical claim follows from anything measured on them.";
const ORACLE: &str = "The oracle knows the latent severity each picture was drawn from and says the \
    probability of each class with all classes equally likely: no reader of the pictures can rank \
    them better but by chance. AUROC is the mean over classes, each against the rest.";

/// How far a lesion's ragged edge reaches, in its radius.
const LESION_REACH: f32 = 1.15;

/// `card.json`: what was drawn, and how well it could be told apart at best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Version of this file's layout.
    pub schema_version: u32,
    /// What follows from these pictures: nothing medical.
    pub statement: String,
    /// Every knob.
    pub spec: SynthSpec,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// What the oracle is.
    pub oracle: String,
    /// The oracle's AUROC over all sites' pictures.
    pub oracle_auroc: Option<f64>,
    /// Each site.
    pub sites: Vec<SiteCard>,
}

/// One site of a [`Card`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteCard {
    /// Its folder.
    pub site: String,
    /// Patients.
    pub patients: usize,
    /// Pictures.
    pub images: usize,
    /// Pictures of each class.
    pub images_per_class: Vec<usize>,
    /// The oracle's AUROC here; none where a class is absent.
    pub oracle_auroc: Option<f64>,
    /// How its pictures look.
    pub style: serde_json::Value,
}

/// Draws every site into `out`, which appears whole or not at all. `drawn` hears of each picture.
pub fn write(spec: &SynthSpec, out: &Path, drawn: &(dyn Fn() + Sync)) -> Result<Card, DataError> {
    spec.check()?;
    let staging = Staging::begin(out)?;
    let mut sites = Vec::new();
    let mut pooled = Scores::default();
    for site in 0..spec.sites {
        let subjects = population::of_site(spec, site);
        let name = format!("site-{}", site + 1);
        write_site(spec, site, &subjects, &staging.path().join(&name), drawn)?;
        let scores = Scores::of(spec.modality, &subjects);
        sites.push(site_card(spec, site, name, &scores));
        pooled.extend(scores);
    }
    let card = Card {
        schema_version: 1,
        statement: STATEMENT.to_owned(),
        spec: spec.clone(),
        classes: spec.modality.task().classes().to_vec(),
        oracle: ORACLE.to_owned(),
        oracle_auroc: pooled.auroc(),
        sites,
    };
    let json = serde_json::to_vec_pretty(&card).expect("a card is plain data");
    write_synced(&staging.path().join("card.json"), &json)?;
    staging.commit()?;
    Ok(card)
}

fn site_card(spec: &SynthSpec, site: usize, name: String, scores: &Scores) -> SiteCard {
    let classes = spec.modality.classes().len();
    let count = |class| scores.labels.iter().filter(|l| **l == Label::Class(class)).count();
    SiteCard {
        site: name,
        patients: spec.patients,
        images: scores.labels.len(),
        images_per_class: (0..classes).map(count).collect(),
        oracle_auroc: scores.auroc(),
        style: serde_json::to_value(spec.style(site)).expect("a style is plain data"),
    }
}

#[derive(Default)]
struct Scores {
    probabilities: Vec<Vec<f32>>,
    labels: Vec<Label>,
}

impl Scores {
    fn of(modality: Modality, subjects: &[Subject]) -> Self {
        let mut scores = Self::default();
        for subject in subjects {
            for severity in &subject.severities {
                scores.probabilities.push(oracle_probabilities(modality, *severity));
                scores.labels.push(Label::Class(subject.class));
            }
        }
        scores
    }

    fn extend(&mut self, other: Self) {
        self.probabilities.extend(other.probabilities);
        self.labels.extend(other.labels);
    }

    fn auroc(&self) -> Option<f64> {
        macro_auroc(&self.probabilities, &self.labels)
    }
}

fn write_site(
    spec: &SynthSpec,
    site: usize,
    subjects: &[Subject],
    folder: &Path,
    drawn: &(dyn Fn() + Sync),
) -> Result<(), DataError> {
    let images = folder.join("images");
    fs::create_dir_all(&images).map_err(write_error(&images))?;
    let masks = folder.join("masks");
    let localised = spec.modality != Modality::Histology;
    if localised {
        fs::create_dir_all(&masks).map_err(write_error(&masks))?;
    }
    let style = spec.style(site);
    let pictures: Vec<(&Subject, usize)> = subjects
        .iter()
        .flat_map(|subject| (0..subject.severities.len()).map(move |index| (subject, index)))
        .collect();
    let rows: Vec<(String, String)> = pictures
        .par_iter()
        .map(|(subject, index)| {
            let picture = draw(spec, &style, subject, *index);
            let file = format!("images/{}-{}.png", subject.patient, index + 1);
            let path = folder.join(&file);
            // Not synced one by one: a picture is drawn again from its seed, and checked when
            // it is opened.
            save(&picture.image, &path)?;
            if localised {
                let name = format!("{}-{}.png", subject.patient, index + 1);
                save(&mask(&picture.lesions, spec.size).into(), &masks.join(name))?;
            }
            drawn();
            Ok(rows_of(spec.modality, subject, *index, &file, &picture.lesions))
        })
        .collect::<Result<_, DataError>>()?;
    let mut labels = b"file,patient,label\n".to_vec();
    let mut truth = truth_header(spec.modality).into_bytes();
    for (label, fact) in rows {
        labels.extend_from_slice(label.as_bytes());
        truth.extend_from_slice(fact.as_bytes());
    }
    write_synced(&folder.join("labels.csv"), &labels)?;
    write_synced(&folder.join("truth.csv"), &truth)
}

fn save(image: &DynamicImage, path: &Path) -> Result<(), DataError> {
    image.save(path).map_err(|error| DataError::Write {
        path: path.display().to_string(),
        source: std::io::Error::other(error),
    })
}

/// 1 inside the disc that holds a lesion, 0 elsewhere.
fn mask(lesions: &[Lesion], side: usize) -> GrayImage {
    let scale = 2.0 / side as f32;
    GrayImage::from_fn(side as u32, side as u32, |x, y| {
        let p = Point::new((x as f32 + 0.5) * scale - 1.0, (y as f32 + 0.5) * scale - 1.0);
        let inside = |lesion: &Lesion| p.distance(lesion.at) <= LESION_REACH * lesion.radius;
        Luma([u8::from(lesions.iter().any(inside))])
    })
}

fn truth_header(modality: Modality) -> String {
    let classes = modality.classes();
    let scored = if classes.len() == 2 { &classes[1..] } else { classes };
    let oracles: Vec<String> = scored.iter().map(|class| format!("oracle_{class}")).collect();
    format!("file,patient,label,severity,{},lesions,positions\n", oracles.join(","))
}

/// A row of `labels.csv` and one of `truth.csv`. No field can hold a comma.
fn rows_of(
    modality: Modality,
    subject: &Subject,
    index: usize,
    file: &str,
    lesions: &[Lesion],
) -> (String, String) {
    let severity = subject.severities[index];
    let label = format!("{file},{},{}", subject.patient, modality.classes()[subject.class]);
    let oracle: Vec<String> =
        oracle_probabilities(modality, severity).iter().map(f32::to_string).collect();
    let positions: Vec<String> = lesions
        .iter()
        .map(|l| format!("{}:{:.3}:{:.3}:{:.3}", l.kind, l.at.x, l.at.y, l.radius))
        .collect();
    let oracle = oracle.join(",");
    let truth = format!("{label},{severity},{oracle},{},{}\n", lesions.len(), positions.join(";"));
    (format!("{label}\n"), truth)
}
