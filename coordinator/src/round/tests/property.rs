//! Random commands from random sites at random times, and what must hold after every one.

use proptest::prelude::*;

use super::*;

const SITES: [&str; 4] = ["a", "b", "c", "d"];

/// A command with what depends on the run (its current round and base) left open.
#[derive(Clone, Debug)]
enum Op {
    Open(u8),
    /// What an honest site does: agrees and submits.
    Contribute {
        site: usize,
    },
    Accept {
        site: usize,
        round: i8,
        cases: u64,
        base: bool,
    },
    Decline {
        site: usize,
        round: i8,
        reason: Refusal,
    },
    Present {
        site: usize,
    },
    Ready {
        site: usize,
    },
    Resume,
    Lose {
        site: usize,
        round: i8,
        cause: u8,
    },
    Hear {
        site: usize,
        moving: bool,
    },
    Admit {
        site: usize,
        round: i8,
        content: u8,
        cases: u64,
        norm: f64,
    },
    Refuse {
        site: usize,
        round: i8,
        content: u8,
    },
    Publish {
        round: i8,
    },
    Remove {
        keep: u32,
    },
    Exclude {
        site: usize,
        content: u8,
    },
    Tick,
    Wait(i64),
    Stop,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let site = || 0..SITES.len();
    // Mostly the open round; sometimes one before or after it.
    let round = || prop_oneof![8 => Just(0i8), 1 => Just(-1), 1 => Just(1)];
    let cases = || prop_oneof![6 => Just(CASES), 2 => Just(7), 1 => Just(0)];
    prop_oneof![
        4 => any::<u8>().prop_map(Op::Open),
        8 => site().prop_map(|site| Op::Contribute { site }),
        8 => (site(), round(), cases(), proptest::bool::weighted(0.9))
            .prop_map(|(site, round, cases, base)| Op::Accept { site, round, cases, base }),
        2 => (site(), round(), prop_oneof![4 => class().prop_map(no), 1 => too_few()])
            .prop_map(|(site, round, reason)| Op::Decline { site, round, reason }),
        3 => site().prop_map(|site| Op::Present { site }),
        3 => site().prop_map(|site| Op::Ready { site }),
        1 => Just(Op::Resume),
        3 => (site(), round(), 0..5u8)
            .prop_map(|(site, round, cause)| Op::Lose { site, round, cause }),
        3 => (site(), any::<bool>()).prop_map(|(site, moving)| Op::Hear { site, moving }),
        8 => (site(), round(), 0..3u8, cases(), prop_oneof![9 => Just(1.0), 1 => Just(11.0)])
            .prop_map(|(site, round, content, cases, norm)| {
                Op::Admit { site, round, content, cases, norm }
            }),
        1 => (site(), round(), 0..3u8)
            .prop_map(|(site, round, content)| Op::Refuse { site, round, content }),
        5 => round().prop_map(|round| Op::Publish { round }),
        1 => (0..3u32).prop_map(|keep| Op::Remove { keep }),
        1 => (site(), 0..3u8).prop_map(|(site, content)| Op::Exclude { site, content }),
        2 => Just(Op::Tick),
        3 => (0..60i64).prop_map(Op::Wait),
        1 => Just(Op::Restart),
        1 => proptest::bool::weighted(0.2).prop_map(|stop| if stop { Op::Stop } else { Op::Tick }),
    ]
}

fn no(class: RefusalClass) -> Refusal {
    Refusal::Policy { reason: "no".to_owned(), class }
}

/// A refusal by the cohort's size, true or not.
fn too_few() -> impl Strategy<Value = Refusal> {
    (0..4u32, 0..5u32).prop_map(|(size, min)| Refusal::Cohort { size, min })
}

fn class() -> impl Strategy<Value = RefusalClass> {
    prop_oneof![
        Just(RefusalClass::Passing),
        Just(RefusalClass::UntilChanged),
        Just(RefusalClass::Never)
    ]
}

fn quorum() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("sites = 1"),
        Just("sites = 2"),
        Just("sites = 3"),
        Just("sites = 1, share_of_cases = 0.6"),
        Just("sites = 2, share_of_cases = 1.0"),
    ]
}

impl Op {
    /// The command this is of `run`, unless it is none.
    fn command(&self, run: &Run) -> Option<Command> {
        let near = |offset: i8| run.round().saturating_add_signed(offset.into());
        let named = |index: &usize| site(SITES[*index]);
        Some(match self {
            Self::Open(mask) => {
                let among = SITES.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                Command::Open { active: among.map(|(_, name)| site(name)).collect() }
            }
            Self::Accept { site, round, cases, base } => Command::AcceptTerms {
                site: named(site),
                round: near(*round),
                manifest: run.manifest_digest(),
                base: if *base { run.adapter() } else { Digest::of(b"another base") },
                cases: *cases,
            },
            Self::Decline { site, round, reason } => {
                Command::Decline { site: named(site), round: near(*round), reason: reason.clone() }
            }
            Self::Present { site } => Command::Present { site: named(site) },
            Self::Ready { site } => Command::Ready { site: named(site) },
            Self::Resume => {
                let by = "operator/anna".to_owned();
                Command::Resume { by, reason: "mended".to_owned() }
            }
            Self::Lose { site, round, cause } => {
                let site = named(site);
                // The end of a lease is one round's; a membership ends in whichever is open.
                let (round, cause) = match cause {
                    0 => (Some(near(*round)), LossCause::NoAnswer { waited_s: 30 }),
                    1 => (Some(near(*round)), LossCause::Silent { silent_s: 10 }),
                    2 => (Some(near(*round)), LossCause::Stalled { stalled_s: 30, step: 3 }),
                    3 => (None, LossCause::Suspended),
                    _ => (None, LossCause::Revoked),
                };
                Command::Lose { site, round, cause }
            }
            Self::Hear { site, moving } => Command::Hear { site: named(site), moving: *moving },
            Self::Admit { site, round, content, cases, norm } => Command::Admit {
                site: named(site),
                round: near(*round),
                delta: Accepted { norm: *norm, ..delta(*content, *cases) },
            },
            Self::Refuse { site, round, content } => Command::Refuse {
                site: named(site),
                round: near(*round),
                digest: Digest::of(&[*content]),
                reason: Refusal::Malformed { detail: "x".to_owned() },
            },
            Self::Publish { round } => Command::Publish {
                round: near(*round),
                adapter: Digest::of(format!("{}", run.adapters().len()).as_bytes()),
            },
            Self::Remove { keep } => Command::Remove { keep: *keep },
            Self::Exclude { site, content } => Command::Exclude {
                round: run.round(),
                site: named(site),
                digest: Digest::of(&[*content]),
                reason: Unusable::Damaged,
            },
            Self::Tick => Command::Tick,
            Self::Stop => Command::Stop { reason: "enough".to_owned() },
            Self::Contribute { .. } | Self::Wait(_) | Self::Restart => return None,
        })
    }
}

type Verdicts = BTreeMap<(SiteName, u32, Digest), Result<(), Refusal>>;

/// Does `op`; says what came of it, for the trace.
fn step(trial: &mut Trial, op: &Op) -> String {
    match (op, op.command(&trial.run)) {
        (_, Some(command)) => match trial.ask(command) {
            Ok(events) => format!("{events:?}"),
            Err(refusal) => format!("refused: {refusal}"),
        },
        (Op::Wait(seconds), None) => {
            trial.wait(*seconds);
            format!("now {}", trial.now)
        }
        (Op::Contribute { site }, None) => {
            let accepted = trial.accept(SITES[*site], CASES);
            format!("{accepted:?}, {:?}", trial.admit(SITES[*site], delta(0, CASES)))
        }
        (_, None) => {
            trial.run = trial.refold();
            "refolded".to_owned()
        }
    }
}

fn invariants(before: &Run, trial: &Trial, verdicts: &mut Verdicts) -> Result<(), String> {
    ended_is_terminal(before, trial)?;
    verdicts_are_kept(&trial.run, verdicts)?;
    no_site_is_counted_twice(trial)?;
    rounds_have_no_gaps(trial)?;
    completed_means_nobody_was_missing(&trial.run)?;
    the_deadline_closes_and_nothing_is_owed_before(trial)?;
    a_site_declares_once_and_its_events_are_bounded(trial)?;
    only_a_quorum_is_aggregated(&trial.run)
}

fn holds(name: &str, holds: bool) -> Result<(), String> {
    if holds { Ok(()) } else { Err(name.to_owned()) }
}

fn ended_is_terminal(before: &Run, trial: &Trial) -> Result<(), String> {
    let over = matches!(before.phase(), Phase::Ended { .. });
    let resumed = matches!(trial.events().last(), Some(RunEvent::RunResumed { .. }));
    let same = before.phase() == trial.run.phase() && before.past() == trial.run.past();
    holds("ended is terminal until it is resumed", !over || resumed || same)
}

fn verdicts_are_kept(run: &Run, verdicts: &mut Verdicts) -> Result<(), String> {
    for name in SITES {
        for round in 1..=run.round() {
            for content in 0..3u8 {
                let key = (site(name), round, Digest::of(&[content]));
                let now = run.verdict(&key.0, round, key.2);
                let earlier = verdicts.get(&key);
                holds(
                    "a verdict is kept for all time",
                    earlier.is_none() || earlier == now.as_ref(),
                )?;
                if let Some(verdict) = now {
                    verdicts.insert(key, verdict);
                }
            }
        }
    }
    Ok(())
}

fn no_site_is_counted_twice(trial: &Trial) -> Result<(), String> {
    let mut counted = BTreeSet::new();
    for event in trial.events() {
        if let RunEvent::DeltaAccepted { round, site, .. } = event {
            holds("no site is counted twice in a round", counted.insert((*round, site.clone())))?;
        }
    }
    let seats = |(round, past): (&u32, &PastRound)| {
        let counted = |s: &Seat| matches!(s, Seat::Accepted(_) | Seat::Excluded { .. });
        let counted = past.seats.iter().filter(|(_, seat)| counted(seat));
        counted.map(|(site, _)| (*round, site.clone())).collect::<Vec<_>>()
    };
    let mut held: BTreeSet<_> = trial.run.past().iter().flat_map(seats).collect();
    if let Phase::Collecting(Collecting { round, seats, .. }) = trial.run.phase() {
        let accepted = seats.iter().filter(|(_, s)| matches!(s, Seat::Accepted(_)));
        held.extend(accepted.map(|(site, _)| (*round, site.clone())));
    }
    holds("who is counted has a seat that says so, and the other way round", held == counted)
}

fn rounds_have_no_gaps(trial: &Trial) -> Result<(), String> {
    let mut opened: Vec<u32> = Vec::new();
    for event in trial.events() {
        if let RunEvent::RoundOpened { round, .. } = event {
            opened.push(*round);
        } else if let RunEvent::RoundWithdrawn { round, .. } = event {
            holds("the open round is withdrawn", opened.pop() == Some(*round))?;
        }
    }
    let count = opened.len() as u32;
    holds("rounds are numbered without gaps", opened == (1..=count).collect::<Vec<_>>())?;
    holds("the current round is the last one opened", trial.run.round() == count)?;
    let published = trial.run.past().values().filter(|p| p.published.is_some()).count();
    holds("a version a published round", trial.run.rounds_published() as usize == published)
}

fn completed_means_nobody_was_missing(run: &Run) -> Result<(), String> {
    let Phase::Ended { state, detail, .. } = run.phase() else { return Ok(()) };
    let full = |past: &PastRound| past.seats.values().all(|s| matches!(s, Seat::Accepted(_)));
    // A round that the operator's stop cut short was never closed, and misses no site.
    let cut_short = |past: &PastRound| past.published.is_none() && past.missing.is_empty();
    let all = run.past().values().all(|past| full(past) || cut_short(past));
    let finished = run.rounds_published() == run.manifest().rounds.count;
    let honest = match state {
        EndState::Completed => finished && all,
        EndState::CompletedPartial => finished && !all && !detail.is_empty(),
        EndState::Stopped | EndState::Failed => !finished,
    };
    holds("success is never reported for less than was asked", honest)
}

fn the_deadline_closes_and_nothing_is_owed_before(trial: &Trial) -> Result<(), String> {
    let tick = |now| trial.run.decide(now, Command::Tick).unwrap_or_default();
    let Phase::Collecting(Collecting { deadline, .. }) = *trial.run.phase() else {
        return holds("only an open round is closed by time", tick(trial.now).is_empty());
    };
    let closes = closed(&tick(deadline)).is_some();
    holds("a tick at the deadline closes the round", closes)?;
    let just_before = Timestamp::from_millis(deadline.as_millis() - 1);
    let early = trial.now < deadline && closed(&tick(just_before)).is_some();
    holds("a command closes by itself what nothing is awaited for", !early)
}

fn only_a_quorum_is_aggregated(run: &Run) -> Result<(), String> {
    let Phase::Aggregating(aggregating) = run.phase() else { return Ok(()) };
    let names: Vec<_> = aggregating.accepted.iter().map(|(site, _)| site).collect();
    holds("deltas are folded in the order of their sites", names.is_sorted())?;
    let quorum = &run.manifest().quorum;
    holds("only a quorum is aggregated", names.len() >= quorum.sites as usize)?;
    let Some(share) = quorum.share_of_cases else { return Ok(()) };
    let past = &run.past()[&aggregating.round];
    let awaited = past.seats.iter().filter_map(|(site, s)| Some((site, s.awaited_cases()?)));
    let (sites, declared): (Vec<_>, Vec<_>) = awaited.unzip();
    let used = weights::used(&declared, run.manifest().limits.share_max);
    let held = sites.iter().zip(&used).filter(|(site, _)| names.contains(*site));
    let held: u64 = held.map(|(_, used)| used).sum();
    let whole: u64 = used.iter().sum();
    holds("the counted cases are the share asked for", held as f64 >= share * whole as f64)
}

fn a_site_declares_once_and_its_events_are_bounded(trial: &Trial) -> Result<(), String> {
    let mut declared = BTreeMap::new();
    let mut acts: BTreeMap<(SiteName, u32), u32> = BTreeMap::new();
    for event in trial.events() {
        let (RunEvent::TermsAccepted { round, site, .. }
        | RunEvent::SiteReturned { round, site }
        | RunEvent::SiteLost { round, site, .. }
        | RunEvent::Declined { round, site, .. }) = event
        else {
            if let RunEvent::RoundWithdrawn { round, .. } = event {
                acts.retain(|(_, of), _| of != round);
            }
            continue;
        };
        if let RunEvent::TermsAccepted { cases, .. } = event {
            let first = declared.entry((site.clone(), *round)).or_insert(*cases);
            holds("a site declares one number of cases a round", first == cases)?;
        }
        *acts.entry((site.clone(), *round)).or_default() += 1;
    }
    // Each return, each going, the first word and the operator's.
    let most = acts.values().copied().max().unwrap_or_default();
    holds("the events of a site in a round are bounded", most <= 2 * RETURNS_MAX + 4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_the_rules_hold(
        quorum in quorum(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut trial = Trial::start(quorum);
        let (mut verdicts, mut trace) = (Verdicts::new(), Vec::new());
        for op in &ops {
            let before = trial.run.clone();
            trace.push(format!("{op:?} -> {}", step(&mut trial, op)));
            if let Err(broken) = invariants(&before, &trial, &mut verdicts) {
                let trace = trace.join("\n");
                prop_assert!(false, "broken: {broken}\nquorum: {quorum}\n{trace}");
            }
        }
        prop_assert_eq!(trial.refold(), trial.run, "a restarted run is the live one");
    }
}

/// The acts of sites that refuse for a while or are not there: no command trains anything.
fn refusals_and_absences() -> impl Strategy<Value = Op> {
    let site = || 0..SITES.len();
    let passing = prop_oneof![
        Just(RefusalClass::Passing).prop_map(no),
        Just(RefusalClass::UntilChanged).prop_map(no),
        too_few(),
    ];
    prop_oneof![
        4 => Just(Op::Open(u8::MAX)),
        4 => (site(), passing).prop_map(|(site, reason)| Op::Decline { site, round: 0, reason }),
        2 => (site(), 0..2u8).prop_map(|(site, cause)| Op::Lose { site, round: 0, cause }),
        2 => site().prop_map(|site| Op::Present { site }),
        1 => site().prop_map(|site| Op::Ready { site }),
        2 => (0..DEADLINE_S).prop_map(Op::Wait),
    ]
}

proptest! {
    /// Old code made each of these rounds void and failed the run after `void_max` of them.
    #[test]
    fn refusals_that_may_end_and_absences_alone_make_no_round_void(
        quorum in quorum(),
        ops in proptest::collection::vec(refusals_and_absences(), 1..120),
    ) {
        let mut trial = Trial::start(quorum);
        for op in &ops {
            step(&mut trial, op);
            if let Op::Wait(_) = op {
                // Time that passes loses every site that has not answered, long before the deadline.
                for name in SITES {
                    trial.lose(name, LossCause::NoAnswer { waited_s: 30 });
                }
            }
        }
        let void = trial.events().find(|event| matches!(event, RunEvent::RoundClosed { .. }));
        prop_assert!(void.is_none(), "{void:?}");
        let over = matches!(trial.run.phase(), Phase::Ended { .. });
        prop_assert!(!over, "the run goes on");
        let of = |is: fn(&RunEvent) -> bool| trial.events().filter(|event| is(event)).count();
        let opened = of(|event| matches!(event, RunEvent::RoundOpened { .. }));
        let back = of(|event| matches!(event, RunEvent::SiteAvailable { .. }));
        prop_assert!(opened <= back + 1, "a round opens again only for a site that came back");
        prop_assert_eq!(trial.refold(), trial.run);
    }
}

/// Random commands must come everywhere, or the property above says little.
#[test]
fn random_commands_reach_every_phase_and_end() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeSet::new();
    for _ in 0..300 {
        let strategy = (quorum(), proptest::collection::vec(op(), 1..120));
        let (quorum, ops) = strategy.new_tree(&mut runner).unwrap().current();
        let mut trial = Trial::start(quorum);
        for op in &ops {
            step(&mut trial, op);
            reached.insert(match trial.run.phase() {
                Phase::Waiting => "waiting",
                Phase::Collecting(_) => "collecting",
                Phase::Aggregating(_) => "aggregating",
                Phase::Ended { state, .. } => state.as_str(),
            });
        }
    }
    let all = ["aggregating", "collecting", "completed", "completed_partial", "failed", "stopped"];
    let missed: Vec<_> = all.iter().filter(|name| !reached.contains(*name)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}
