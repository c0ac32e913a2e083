//! Pictures with known ground truth, for demos, tests and benchmarks. They imitate three kinds of
//! medical images well enough to look at; **no medical claim follows from any number measured on
//! them**.
//!
//! All randomness comes from ChaCha streams named by seed, site, patient and picture: the same
//! seed gives the same bytes, and a patient's anatomy is theirs whoever else comes. (Sines and exponentials come
//! from the platform's mathematics library, so two operating systems may differ in a last bit.)

mod canvas;
mod chest_xray;
mod fundus;
mod histology;
mod population;
mod shift;
mod writing;

use image::DynamicImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tributary_shared::digest::Digest;
use tributary_shared::manifest::Task;

use self::canvas::{Colour, Point};
pub(super) use self::population::counts;
pub use self::population::{Subject, oracle_probabilities, priors};
pub use self::shift::SiteStyle;
pub use self::writing::{Card, SiteCard, write};
use super::DataError;

/// What the pictures imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Modality {
    /// Photographs of the back of the eye; grades of retinopathy.
    Fundus,
    /// Chest radiographs; nodules.
    ChestXray,
    /// Stained tissue; malignancy.
    Histology,
}

impl Modality {
    /// Class names in the order of the labels.
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            Self::Fundus => &["none", "mild", "severe"],
            Self::ChestXray => &["clear", "nodule"],
            Self::Histology => &["benign", "malignant"],
        }
    }

    /// The task that its labels are for.
    pub fn task(self) -> Task {
        let classes = self.classes().iter().map(|&class| class.to_owned()).collect();
        match self {
            Self::Fundus => Task::MultiClass { classes },
            Self::ChestXray | Self::Histology => Task::Binary { classes },
        }
    }
}

/// What to draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthSpec {
    /// What the pictures imitate.
    pub modality: Modality,
    /// Hospitals.
    pub sites: usize,
    /// Patients of each.
    pub patients: usize,
    /// Pictures of each patient.
    pub images_per_patient: usize,
    /// Names every random stream.
    pub seed: u64,
    /// Side of a picture, pixels.
    pub size: usize,
    /// 0: every site sees every class equally often; 1: its own about three times as often as
    /// others; 3: hardly anything else.
    pub label_skew: f64,
    /// 0: all sites' pictures look alike; 1: as different as hospitals are.
    pub site_shift: f64,
}

impl SynthSpec {
    fn check(&self) -> Result<(), DataError> {
        let in_range = [
            ("--sites", self.sites, 1, 1000),
            ("--patients", self.patients, 1, 100_000),
            ("--images-per-patient", self.images_per_patient, 1, 100),
            ("--size", self.size, 16, 4096),
        ];
        for (argument, value, low, high) in in_range {
            if !(low..=high).contains(&value) {
                let problem = format!("{value} is not between {low} and {high}");
                return Err(DataError::Argument { argument, problem });
            }
        }
        let knobs =
            [("--label-skew", self.label_skew, 10.0), ("--site-shift", self.site_shift, 2.0)];
        for (argument, value, high) in knobs {
            if !(0.0..=high).contains(&value) {
                let problem = format!("{value} is not between 0 and {high}");
                return Err(DataError::Argument { argument, problem });
            }
        }
        Ok(())
    }

    /// The random stream of this name; independent of every other.
    fn stream(&self, name: &str) -> ChaCha8Rng {
        let name = format!("tributary synth v1/{}/{:?}/{name}", self.seed, self.modality);
        ChaCha8Rng::from_seed(*Digest::of(name.as_bytes()).as_bytes())
    }

    /// How the pictures of site `site` (from 0) look.
    pub fn style(&self, site: usize) -> SiteStyle {
        let mut rng = self.stream(&format!("style/{site}"));
        SiteStyle::draw(&mut rng, self.modality, site, self.sites, self.site_shift as f32)
    }
}

/// Something drawn on purpose, in half picture sides from the middle.
#[derive(Clone, Copy)]
struct Lesion {
    kind: &'static str,
    at: Point,
    radius: f32,
}

/// What a painter works from.
struct View<'a> {
    /// Side of the canvas, pixels.
    side: usize,
    /// Fixed for the patient (for an eye of the patient).
    anatomy: ChaCha8Rng,
    /// Fresh for each picture.
    moment: ChaCha8Rng,
    severity: f32,
    mirrored: bool,
    style: &'a SiteStyle,
}

struct Painting {
    colour: Colour,
    lesions: Vec<Lesion>,
}

/// A finished picture and what is on it.
struct Picture {
    image: DynamicImage,
    lesions: Vec<Lesion>,
}

/// Draws one picture of `subject` with the severity seen in it.
fn draw(spec: &SynthSpec, style: &SiteStyle, subject: &Subject, index: usize) -> Picture {
    // Eyes come in two; other organs in one.
    let part = if spec.modality == Modality::Fundus { index % 2 } else { 0 };
    // Drawn larger and shrunk: lines thinner than a pixel stay lines.
    let factor = if spec.size < 128 { 3 } else { 2 };
    let mut view = View {
        side: spec.size * factor,
        anatomy: spec.stream(&format!("anatomy/{}/{part}", subject.patient)),
        moment: spec.stream(&format!("moment/{}/{index}", subject.patient)),
        severity: subject.severities[index],
        mirrored: part == 1,
        style,
    };
    let painting = match spec.modality {
        Modality::Fundus => fundus::paint(&mut view),
        Modality::ChestXray => chest_xray::paint(&mut view),
        Modality::Histology => histology::paint(&mut view),
    };
    let grey = spec.modality == Modality::ChestXray;
    let mut sensor = spec.stream(&format!("sensor/{}/{index}", subject.patient));
    let rgb = style.develop(painting.colour.shrink(factor), grey, &mut sensor).to_rgb();
    let image = DynamicImage::ImageRgb8(rgb);
    let image = if grey { DynamicImage::ImageLuma8(image.to_luma8()) } else { image };
    Picture { image, lesions: painting.lesions }
}
