//! What a data source holds, in numbers, everything that is odd about it, and everything that would
//! be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::Task;

use super::look::{BINS, Seen};
use super::medium::Facts;
use super::npz::Sink;
use super::pixels::Picture;
use super::report::Report;
use super::{Case, DataError, DataSource, Label, Profile, folder, mask, npz};
use crate::config::reading::Reading;

/// Groups of equal pictures that are named.
const DUPLICATES_NAMED_MAX: usize = 100;
/// Cases named of one group or one oddity.
const EXAMPLES_MAX: usize = 5;

/// The numbers of one source. Names cases: it stays at the site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Census {
    /// The file or folder.
    pub source: String,
    /// Images that can be used.
    pub cases: usize,
    /// Different patients among them.
    pub patients: usize,
    /// Different bags: slides, examinations, or else patients.
    pub bags: usize,
    /// How patients were followed, where the labels say that.
    pub follow_up: Option<FollowUp>,
    /// Each class of the task, in its order; of masks, the images that show it somewhere.
    pub classes: Vec<ClassCount>,
    /// Cases of a multi-label task to which no class applies.
    pub without_class: usize,
    /// Each picture size that occurs.
    pub sizes: Vec<SizeCount>,
    /// Images of each DICOM modality; `unknown` where nothing names one.
    pub modalities: BTreeMap<String, usize>,
    /// Images of each plane; `unknown` where nothing tells it.
    pub planes: BTreeMap<String, usize>,
    /// Least and largest distance of neighbouring pixels, millimetres, where files name it.
    pub spacing_mm: Option<[f64; 2]>,
    /// How long decoding took.
    pub decoding: Option<Decoding>,
    /// Share of all pixels in each sixteenth of the grey levels, from black to white.
    pub levels: [f64; BINS],
    /// Groups of images with equal pixels.
    pub duplicate_groups: usize,
    /// The first hundred of them.
    pub duplicates: Vec<Duplicate>,
    /// What is odd, how often, and examples.
    pub oddities: BTreeMap<&'static str, Oddity>,
    /// How many images would be refused.
    pub refused_count: usize,
    /// Why, one line each; at most a thousand.
    pub refused: Vec<String>,
    /// Files that were never meant to be cases: the reason and how many.
    pub passed_over: BTreeMap<&'static str, usize>,
    /// What is worth knowing about the cases, and how often.
    pub notes: BTreeMap<&'static str, usize>,
    /// A few pictures of each class, for a page; not part of the numbers.
    #[serde(skip)]
    pub thumbnails: Vec<Thumbnail>,
}

/// How patients were followed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FollowUp {
    /// Cases whose event was seen.
    pub events: usize,
    /// The shortest time.
    pub time_min: f64,
    /// The longest.
    pub time_max: f64,
}

/// How long decoding took on one thread; all threads decode at once, so it is no share of the whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decoding {
    /// Half of the images took longer, milliseconds. The first of a file is opened with it.
    pub median_ms: f64,
    /// The longest, milliseconds.
    pub slowest_ms: f64,
    /// The image that took it.
    pub slowest: String,
}

/// How often a class occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Its name.
    pub class: String,
    /// Images.
    pub cases: usize,
    /// Different patients.
    pub patients: usize,
}

/// How often a picture size occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeCount {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Images.
    pub cases: usize,
}

/// Images with equal pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// How many.
    pub cases: usize,
    /// The first of them.
    pub examples: Vec<String>,
    /// They bear different patients' names: a copy may be trained on and evaluated on.
    pub several_patients: bool,
}

/// Something odd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Oddity {
    /// How many images.
    pub cases: usize,
    /// The first of them.
    pub examples: Vec<String>,
}

/// A small picture of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail {
    /// The case.
    pub case: String,
    /// The class it is shown under; none when no class applies.
    pub class: Option<usize>,
    /// A PNG file.
    pub png: Vec<u8>,
}

impl Census {
    /// Refusals among all images.
    pub fn refused_share(&self) -> f64 {
        self.refused_count as f64 / (self.refused_count + self.cases) as f64
    }
}

/// Decodes everything once and counts, keeping at most `thumbnails` of each class; an error only
/// where nothing could be counted.
pub fn take(
    source: &DataSource,
    task: &Task,
    reading: &Reading,
    thumbnails: usize,
) -> Result<Census, DataError> {
    let mut counted = Counted::default();
    match source {
        DataSource::Npz(path) => {
            // The labels come after the images, so whose thumbnails to keep takes a first reading.
            let shown = match thumbnails {
                0 => Vec::new(),
                _ => shown(
                    npz::read_each(path, Some(task), reading, &mut npz::Discard)?.cases.iter(),
                    task,
                    thumbnails,
                ),
            };
            let mut seen = SeenOf { shown, seen: Vec::new(), last: Instant::now() };
            let npz::Contents { cases, facts } =
                npz::read_each(path, Some(task), reading, &mut seen)?;
            for (case, (seen, took)) in cases.into_iter().zip(seen.seen) {
                counted.took.push(took);
                counted.count(case, &facts, seen, task);
            }
        }
        DataSource::Folder { root, manifest } => {
            let labelled = !matches!(task, Task::SelfSupervised { .. });
            let listing = folder::list(root, manifest, labelled.then_some(task), reading)?;
            counted.report = listing.report;
            let shown = shown(listing.entries.iter().map(|entry| &entry.case), task, thumbnails);
            let entries = listing.entries.into_iter().zip(shown);
            let entries = entries.map(|(entry, shown)| folder::Entry { shown, ..entry }).collect();
            let look = |entry: &folder::Entry, picture: Picture| {
                // What a mask shows counts as its image's classes.
                let label = match &entry.case.label {
                    Label::Mask { path, classes } => {
                        Label::Many(mask::classes_shown(path, *classes)?)
                    }
                    label @ (Label::Class(_)
                    | Label::Many(_)
                    | Label::FollowUp { .. }
                    | Label::Unlabelled) => label.clone(),
                };
                Ok((label, Seen::of(picture, entry.shown)))
            };
            folder::each(entries, reading, look, |decoded| {
                match decoded {
                    Ok((entry, Ok((label, seen)))) => {
                        let case = Case { label, ..entry.case };
                        counted.took.push(entry.took);
                        counted.count(case, &entry.facts, seen, task);
                    }
                    Ok((_, Err(error))) | Err(error) => counted.report.refuse(error),
                }
                Ok(())
            })?;
        }
    }
    if counted.cases.is_empty() && counted.report.refused() == 0 {
        return Err(DataError::Empty { path: source.path().display().to_string() });
    }
    Ok(counted.finish(source.path().display().to_string(), task))
}

/// The first class that applies.
fn class_of(case: &Case, task: &Task) -> Option<usize> {
    (0..task.classes().len()).find(|class| case.label.shows(*class))
}

/// Which cases get a thumbnail: the first of each class.
fn shown<'a>(cases: impl Iterator<Item = &'a Case>, task: &Task, most: usize) -> Vec<bool> {
    let mut taken = BTreeMap::new();
    cases
        .map(|case| {
            let taken = taken.entry(class_of(case, task)).or_insert(0);
            *taken += 1;
            *taken <= most
        })
        .collect()
}

#[derive(Default)]
struct Counted {
    cases: Vec<Case>,
    /// How long each took to decode.
    took: Vec<Duration>,
    profile: Profile,
    report: Report,
    sizes: BTreeMap<(u32, u32), usize>,
    levels: [u64; BINS],
    same: BTreeMap<Digest, Vec<usize>>,
    oddities: BTreeMap<&'static str, Oddity>,
    thumbnails: Vec<Thumbnail>,
}

impl Counted {
    fn count(&mut self, case: Case, facts: &Facts, seen: Seen, task: &Task) {
        self.profile.count(facts, seen.colour);
        *self.sizes.entry(seen.dimensions).or_default() += 1;
        for (sum, pixels) in self.levels.iter_mut().zip(seen.levels) {
            *sum += pixels;
        }
        self.same.entry(seen.digest).or_default().push(self.cases.len());
        for what in seen.odd {
            self.odd(what, &case.id);
        }
        if facts.inverted {
            self.odd("MONOCHROME1, turned so that more is brighter", &case.id);
        }
        if let Some(png) = seen.thumbnail {
            let class = class_of(&case, task);
            self.thumbnails.push(Thumbnail { case: case.id.clone(), class, png });
        }
        self.cases.push(case);
    }

    fn odd(&mut self, what: &'static str, case: &str) {
        let oddity = self.oddities.entry(what).or_default();
        oddity.cases += 1;
        if oddity.examples.len() < EXAMPLES_MAX {
            oddity.examples.push(case.to_owned());
        }
    }

    fn finish(mut self, source: String, task: &Task) -> Census {
        if self.profile.grey > 0 && self.profile.colour > 0 {
            let cases = self.profile.grey.min(self.profile.colour);
            let what = "grey and colour pictures are mixed";
            self.oddities.insert(what, Oddity { cases, examples: Vec::new() });
        }
        if self.cases.len() > 1 && patients(&self.cases, |_| true) == 1 {
            let what = "all have one patient id, so that no patient can be held out";
            let id = self.cases[0].patient.clone();
            self.oddities.insert(what, Oddity { cases: self.cases.len(), examples: vec![id] });
        }
        let groups = self.same.values().filter(|same| same.len() > 1);
        let duplicates: Vec<Duplicate> = groups.map(|same| self.duplicate(same)).collect();
        let pixels = self.levels.iter().sum::<u64>().max(1) as f64;
        let unknown = || "unknown".to_owned();
        let Profile { modalities, planes, spacing_mm, .. } = self.profile;
        Census {
            source,
            patients: patients(&self.cases, |_| true),
            bags: self.cases.iter().map(|case| &case.bag).collect::<BTreeSet<_>>().len(),
            follow_up: follow_up(&self.cases),
            classes: classes(&self.cases, task),
            without_class: self.cases.iter().filter(|case| is_none(&case.label)).count(),
            cases: self.cases.len(),
            sizes: self
                .sizes
                .into_iter()
                .map(|((width, height), cases)| SizeCount { width, height, cases })
                .collect(),
            modalities: modalities
                .into_iter()
                .map(|(modality, cases)| (modality.unwrap_or_else(unknown), cases))
                .collect(),
            planes: planes
                .into_iter()
                .map(|(plane, n)| (plane.map_or_else(unknown, |p| p.as_str().to_owned()), n))
                .collect(),
            spacing_mm,
            decoding: decoding(&self.cases, &self.took),
            levels: self.levels.map(|level| level as f64 / pixels),
            duplicate_groups: duplicates.len(),
            duplicates: duplicates.into_iter().take(DUPLICATES_NAMED_MAX).collect(),
            oddities: self.oddities,
            refused_count: self.report.refused(),
            refused: self.report.lines().to_vec(),
            passed_over: self.report.passed_over().clone(),
            notes: self.report.notes().clone(),
            thumbnails: self.thumbnails,
        }
    }

    fn duplicate(&self, same: &[usize]) -> Duplicate {
        let patients: BTreeSet<&str> =
            same.iter().map(|case| self.cases[*case].patient.as_str()).collect();
        Duplicate {
            cases: same.len(),
            examples: same
                .iter()
                .take(EXAMPLES_MAX)
                .map(|case| self.cases[*case].id.clone())
                .collect(),
            several_patients: patients.len() > 1,
        }
    }
}

fn decoding(cases: &[Case], took: &[Duration]) -> Option<Decoding> {
    let ms = |took: &Duration| took.as_secs_f64() * 1e3;
    let (slowest, longest) = cases.iter().zip(took).max_by_key(|(_, took)| **took)?;
    let mut sorted = took.to_vec();
    let (_, median, _) = sorted.select_nth_unstable(took.len() / 2);
    let (median_ms, slowest_ms) = (ms(median), ms(longest));
    Some(Decoding { median_ms, slowest_ms, slowest: slowest.id.clone() })
}

fn patients(cases: &[Case], which: impl Fn(&Case) -> bool) -> usize {
    let patients: BTreeSet<&str> =
        cases.iter().filter(|case| which(case)).map(|case| case.patient.as_str()).collect();
    patients.len()
}

fn follow_up(cases: &[Case]) -> Option<FollowUp> {
    let mut found: Option<FollowUp> = None;
    for case in cases {
        if let Label::FollowUp { time, event } = case.label {
            let so_far = found.unwrap_or(FollowUp { events: 0, time_min: time, time_max: time });
            found = Some(FollowUp {
                events: so_far.events + usize::from(event),
                time_min: so_far.time_min.min(time),
                time_max: so_far.time_max.max(time),
            });
        }
    }
    found
}

fn classes(cases: &[Case], task: &Task) -> Vec<ClassCount> {
    let count = |(index, class): (usize, &String)| {
        let of_class = |case: &Case| case.label.shows(index);
        ClassCount {
            class: class.clone(),
            cases: cases.iter().filter(|case| of_class(case)).count(),
            patients: patients(cases, of_class),
        }
    };
    task.classes().iter().enumerate().map(count).collect()
}

fn is_none(label: &Label) -> bool {
    matches!(label, Label::Many(marks) if !marks.contains(&true))
}

/// Looks at the images of an npz as they come.
struct SeenOf {
    shown: Vec<bool>,
    /// With how long it took to decode.
    seen: Vec<(Seen, Duration)>,
    /// When the image before was done with.
    last: Instant,
}

impl Sink for SeenOf {
    fn expect(&mut self, _images: usize) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, picture: Picture) -> Result<(), DataError> {
        let took = self.last.elapsed();
        let shown = self.shown.get(self.seen.len()).copied().unwrap_or(false);
        self.seen.push((Seen::of(picture, shown), took));
        self.last = Instant::now();
        Ok(())
    }
}
