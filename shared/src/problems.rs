//! Problems of a manifest, each with its key; all are reported at once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The dotted key to mend.
    pub key: String,
    /// The fault, and the right value.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// Every problem that a check found, in the order in which it looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems that `check` finds, as an error; nothing when it finds none.
    pub fn of(check: impl FnOnce(&mut Self)) -> Result<(), Self> {
        let mut found = Self::default();
        check(&mut found);
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// Adds one.
    pub fn add(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Problem { key: key.into(), problem: problem.into() });
    }

    /// Adds one unless `holds`; says whether it holds.
    pub fn require(
        &mut self,
        holds: bool,
        key: impl Into<String>,
        problem: impl FnOnce() -> String,
    ) -> bool {
        if !holds {
            self.add(key, problem());
        }
        holds
    }

    /// Drops those that `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) {
        self.0.retain(keep);
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of problems.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// One line each.
    pub fn lines(&self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }

    /// True when one of them is about `table` or a key in it.
    pub fn touch(&self, table: &str) -> bool {
        self.iter().any(|found| {
            let rest = found.key.strip_prefix(table);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("; "))
    }
}

impl std::error::Error for Problems {}
