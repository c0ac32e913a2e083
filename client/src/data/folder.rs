//! A folder of image, DICOM and NIfTI files, with a manifest or by what the files say.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tributary_shared::manifest::Task;

use super::labels::{Key, Labels, Row};
use super::medium::{self, Contents, Facts, Kind, Opened, Place};
use super::pixels::Picture;
use super::report::Report;
use super::walk;
use super::{Case, DataError, DicomProblem, Label, ManifestProblem, RowProblem};
use crate::config::reading::Reading;

/// Where truth lies beside pictures: `data synth` writes it so, and `explain` looks for it there.
const MASKS: &str = "masks";

/// Most cases of one file that one thread decodes at a time.
const GROUP_MAX: usize = 256;

/// The cases of a folder before their pixels are decoded.
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    pub(super) report: Report,
}

/// One case and where its picture is.
pub(super) struct Entry {
    pub(super) case: Case,
    /// Its file, as the manifest writes it or relative to the folder.
    pub(super) file: Arc<str>,
    pub(super) place: Place,
    pub(super) facts: Arc<Facts>,
    /// Whether a small copy of the picture is wanted.
    pub(super) shown: bool,
    /// How long decoding its picture took, with the opening of its file where it is the first of it.
    pub(super) took: Duration,
}

/// Lists the cases. Without a task a manifest may be missing: then every picture is a case.
pub(super) fn list(
    root: &Path,
    manifest: &Path,
    task: Option<&Task>,
    reading: &Reading,
) -> Result<Listing, DataError> {
    let path = root.join(manifest);
    let real = || root.canonicalize().map_err(unreadable(root));
    if task.is_none() && !path.exists() {
        return walked(&real()?, reading, None);
    }
    let mut labels = Labels::open(&path, task)?;
    let root = real()?;
    let rows = labels.rows(&root, task);
    match labels.key {
        Key::File => named(&root, &labels, rows, reading),
        Key::Instance | Key::Study | Key::Patient => {
            walked(&root, reading, Some(Keyed::new(&labels, rows)))
        }
    }
}

pub(super) fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> DataError + use<> {
    let path = path.display().to_string();
    move |source| DataError::Read { path: path.clone(), source }
}

/// The rows that name files.
fn named(
    root: &Path,
    labels: &Labels,
    rows: Vec<Result<Row, DataError>>,
    reading: &Reading,
) -> Result<Listing, DataError> {
    let look = |row: &Row| -> Result<(PathBuf, Kind, Contents), DataError> {
        let path = inside(root, &row.key).map_err(|p| labels.row_error(row.at, p))?;
        let kind = Kind::of(&path).map_err(unreadable(&path))?;
        if row.patient.is_none() && kind != Kind::Dicom && labels.names_patients() {
            let problem = RowProblem::EmptyField { column: "patient" };
            return Err(labels.row_error(row.at, problem));
        }
        let contents = medium::contents(&path, kind, reading)?;
        if contents.parts.len() > 1 && matches!(row.label, Label::Mask { .. }) {
            let problem = RowProblem::MaskOfSeveral { file: row.key.clone() };
            return Err(labels.row_error(row.at, problem));
        }
        Ok((path, kind, contents))
    };
    let found: Vec<_> = rows
        .into_par_iter()
        .map(|row| {
            let row = row?;
            let looked = look(&row)?;
            Ok((row, looked))
        })
        .collect();
    let mut listing = Listing { entries: Vec::new(), report: Report::default() };
    let mut seen = HashMap::new();
    for found in found {
        let (row, (path, kind, contents)) = match found {
            Ok(found) => found,
            Err(error) => {
                listing.report.refuse(error);
                continue;
            }
        };
        if row.patient.is_none() && kind != Kind::Dicom {
            // Only a DICOM file itself says whom it shows.
            let problem = ManifestProblem::MissingColumn { column: "patient" };
            return Err(DataError::Manifest { path: labels.shown.clone(), problem });
        }
        if let Some(first) = seen.insert(path.clone(), row.at) {
            let problem = RowProblem::Duplicate { file: row.key, first };
            listing.report.refuse(labels.row_error(row.at, problem));
            continue;
        }
        listing.add(path, &row.key.clone(), row.into(), contents);
    }
    Ok(listing)
}

/// Rows that name no file but what a DICOM header says.
struct Keyed<'a> {
    labels: &'a Labels,
    rows: HashMap<String, (Row, bool)>,
    refused: Vec<DataError>,
}

impl<'a> Keyed<'a> {
    fn new(labels: &'a Labels, rows: Vec<Result<Row, DataError>>) -> Self {
        let mut keyed = Self { labels, rows: HashMap::new(), refused: Vec::new() };
        for row in rows {
            match row {
                Ok(row) => match keyed.rows.get(&row.key) {
                    Some((first, _)) => {
                        let (at, first) = (row.at, first.at);
                        let problem = RowProblem::Duplicate { file: row.key, first };
                        keyed.refused.push(labels.row_error(at, problem));
                    }
                    None => {
                        keyed.rows.insert(row.key.clone(), (row, false));
                    }
                },
                Err(error) => keyed.refused.push(error),
            }
        }
        keyed
    }

    fn take(&mut self, header: &super::dicom::Header) -> Option<&Row> {
        let key = match self.labels.key {
            Key::File => return None,
            Key::Instance => &header.instance,
            Key::Study => &header.study,
            Key::Patient => &header.patient,
        };
        self.rows.get_mut(key).map(|(row, used)| {
            *used = true;
            &*row
        })
    }

    fn finish(self, report: &mut Report) {
        for error in self.refused {
            report.refuse(error);
        }
        let mut unused: Vec<_> =
            self.rows.into_values().filter(|(_, used)| !used).map(|(row, _)| row).collect();
        unused.sort_by_key(|row| row.at);
        for row in unused {
            let problem = RowProblem::NoSuchKey { key: row.key };
            report.refuse(self.labels.row_error(row.at, problem));
        }
    }
}

/// Every picture under the folder, labelled by `keyed` where that is given.
fn walked(
    root: &Path,
    reading: &Reading,
    mut keyed: Option<Keyed<'_>>,
) -> Result<Listing, DataError> {
    let mut listing = Listing { entries: Vec::new(), report: Report::default() };
    let files = walk::files(root, &mut listing.report)?;
    let look = |path: &PathBuf| -> Result<Option<Contents>, DataError> {
        let kind = Kind::of(path).map_err(unreadable(path))?;
        if !kind.is_picture(path).map_err(unreadable(path))? {
            return Ok(None);
        }
        medium::contents(path, kind, reading).map(Some)
    };
    // Rows are about what a DICOM file says of itself, wherever it lies; without rows a mask would
    // pass for a picture.
    let files: Vec<_> = match keyed {
        Some(_) => files,
        None => {
            files.into_iter().filter(|path| !is_mask(path, root, &mut listing.report)).collect()
        }
    };
    let found: Vec<_> = files.par_iter().map(look).collect();
    for (path, found) in files.into_iter().zip(found) {
        let contents = match found {
            Ok(Some(contents)) => contents,
            Ok(None) => {
                listing.report.pass_over("not a picture");
                continue;
            }
            Err(DataError::Dicom { problem: DicomProblem::NoPicture, .. }) => {
                listing.report.pass_over("DICOM without a picture (reports, plans, curves)");
                continue;
            }
            Err(error) => {
                listing.report.refuse(error);
                continue;
            }
        };
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let Some(keyed) = &mut keyed else {
            listing.add(path, &name, Said::nothing(), contents);
            continue;
        };
        let row = contents.header.as_ref().and_then(|header| keyed.take(header));
        match row {
            Some(row) => listing.add(path, &name, row.clone().into(), contents),
            None => listing.report.pass_over("no row of the manifest is about it"),
        }
    }
    if let Some(keyed) = keyed {
        keyed.finish(&mut listing.report);
    }
    Ok(listing)
}

/// Whether a file lies in a folder of masks below `root`; then it is passed over.
fn is_mask(path: &Path, root: &Path, report: &mut Report) -> bool {
    let below = path.strip_prefix(root).ok().and_then(Path::parent);
    let is = below.is_some_and(|folder| folder.iter().any(|part| part == MASKS));
    if is {
        report.pass_over("in a folder `masks`: truth, not pictures");
    }
    is
}

/// What the manifest says of a file.
struct Said {
    patient: Option<String>,
    bag: Option<String>,
    label: Label,
}

impl Said {
    fn nothing() -> Self {
        Self { patient: None, bag: None, label: Label::Unlabelled }
    }
}

impl From<Row> for Said {
    fn from(Row { patient, bag, label, .. }: Row) -> Self {
        Self { patient, bag, label }
    }
}

impl Listing {
    fn add(&mut self, path: PathBuf, name: &str, said: Said, contents: Contents) {
        let Said { patient, bag, label } = said;
        let patient = patient.unwrap_or_else(|| match contents.header {
            Some(header) => {
                if header.by_study {
                    self.report.note("files without a PatientID, grouped by StudyInstanceUID");
                }
                header.patient
            }
            None => {
                self.report.note("files that nothing names a patient for, each its own patient");
                name.to_owned()
            }
        });
        let (path, file, facts): (_, Arc<str>, _) =
            (Arc::new(path), name.into(), Arc::new(contents.facts));
        let several = contents.parts.len() > 1;
        for part in contents.parts {
            let own_bag = || if part.shares_bag() { name } else { &patient }.to_owned();
            self.entries.push(Entry {
                case: Case {
                    id: part.id(name, several),
                    bag: bag.clone().unwrap_or_else(own_bag),
                    patient: patient.clone(),
                    label: label.clone(),
                },
                file: Arc::clone(&file),
                place: Place { path: Arc::clone(&path), part },
                facts: Arc::clone(&facts),
                shown: false,
                took: Duration::ZERO,
            });
        }
    }
}

/// Decodes every entry's picture on all threads, hands it to `look` there, and what that makes of
/// it to `take`, in the order of the entries. A file that cannot be opened is one error, whatever
/// the number of its cases. Memory: what `look` returns for a few files a thread.
pub(super) fn each<T: Send>(
    entries: Vec<Entry>,
    reading: &Reading,
    look: impl Fn(&Entry, Picture) -> T + Sync,
    mut take: impl FnMut(Result<(Entry, T), DataError>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let at_once = 2 * rayon::current_num_threads();
    let mut entries = entries.into_iter().peekable();
    loop {
        let mut groups: Vec<Vec<Entry>> = Vec::new();
        while groups.len() < at_once {
            let Some(first) = entries.next() else { break };
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Some(next) = entries.next_if(|e| e.place.path == group[0].place.path)
            {
                group.push(next);
            }
            groups.push(group);
        }
        if groups.is_empty() {
            return Ok(());
        }
        let decoded: Vec<Vec<_>> =
            groups.into_par_iter().map(|group| decode_group(group, reading, &look)).collect();
        for result in decoded.into_iter().flatten() {
            take(result)?;
        }
    }
}

fn decode_group<T>(
    group: Vec<Entry>,
    reading: &Reading,
    look: &impl Fn(&Entry, Picture) -> T,
) -> Vec<Result<(Entry, T), DataError>> {
    let Place { path, part } = group[0].place.clone();
    let mut began = Instant::now();
    let opened = match Opened::open(&path, part, reading) {
        Ok(opened) => opened,
        Err(error) => return vec![Err(error)],
    };
    let decode = |mut entry: Entry| {
        let picture = opened.picture(&path, entry.place.part, reading)?;
        entry.took = began.elapsed();
        let seen = look(&entry, picture);
        began = Instant::now();
        Ok((entry, seen))
    };
    group.into_iter().map(decode).collect()
}

/// The file's real path, which lies under `root` (a real path too).
pub(super) fn inside(root: &Path, file: &str) -> Result<PathBuf, RowProblem> {
    let named = || file.to_owned();
    let plain = Path::new(file)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(RowProblem::Escapes { file: named() });
    }
    let path =
        root.join(file).canonicalize().map_err(|_| RowProblem::MissingFile { file: named() })?;
    if !path.starts_with(root) {
        return Err(RowProblem::LinkOut { file: named() });
    }
    if !path.is_file() {
        return Err(RowProblem::NotAFile { file: named() });
    }
    Ok(path)
}
