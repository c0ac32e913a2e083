//! Lines that a `doctor` prints: one a check, with a hint that mends what is wrong.

use std::fmt;

use serde::Serialize;

use crate::outcome::{ExitCode, Failure};
use crate::text::printable;

/// One thing that a program needs, looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The thing that was checked.
    pub name: &'static str,
    /// True when the program works with it.
    pub ok: bool,
    /// The finding, or the fault.
    pub detail: String,
    /// Hint that mends the fault. Beside `ok`, a warning about something that works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    #[serde(skip)]
    exit: Option<ExitCode>,
}

impl Check {
    /// A check that found this, or failed.
    pub fn new(name: &'static str, found: Result<String, Failure>) -> Self {
        match found {
            Ok(detail) => Self { name, ok: true, detail, mend: None, exit: None },
            Err(Failure { exit, message, hint, .. }) => {
                Self { name, ok: false, detail: message, mend: hint, exit: Some(exit) }
            }
        }
    }

    /// A check that passed with a warning.
    pub fn warn(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        let (detail, mend) = (detail.into(), Some(mend.into()));
        Self { name, ok: true, detail, mend, exit: None }
    }
}

impl fmt::Display for Check {
    /// One line, and one more when something is to mend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.ok, &self.mend) {
            (false, _) => "FAIL",
            (true, Some(_)) => "warn",
            (true, None) => "ok  ",
        };
        write!(f, "{verdict} {:<13} {}", self.name, printable(&self.detail))?;
        match &self.mend {
            Some(mend) => write!(f, "\n     {:<13} -> {}", "", printable(mend)),
            None => Ok(()),
        }
    }
}

/// The failure of a doctor: how many checks failed, with the exit code of the first.
pub fn verdict(checks: &[Check]) -> Result<(), Failure> {
    let Some(exit) = checks.iter().find_map(|check| check.exit) else { return Ok(()) };
    let failed = checks.iter().filter(|check| !check.ok).count();
    Err(Failure::new(exit, "doctor", format!("{failed} of {} checks failed", checks.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_and_the_first_failure_gives_the_exit_code() {
        let checks = [
            Check::new("disk", Ok("12 GB free".to_owned())),
            Check::warn("address", "port 1, not 2", "is something in between?"),
            Check::new("listener", Err(Failure::connection("no\nanswer").hint("start it"))),
        ];
        let lines: Vec<String> = checks.iter().map(ToString::to_string).collect();
        assert_eq!(lines[0], "ok   disk          12 GB free");
        assert!(lines[1].starts_with("warn address       port 1, not 2\n"), "{}", lines[1]);
        assert!(lines[2].starts_with("FAIL listener      no answer\n"), "{}", lines[2]);
        assert!(lines[2].ends_with("-> start it"), "{}", lines[2]);
        let failure = verdict(&checks).unwrap_err();
        assert_eq!((failure.exit, failure.code), (ExitCode::Connection, "doctor"));
        assert_eq!(failure.message, "1 of 3 checks failed");
        assert!(verdict(&checks[..2]).is_ok());
    }
}
