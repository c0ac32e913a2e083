//! Sites that were passed over, a withdrawn round and a resumed run in an export.

use tributary_shared::refusal::{Refusal, RefusalClass};

use super::fixture::{Coordinator, site};
use super::*;
use crate::round::event::LossCause;

fn refusal() -> Refusal {
    Refusal::Policy { reason: "at night".to_owned(), class: RefusalClass::Passing }
}

/// Every site refuses or is absent; all come back; one refuses again; the operator stops and
/// resumes the run.
fn eventful() -> Coordinator {
    let mut c = Coordinator::found();
    let demo = c.start("demo");
    c.open(&demo);
    for who in ["a", "b"] {
        c.command(&demo, Command::Decline { site: site(who), round: 1, reason: refusal() });
    }
    let cause = LossCause::NoAnswer { waited_s: 30 };
    c.command(&demo, Command::Lose { site: site("c"), round: Some(1), cause });
    c.command(&demo, Command::Ready { site: site("a") });
    c.command(&demo, Command::Present { site: site("c") });
    c.open(&demo);
    c.accept(&demo, "a", 100);
    c.accept(&demo, "c", 100);
    c.submit(&demo, "a", 100, 1.0);
    c.submit(&demo, "c", 100, 1.0);
    c.publish(&demo, 1, 1.0);
    c.command(&demo, Command::Stop { reason: "enough".to_owned() });
    let (by, reason) = ("operator/o".to_owned(), "on with it".to_owned());
    c.command(&demo, Command::Resume { by, reason });
    c.open(&demo);
    for who in ["a", "b", "c"] {
        c.accept(&demo, who, 100);
        c.submit(&demo, who, 100, 1.0);
    }
    c.publish(&demo, 2, 2.0);
    c
}

#[test]
fn a_history_with_withdrawn_rounds_and_a_resumed_run_is_verified() {
    let report = check(&eventful().export()).unwrap();
    let [demo] = &report.runs[..] else { panic!("{report:?}") };
    assert_eq!((&demo.state[..], demo.rounds_published), ("completed_partial", 2));
    assert_eq!(demo.detail, "b missing in round 1: the site's policy refuses: at night");
    assert_eq!(report.adapters_recomputed, 2);
    let counts: Vec<_> = demo.sites.iter().map(|s| (s.accepted, s.declined, s.lost)).collect();
    assert_eq!(counts, [(2, 0, 0), (1, 1, 0), (2, 0, 0)]);
}

/// A coordinator that leaves out a site by its own choice could not say so under the log's key.
#[test]
fn a_site_that_is_passed_over_without_a_ground_is_found() {
    let mut c = eventful();
    let opened = |event: &RunEvent| matches!(event, RunEvent::RoundOpened { passed_over, .. } if !passed_over.is_empty());
    let at = position(&c.records, opened);
    if let Event::Run(RunEvent::RoundOpened { cohort, passed_over, .. }) = &mut c.records[at].event
    {
        cohort.retain(|asked| asked.as_str() != "a");
        passed_over[0].site = site("a");
    }
    let finding = line(&found(&c.export()));
    assert!(finding.contains("passes over a, which neither refuses nor is absent"), "{finding}");
}
