//! Who of an open round is alive and moving.

use super::*;
use crate::round::lease::{Leases, Progress};
use tributary_shared::manifest::Rounds;

const STALL_S: i64 = 30;
const LEASE_S: i64 = 10;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_000 * seconds)
}

fn rounds() -> Rounds {
    manifest("sites = 1").rounds
}

fn step(step: u64) -> Progress {
    Progress { phase: "training".to_owned(), step, ..Progress::default() }
}

fn training(names: &str) -> Seats {
    sites(names).into_iter().map(|s| (s, Seat::Training { cases: CASES })).collect()
}

#[test]
fn a_slow_site_that_moves_is_waited_for() {
    let (seats, mut leases) = (training("a"), Leases::new(at(0)));
    for second in (0..10_000).step_by(5) {
        // One step in 25 s, within the stall timeout of 30 s.
        leases.hear(&site("a"), at(second), step(second as u64 / 25));
        assert_eq!(leases.lapsed(&seats, &rounds(), at(second + 4)), []);
    }
}

#[test]
fn a_heard_site_that_does_not_move_stalls_and_moves_on() {
    let (seats, mut leases) = (training("a"), Leases::new(at(0)));
    for second in (0..=STALL_S).step_by(5) {
        leases.hear(&site("a"), at(second), step(7));
    }
    assert_eq!(leases.lapsed(&seats, &rounds(), at(STALL_S - 1)), []);
    let stalled = LossCause::Stalled { stalled_s: 30, step: 7 };
    assert_eq!(leases.lapsed(&seats, &rounds(), at(STALL_S)), [(site("a"), stalled)]);
    assert!(!leases.is_moving(&site("a"), &rounds(), at(STALL_S)));
    leases.hear(&site("a"), at(STALL_S + 5), step(7));
    assert!(!leases.is_moving(&site("a"), &rounds(), at(STALL_S + 5)), "heard is not moved");
    leases.hear(&site("a"), at(STALL_S + 10), step(8));
    assert!(leases.is_moving(&site("a"), &rounds(), at(STALL_S + 10)));
}

#[test]
fn a_silent_site_is_lost_after_its_lease() {
    let (seats, mut leases) = (training("a b"), Leases::new(at(0)));
    leases.hear(&site("a"), at(3), step(1));
    leases.hear(&site("b"), at(5), step(1));
    assert_eq!(leases.next_deadline(&seats, &rounds()), Some(at(3 + LEASE_S)));
    let silent = LossCause::Silent { silent_s: 10 };
    assert_eq!(leases.lapsed(&seats, &rounds(), at(3 + LEASE_S)), [(site("a"), silent)]);
}

/// It held the round for the whole stall timeout.
#[test]
fn a_site_that_is_not_heard_in_the_round_has_the_answer_timeout() {
    let seats: Seats = [(site("a"), Seat::Asked)].into();
    let rounds = manifest_with("sites = 1", "answer_timeout_s = 20").rounds;
    let leases = Leases::new(at(0));
    assert_eq!(leases.next_deadline(&seats, &rounds), Some(at(20)));
    let silent = LossCause::NoAnswer { waited_s: 20 };
    assert_eq!(leases.lapsed(&seats, &rounds, at(20)), [(site("a"), silent)]);
}

#[test]
fn a_site_that_is_heard_while_it_reads_its_images_is_under_lease_and_stall() {
    let seats: Seats = [(site("a"), Seat::Asked)].into();
    let rounds = manifest_with("sites = 1", "answer_timeout_s = 5").rounds;
    let preparing = Progress { phase: "preparing".to_owned(), ..Progress::default() };
    let mut leases = Leases::new(at(0));
    for second in (4..34).step_by(5) {
        leases.hear(&site("a"), at(second), preparing.clone());
        let lapsed = leases.lapsed(&seats, &rounds, at(second + 4));
        assert_eq!(lapsed, [], "at {second} s");
    }
    let stalled = LossCause::Stalled { stalled_s: STALL_S as u64, step: 0 };
    assert_eq!(leases.lapsed(&seats, &rounds, at(4 + STALL_S)), [(site("a"), stalled)]);
    let mut leases = Leases::new(at(0));
    leases.hear(&site("a"), at(4), preparing);
    let silent = LossCause::Silent { silent_s: LEASE_S as u64 };
    assert_eq!(leases.lapsed(&seats, &rounds, at(4 + LEASE_S)), [(site("a"), silent)]);
}

#[test]
fn a_site_that_works_on_another_run_has_the_stall_timeout() {
    let seats: Seats = [(site("a"), Seat::Asked)].into();
    let rounds = manifest_with("sites = 1", "answer_timeout_s = 5").rounds;
    let mut leases = Leases::new(at(0));
    for second in (0..STALL_S).step_by(4) {
        leases.busy(&site("a"), at(second));
        assert_eq!(leases.lapsed(&seats, &rounds, at(second + 1)), [], "at {second} s");
    }
    let lapsed = leases.lapsed(&seats, &rounds, at(STALL_S));
    assert_eq!(lapsed, [(site("a"), LossCause::Stalled { stalled_s: 30, step: 0 })]);
}

#[test]
fn bytes_that_arrive_are_progress() {
    let (seats, mut leases) = (training("a"), Leases::new(at(0)));
    leases.hear(&site("a"), at(0), step(7));
    leases.touch(&site("a"), at(25));
    leases.hear(&site("a"), at(30), step(7));
    assert_eq!(leases.lapsed(&seats, &rounds(), at(STALL_S)), []);
    assert_eq!(leases.progress(&site("a")), Some(&step(7)));
}

#[test]
fn settled_and_lost_sites_have_no_lease() {
    let lost = Seat::Lost { cause: LossCause::Suspended, cases: None };
    let seats: Seats = [(site("a"), Seat::Accepted(delta(1, CASES))), (site("b"), lost)].into();
    let leases = Leases::new(at(0));
    assert_eq!(leases.next_deadline(&seats, &rounds()), None);
    assert_eq!(leases.lapsed(&seats, &rounds(), at(1_000_000)), []);
}
