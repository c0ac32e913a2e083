//! Answer of a site when an operator asks, before a run begins, whether it would take part: a
//! class, never a count, a path or the words of a policy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::SiteName;
use crate::problems::Problem;

/// A site's answer to a check, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckAnswer {
    /// It would take part now.
    Ready,
    /// Its policy refuses.
    Policy,
    /// It holds no such backbone.
    Backbone,
    /// Its images or labels are missing or do not fit the run.
    Data,
    /// It holds fewer training cases than its policy asks for, or more than the run takes.
    Cases,
    /// Something that ends by itself: outside its hours, images away for a moment.
    Passing,
    /// It was asked as often as its policy allows in a day, and read nothing.
    ChecksPerDay,
    /// Another reason; the site's log has it.
    Other,
    /// It has no connection to the coordinator.
    NotConnected,
    /// It is connected and did not answer in time.
    NoAnswer,
    /// It is invited and not enrolled yet.
    NotEnrolled,
    /// The operator has suspended it.
    Suspended,
}

impl CheckAnswer {
    /// Every answer.
    pub const ALL: [Self; 12] = [
        Self::Ready,
        Self::Policy,
        Self::Backbone,
        Self::Data,
        Self::Cases,
        Self::Passing,
        Self::ChecksPerDay,
        Self::Other,
        Self::NotConnected,
        Self::NoAnswer,
        Self::NotEnrolled,
        Self::Suspended,
    ];

    /// The word on the wire, in the history and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Policy => "policy",
            Self::Backbone => "backbone",
            Self::Data => "data",
            Self::Cases => "cases",
            Self::Passing => "passing",
            Self::ChecksPerDay => "checks_per_day",
            Self::Other => "other",
            Self::NotConnected => "not_connected",
            Self::NoAnswer => "no_answer",
            Self::NotEnrolled => "not_enrolled",
            Self::Suspended => "suspended",
        }
    }

    /// Meaning of the answer, and the operator's remedy.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ready => "would take part now",
            Self::Policy => "its policy.toml refuses; its log says why",
            Self::Backbone => "it does not hold this backbone; send its engineer the file",
            Self::Data => "its images or labels are missing or do not fit the run",
            Self::Cases => {
                "it holds fewer training cases than its cases_min, or more than limits.cases_max"
            }
            Self::Passing => "not now, but later by itself: outside its hours, images away",
            Self::ChecksPerDay => "asked as often as its checks_per_day allows; try tomorrow",
            Self::Other => "cannot take part; its own log says why",
            Self::NotConnected => {
                "its client is not running or cannot connect; start `tributary-client run` there"
            }
            Self::NoAnswer => "it is connected and gave no answer in time",
            Self::NotEnrolled => "invited and not enrolled yet",
            Self::Suspended => "suspended; `tributary site reinstate` lets it take part",
        }
    }
}

impl fmt::Display for CheckAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CheckAnswer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|answer| answer.as_str() == text);
        found.ok_or_else(|| format!("`{}` is no answer to a check", text.escape_debug()))
    }
}

/// Point that the operator should look at, from a site that would take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckWarning {
    /// The learning rate would still be rising when this site's part of the run ends.
    WarmupTooLong,
    /// It is at work on another run.
    Training,
}

impl CheckWarning {
    /// Every warning.
    pub const ALL: [Self; 2] = [Self::WarmupTooLong, Self::Training];

    /// The word on the wire, in the history and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmupTooLong => "warmup_too_long",
            Self::Training => "training",
        }
    }

    /// Meaning of the warning, and the operator's remedy.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::WarmupTooLong => {
                "training.warmup_steps is not below all of the run's steps there; lower it"
            }
            Self::Training => "it is at work on another run and answers afterwards",
        }
    }
}

impl fmt::Display for CheckWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CheckWarning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|warning| warning.as_str() == text);
        found.ok_or_else(|| format!("`{}` is no warning of a check", text.escape_debug()))
    }
}

/// One site's line in a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteCheck {
    /// The site.
    pub site: SiteName,
    /// Its answer.
    pub answer: CheckAnswer,
    /// Points to look at all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<CheckWarning>,
}

impl SiteCheck {
    /// Findings that keep a run from starting without a word of the operator, one line each.
    pub fn problems(&self) -> Vec<Problem> {
        let key = format!("site {}", self.site);
        let line = |word: &str, meaning: &str| Problem {
            key: key.clone(),
            problem: format!("{word}: {meaning}"),
        };
        let mut lines = Vec::new();
        if self.answer != CheckAnswer::Ready {
            lines.push(line(self.answer.as_str(), self.answer.meaning()));
        }
        lines.extend(self.warnings.iter().map(|w| line(w.as_str(), w.meaning())));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_is_written_and_its_json_is_the_word() {
        for answer in CheckAnswer::ALL {
            assert_eq!(answer.as_str().parse(), Ok(answer));
            assert_eq!(serde_json::to_string(&answer).unwrap(), format!("\"{answer}\""));
        }
        for warning in CheckWarning::ALL {
            assert_eq!(warning.as_str().parse(), Ok(warning));
            assert_eq!(serde_json::to_string(&warning).unwrap(), format!("\"{warning}\""));
        }
        assert!("42 cases".parse::<CheckAnswer>().is_err());
    }

    #[test]
    fn a_site_that_is_ready_has_no_problem() {
        let check = |answer, warnings| {
            let site = "alpha".parse().unwrap();
            SiteCheck { site, answer, warnings }
        };
        assert!(check(CheckAnswer::Ready, Vec::new()).problems().is_empty());
        let warned = check(CheckAnswer::Ready, vec![CheckWarning::WarmupTooLong]).problems();
        assert!(warned[0].to_string().starts_with("site alpha: warmup_too_long: training."));
        let refused = check(CheckAnswer::Policy, Vec::new()).problems();
        assert!(refused[0].to_string().starts_with("site alpha: policy: its policy.toml refuses"));
    }
}
