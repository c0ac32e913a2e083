//! One test a rule.

use super::*;

const SILENT: LossCause = LossCause::Silent { silent_s: 10 };
const STALLED: LossCause = LossCause::Stalled { stalled_s: 30, step: 7 };
const NO_ANSWER: LossCause = LossCause::NoAnswer { waited_s: 30 };

#[test]
fn a_run_of_which_all_is_given_completes() {
    let mut trial = Trial::collecting("sites = 2", "a b c");
    for round in 1..=2 {
        assert_eq!(trial.run.round(), round);
        assert_eq!(closed(&trial.contribute("a")), None);
        assert_eq!(closed(&trial.contribute("b")), None, "a site in good standing is waited for");
        assert_eq!(closed(&trial.contribute("c")), Some(true));
        let events = trial.publish();
        if round == 2 {
            assert_eq!(ended(&events), Some(EndState::Completed));
        } else {
            trial.yes(Command::Open { active: sites("a b c") });
        }
    }
    assert_eq!(trial.run.rounds_published(), 2);
    assert_eq!(trial.refold(), trial.run);
}

#[test]
fn a_run_with_a_gap_completes_partially_and_names_who_and_why() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.decline("b", "not at night");
    assert_eq!(closed(&trial.contribute("a")), Some(true));
    trial.publish();
    trial.yes(Command::Open { active: sites("a b") });
    trial.contribute("a");
    trial.contribute("b");
    assert_eq!(ended(&trial.publish()), Some(EndState::CompletedPartial));
    let Phase::Ended { detail, .. } = trial.run.phase() else { panic!("the run has ended") };
    assert_eq!(detail, "b missing in round 1: the site's policy refuses: not at night");
}

#[test]
fn fewer_active_sites_than_the_quorum_open_no_round() {
    let mut trial = Trial::start("sites = 2");
    assert_eq!(trial.yes(Command::Open { active: sites("a") }), []);
    assert_eq!(*trial.run.phase(), Phase::Waiting);
    assert_eq!(trial.run.next_deadline(), None);
    assert_eq!(trial.yes(Command::Open { active: sites("a b") }).len(), 1);
    assert_eq!(trial.yes(Command::Open { active: sites("a b c") }), [], "a round is open");
}

#[test]
fn the_deadline_closes_a_round_and_names_who_was_late() {
    let mut trial = Trial::collecting("sites = 1", "a b c");
    trial.contribute("a");
    trial.accept("b", CASES).unwrap();
    trial.wait(DEADLINE_S - 1);
    assert_eq!(trial.yes(Command::Tick), [], "a progressing site is waited for");
    trial.wait(1);
    let events = trial.yes(Command::Tick);
    let [RunEvent::RoundClosed { quorum_met: true, missing, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    let reasons: Vec<_> = missing.iter().map(|m| (m.site.as_str(), m.reason.as_str())).collect();
    let late = "still training when the round closed";
    let silent = "did not answer before the round closed";
    assert_eq!(reasons, [("b", late), ("c", silent)]);
    let over = trial.admit("b", delta(2, CASES));
    assert_eq!(over, Err(Refusal::RoundOver { round: 1, current: 1 }));
}

#[test]
fn lost_sites_are_not_waited_for_once_the_quorum_is_met() {
    let mut trial = Trial::collecting("sites = 2", "a b c");
    trial.accept("c", CASES).unwrap();
    trial.contribute("a");
    assert_eq!(closed(&trial.lose("c", SILENT)), None, "b still works");
    assert_eq!(closed(&trial.contribute("b")), Some(true));
}

#[test]
fn a_loss_closes_the_round_when_it_was_all_that_was_waited_for() {
    let mut trial = Trial::collecting("sites = 2", "a b c");
    trial.contribute("a");
    trial.contribute("b");
    assert_eq!(closed(&trial.lose("c", NO_ANSWER)), Some(true));
}

/// Failed before: the loss named no round, and a lease that ran out while its round closed lost the site to the next.
#[test]
fn a_loss_counts_only_in_the_round_it_was_found_in() {
    let mut trial = Trial::collecting("sites = 2", "a b c");
    for name in ["a", "b", "c"] {
        trial.contribute(name);
    }
    trial.publish();
    trial.yes(Command::Open { active: sites("a b c") });
    let lost = |round, cause| Command::Lose { site: site("c"), round, cause };
    assert_eq!(trial.yes(lost(Some(1), SILENT)), []);
    assert_eq!(trial.yes(lost(Some(2), NO_ANSWER)).len(), 1);
    // A suspension holds in whichever round is open.
    assert_eq!(trial.yes(lost(None, LossCause::Suspended)).len(), 1);
}

#[test]
fn below_the_quorum_a_lost_site_is_waited_for_until_the_deadline() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.contribute("a");
    trial.accept("b", CASES).unwrap();
    assert_eq!(closed(&trial.lose("b", SILENT)), None);
    trial.wait(DEADLINE_S - 1);
    let back = trial.yes(Command::Hear { site: site("b"), moving: true });
    assert!(matches!(back[..], [RunEvent::SiteReturned { .. }]), "{back:?}");
    let closing = trial.admit("b", delta(2, CASES)).unwrap();
    assert_eq!(closed(&closing), Some(true));
}

#[test]
fn a_round_that_nobody_can_save_closes_at_once() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.contribute("a");
    assert_eq!(closed(&trial.decline("b", "no")), Some(false));
    assert_eq!(*trial.run.phase(), Phase::Waiting);
}

#[test]
fn void_rounds_in_a_row_fail_the_run_and_a_good_one_between_forgives() {
    let void = |trial: &mut Trial| {
        trial.yes(Command::Open { active: sites("a b") });
        trial.decline("a", "closed on Sundays");
        trial.decline("b", "no")
    };
    let mut trial = Trial::start("sites = 1");
    assert_eq!(ended(&void(&mut trial)), None, "void_max = 1 forgives one");
    trial.yes(Command::Open { active: sites("a b") });
    trial.decline("b", "no");
    trial.contribute("a");
    trial.publish();
    assert_eq!(ended(&void(&mut trial)), None);
    assert_eq!(ended(&void(&mut trial)), Some(EndState::Failed));
    let Phase::Ended { detail, .. } = trial.run.phase() else { panic!("the run has ended") };
    assert!(detail.contains("no quorum in 2 rounds in a row; a: "), "{detail}");
    assert!(detail.contains("closed on Sundays"), "{detail}");
    assert_eq!(trial.run.rounds_published(), 1, "what was published stands");
    assert_eq!(trial.refold(), trial.run);
}

/// A9: failed before for `refused` and `declined`: one site's own act made the others' round void.
#[test]
fn a_share_of_cases_counts_what_lost_and_late_sites_had_declared_and_no_site_takes_back() {
    for (outcome, quorum_met) in
        [("refused", true), ("declined", true), ("lost", false), ("late", false)]
    {
        let mut trial = Trial::collecting("sites = 1, share_of_cases = 0.5", "big small");
        trial.accept("big", 900).unwrap();
        trial.accept("small", 100).unwrap();
        trial.admit("small", delta(1, 100)).unwrap();
        let (site, round, digest) = (site("big"), 1, Digest::of(b"bad"));
        let reason = Refusal::Malformed { detail: "x".to_owned() };
        match outcome {
            "refused" => {
                trial.yes(Command::Refuse { site, round, digest, reason });
            }
            "declined" => {
                trial.decline("big", "no");
            }
            "lost" => {
                trial.lose("big", SILENT);
            }
            _ => {}
        }
        trial.wait(DEADLINE_S);
        trial.yes(Command::Tick);
        let aggregated = matches!(trial.run.phase(), Phase::Aggregating(_));
        assert_eq!(aggregated, quorum_met, "{outcome}: a tenth is no half");
    }
    let mut trial = Trial::collecting("sites = 1, share_of_cases = 0.5", "big small");
    trial.accept("big", 100).unwrap();
    trial.contribute("small");
    assert_eq!(closed(&trial.lose("big", SILENT)), Some(true), "half is enough");
}

/// A9: failed before: the claim of a site that then fell silent was all of the declared cases.
#[test]
fn a_claim_counts_in_a_share_of_cases_no_more_than_it_would_weigh() {
    let mut trial = Trial::collecting("sites = 2, share_of_cases = 0.5", "a b c mallory");
    trial.accept("mallory", 10_000_000).unwrap();
    for name in ["a", "b", "c"] {
        trial.contribute(name);
    }
    assert_eq!(closed(&trial.lose("mallory", SILENT)), Some(true));
}

/// A2: failed before: a site could declare again after it had trained, and each time was a leaf.
#[test]
fn cases_are_declared_once_a_round() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", 5).unwrap();
    let again = |trial: &mut Trial| trial.accept("a", 50).unwrap_err().to_string();
    assert_eq!(again(&mut trial), "cases: expected 5, found 50");
    assert_eq!(trial.accept("a", 5), Ok(Vec::new()), "the same is no news");
    trial.lose("a", SILENT);
    assert_eq!(again(&mut trial), "cases: expected 5, found 50");
    assert_eq!(trial.accept("a", 5).unwrap().len(), 1, "it is back");
    let declared = RunEvent::TermsAccepted { round: 1, site: site("a"), cases: 50 };
    let found = trial.run.clone().evolve(trial.now, &declared).unwrap_err().0;
    assert_eq!(found, "a declared cases twice in round 1");
}

/// A2: failed before: nothing bounded the events of a site.
#[test]
fn a_site_that_comes_and_goes_writes_no_history_without_end() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", CASES).unwrap();
    let mut refused = None;
    for turn in 0..1_000 {
        trial.lose("a", SILENT);
        if turn % 2 == 0 {
            trial.yes(Command::Hear { site: site("a"), moving: true });
        } else if let Err(refusal) = trial.accept("a", CASES) {
            refused = Some(refusal);
        }
    }
    assert_eq!(refused, Some(Refusal::TooOften { round: 1, times: RETURNS_MAX }));
    // Started, opened, accepted; each return, and each loss before and after.
    assert_eq!(trial.records.len() as u32, 3 + 2 * RETURNS_MAX + 1);
    trial.admit("a", delta(1, CASES)).expect("what it trained still counts");
    assert_eq!(trial.refold(), trial.run);
}

/// A2: failed before: one claim of 10^7 cases had 99.9 % of the mean.
#[test]
fn a_weight_above_the_share_is_cut_and_both_numbers_are_history() {
    let mut trial = Trial::collecting("sites = 2", "a b mallory");
    for (name, cases) in [("a", 100), ("b", 200), ("mallory", 10_000_000)] {
        trial.accept(name, cases).unwrap();
        trial.admit(name, delta(1, cases)).unwrap();
    }
    let events = trial.publish();
    let [RunEvent::AdapterPublished { weights, cases, .. }, ..] = &events[..] else {
        panic!("{events:?}")
    };
    let weights: Vec<_> = weights.iter().map(|w| (w.site.as_str(), w.declared, w.used)).collect();
    assert_eq!(weights, [("a", 100, 100), ("b", 200, 200), ("mallory", 10_000_000, 600)]);
    assert_eq!(*cases, 10_000_300);
    // A coordinator that used another weight than it says is named.
    trial.records.pop();
    trial.run = trial.refold();
    let mut lie = events[0].clone();
    if let RunEvent::AdapterPublished { weights, .. } = &mut lie {
        weights[2].used = 601;
    }
    let found = trial.run.clone().evolve(trial.now, &lie).unwrap_err().0;
    assert_eq!(found, "round 1 published with other weights than limits.share_max leads to");
}

fn exclude(trial: &mut Trial, name: &str) -> Vec<RunEvent> {
    let (site, round) = (site(name), trial.run.round());
    let digest = delta(1, CASES).digest;
    trial.yes(Command::Exclude { round, site, digest, reason: Unusable::Damaged })
}

/// A10: failed before: the run stood at `aggregating` for ever.
#[test]
fn a_counted_delta_that_cannot_be_folded_is_excluded_and_the_round_goes_on() {
    let mut trial = Trial::collecting("sites = 2", "a b c");
    for name in ["a", "b", "c"] {
        trial.contribute(name);
    }
    let events = exclude(&mut trial, "b");
    assert!(
        matches!(&events[..], [RunEvent::DeltaExcluded { quorum_met: true, .. }]),
        "{events:?}"
    );
    assert_eq!(exclude(&mut trial, "b"), [], "once");
    let Phase::Aggregating(aggregating) = trial.run.phase() else { panic!("it goes on") };
    let names: Vec<_> = aggregating.accepted.iter().map(|(site, _)| site.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    let told = trial.run.verdict(&site("b"), 1, delta(1, CASES).digest);
    assert_eq!(told, Some(Ok(())), "what the site was told stays");
    trial.publish();
    trial.yes(Command::Open { active: sites("a b c") });
    for name in ["a", "b", "c"] {
        trial.contribute(name);
    }
    assert_eq!(ended(&trial.publish()), Some(EndState::CompletedPartial));
    let Phase::Ended { detail, .. } = trial.run.phase() else { panic!("the run has ended") };
    let why = "its delta was counted, and its stored bytes are damaged";
    assert_eq!(*detail, format!("b missing in round 1: {why}"));
    assert_eq!(trial.refold(), trial.run);
}

#[test]
fn a_round_that_exclusions_leave_below_quorum_is_void_and_too_many_fail_the_run() {
    let mut trial = Trial::start("sites = 2");
    for last in [false, true] {
        trial.yes(Command::Open { active: sites("a b") });
        for name in ["a", "b"] {
            trial.contribute(name);
        }
        let events = exclude(&mut trial, "a");
        assert!(
            matches!(&events[0], RunEvent::DeltaExcluded { quorum_met: false, .. }),
            "{events:?}"
        );
        assert_eq!(ended(&events), last.then_some(EndState::Failed), "void_max = 1");
    }
    assert_eq!(trial.refold(), trial.run);
    let missing = &trial.run.past()[&1].missing;
    assert_eq!(missing.iter().map(|m| m.site.as_str()).collect::<Vec<_>>(), ["a"]);
}

/// A4: nothing was ever removed, and a removal would have been no part of the history.
#[test]
fn deltas_are_removed_by_an_event_and_never_those_still_needed() {
    let mut trial = Trial::collecting("sites = 1", "a");
    let remove = |trial: &mut Trial, keep| trial.yes(Command::Remove { keep });
    assert_eq!(remove(&mut trial, 1), []);
    trial.contribute("a");
    assert_eq!(remove(&mut trial, 0), [], "the round is aggregated");
    trial.publish();
    assert_eq!(remove(&mut trial, 1), []);
    trial.yes(Command::Open { active: sites("a") });
    trial.contribute("a");
    assert_eq!(remove(&mut trial, 2), []);
    assert_eq!(remove(&mut trial, 1), [RunEvent::DeltasRemoved { to: 1 }]);
    assert_eq!(remove(&mut trial, 1), [], "once");
    trial.publish();
    assert_eq!(trial.refold(), trial.run);
    for to in [1, 2, 9] {
        let lie = RunEvent::DeltasRemoved { to };
        let found = trial.run.clone().evolve(trial.now, &lie).unwrap_err().0;
        assert_eq!(found, format!("deltas removed up to round {to}, after 1 and of 2 closed"));
    }
}

/// A15: failed before: one site's claim decided the table's mean.
#[test]
fn metrics_out_of_their_range_are_refused_in_words() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", CASES).unwrap();
    let mut lie = delta(1, CASES);
    lie.metrics.holdout_auroc = Some(1e300);
    trial.admit("a", lie.clone()).unwrap();
    let verdict = trial.run.verdict(&site("a"), 1, lie.digest).unwrap().unwrap_err();
    assert_eq!(verdict.to_string(), "metrics.holdout_auroc: expected 0.0 to 1.0, found 1e300");
}

#[test]
fn the_same_submission_hears_the_same_answer_for_all_time() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.contribute("a");
    let (first, other) = (delta(1, CASES), delta(9, CASES));
    let taken = Refusal::AlreadySubmitted { accepted: first.digest.to_string() };
    let answers = |trial: &mut Trial| {
        let ask = |delta: &Accepted| {
            trial.run.decide(
                trial.now,
                Command::Admit { site: site("a"), round: 1, delta: delta.clone() },
            )
        };
        assert_eq!(ask(&first), Ok(Vec::new()));
        assert_eq!(ask(&other), Err(taken.clone()));
    };
    answers(&mut trial);
    trial.decline("b", "no");
    answers(&mut trial);
    trial.publish();
    answers(&mut trial);
    trial.yes(Command::Open { active: sites("a b") });
    trial.yes(Command::Stop { reason: "enough".to_owned() });
    answers(&mut trial);
}

#[test]
fn a_refused_delta_settles_its_site() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", CASES).unwrap();
    let large = Accepted { norm: 10.5, ..delta(1, CASES) };
    let events = trial.admit("a", large.clone()).unwrap();
    let refused = Refusal::OverNorm { norm: 10.5, norm_max: 10.0 };
    assert!(
        matches!(&events[..], [RunEvent::DeltaRefused { reason, .. }] if *reason == refused),
        "{events:?}"
    );
    assert_eq!(trial.admit("a", large), Err(refused.clone()));
    assert_eq!(trial.admit("a", delta(2, CASES)), Err(refused.clone()), "no second try");
    assert_eq!(trial.accept("a", CASES), Err(refused));
    assert_eq!(trial.run.assignment(&site("a")), None);
}

#[test]
fn a_delta_weighs_what_its_site_declared() {
    let mut trial = Trial::collecting("sites = 1", "a b c");
    trial.accept("a", CASES).unwrap();
    trial.admit("a", delta(1, CASES + 1)).unwrap();
    assert_eq!(trial.run.seat(&site("a"), 1).map(Seat::as_str), Some("refused"));
    trial.admit("b", delta(2, CASES)).unwrap();
    assert_eq!(trial.run.seat(&site("b"), 1).map(Seat::as_str), Some("refused"), "never agreed");
    assert_eq!(trial.accept("c", 0).map_err(|e| e.code()), Err("wrong"));
    assert_eq!(trial.accept("c", 10_000_001).map_err(|e| e.code()), Err("wrong"));
    assert_eq!(trial.accept("c", 1).unwrap().len(), 1);
    assert_eq!(trial.accept("c", 1).unwrap(), [], "agreed already");
    assert_eq!(trial.accept("c", 2).map_err(|e| e.code()), Err("wrong"), "cases are declared once");
}

#[test]
fn strangers_old_rounds_and_foreign_terms_are_refused() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    assert_eq!(trial.accept("z", CASES), Err(Refusal::NotInCohort { round: 1 }));
    assert_eq!(trial.admit("z", delta(1, CASES)), Err(Refusal::NotInCohort { round: 1 }));
    let (manifest, base) = (trial.run.manifest_digest(), trial.run.adapter());
    let terms = |round, manifest, base| Command::AcceptTerms {
        site: site("a"),
        round,
        manifest,
        base,
        cases: CASES,
    };
    let other = Digest::of(b"other");
    assert_eq!(
        trial.ask(terms(2, manifest, base)),
        Err(Refusal::RoundOver { round: 2, current: 1 })
    );
    assert_eq!(trial.ask(terms(1, other, base)).map_err(|e| e.code()), Err("wrong"));
    assert_eq!(trial.ask(terms(1, manifest, other)).map_err(|e| e.code()), Err("wrong"));
    assert_eq!(trial.records.len(), 2, "nothing of it is history");
}

#[test]
fn a_suspended_site_is_out_of_the_round_for_good() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("b", CASES).unwrap();
    trial.lose("b", SILENT);
    trial.lose("b", LossCause::Suspended);
    assert_eq!(trial.lose("b", SILENT), [], "the operator's word stands");
    assert_eq!(trial.yes(Command::Hear { site: site("b"), moving: true }), []);
    assert_eq!(trial.accept("b", CASES), Err(Refusal::Suspended));
    assert_eq!(trial.admit("b", delta(1, CASES)), Err(Refusal::Suspended));
    assert_eq!(trial.run.expected_delta(&site("b"), 1, CASES), Err(Refusal::Suspended));
    assert_eq!(trial.run.assignment(&site("b")), None);
    assert_eq!(closed(&trial.contribute("a")), Some(true));
}

#[test]
fn a_round_does_not_wait_for_suspended_sites_that_it_cannot_get_back() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.contribute("a");
    assert_eq!(closed(&trial.lose("b", LossCause::Suspended)), Some(false));
}

#[test]
fn suspending_a_site_takes_nothing_back_that_is_counted() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.contribute("a");
    assert_eq!(trial.lose("a", LossCause::Suspended), []);
    assert_eq!(trial.run.seat(&site("a"), 1).map(Seat::as_str), Some("accepted"));
}

/// Before, a revocation was recorded as a suspension.
#[test]
fn a_revoked_site_is_recorded_as_revoked_even_when_it_was_suspended_before() {
    let mut trial = Trial::collecting("sites = 1", "a b c");
    trial.lose("b", LossCause::Revoked);
    trial.lose("c", LossCause::Suspended);
    trial.lose("c", LossCause::Revoked);
    assert_eq!(trial.lose("b", LossCause::Suspended), [], "a revocation is final");
    assert_eq!(trial.lose("b", LossCause::Revoked), []);
    assert_eq!(trial.yes(Command::Hear { site: site("b"), moving: true }), []);
    assert_eq!(trial.run.assignment(&site("b")), None);
    assert_eq!(closed(&trial.contribute("a")), Some(true));
    let run = trial.refold();
    let missing = &run.past()[&1].missing;
    let reasons: Vec<&str> = missing.iter().map(|m| m.reason.as_str()).collect();
    assert_eq!(reasons, ["revoked by the operator"; 2]);
}

/// Before, the problem said `Some(100) declared`.
#[test]
fn counted_cases_that_were_not_declared_are_named_in_words() {
    let problem = |declared: Option<u64>| {
        let mut trial = Trial::collecting("sites = 1", "a b");
        if let Some(cases) = declared {
            trial.accept("a", cases).unwrap();
        }
        let Accepted { digest, norm, bytes, metrics, .. } = delta(1, 51);
        let (round, site) = (1, site("a"));
        let event =
            RunEvent::DeltaAccepted { round, site, digest, cases: 51, norm, bytes, metrics };
        trial.run.clone().evolve(trial.now, &event).unwrap_err().0
    };
    assert_eq!(problem(Some(CASES)), "a: 51 cases counted, 100 declared");
    assert_eq!(problem(None), "a: 51 cases counted, none declared");
}

#[test]
fn a_stalled_site_comes_back_by_moving_not_by_being_heard() {
    let mut trial = Trial::collecting("sites = 2", "a b");
    trial.accept("a", CASES).unwrap();
    trial.lose("a", STALLED);
    // Else each heartbeat would write two leaves: returned, and lost again.
    assert_eq!(trial.yes(Command::Hear { site: site("a"), moving: false }), []);
    let back = trial.yes(Command::Hear { site: site("a"), moving: true });
    assert!(matches!(back[..], [RunEvent::SiteReturned { .. }]), "{back:?}");
    trial.lose("a", SILENT);
    let back = trial.yes(Command::Hear { site: site("a"), moving: false });
    assert!(matches!(back[..], [RunEvent::SiteReturned { .. }]), "{back:?}");
}

#[test]
fn a_site_that_never_answered_returns_by_accepting_the_terms() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.lose("a", NO_ANSWER);
    assert_eq!(trial.yes(Command::Hear { site: site("a"), moving: true }), []);
    assert_eq!(trial.accept("a", CASES).unwrap().len(), 1);
    assert_eq!(trial.run.seat(&site("a"), 1).map(Seat::as_str), Some("training"));
}

#[test]
fn a_lost_site_may_submit_what_it_had_agreed_to() {
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", CASES).unwrap();
    trial.lose("a", SILENT);
    let events = trial.admit("a", delta(1, CASES)).unwrap();
    assert!(matches!(events[..], [RunEvent::DeltaAccepted { .. }]), "{events:?}");
}

#[test]
fn stopping_ends_the_run_in_every_phase_and_once() {
    let phases: [fn(&mut Trial); 3] = [
        |_| {},
        |trial| {
            trial.yes(Command::Open { active: sites("a") });
        },
        |trial| {
            trial.yes(Command::Open { active: sites("a") });
            trial.contribute("a");
        },
    ];
    for reach in phases {
        let mut trial = Trial::start("sites = 1");
        reach(&mut trial);
        let reason = "x".repeat(5_000);
        let events = trial.yes(Command::Stop { reason: reason.clone() });
        assert_eq!(ended(&events), Some(EndState::Stopped));
        let again = trial.ask(Command::Stop { reason });
        assert_eq!(again, Err(Refusal::RunEnded { state: "stopped".to_owned() }));
        let late = trial.ask(Command::Publish { round: 1, adapter: Digest::of(b"late") });
        assert_eq!(late, Ok(Vec::new()));
        assert_eq!(trial.run.next_deadline(), None);
        assert_eq!(trial.refold(), trial.run);
    }
}

#[test]
fn an_aggregate_is_published_once_and_for_its_round_only() {
    let mut trial = Trial::collecting("sites = 1", "a");
    assert_eq!(trial.publish(), [], "the round is open");
    trial.contribute("a");
    assert_eq!(trial.yes(Command::Publish { round: 2, adapter: Digest::of(b"x") }), []);
    assert_eq!(trial.publish().len(), 1);
    assert_eq!(trial.publish(), []);
    assert_eq!(trial.run.past()[&1].published.map(|(d, _)| d), Some(trial.run.adapter()));
}

#[test]
fn what_others_write_never_outgrows_a_leaf() {
    let names: Vec<String> = (0..300).map(|i| format!("{i:03}-{}", "s".repeat(59))).collect();
    let mut trial = Trial::collecting("sites = 1", &names.join(" "));
    let Phase::Collecting(collecting) = trial.run.phase() else { panic!("a round is open") };
    assert_eq!(collecting.seats.len(), 256, "the names of more would not fit");
    for name in &names[..256] {
        trial.decline(name, &"\u{1}".repeat(100_000));
    }
    let largest = trial.records.iter().map(|r| r.to_bytes().len()).max();
    assert!(largest < Some(record::LEAF_BYTES_MAX), "{largest:?}");
    assert_eq!(*trial.run.phase(), Phase::Waiting, "the round closed");
}

/// Each false history differs from a true one in one event.
#[test]
fn histories_that_break_the_rules_are_named() {
    let deadline = |trial: &Trial| trial.now.plus(std::time::Duration::from_secs(100));
    let mut trial = Trial::collecting("sites = 1", "a b");
    trial.accept("a", CASES).unwrap();
    trial.accept("b", CASES).unwrap();
    trial.lose("b", LossCause::Suspended);
    let false_of = |trial: &Trial, event: RunEvent| {
        trial.run.clone().evolve(trial.now, &event).expect_err(&format!("{event:?}")).0
    };
    let counted = |name: &str, cases, norm| RunEvent::DeltaAccepted {
        round: 1,
        site: site(name),
        digest: Digest::of(b"d"),
        cases,
        norm,
        bytes: 16,
        metrics: SiteMetrics::default(),
    };
    assert!(false_of(&trial, counted("b", CASES, 1.0)).contains("while suspended"));
    assert!(false_of(&trial, counted("a", CASES + 1, 1.0)).contains("declared"));
    assert!(false_of(&trial, counted("a", CASES, 11.0)).contains("norm"));
    assert!(false_of(&trial, counted("z", CASES, 1.0)).contains("does not ask it"));
    let returned = RunEvent::SiteReturned { round: 1, site: site("b") };
    assert!(false_of(&trial, returned).contains("suspended"));
    let close = |quorum_met, names: &[&str]| RunEvent::RoundClosed {
        round: 1,
        quorum_met,
        missing: names
            .iter()
            .map(|name| Missing { site: site(name), reason: "late".to_owned() })
            .collect(),
    };
    assert!(false_of(&trial, close(false, &["a", "b"])).contains("awaited"));
    trial.admit("a", delta(1, CASES)).unwrap();
    // The round is closed; go back to just before.
    trial.records.pop();
    trial.run = trial.refold();
    assert!(false_of(&trial, close(false, &["b"])).contains("quorum_met false"));
    assert!(false_of(&trial, close(true, &[])).contains("0 sites named as missing"));
    assert!(false_of(&trial, close(true, &["a"])).contains("named as missing"));
    trial.run.clone().evolve(trial.now, &close(true, &["b"])).unwrap();

    let waiting = Trial::start("sites = 2");
    let open = |cohort: &str, deadline| RunEvent::RoundOpened {
        round: 1,
        base: waiting.run.adapter(),
        cohort: cohort.split(' ').map(site).collect(),
        deadline,
        passed_over: Vec::new(),
    };
    assert!(false_of(&waiting, open("a", deadline(&waiting))).contains("below the quorum"));
    assert!(false_of(&waiting, open("a a", deadline(&waiting))).contains("twice"));
    assert!(false_of(&waiting, open("a b", waiting.now)).contains("has deadline"));
    let finished = RunEvent::RunEnded { state: EndState::Completed, detail: String::new() };
    assert!(false_of(&waiting, finished).contains("with 0 of 2 rounds"));
}

#[test]
fn terms_of_no_case_and_above_the_largest_number_are_refused() {
    let mut manifest = manifest("sites = 1");
    manifest.limits.cases_max = 7;
    let mut trial = Trial::start_of(manifest);
    trial.yes(Command::Open { active: sites("a") });
    for cases in [0, 8, u64::MAX] {
        let refusal = trial.accept("a", cases).unwrap_err();
        assert_eq!(refusal.to_string(), format!("cases: expected 1 to 7, found {cases}"));
    }
    trial.accept("a", 7).unwrap();
}
