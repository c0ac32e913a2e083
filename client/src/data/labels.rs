//! The manifest, CSV or Parquet: which file, or which DICOM study, shows what.

mod pages;
mod rows;
mod table;

use std::collections::BTreeSet;
use std::path::Path;

use csv::ByteRecord;
use tributary_shared::manifest::Task;

use self::rows::Rows;
pub use self::table::TableProblem;
pub(super) use self::table::check_footer;
use super::folder::inside;
use super::source::task_of;
use super::{At, DataError, Label, ManifestProblem, RowProblem};

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
    pub(super) at: At,
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
    rows: Rows,
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
        let mut rows = Rows::open(path)?;
        let header = rows.header().map_err(|(at, problem)| DataError::Row {
            path: shown.clone(),
            at,
            problem,
        })?;
        let refused = |problem| DataError::Manifest { path: shown.clone(), problem };
        let (key, columns) = find_columns(&header, task).map_err(refused)?;
        rows.select(&columns.used()).map_err(|problem| refused(problem.into()))?;
        Ok(Self { shown, key, rows, columns })
    }

    /// Whether the manifest itself can tell who a file shows.
    pub(super) fn names_patients(&self) -> bool {
        self.columns.patient.is_some()
    }

    pub(super) fn row_error(&self, at: At, problem: RowProblem) -> DataError {
        DataError::Row { path: self.shown.clone(), at, problem }
    }

    /// Every row for itself, so that all that is wrong can be told at once.
    /// A mask lies under `root`, a real path.
    pub(super) fn rows(&mut self, root: &Path, task: Option<&Task>) -> Vec<Result<Row, DataError>> {
        let (columns, shown) = (&self.columns, &self.shown);
        self.rows
            .records()
            .map(|record| {
                record
                    .and_then(|(at, record)| {
                        columns.row(&record, at, root, task).map_err(|problem| (at, problem))
                    })
                    .map_err(|(at, problem)| DataError::Row { path: shown.clone(), at, problem })
            })
            .collect()
    }

    /// The classes that the manifest itself names, in alphabetical order; of a manifest without
    /// labels, what its other columns are for.
    pub(super) fn infer_task(path: &Path) -> Result<Task, DataError> {
        let any_classes = Task::MultiLabel { classes: Vec::new() };
        let mut labels = match Self::open(path, Some(&any_classes)) {
            Ok(labels) => labels,
            Err(error) => return Self::infer_unlabelled(path).ok_or(error)?,
        };
        let column = match labels.columns.truth {
            Some(Truth::Label(column)) => column,
            Some(Truth::FollowUp { .. } | Truth::Mask(_)) | None => 0,
        };
        let shown = labels.shown;
        let row_error = |(at, problem)| DataError::Row { path: shown.clone(), at, problem };
        let mut texts = BTreeSet::new();
        for record in labels.rows.records() {
            let (at, record) = record.map_err(row_error)?;
            let text = std::str::from_utf8(record.get(column).unwrap_or_default());
            texts.insert(text.map_err(|_| row_error((at, RowProblem::NotUtf8)))?.to_owned());
        }
        let many = texts.iter().any(|text| text.contains(';') || text.is_empty());
        let classes: BTreeSet<&str> = match many {
            true => texts.iter().flat_map(|t| t.split(';').map(str::trim)).collect(),
            false => texts.iter().map(String::as_str).collect(),
        };
        let classes = classes.into_iter().filter(|class| !class.is_empty()).map(str::to_owned);
        Ok(task_of(classes.collect(), many))
    }

    fn infer_unlabelled(path: &Path) -> Option<Result<Task, DataError>> {
        if Self::open(path, Some(&Task::Survival {})).is_ok() {
            return Some(Ok(Task::Survival {}));
        }
        let mut labels = Self::open(path, None).ok()?;
        let names_masks = labels.rows.header().ok()?.iter().any(|name| name == b"mask");
        names_masks.then(|| {
            let problem = format!("{} names masks; their classes are in the run", path.display());
            Err(DataError::Argument { argument: "--run", problem })
        })
    }
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
    /// The places of all that are read.
    fn used(&self) -> Vec<usize> {
        let truth = match self.truth {
            Some(Truth::Label(column) | Truth::Mask(column)) => vec![column],
            Some(Truth::FollowUp { time, event }) => vec![time, event],
            None => Vec::new(),
        };
        let all = [Some(self.key), self.patient, self.bag].into_iter().flatten().chain(truth);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn row(
        &self,
        record: &ByteRecord,
        at: At,
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
        Ok(Row { at, key, patient, bag, label })
    }
}

fn follow_up(time: &str, event: &str) -> Result<Label, RowProblem> {
    let told = time.parse().ok().filter(|time: &f64| time.is_finite() && *time > 0.0);
    let time = told.ok_or_else(|| RowProblem::Time { text: time.to_owned() })?;
    // A column of booleans is written as `true`, by pandas as `True`.
    let is = |names: [&str; 2]| names.iter().any(|name| event.eq_ignore_ascii_case(name));
    if is(["1", "true"]) {
        Ok(Label::FollowUp { time, event: true })
    } else if is(["0", "false"]) {
        Ok(Label::FollowUp { time, event: false })
    } else {
        Err(RowProblem::Event { text: event.to_owned() })
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
