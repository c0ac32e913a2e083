//! A folder of image files with a CSV manifest.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Take};
use std::path::{Component, Path, PathBuf};

use csv::ByteRecord;
use tributary_shared::manifest::Task;

use super::pixels::{Kept, PixelStore};
use super::source::task_of;
use super::{Case, DataError, Label, ManifestProblem, RowProblem, image_file, mask};

/// Largest manifest read, bytes.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

pub(super) fn read(
    root: &Path,
    manifest: &Path,
    task: Option<&Task>,
    mut kept: Kept,
) -> Result<(Vec<Case>, PixelStore), DataError> {
    let (cases, paths): (Vec<Case>, Vec<PathBuf>) = rows(root, manifest, task)?.into_iter().unzip();
    let keep = kept.fits(paths.len());
    for path in &paths {
        let picture = image_file::decode(path)?;
        if keep {
            kept.push(picture);
        }
    }
    for case in &cases {
        if let Label::Mask { path, classes } = &case.label {
            mask::read(path, *classes, 1)?;
        }
    }
    Ok((cases, if keep { kept.store() } else { PixelStore::Files(paths) }))
}

/// The manifest's rows with the files they name; no image is opened.
pub(super) fn rows(
    root: &Path,
    manifest: &Path,
    task: Option<&Task>,
) -> Result<Vec<(Case, PathBuf)>, DataError> {
    scan(root, manifest, task)?.into_iter().collect()
}

type Row = Result<(Case, PathBuf), DataError>;

/// As [`rows`], each row for itself, so that all that is wrong can be told at once.
pub(super) fn scan(
    root: &Path,
    manifest: &Path,
    task: Option<&Task>,
) -> Result<Vec<Row>, DataError> {
    let mut file = ManifestFile::open(root, manifest)?;
    let root = root.canonicalize().map_err(unreadable(root))?;
    let columns = file.columns(task)?;
    let mut seen = HashMap::new();
    let shown = file.shown;
    let row_error = |(line, problem)| DataError::Row { path: shown.clone(), line, problem };
    let mut rows = Vec::new();
    for record in file.reader.byte_records() {
        let fallback = rows.len() as u64 + 2;
        let row = record.map_err(|error| csv_error(&error, fallback)).and_then(|record| {
            let line = record.position().map_or(fallback, csv::Position::line);
            let row = columns.row(&record, &root, task).map_err(|problem| (line, problem))?;
            match seen.insert(row.1.clone(), line) {
                Some(first) => Err((line, RowProblem::Duplicate { file: row.0.id, first })),
                None => Ok(row),
            }
        });
        rows.push(row.map_err(row_error));
    }
    Ok(rows)
}

/// The classes that the manifest itself names, in alphabetical order.
pub(super) fn infer_task(root: &Path, manifest: &Path) -> Result<Task, DataError> {
    let mut file = ManifestFile::open(root, manifest)?;
    let any_classes = Task::MultiLabel { classes: Vec::new() };
    let column = match file.columns(Some(&any_classes))?.truth {
        Some(Truth::Label(column)) => column,
        Some(Truth::FollowUp { .. } | Truth::Mask(_)) | None => 0,
    };
    let shown = file.shown;
    let row_error = |(line, problem)| DataError::Row { path: shown.clone(), line, problem };
    let mut texts = BTreeSet::new();
    for (index, record) in file.reader.byte_records().enumerate() {
        let line = index as u64 + 2;
        let record = record.map_err(|error| row_error(csv_error(&error, line)))?;
        let text = std::str::from_utf8(record.get(column).unwrap_or_default());
        texts.insert(text.map_err(|_| row_error((line, RowProblem::NotUtf8)))?.to_owned());
    }
    let many = texts.iter().any(|text| text.contains(';') || text.is_empty());
    let classes: BTreeSet<&str> = match many {
        true => texts.iter().flat_map(|t| t.split(';').map(str::trim)).collect(),
        false => texts.iter().map(String::as_str).collect(),
    };
    let classes = classes.into_iter().filter(|class| !class.is_empty()).map(str::to_owned);
    Ok(task_of(classes.collect(), many))
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> DataError + use<> {
    let path = path.display().to_string();
    move |source| DataError::Read { path: path.clone(), source }
}

/// An opened manifest.
struct ManifestFile {
    shown: String,
    reader: csv::Reader<Take<File>>,
}

impl ManifestFile {
    fn open(root: &Path, manifest: &Path) -> Result<Self, DataError> {
        let path = root.join(manifest);
        let shown = path.display().to_string();
        let file = File::open(&path).map_err(unreadable(&path))?;
        let bytes = file.metadata().map_err(unreadable(&path))?.len();
        if bytes > MANIFEST_BYTES_MAX {
            let problem = ManifestProblem::TooLarge { bytes, max: MANIFEST_BYTES_MAX };
            return Err(DataError::Manifest { path: shown, problem });
        }
        // The csv crate drops the byte order mark that spreadsheets write.
        let file = file.take(MANIFEST_BYTES_MAX);
        let reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        Ok(Self { shown, reader })
    }

    fn columns(&mut self, task: Option<&Task>) -> Result<Columns, DataError> {
        let path = || self.shown.clone();
        let header = self.reader.byte_headers().map_err(|error| {
            let (line, problem) = csv_error(&error, 1);
            DataError::Row { path: path(), line, problem }
        })?;
        Columns::find(header, task).map_err(|problem| DataError::Manifest { path: path(), problem })
    }
}

fn csv_error(error: &csv::Error, fallback: u64) -> (u64, RowProblem) {
    let line = error.position().map_or(fallback, csv::Position::line);
    let problem = if let csv::ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
        RowProblem::Fields { expected: *expected_len, found: *len }
    } else {
        RowProblem::Csv { detail: error.to_string() }
    };
    (line, problem)
}

struct Columns {
    file: usize,
    patient: usize,
    bag: Option<usize>,
    truth: Option<Truth>,
}

/// The columns that a task learns from.
#[derive(Clone, Copy)]
enum Truth {
    Label(usize),
    FollowUp { time: usize, event: usize },
    Mask(usize),
}

impl Columns {
    /// Other columns may be there: sites keep age, scanner and the like in the same file.
    fn find(header: &ByteRecord, task: Option<&Task>) -> Result<Self, ManifestProblem> {
        let maybe = |column: &'static str| {
            let mut found = header.iter().enumerate().filter(|(_, c)| *c == column.as_bytes());
            let first = found.next().map(|(index, _)| index);
            match found.next() {
                Some(_) => Err(ManifestProblem::DuplicateColumn { column }),
                None => Ok(first),
            }
        };
        let find =
            |column: &'static str| maybe(column)?.ok_or(ManifestProblem::MissingColumn { column });
        let truth = match task {
            None | Some(Task::Rehearsal { .. }) => None,
            Some(Task::Survival {}) => {
                Some(Truth::FollowUp { time: find("time")?, event: find("event")? })
            }
            Some(Task::Segmentation { .. }) => Some(Truth::Mask(find("mask")?)),
            Some(
                Task::Binary { .. }
                | Task::MultiClass { .. }
                | Task::MultiLabel { .. }
                | Task::Ordinal { .. },
            ) => Some(Truth::Label(find("label")?)),
        };
        Ok(Self { file: find("file")?, patient: find("patient")?, bag: maybe("bag")?, truth })
    }

    fn row(
        &self,
        record: &ByteRecord,
        root: &Path,
        task: Option<&Task>,
    ) -> Result<(Case, PathBuf), RowProblem> {
        let field = |index: usize| {
            let bytes = record.get(index).unwrap_or_default();
            std::str::from_utf8(bytes).map_err(|_| RowProblem::NotUtf8)
        };
        let needed = |index: usize, column| match field(index)? {
            "" => Err(RowProblem::EmptyField { column }),
            text => Ok(text),
        };
        let file = needed(self.file, "file")?;
        let patient = needed(self.patient, "patient")?;
        let label = match (task, self.truth) {
            (Some(task), Some(Truth::Label(index))) => label(field(index)?, task)?,
            (Some(task), Some(Truth::Mask(index))) => Label::Mask {
                path: inside(root, needed(index, "mask")?)?,
                classes: task.classes().len(),
            },
            (Some(_), Some(Truth::FollowUp { time, event })) => {
                follow_up(needed(time, "time")?, needed(event, "event")?)?
            }
            (Some(_), None) | (None, _) => Label::Unlabelled,
        };
        let path = inside(root, file)?;
        let mut case = Case::new(file.to_owned(), patient.to_owned(), label);
        if let Some(bag) = self.bag {
            case.bag = needed(bag, "bag")?.to_owned();
        }
        Ok((case, path))
    }
}

fn follow_up(time: &str, event: &str) -> Result<Label, RowProblem> {
    let told = time.parse().ok().filter(|time: &f64| time.is_finite() && *time > 0.0);
    let time = told.ok_or_else(|| RowProblem::Time { text: time.to_owned() })?;
    match event {
        "1" => Ok(Label::FollowUp { time, event: true }),
        "0" => Ok(Label::FollowUp { time, event: false }),
        text => Err(RowProblem::Event { text: text.to_owned() }),
    }
}

fn label(text: &str, task: &Task) -> Result<Label, RowProblem> {
    let classes = task.classes();
    let index = |label: &str| {
        classes.iter().position(|class| class == label).ok_or_else(|| RowProblem::UnknownLabel {
            label: label.to_owned(),
            classes: classes.join(", "),
        })
    };
    if !matches!(task, Task::MultiLabel { .. }) {
        return index(text).map(Label::Class);
    }
    let mut marks = vec![false; classes.len()];
    for label in text.split(';').map(str::trim).filter(|label| !label.is_empty()) {
        if std::mem::replace(&mut marks[index(label)?], true) {
            return Err(RowProblem::RepeatedLabel { label: label.to_owned() });
        }
    }
    Ok(Label::Many(marks))
}

/// The file's real path, which lies under `root` (a real path too).
fn inside(root: &Path, file: &str) -> Result<PathBuf, RowProblem> {
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
