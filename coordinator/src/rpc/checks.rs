//! A check's report as the wire has it.

use std::time::Duration;

use tributary_proto::v1;
use tributary_shared::check::SiteCheck;
use tributary_shared::problems::{Problem, Problems};

use crate::driver::checks::Report;

/// Longest wait for the answers of sites that an operator may ask for.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Time that sites may take to answer, from `wait_ms` milliseconds, at most `WAIT_MAX`.
pub(super) fn wait(wait_ms: u32) -> Duration {
    Duration::from_millis(u64::from(wait_ms)).min(WAIT_MAX)
}

/// The report for an operator.
pub(super) fn report(report: &Report) -> v1::CheckReport {
    v1::CheckReport {
        problems: findings(&report.problems),
        warnings: findings(&report.warnings),
        sites: report.sites.iter().map(site).collect(),
        payload_bytes: report.payload_bytes,
        manifest_problems: u32::try_from(report.manifest_problems).unwrap_or(u32::MAX),
    }
}

fn findings(problems: &Problems) -> Vec<v1::Finding> {
    let finding = |problem: &Problem| v1::Finding {
        key: problem.key.clone(),
        problem: problem.problem.clone(),
    };
    problems.iter().map(finding).collect()
}

fn site(check: &SiteCheck) -> v1::SiteAnswer {
    v1::SiteAnswer {
        site: check.site.to_string(),
        answer: check.answer.to_string(),
        warnings: check.warnings.iter().map(ToString::to_string).collect(),
    }
}
