//! The CSV manifest: which file, or which DICOM study, shows what.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Take};
use std::path::Path;

use csv::ByteRecord;
use tributary_shared::manifest::Task;

use super::folder::unreadable;
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
pub(super) struct Row {
    pub(super) line: u64,
    /// Of the kind that the manifest's [`Key`] tells.
    pub(super) key: String,
    /// Absent when the column is, or is empty.
    pub(super) patient: Option<String>,
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
    label: Option<usize>,
}

impl Labels {
    pub(super) fn open(path: &Path, labelled: bool) -> Result<Self, DataError> {
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
        let (key, columns) = find_columns(header, labelled)
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
    pub(super) fn rows(&mut self, task: Option<&Task>) -> Vec<Result<Row, DataError>> {
        let columns = &self.columns;
        let records = self.reader.byte_records().enumerate();
        records
            .map(|(index, record)| {
                let fallback = index as u64 + 2;
                record
                    .map_err(|error| csv_error(&error, fallback))
                    .and_then(|record| {
                        let line = record.position().map_or(fallback, csv::Position::line);
                        columns.row(&record, line, task).map_err(|problem| (line, problem))
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
        let mut labels = Self::open(path, true)?;
        let column = labels.columns.label.unwrap_or_default();
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
fn find_columns(header: &ByteRecord, labelled: bool) -> Result<(Key, Columns), ManifestProblem> {
    let find = |column: &'static str| {
        let mut found = header.iter().enumerate().filter(|(_, c)| *c == column.as_bytes());
        let first = found.next().map(|(index, _)| index);
        match found.next() {
            Some(_) => Err(ManifestProblem::DuplicateColumn { column }),
            None => Ok(first),
        }
    };
    let label = match labelled {
        true => Some(find("label")?.ok_or(ManifestProblem::MissingColumn { column: "label" })?),
        false => None,
    };
    let patient = find("patient")?.or(find("PatientID")?);
    for (column, key) in
        [("file", Key::File), ("SOPInstanceUID", Key::Instance), ("StudyInstanceUID", Key::Study)]
    {
        if let Some(index) = find(column)? {
            return Ok((key, Columns { key: index, patient, label }));
        }
    }
    let index = patient.ok_or(ManifestProblem::MissingColumn { column: "file" })?;
    Ok((Key::Patient, Columns { key: index, patient, label }))
}

impl Columns {
    fn row(&self, record: &ByteRecord, line: u64, task: Option<&Task>) -> Result<Row, RowProblem> {
        let field = |index: usize| {
            let bytes = record.get(index).unwrap_or_default();
            std::str::from_utf8(bytes).map_err(|_| RowProblem::NotUtf8)
        };
        let key = match field(self.key)? {
            "" => return Err(RowProblem::EmptyField { column: "file" }),
            text => text.to_owned(),
        };
        let patient = match self.patient {
            Some(index) => Some(field(index)?).filter(|text| !text.is_empty()).map(str::to_owned),
            None => None,
        };
        let label = match (task, self.label) {
            (Some(task), Some(index)) => label(field(index)?, task)?,
            (Some(_), None) | (None, _) => Label::Unlabelled,
        };
        Ok(Row { line, key, patient, label })
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
