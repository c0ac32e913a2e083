//! Rounds that a lost branch of the history knows.

use tributary_shared::manifest::Cohort;

use super::*;

fn recovery() -> Digest {
    Digest::of(b"recovery")
}

fn skip(name: &str, round: u32, answered: bool, most: u64) -> Command {
    Command::Skip(Skip { site: site(name), round, answered, recovery: recovery(), most })
}

/// Failed before: a restored coordinator asked for round 1 again, whose delta had been released.
#[test]
fn a_run_goes_on_above_the_highest_round_that_a_site_knows() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.accept("a", CASES).unwrap();
    assert_eq!(trial.yes(skip("b", 3, true, 10)).len(), 1);
    assert_eq!(*trial.run.phase(), Phase::Waiting);
    trial.yes(Command::Open { active: sites("a b") });
    assert_eq!(trial.run.round(), 4);
    // A round cut short is held against no site.
    trial.contribute("a");
    trial.contribute("b");
    trial.publish();
    trial.yes(Command::Open { active: sites("a b") });
    trial.contribute("a");
    trial.contribute("b");
    assert_eq!(ended(&trial.publish()), Some(EndState::Completed));
    assert_eq!(trial.refold(), trial.run);
}

#[test]
fn a_site_cannot_push_a_run_further_than_leaves_were_lost() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    assert!(trial.yes(skip("b", 6, true, 5)).is_empty());
    assert_eq!(trial.yes(skip("b", 3, true, 5)).len(), 1);
    for round in 4.. {
        trial.yes(Command::Open { active: sites("a b") });
        assert_eq!(trial.run.round(), round);
        // To cut the open round off again and again costs a round each time.
        if trial.yes(skip("b", round, true, 5)).is_empty() {
            assert_eq!(round, 6);
            return;
        }
    }
}

#[test]
fn work_of_this_branch_is_no_reason_to_skip() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.accept("a", CASES).unwrap();
    // It was asked here and owes its delta: it delivers.
    assert!(trial.yes(skip("a", 1, false, 9)).is_empty());
    trial.admit("a", delta(1, CASES)).unwrap();
    assert!(trial.yes(skip("a", 1, true, 9)).is_empty());
    // Owed for a round in which it was not asked to train here, it is of the other branch.
    assert_eq!(trial.yes(skip("b", 1, false, 9)).len(), 1);
    // A round that is closed or skipped is no reason any more.
    assert!(trial.yes(skip("b", 1, true, 9)).is_empty());
}

/// Failed before: a site outside the cohort cut rounds short.
#[test]
fn a_site_that_the_run_does_not_ask_skips_nothing() {
    let mut manifest = manifest("sites = 1");
    manifest.cohort = Some(Cohort { sites: sites("a b") });
    let mut trial = Trial::start_of(manifest);
    trial.yes(Command::Open { active: sites("a b c") });
    assert!(trial.yes(skip("c", 3, true, 10)).is_empty());
    assert_eq!(trial.yes(skip("b", 3, true, 10)).len(), 1);
}
