//! What was not read, and why: never fatal by itself.

use std::collections::BTreeMap;

use tributary_shared::outcome::chain;

use super::DataError;

/// Refusals kept word for word; the others are counted.
const LINES_MAX: usize = 1000;

/// What became of the files that are no cases. Names files and patients: it stays at the site.
#[derive(Default)]
pub struct Report {
    refused: usize,
    lines: Vec<String>,
    passed_over: BTreeMap<&'static str, usize>,
    notes: BTreeMap<&'static str, usize>,
    first: Option<DataError>,
}

impl Report {
    /// Something that should be a case and cannot be.
    pub(super) fn refuse(&mut self, error: DataError) {
        self.refused += 1;
        if self.lines.len() < LINES_MAX {
            self.lines.push(chain(&error));
        }
        self.first.get_or_insert(error);
    }

    /// A file that was never meant to be a case.
    pub(super) fn pass_over(&mut self, why: &'static str) {
        *self.passed_over.entry(why).or_default() += 1;
    }

    /// Something worth knowing about a case that was read.
    pub(super) fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.refused += other.refused;
        let room = LINES_MAX - self.lines.len();
        self.lines.extend(other.lines.into_iter().take(room));
        for (why, count) in other.passed_over {
            *self.passed_over.entry(why).or_default() += count;
        }
        for (what, count) in other.notes {
            *self.notes.entry(what).or_default() += count;
        }
        self.first = self.first.take().or(other.first);
    }

    /// How many images were refused.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// One line for each refusal: the file or row, and the reason; at most a thousand.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Files that were never meant to be cases: the reason and how many.
    pub fn passed_over(&self) -> &BTreeMap<&'static str, usize> {
        &self.passed_over
    }

    /// What is worth knowing about the cases that were read, and how often.
    pub fn notes(&self) -> &BTreeMap<&'static str, usize> {
        &self.notes
    }

    /// An error when anything was refused: the first of them.
    pub(super) fn strict(self) -> Result<(), DataError> {
        self.first.map_or(Ok(()), Err)
    }

    /// An error when more than this share of all images was refused.
    pub(super) fn check(&self, cases: usize, share_max: f64) -> Result<(), DataError> {
        let all = self.refused + cases;
        if self.refused == 0 || (cases > 0 && self.refused as f64 <= share_max * all as f64) {
            return Ok(());
        }
        let first = self.lines.first().cloned().unwrap_or_default();
        Err(DataError::TooManyRefused { refused: self.refused, all, share_max, first })
    }
}
