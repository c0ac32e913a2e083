//! Rules of `policy.toml`, each at its bound.

use proptest::prelude::*;

use super::*;

const OPEN: &str = "backbones = \"any\"\nstrategies = [\"fedavg\"]\nallow_rehearsal = true\n";

fn policy(more: &str) -> Policy {
    Policy::from_toml(Path::new("policy.toml"), &format!("{OPEN}{more}")).unwrap()
}

fn manifest() -> RunManifest {
    RunManifest::from_toml(&format!(
        r#"
        schema_version = 1
        name = "r"
        task = {{ kind = "binary", classes = ["no", "yes"] }}
        quorum = {{ sites = 2 }}
        rounds = {{ count = 10, round_deadline_s = 60, stall_timeout_s = 60 }}
        limits = {{ delta_norm_max = 5.0 }}
        adapter = {{ kind = "head_only" }}
        [training]
        epochs = 3
        batch_size = 4
        learning_rate = 0.1
        holdout = 0.2
        seed = 1
        [backbone]
        digest = "{}"
        mean = [0.5]
        std = [0.5]
        architecture = {{ image_size = 16, patch_size = 8, channels = 1, width = 12, depth = 1, heads = 3, mlp_width = 20 }}
        "#,
        Digest::of(b"backbone")
    ))
    .unwrap()
}

fn rehearsal() -> RunManifest {
    RunManifest::from_toml(
        r#"
        schema_version = 1
        name = "r"
        task = { kind = "rehearsal", payload_bytes = 4096 }
        quorum = { sites = 2 }
        rounds = { count = 10, round_deadline_s = 60, stall_timeout_s = 60 }
        "#,
    )
    .unwrap()
}

/// The refusal of noon, 1970-01-01 UTC, as one line; empty when it agrees.
fn judged(policy: &Policy, manifest: &RunManifest) -> String {
    judged_after(policy, manifest, Done::default())
}

fn judged_after(policy: &Policy, manifest: &RunManifest, done: Done) -> String {
    let noon = Timestamp::from_millis(12 * 3_600_000);
    policy.judge(manifest, 3, done, noon).map_or_else(|e| e.to_string(), |()| String::new())
}

#[test]
fn each_rule_refuses_just_above_its_bound_and_names_itself() {
    let cases = [
        ("cohort_min = 3", "cohort_min = 4", "a cohort of 3 is below cohort_min = 4"),
        ("rounds_max = 10", "rounds_max = 9", "10 rounds are above rounds_max = 9"),
        ("epochs_max = 3", "epochs_max = 2", "3 epochs per round are above epochs_max = 2"),
        (
            "delta_norm_max = 5.0",
            "delta_norm_max = 4.99",
            "delta norms up to 5 are above delta_norm_max = 4.99",
        ),
        (
            "adapter_bytes_max = 52",
            "adapter_bytes_max = 51",
            "52 adapter bytes are above adapter_bytes_max = 51",
        ),
        (
            "adaptations = [\"head_only\"]",
            "adaptations = [\"bitfit\", \"full\"]",
            "adapter head_only is not among `adaptations`",
        ),
        ("tasks = [\"ordinal\", \"binary\"]", "tasks = []", "task binary is not among `tasks`"),
        ("batch_size_min = 4", "batch_size_min = 5", "a batch of 4 is below batch_size_min = 5"),
        (
            "learning_rate_max = 0.1",
            "learning_rate_max = 0.09",
            "a learning rate of 0.1 is above learning_rate_max = 0.09",
        ),
        (
            "deltas_for = [\"auditor\", \"operator\"]",
            "deltas_for = [\"auditor\"]",
            "single deltas for the operator are not among `deltas_for`",
        ),
        (
            "hours = [\"11:00-13:00\"]",
            "hours = [\"13:00-11:00\"]",
            "outside the site's training `hours`",
        ),
        (
            "hours = [\"14:00-14:01\"]\nutc_offset = \"+02:00\"",
            "hours = [\"14:00-14:01\"]\nutc_offset = \"+01:00\"",
            "outside the site's training `hours`",
        ),
    ];
    for (agrees, refuses, reason) in cases {
        assert_eq!(judged(&policy(agrees), &manifest()), "", "{agrees}");
        assert_eq!(judged(&policy(refuses), &manifest()), reason, "{refuses}");
    }
}

/// A8. Failed before: a run of one round with void_max = 4294967295 got a delta for every round
/// that it offered, and nothing counted the deltas of all runs.
#[test]
fn what_was_done_counts_beside_what_is_declared() {
    let bounds = policy("rounds_max = 10\nruns_max = 2\ndeltas_max = 30");
    let done = |deltas_of_run, deltas, other_runs| {
        judged_after(&bounds, &manifest(), Done { deltas_of_run, deltas, other_runs })
    };
    assert_eq!(done(9, 29, 1), "");
    assert!(done(10, 29, 1).contains("rounds_max = 10"), "{}", done(10, 29, 1));
    assert!(done(9, 30, 1).contains("deltas_max = 30"), "{}", done(9, 30, 1));
    assert!(done(9, 29, 2).contains("runs_max = 2"), "{}", done(9, 29, 2));
}

/// Names unknown to a manifest would forbid nothing, or everything, unnoticed.
#[test]
fn every_kind_of_a_manifest_is_a_kind_here_and_no_other_is() {
    let kinds = |known: &[&str]| format!("{known:?}");
    let (adaptations, tasks) = (kinds(&Adaptation::KINDS), kinds(&Task::KINDS));
    let all = policy(&format!("adaptations = {adaptations}\ntasks = {tasks}"));
    assert_eq!(judged(&all, &manifest()), "");
    for kind in Task::KINDS {
        // A kind that the manifest does not know is refused by its name alone.
        let text =
            format!("kind = {kind:?}\nclasses = [\"a\", \"b\"]\nobjective = {{ kind = \"mae\" }}");
        let error = toml::from_str::<Task>(&text).map_or_else(|e| e.to_string(), |_| String::new());
        assert!(!error.contains("unknown variant"), "{error}");
    }
    for kind in Adaptation::KINDS {
        let text = format!("kind = {kind:?}");
        let error =
            toml::from_str::<Adaptation>(&text).map_or_else(|e| e.to_string(), |_| String::new());
        assert!(!error.contains("unknown variant"), "{kind}: {error}");
    }
    for more in ["adaptations = [\"lorra\"]", "tasks = [\"rehearsal\"]"] {
        let text = format!("{OPEN}{more}");
        let refused = Policy::from_toml(Path::new("policy.toml"), &text).unwrap_err();
        assert!(refused.to_string().contains("is no such kind"), "{refused}");
    }
}

/// A refusal that only the hour causes ends by itself; no other refusal does.
#[test]
fn a_no_of_the_hour_alone_is_passing_and_any_other_stands_until_changed() {
    let noon = Timestamp::from_millis(12 * 3_600_000);
    for (text, class) in [
        ("hours = [\"20:00-06:00\"]", RefusalClass::Passing),
        ("rounds_max = 1", RefusalClass::UntilChanged),
        ("hours = [\"20:00-06:00\"]\nrounds_max = 1", RefusalClass::UntilChanged),
        ("hours = [\"20:00-06:00\"]\ncohort_min = 4", RefusalClass::Passing),
    ] {
        let no = policy(text).judge(&manifest(), 3, Done::default(), noon).unwrap_err();
        assert_eq!(no.refusal().class(), class, "{text}: {no}");
    }
    let no = policy("cohort_min = 4").judge(&manifest(), 3, Done::default(), noon).unwrap_err();
    assert_eq!(no.refusal(), Refusal::Cohort { size: 3, min: 4 });
}

#[test]
fn only_listed_backbones_and_strategies_are_trained() {
    let read = |backbones: &str, strategies: &str| {
        let text = format!("backbones = {backbones}\nstrategies = {strategies}");
        Policy::from_toml(Path::new("policy.toml"), &text).unwrap()
    };
    let digest = Digest::of(b"backbone");
    assert_eq!(judged(&read(&format!("[\"{digest}\"]"), "[\"fedavg\"]"), &manifest()), "");
    assert_eq!(
        judged(&read("[]", "[]"), &manifest()),
        format!(
            "backbone {digest} is not among `backbones`; \
             strategy fedavg is not among `strategies`"
        )
    );
}

#[test]
fn a_rehearsal_needs_its_own_yes() {
    assert_eq!(judged(&policy(""), &rehearsal()), "");
    let text = "backbones = \"any\"\nstrategies = [\"fedavg\"]";
    let closed = Policy::from_toml(Path::new("policy.toml"), text).unwrap();
    assert_eq!(judged(&closed, &rehearsal()), "rehearsals are not allowed (allow_rehearsal)");
}

#[test]
fn a_policy_that_says_nothing_clear_is_refused() {
    for (text, part) in [
        ("strategies = []", "missing field `backbones`"),
        ("backbones = \"all\"\nstrategies = []", "neither \"any\""),
        ("backbones = [\"abc\"]\nstrategies = []", "not a digest"),
        ("backbones = []\nstrategies = []\nhours = [\"night\"]", "not a window"),
        ("backbones = []\nstrategies = []\ndelta_norm_max = nan", "above 0"),
        // A typo of either would refuse every run, or none, without a word.
        ("backbones = []\nstrategies = [\"fedavgg\"]", "`fedavgg` is no such kind"),
        ("backbones = []\nstrategies = []\ncohort_min = 0", "write 1 to train alone"),
        ("backbones = []\nstrategies = []\ncohort_max = 1", "unknown field `cohort_max`"),
    ] {
        let error = Policy::from_toml(Path::new("p.toml"), text).unwrap_err().to_string();
        assert!(error.starts_with("p.toml:") && error.contains(part), "{error}");
    }
}

proptest! {
    #[test]
    fn tightening_never_turns_a_no_into_a_yes(
        cohort in 1u32..6, rounds in 0u32..20, epochs in 0u32..6, tighter in 0u32..4,
    ) {
        let read = |cohort: u32, rounds: u32, epochs: u32| policy(&format!(
            "cohort_min = {cohort}\nrounds_max = {rounds}\nepochs_max = {epochs}"
        ));
        let loose = read(cohort, rounds, epochs);
        let tight = read(
            cohort + tighter,
            rounds.saturating_sub(tighter),
            epochs.saturating_sub(tighter),
        );
        if judged(&tight, &manifest()).is_empty() {
            prop_assert_eq!(judged(&loose, &manifest()), "");
        }
    }
}
