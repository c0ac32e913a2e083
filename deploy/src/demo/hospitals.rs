//! Each hospital's images: drawn, or divided from a real set.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum as _;
use serde_json::Value;
use tributary_client::data::synth::Modality;
use tributary_shared::manifest::Task;

use super::{DemoOptions, HOSPITALS, Teller};
use crate::command::Failed;
use crate::federation::Federation;

/// How unequally the classes fall on the hospitals, and how differently their cameras see.
const LABEL_SKEW: &str = "0.3";
const SITE_SHIFT: &str = "0.4";

/// What the hospitals hold.
#[derive(Clone, Debug)]
pub(super) struct Images {
    /// One folder (or npz) a hospital.
    pub(super) folders: Vec<PathBuf>,
    /// What the labels mean.
    pub(super) task: Task,
    /// Where they come from, in words.
    pub(super) origin: String,
    /// Pictures of each hospital.
    pub(super) images: Vec<u64>,
    /// The AUROC of an oracle that knows what was drawn; none for real images.
    pub(super) oracle_auroc: Option<f64>,
}

/// Makes the hospitals' folders.
pub(super) fn prepare(
    options: &DemoOptions,
    federation: &Federation,
    teller: &Teller,
) -> Result<Images, Failed> {
    let images = match &options.data {
        None => draw(options, federation)?,
        Some(data) => {
            let data = data.canonicalize().map_err(|e| Failed::file(data, &e))?;
            divide(options, federation, &data.to_string_lossy())?
        }
    };
    teller.note(&images.origin);
    for (name, count) in HOSPITALS.iter().zip(&images.images) {
        teller.note(&format!("{name}: {count} images"));
    }
    Ok(images)
}

fn draw(options: &DemoOptions, federation: &Federation) -> Result<Images, Failed> {
    let out = federation.root().join("data");
    let (seed, patients) = (options.seed.to_string(), options.patients.to_string());
    let modality =
        options.modality.to_possible_value().map_or_else(String::new, |m| m.get_name().to_owned());
    let pictures = match options.modality {
        Modality::Fundus => "fundus photographs",
        Modality::ChestXray => "chest radiographs",
        Modality::Histology => "tissue tiles",
    };
    let path = out.to_string_lossy().into_owned();
    let card = federation.client([
        "data",
        "synth",
        "--modality",
        &modality,
        "--sites",
        "3",
        "--patients",
        &patients,
        "--images-per-patient",
        "2",
        "--label-skew",
        LABEL_SKEW,
        "--site-shift",
        SITE_SHIFT,
        "--seed",
        &seed,
        "--out",
        &path,
    ])?;
    let origin = format!(
        "synthetic {pictures}, {}; no medical claim follows from them",
        options.modality.classes().join(" or ")
    );
    let oracle_auroc = card.data["oracle_auroc"].as_f64();
    let task = options.modality.task();
    named(out, &card.data, Images { folders: vec![], task, origin, images: vec![], oracle_auroc })
}

fn divide(options: &DemoOptions, federation: &Federation, data: &str) -> Result<Images, Failed> {
    let out = federation.root().join("data");
    let (seed, path) = (options.seed.to_string(), out.to_string_lossy().into_owned());
    let card = federation.client([
        "data",
        "split",
        data,
        "--sites",
        "3",
        "--label-skew",
        LABEL_SKEW,
        "--seed",
        &seed,
        "--out",
        &path,
    ])?;
    let task = serde_json::from_value(card.data["task"].clone()).map_err(|e| {
        Failed::new("tributary-client data split", None, &format!("its card names no task: {e}"))
    })?;
    let origin = format!("{data}, divided by patient");
    let images = Images { folders: vec![], task, origin, images: vec![], oracle_auroc: None };
    named(out, &card.data, images)
}

/// Gives the folders `site-1`, `site-2`, ... the hospitals' names.
fn named(out: PathBuf, card: &Value, mut images: Images) -> Result<Images, Failed> {
    let sites = card["sites"].as_array().cloned().unwrap_or_default();
    for (name, site) in HOSPITALS.iter().zip(&sites) {
        let made = out.join(site["site"].as_str().unwrap_or(""));
        let folder = out.join(name);
        fs::rename(&made, &folder).map_err(|e| Failed::file(&made, &e))?;
        images.folders.push(folder);
        images.images.push(site["images"].as_u64().unwrap_or(0));
    }
    if images.folders.len() == HOSPITALS.len() {
        return Ok(images);
    }
    Err(Failed::new(&out.display().to_string(), None, "the images are not those of three sites"))
}
