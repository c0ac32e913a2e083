//! One command to its end, and what it said.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Lines of standard error that a failure shows.
pub(crate) const TAIL_LINES: usize = 20;

/// A command or process that did not do what it was started for.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The command line, or what was being done.
    pub doing: String,
    /// Its exit code, if it ended by itself.
    pub exit: Option<i32>,
    /// The stable code of its JSON envelope, if it wrote one.
    pub code: Option<String>,
    /// What went wrong, one line.
    pub problem: String,
    /// The last lines of its standard error.
    pub tail: Vec<String>,
}

impl Failed {
    /// A failure that left no output.
    pub fn new(doing: &str, exit: Option<i32>, problem: &str) -> Self {
        Self {
            doing: doing.to_owned(),
            exit,
            code: None,
            problem: problem.to_owned(),
            tail: Vec::new(),
        }
    }

    /// A failure of the operating system.
    pub fn io(doing: &str, error: &io::Error) -> Self {
        Self::new(doing, None, &error.to_string())
    }

    /// A failure at a file.
    pub fn file(path: &Path, error: &io::Error) -> Self {
        Self::io(&path.display().to_string(), error)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.doing)?;
        if let Some(exit) = self.exit {
            write!(f, " (exit code {exit})")?;
        }
        write!(f, ": {}", self.problem)?;
        self.tail.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl std::error::Error for Failed {}

/// What a command that ended well said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The `data` of its envelope; null without `--format json`.
    pub data: Value,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `command` to its end; anything but exit code 0 is a failure.
pub fn run(command: &mut Command) -> Result<Outcome, Failed> {
    let doing = spell(command);
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| Failed::io(&doing, &e))?;
    outcome(&doing, &output)
}

/// What an ended command came to.
pub(crate) fn outcome(doing: &str, output: &Output) -> Result<Outcome, Failed> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    // The envelope is the last line: progress as JSON may stand before it.
    let envelope: Value = stdout
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or(Value::Null);
    if output.status.success() {
        return Ok(Outcome { data: envelope["data"].clone(), stdout, stderr });
    }
    let tail: Vec<String> = stderr.lines().map(str::to_owned).collect();
    let tail = tail[tail.len().saturating_sub(TAIL_LINES)..].to_vec();
    let error = &envelope["error"];
    let problem = match (error["message"].as_str(), error["hint"].as_str()) {
        (Some(message), Some(hint)) => format!("{message} ({hint})"),
        (Some(message), None) => message.to_owned(),
        (None, _) => tail.last().cloned().unwrap_or_else(|| output.status.to_string()),
    };
    Err(Failed {
        doing: doing.to_owned(),
        exit: output.status.code(),
        code: error["code"].as_str().map(str::to_owned),
        problem,
        tail,
    })
}

/// The command line as a person would type it, the program without its folder.
pub(crate) fn spell(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Outcome, Failed> {
        run(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn the_envelope_of_the_last_line_is_the_answer() {
        let outcome = shell("echo progress; echo '{\"data\":{\"n\":1}}'").unwrap();
        assert_eq!(outcome.data["n"], 1);
        let failed = shell("echo '{\"error\":{\"code\":\"policy\",\"message\":\"no\"}}'; exit 1")
            .unwrap_err();
        assert_eq!((failed.exit, failed.code.as_deref()), (Some(1), Some("policy")));
        assert_eq!(failed.problem, "no");
        let failed = shell("echo first >&2; echo last >&2; exit 4").unwrap_err();
        assert_eq!(failed.problem, "last");
        assert!(failed.to_string().contains("(exit code 4)"), "{failed}");
    }
}
