//! What a data source holds, in numbers, and everything that would be refused in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tributary_shared::manifest::Task;

use super::npz::Sink;
use super::pixels::Picture;
use super::{Case, DataError, DataSource, Label, folder, image_file, npz};

/// The numbers of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Census {
    /// The file or folder.
    pub source: String,
    /// Images that can be used.
    pub cases: usize,
    /// Different patients among them.
    pub patients: usize,
    /// Each class of the task, in its order.
    pub classes: Vec<ClassCount>,
    /// Cases of a multi-label task to which no class applies.
    pub without_class: usize,
    /// Each picture size that occurs.
    pub sizes: Vec<SizeCount>,
    /// What would be refused, one line each.
    pub refused: Vec<String>,
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

/// Decodes everything once and counts; an error only where nothing could be counted.
pub fn take(source: &DataSource, task: &Task) -> Result<Census, DataError> {
    let mut sizes = Sizes::default();
    let (mut cases, mut refused) = (Vec::new(), Vec::new());
    match source {
        DataSource::Npz(path) => cases = npz::read_each(path, Some(task), &mut sizes)?,
        DataSource::Folder { root, manifest } => {
            for row in folder::scan(root, manifest, Some(task))? {
                let decoded = row.and_then(|(case, path)| Ok((case, image_file::decode(&path)?)));
                match decoded {
                    Ok((case, picture)) => {
                        sizes.count(&picture);
                        cases.push(case);
                    }
                    Err(error) => refused.push(tributary_shared::outcome::chain(&error)),
                }
            }
        }
    }
    if cases.is_empty() && refused.is_empty() {
        return Err(DataError::Empty { path: source.path().display().to_string() });
    }
    Ok(Census {
        source: source.path().display().to_string(),
        patients: patients(&cases, |_| true),
        classes: classes(&cases, task),
        without_class: cases.iter().filter(|case| is_none(&case.label)).count(),
        cases: cases.len(),
        sizes: sizes.into_counts(),
        refused,
    })
}

fn patients(cases: &[Case], which: impl Fn(&Case) -> bool) -> usize {
    let patients: BTreeSet<&str> =
        cases.iter().filter(|case| which(case)).map(|case| case.patient.as_str()).collect();
    patients.len()
}

fn classes(cases: &[Case], task: &Task) -> Vec<ClassCount> {
    let count = |(index, class): (usize, &String)| {
        let shows = |case: &Case| case.label.shows(index);
        ClassCount {
            class: class.clone(),
            cases: cases.iter().filter(|case| shows(case)).count(),
            patients: patients(cases, shows),
        }
    };
    task.classes().iter().enumerate().map(count).collect()
}

fn is_none(label: &Label) -> bool {
    matches!(label, Label::Many(marks) if !marks.contains(&true))
}

#[derive(Default)]
struct Sizes(BTreeMap<(u32, u32), usize>);

impl Sizes {
    fn count(&mut self, picture: &Picture) {
        *self.0.entry(picture.dimensions()).or_default() += 1;
    }

    fn into_counts(self) -> Vec<SizeCount> {
        let count = |((width, height), cases)| SizeCount { width, height, cases };
        self.0.into_iter().map(count).collect()
    }
}

impl Sink for Sizes {
    fn expect(&mut self, _images: usize) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, picture: Picture) -> Result<(), DataError> {
        self.count(&picture);
        Ok(())
    }
}
