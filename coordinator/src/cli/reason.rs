//! `--reason`: the operator's words beside what stands in the history for good.

use clap::Args;
use tributary_shared::outcome::Failure;
use tributary_shared::text::REASON_CHARS_MAX;

/// The operator's reason for a command.
#[derive(Debug, Args)]
pub(super) struct Reason {
    /// Reason for the command; always needed, the words stand in the history for good
    #[arg(long, value_name = "WORDS")]
    reason: Option<String>,
}

impl Reason {
    /// The words. Without any, nothing is asked of the coordinator and `command` is shown with some.
    pub(super) fn words(self, command: &str) -> Result<String, Failure> {
        let words = self.reason.filter(|words| !words.trim().is_empty());
        if words.as_ref().is_some_and(|words| words.chars().count() > REASON_CHARS_MAX) {
            let line = format!("--reason has more than {REASON_CHARS_MAX} characters");
            return Err(Failure::invalid("reason", line).hint("shorten it; nothing was done"));
        }
        words.ok_or_else(|| {
            let line = format!("`{command}` needs a --reason, and nothing was done");
            let example = format!("e.g. tributary {command} --reason \"audit of the data\"");
            Failure::invalid("reason", line)
                .hint(format!("{example}; the words stand in the history for good"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_without_words_is_none() {
        let reason = |words: Option<&str>| Reason { reason: words.map(str::to_owned) };
        assert_eq!(reason(Some("late")).words("run stop a").unwrap(), "late");
        for none in [None, Some(""), Some("  ")] {
            let line = reason(none).words("run stop a").unwrap_err().to_string();
            assert!(line.contains("tributary run stop a --reason \""), "{line}");
        }
        // Failed before: what was above the limit was cut off without a word.
        let long = reason(Some(&"x".repeat(501))).words("run stop a").unwrap_err().to_string();
        assert!(long.contains("more than 500 characters"), "{long}");
    }
}
