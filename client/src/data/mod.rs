//! Images on disk to batches: the only room that sees patients.
//!
//! A [`Dataset`] is neither `Serialize` nor `Debug`: nothing can print or send pixels by
//! accident. Everything is decoded and checked when it is opened, so that a bad file is one line
//! of the [`Report`] at the start and not a surprise in the middle of a round.

pub mod augment;
pub mod census;
mod compressed;
mod contract;
mod dicom;
pub mod divide;
mod folder;
mod frame;
pub mod guard;
mod image_file;
pub mod isolate;
mod label;
mod labels;
mod look;
mod mask;
mod medium;
mod npz;
mod pixels;
mod problem;

mod report;
mod slide;
mod source;
mod split;
pub mod staging;
pub mod synth;
mod volume;
mod walk;
mod window;

pub use contract::Profile;
pub use dicom::DicomProblem;
pub use label::{Case, Label};
pub use labels::TableProblem;
pub use mask::{UNMARKED, marked};
pub use problem::{At, DataError, ImageProblem, ManifestProblem, NpzProblem, RowProblem};

pub use report::Report;
pub use slide::SlideProblem;
pub use source::{DataSource, task_of};
pub use split::{HoldoutSalt, Split};
pub use volume::VolumeProblem;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tributary_shared::dataset::{DataContract, Interpolation};
use tributary_shared::digest::Digest;
use tributary_shared::manifest::{Backbone, CROP_PCT, Task};

use self::augment::Variation;
use self::pixels::{Files, Kept, PixelStore};
use crate::config::reading::Reading;

/// What the backbone expects of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Side of the square input, pixels.
    pub image_size: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Subtracted per channel from pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Divided by per channel.
    pub std: Vec<f64>,
    /// How images are resized.
    pub interpolation: Interpolation,
    /// As [`Backbone::crop_pct`]: the whole image is stretched when absent.
    pub crop_pct: Option<f64>,
}

impl InputSpec {
    /// What a run's backbone expects.
    pub fn of(backbone: &Backbone) -> Self {
        Self {
            image_size: backbone.architecture.image_size,
            channels: backbone.architecture.channels,
            mean: backbone.mean.clone(),
            std: backbone.std.clone(),
            interpolation: backbone.interpolation,
            crop_pct: backbone.crop_pct,
        }
    }

    /// The whole image, stretched bilinearly; `mean` is subtracted from every channel, which is then
    /// divided by `std`.
    pub fn plain(image_size: usize, channels: usize, mean: f64, std: f64) -> Self {
        Self {
            image_size,
            channels,
            mean: vec![mean; channels],
            std: vec![std; channels],
            interpolation: Interpolation::Bilinear,
            crop_pct: None,
        }
    }

    /// Numbers in one image's input, `channels * image_size * image_size`.
    pub fn numbers(&self) -> usize {
        self.channels * self.image_size * self.image_size
    }

    fn check(&self) -> Result<(), DataError> {
        let fits = matches!(self.channels, 1 | 3)
            && (1..=4096).contains(&self.image_size)
            && self.mean.len() == self.channels
            && self.std.len() == self.channels
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.std.iter().all(|std| std.is_finite() && *std > 0.0)
            && self.crop_pct.is_none_or(|share| CROP_PCT.contains(&share));
        if fits { Ok(()) } else { Err(DataError::Input) }
    }
}

/// A site's images, checked and ready to be batched.
pub struct Dataset {
    input: InputSpec,
    cases: Vec<Case>,
    // One store a source, with the index of its first case.
    stores: Vec<(usize, PixelStore)>,
    profile: Profile,
    report: Report,
    // Of the cases whose content was asked for.
    contents: Mutex<HashMap<usize, Digest>>,
}

impl Dataset {
    /// Reads and checks every image and label of `source`, files read in the usual way.
    pub fn open(source: &DataSource, task: &Task, input: &InputSpec) -> Result<Self, DataError> {
        Self::open_as(source, task, input, &Reading::default())
    }

    /// Reads and checks every image of `source` and, unless the task has none, every label. What cannot be read is refused, counted
    /// and named in [`Self::report`]; an error when more is refused than `reading` allows.
    pub fn open_as(
        source: &DataSource,
        task: &Task,
        input: &InputSpec,
        reading: &Reading,
    ) -> Result<Self, DataError> {
        if let Task::Rehearsal { .. } = task {
            return Err(DataError::Rehearsal);
        }
        let labelled = !matches!(task, Task::SelfSupervised { .. });
        Self::opened(source, labelled.then_some(task), input, reading)
    }

    /// Reads and checks every image of `source` and no label, for pretraining.
    pub fn open_unlabelled(source: &DataSource, input: &InputSpec) -> Result<Self, DataError> {
        Self::open_unlabelled_as(source, input, &Reading::default())
    }

    /// As [`Self::open_unlabelled`], with the site's choices of how files become pictures.
    pub fn open_unlabelled_as(
        source: &DataSource,
        input: &InputSpec,
        reading: &Reading,
    ) -> Result<Self, DataError> {
        Self::opened(source, None, input, reading)
    }

    fn opened(
        source: &DataSource,
        task: Option<&Task>,
        input: &InputSpec,
        reading: &Reading,
    ) -> Result<Self, DataError> {
        input.check()?;
        let kept = Kept::new(input, reading.kept_bytes_max);
        let dataset = match source {
            DataSource::Npz(path) => {
                let (contents, store, colour) = npz::read(path, task, reading, kept)?;
                let npz::Contents { cases, facts } = contents;
                let mut profile = Profile::default();
                cases.iter().for_each(|_| profile.count(&facts, colour));
                let (input, report) = (input.clone(), Report::default());
                Self {
                    input,
                    cases,
                    stores: vec![(0, store)],
                    profile,
                    report,
                    contents: Mutex::default(),
                }
            }
            DataSource::Folder { root, manifest } => {
                Self::of_listing(folder::list(root, manifest, task, reading)?, kept, reading)?
            }
        };
        dataset.report.check(dataset.len(), reading.refused_share_max)?;
        if dataset.cases.is_empty() {
            return Err(DataError::Empty { path: source.path().display().to_string() });
        }
        Ok(dataset)
    }

    fn of_listing(
        listing: folder::Listing,
        mut kept: Kept,
        reading: &Reading,
    ) -> Result<Self, DataError> {
        let keep = kept.fits(listing.entries.len());
        let input = kept.input.clone();
        let (mut cases, mut places) = (Vec::new(), Vec::new());
        let (mut profile, mut report) = (Profile::default(), listing.report);
        let fit = |entry: &folder::Entry, picture: pixels::Picture| {
            // A mask that cannot be read must not wait for the middle of a round.
            if let Label::Mask { path, classes } = &entry.case.label {
                mask::check(path, *classes)?;
            }
            Ok((picture.is_colour(), keep.then(|| picture.fit(&input))))
        };
        folder::each(listing.entries, reading, fit, |decoded| {
            match decoded {
                Ok((entry, Ok((colour, fitted)))) => {
                    profile.count(&entry.facts, colour);
                    cases.push(entry.case);
                    match fitted {
                        Some(fitted) => kept.push(&fitted),
                        None => places.push(entry.place),
                    }
                }
                Ok((_, Err(error))) | Err(error) => report.refuse(error),
            }
            Ok(())
        })?;
        let store = match keep {
            true => kept.store(),
            false => PixelStore::Files(Box::new(Files::new(places, reading.clone()))),
        };
        let stores = vec![(0, store)];
        Ok(Self { input, cases, stores, profile, report, contents: Mutex::default() })
    }

    /// What was not read, and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What the pictures are like.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// An error that names every demand of `contract` that these images do not meet.
    pub fn check_contract(&self, contract: &DataContract, task: &Task) -> Result<(), DataError> {
        let broken = self.profile.against(contract, task, &self.cases);
        if broken.is_empty() { Ok(()) } else { Err(DataError::Contract { broken }) }
    }

    /// The cases of all `datasets` one after another, as if one site held them. Patients keep
    /// their ids, so each falls on the same side of [`Self::split`] as at its own site.
    pub fn concat(datasets: Vec<Self>) -> Result<Self, DataError> {
        let mut datasets = datasets.into_iter();
        let mut all = datasets.next().ok_or(DataError::NothingToConcat)?;
        for other in datasets {
            if other.input != all.input {
                return Err(DataError::InputsDiffer);
            }
            let offset = all.cases.len();
            all.cases.extend(other.cases);
            all.profile.add(other.profile);
            all.report.add(other.report);
            all.stores.extend(other.stores.into_iter().map(|(first, s)| (offset + first, s)));
        }
        Ok(all)
    }

    /// How many cases it holds.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Never true of an opened dataset; an empty source is refused.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// The cases, in the order of the manifest or the npz.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// The input the pixels were prepared for.
    pub fn input(&self) -> &InputSpec {
        &self.input
    }

    /// Writes the normalised pixels of one case, `[channels, image_size, image_size]`.
    ///
    /// # Panics
    /// When `index` is not below [`Self::len`] or `out` is not [`InputSpec::numbers`] long.
    pub fn pixels(&self, index: usize, out: &mut [f32]) -> Result<(), DataError> {
        assert_eq!(out.len(), self.input.numbers(), "one image's numbers");
        let at = self.stores.partition_point(|(first, _)| *first <= index) - 1;
        let (first, store) = &self.stores[at];
        store.with(index - first, &self.input, |bytes| pixels::normalise(bytes, &self.input, out))
    }

    /// Names what [`Self::pixels`] gives of one case before it is normalised: the digest of its
    /// 8-bit pixels in the input's size and colours. Whatever the site's reading of files changes
    /// in a picture changes it; a file's name does not.
    ///
    /// # Panics
    /// When `index` is not below [`Self::len`].
    pub fn content(&self, index: usize) -> Result<Digest, DataError> {
        let known = || self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = known().get(&index) {
            return Ok(*digest);
        }
        let at = self.stores.partition_point(|(first, _)| *first <= index) - 1;
        let (first, store) = &self.stores[at];
        let mut digest = None;
        store.with(index - first, &self.input, |bytes| digest = Some(Digest::of(bytes)))?;
        let digest = digest.expect("a store hands out the pixels it was asked for");
        known().insert(index, digest);
        Ok(digest)
    }

    /// As [`Self::pixels`], changed by `variation`.
    ///
    /// # Panics
    /// As [`Self::pixels`].
    pub fn varied_pixels(
        &self,
        index: usize,
        variation: &Variation,
        out: &mut [f32],
    ) -> Result<(), DataError> {
        self.pixels(index, out)?;
        self.each_number(out, |x, mean, std| x.mul_add(std, mean));
        variation.image(self.input.channels, self.input.image_size, out);
        self.each_number(out, |x, mean, std| (x - mean) / std);
        Ok(())
    }

    /// As [`Self::varied_pixels`], on a grid of another size: `[channels, side, side]`.
    ///
    /// # Panics
    /// When `index` is not below [`Self::len`] or `side` is 0.
    pub fn varied_pixels_on(
        &self,
        index: usize,
        variation: &Variation,
        side: usize,
    ) -> Result<Vec<f32>, DataError> {
        let mut whole = vec![0.0; self.input.numbers()];
        self.pixels(index, &mut whole)?;
        self.each_number(&mut whole, |x, mean, std| x.mul_add(std, mean));
        let InputSpec { channels, image_size, .. } = self.input;
        let mut out = variation.image_on(channels, image_size, &whole, side);
        self.each_number(&mut out, |x, mean, std| (x - mean) / std);
        Ok(out)
    }

    /// Changes every number of an image by `of` it and its channel's mean and deviation.
    fn each_number(&self, image: &mut [f32], of: impl Fn(f32, f32, f32) -> f32) {
        let InputSpec { channels, mean, std, .. } = &self.input;
        let plane = image.len() / channels;
        for (channel, numbers) in image.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            numbers.iter_mut().for_each(|x| *x = of(*x, mean, std));
        }
    }

    /// The class of each pixel of a case's mask, [`UNMARKED`] where it says nothing, on the grid of
    /// the input: `[image_size, image_size]`.
    ///
    /// # Panics
    /// When the case has no mask.
    pub fn mask(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let Label::Mask { path, classes } = &self.cases[index].label else {
            panic!("a case of a segmentation has a mask")
        };
        mask::read(path, *classes, &self.input)
    }

    /// Divides the cases by patient: `holdout` is the share of patients held out. The side is a
    /// function of salt and patient id alone, so it never depends on order or on other patients.
    pub fn split(&self, salt: &HoldoutSalt, holdout: f64) -> Split {
        split::by_patient(self.cases.iter().map(|case| case.patient.as_str()), salt, holdout)
    }

    /// The one patient id that several cases share when there is no other, as exports have it that
    /// write the same id everywhere.
    pub fn only_patient(&self) -> Option<&str> {
        let mut patients = self.cases.iter().map(|case| case.patient.as_str());
        let first = patients.next()?;
        (self.len() > 1 && patients.all(|patient| patient == first)).then_some(first)
    }

    /// An error when patients are to be held out and all cases have one patient id.
    pub fn check_patients(&self, holdout: f64) -> Result<(), DataError> {
        match self.only_patient() {
            Some(patient) if holdout > 0.0 => {
                Err(DataError::OnePatient { cases: self.len(), patient: patient.to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;

    #[test]
    fn above_the_cap_a_folder_is_decoded_again_and_an_npz_refused() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let ramp = GrayImage::from_fn(9, 7, |x, y| Luma([(20 * x + y) as u8]));
        ramp.save(folder.path().join("a.png")).expect("saved");
        std::fs::write(folder.path().join("labels.csv"), "file,patient\na.png,p\n").expect("saved");
        let input = InputSpec::plain(4, 3, 0.1, 0.3);
        let source = DataSource::detect(folder.path()).expect("a folder");
        let open = |kept_bytes_max| {
            let reading = Reading { kept_bytes_max, ..Reading::default() };
            Dataset::open_unlabelled_as(&source, &input, &reading).expect("opens")
        };
        let pixels = |kept_bytes_max| {
            let mut out = vec![0.0; 48];
            open(kept_bytes_max).pixels(0, &mut out).expect("decodes");
            out
        };
        assert_eq!(pixels(48), pixels(47));
        let content = |kept_bytes_max| open(kept_bytes_max).content(0).expect("decodes");
        assert_eq!(content(48), content(47));

        let npz = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/plain.npz");
        let task = Task::MultiClass { classes: ["a", "b", "c"].map(str::to_owned).to_vec() };
        let npz = DataSource::Npz(npz.into());
        let reading = Reading { kept_bytes_max: 9 * 48 - 1, ..Reading::default() };
        let opened = Dataset::open_as(&npz, &task, &input, &reading);
        assert_eq!(
            opened.err().map(|error| error.to_string()).as_deref(),
            Some("432 bytes of resized images; at most 431 are kept of an npz, so save a folder")
        );
    }
}
