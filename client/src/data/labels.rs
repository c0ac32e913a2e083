//! The CSV manifest: which file, or which DICOM study, shows what.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Take};
use std::path::Path;

use csv::ByteRecord;
use tributary_shared::manifest::Task;

use super::folder::{inside, unreadable};
use super::source::task_of;
use super::{DataError, Label, ManifestProblem, RowProblem};

/// Largest manifest read, bytes.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// What a row is about, by the column that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `file`: a path inside the folder.
    File,
    /// `SOPInstanceUID`: one DICOM file.
    Instance,
    /// `StudyInstanceUID`: all files of a study.
    Study,
    /// `patient` or `PatientID`, without any of the others: all files of a patient.
    Patient,
}

/// One row.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) line: u64,
    /// Of the kind that the manifest's [`Key`] tells.
    pub(super) key: String,
    /// Absent when the column is, or is empty.
    pub(super) patient: Option<String>,
    /// Absent when the column is.
    pub(super) bag: Option<String>,
    pub(super) label: Label,
}

/// An opened manifest.
pub(super) struct Labels {
    pub(super) shown: String,
    pub(super) key: Key,
    reader: csv::Reader<Take<File>>,
    columns: Columns,
}

struct Columns {
    key: usize,
    patient: Option<usize>,
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

impl Labels {
    pub(super) fn open(path: &Path, task: Option<&Task>) -> Result<Self, DataError> {
        let shown = path.display().to_string();
        let file = File::open(path).map_err(unreadable(path))?;
        let bytes = file.metadata().map_err(unreadable(path))?.len();
        if bytes > MANIFEST_BYTES_MAX {
            let problem = ManifestProblem::TooLarge { bytes, max: MANIFEST_BYTES_MAX };
            return Err(DataError::Manifest { path: shown, problem });
        }
        // The csv crate drops the byte order mark that spreadsheets write.
        let file = file.take(MANIFEST_BYTES_MAX);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        let header = reader.byte_headers().map_err(|error| {
            let (line, problem) = csv_error(&error, 1);
            DataError::Row { path: shown.clone(), line, problem }
        })?;
        let (key, columns) = find_columns(header, task)
            .map_err(|problem| DataError::Manifest { path: shown.clone(), problem })?;
        Ok(Self { shown, key, reader, columns })
    }

    /// Whether the manifest itself can tell who a file shows.
    pub(super) fn names_patients(&self) -> bool {
        self.columns.patient.is_some()
    }

    pub(super) fn row_error(&self, line: u64, problem: RowProblem) -> DataError {
        DataError::Row { path: self.shown.clone(), line, problem }
    }

    /// Every row for itself, so that all that is wrong can be told at once.
    /// A mask lies under `root`, a real path.
    pub(super) fn rows(&mut self, root: &Path, task: Option<&Task>) -> Vec<Result<Row, DataError>> {
        let columns = &self.columns;
        let records = self.reader.byte_records().enumerate();
        records
            .map(|(index, record)| {
                let fallback = index as u64 + 2;
                record
                    .map_err(|error| csv_error(&error, fallback))
                    .and_then(|record| {
                        let line = record.position().map_or(fallback, csv::Position::line);
                        columns.row(&record, line, root, task).map_err(|problem| (line, problem))
                    })
                    .map_err(|(line, problem)| DataError::Row {
                        path: self.shown.clone(),
                        line,
                        problem,
                    })
            })
            .collect()
    }

    /// The classes that the manifest itself names, in alphabetical order.
    pub(super) fn infer_task(path: &Path) -> Result<Task, DataError> {
        let any_classes = Task::MultiLabel { classes: Vec::new() };
        let mut labels = Self::open(path, Some(&any_classes))?;
        let column = match labels.columns.truth {
            Some(Truth::Label(column)) => column,
            Some(Truth::FollowUp { .. } | Truth::Mask(_)) | None => 0,
        };
        let shown = labels.shown;
        let row_error = |(line, problem)| DataError::Row { path: shown.clone(), line, problem };
        let mut texts = BTreeSet::new();
        for (index, record) in labels.reader.byte_records().enumerate() {
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

/// Other columns may be there: sites keep age, scanner and the like in the same file.
fn find_columns(
    header: &ByteRecord,
    task: Option<&Task>,
) -> Result<(Key, Columns), ManifestProblem> {
    let find = |column: &'static str| {
        let mut found = header.iter().enumerate().filter(|(_, c)| *c == column.as_bytes());
        let first = found.next().map(|(index, _)| index);
        match found.next() {
            Some(_) => Err(ManifestProblem::DuplicateColumn { column }),
            None => Ok(first),
        }
    };
    let needed =
        |column: &'static str| find(column)?.ok_or(ManifestProblem::MissingColumn { column });
    let truth = match task {
        None | Some(Task::SelfSupervised { .. } | Task::Rehearsal { .. }) => None,
        Some(Task::Survival {}) => {
            Some(Truth::FollowUp { time: needed("time")?, event: needed("event")? })
        }
        // A mask is of one picture, so a file is named beside it.
        Some(Task::Segmentation { .. }) => {
            needed("file")?;
            Some(Truth::Mask(needed("mask")?))
        }
        Some(
            Task::Binary { .. }
            | Task::MultiClass { .. }
            | Task::MultiLabel { .. }
            | Task::Ordinal { .. },
        ) => Some(Truth::Label(needed("label")?)),
    };
    let (patient, bag) = (find("patient")?.or(find("PatientID")?), find("bag")?);
    for (column, key) in
        [("file", Key::File), ("SOPInstanceUID", Key::Instance), ("StudyInstanceUID", Key::Study)]
    {
        if let Some(index) = find(column)? {
            return Ok((key, Columns { key: index, patient, bag, truth }));
        }
    }
    let index = patient.ok_or(ManifestProblem::MissingColumn { column: "file" })?;
    Ok((Key::Patient, Columns { key: index, patient, bag, truth }))
}

impl Columns {
    fn row(
        &self,
        record: &ByteRecord,
        line: u64,
        root: &Path,
        task: Option<&Task>,
    ) -> Result<Row, RowProblem> {
        let field = |index: usize| {
            let bytes = record.get(index).unwrap_or_default();
            std::str::from_utf8(bytes).map_err(|_| RowProblem::NotUtf8)
        };
        let needed = |index: usize, column| match field(index)? {
            "" => Err(RowProblem::EmptyField { column }),
            text => Ok(text),
        };
        let key = needed(self.key, "file")?.to_owned();
        let patient = match self.patient {
            Some(index) => Some(field(index)?).filter(|text| !text.is_empty()).map(str::to_owned),
            None => None,
        };
        let bag = match self.bag {
            Some(index) => Some(needed(index, "bag")?.to_owned()),
            None => None,
        };
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
        Ok(Row { line, key, patient, bag, label })
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
