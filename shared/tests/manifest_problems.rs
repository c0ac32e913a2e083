//! All problems of a manifest at once: one look at the list mends the whole file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use tributary_shared::manifest::{InvalidManifest, RunManifest};

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const ZERO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Wrong in every table.
const WRONG: &str = r#"
schema_version = 2
name = "r"
task = { kind = "binary", classes = ["one"] }
head = { kind = "mlp", hidden = 0 }
bags = { attention_width = 0, instances_max = 0 }
adapter = { rank = 0, alpha = nan, targets = [], dropout = 1.0 }
data = { modalities = ["ct"], channels = 2, window = { kind = "percentile", low = 9, high = 1 } }
rounds = { count = 0, round_deadline_s = 0, stall_timeout_s = 0, lease_s = 0 }
cohort = { sites = ["a", "b"] }
quorum = { sites = 50, share_of_cases = 0.0 }
limits = { delta_norm_max = inf, cases_max = 0, share_max = nan }
[training]
epochs = 0
batch_size = 0
learning_rate = nan
weight_decay = -1.0
gradient_clip = inf
holdout = 0.33
seed = 1
micro_batch = 0
label_smoothing = 1.0
class_weights = [1.0]
early_stop = { patience = 0, min_delta = -1.0 }
augment = { hue = 1.0, noise = nan }
[backbone]
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
mean = []
std = [0.0]
crop_pct = 0.1
[backbone.architecture]
image_size = 16
patch_size = 5
channels = 2
width = 12
depth = 0
heads = 5
mlp_width = 0
"#;

fn keys(text: &str) -> Vec<String> {
    let manifest = RunManifest::read_toml(text).unwrap();
    manifest.problems().iter().map(|problem| problem.key.clone()).collect()
}

/// Before, the first problem alone was told, and the digest of nothing and rank 0 were taken.
#[test]
fn every_problem_of_a_manifest_is_listed_with_its_key() {
    let expected = [
        "schema_version",
        "task.classes",
        "backbone.digest",
        "backbone.architecture.mlp_width",
        "backbone.architecture.depth",
        "backbone.architecture.patch_size",
        "backbone.architecture.heads",
        "backbone.architecture.channels",
        "backbone.mean",
        "backbone.std",
        "backbone.std",
        "backbone.crop_pct",
        "adapter.rank",
        "adapter.alpha",
        "adapter.targets",
        "adapter.dropout",
        "head.hidden",
        "training.epochs",
        "training.batch_size",
        "training.learning_rate",
        "training.weight_decay",
        "training.gradient_clip",
        "training.holdout",
        "training.micro_batch",
        "training.label_smoothing",
        "training.early_stop.patience",
        "training.early_stop.min_delta",
        "training.augment.hue",
        "training.augment.noise",
        "data.modalities",
        "data.channels",
        "data.window",
        "bags.attention_width",
        "bags.instances_max",
        "rounds.count",
        "rounds.round_deadline_s",
        "rounds.stall_timeout_s",
        "rounds.lease_s",
        "quorum.sites",
        "limits.cases_max",
        "quorum.share_of_cases",
        "limits.share_max",
        "limits.delta_norm_max",
    ];
    let mut found = keys(WRONG);
    let mut expected: Vec<String> = expected.map(str::to_owned).into();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let error = RunManifest::from_toml(WRONG).unwrap_err();
    let InvalidManifest::Values(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.len(), expected.len());
    for problem in problems.iter() {
        assert!(error.to_string().contains(&problem.to_string()), "{error}");
        assert_eq!(problem.to_string().lines().count(), 1, "{problem}");
    }
}

#[test]
fn the_same_list_comes_of_a_rehearsal_and_of_missing_tables() {
    let rounds = "rounds = { count = 1, round_deadline_s = 1, stall_timeout_s = 1 }\n";
    let rest = format!("schema_version = 1\nname = \"r\"\n{rounds}quorum = {{ sites = 0 }}\n");
    let rehearsal =
        format!("{rest}bags = {{}}\ntask = {{ kind = \"rehearsal\", payload_bytes = 3 }}");
    assert_eq!(keys(&rehearsal), ["task.payload_bytes", "task.kind", "quorum.sites"]);
    let bare = format!("{rest}task = {{ kind = \"survival\" }}");
    assert_eq!(keys(&bare), ["backbone", "adapter", "training", "quorum.sites"]);
}

/// A run that an older version took is still folded and audited.
#[test]
fn the_digest_of_nothing_is_refused_anew_and_read_in_a_history() {
    let sample = include_str!("../../deploy/run.toml");
    let manifest = RunManifest::read_toml(sample).unwrap();
    let found = manifest.problems().lines();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("backbone.digest: all zeros"), "{found:?}");
    assert!(manifest.check().is_err());
    manifest.check_recorded().unwrap();
    let mended = RunManifest::from_toml(&sample.replace(ZERO, DIGEST)).unwrap();
    mended.check_recorded().unwrap();
    let other = RunManifest::read_toml(WRONG).unwrap();
    assert!(other.check_recorded().is_err());
}

/// Each of them was, or could have been, read as another kind or left for the first round to find.
#[test]
fn a_lora_that_trains_nothing_is_refused_in_every_spelling() {
    let sample = include_str!("../../deploy/run.toml").replace(ZERO, DIGEST);
    for (from, to) in [
        ("scaling = \"lora\"", "scaling = \"lora\""),
        ("scaling = \"lora\"", "scaling = \"rslora\""),
        ("dora = false", "dora = true"),
    ] {
        let text = sample.replace(from, to).replace("rank = 8", "rank = 0");
        let found = RunManifest::from_toml(&text).unwrap_err().to_string();
        assert!(found.starts_with("adapter.rank: 0 trains no factor"), "{found}");
        assert!(found.contains("kind = \"head_only\""), "{found}");
    }
}
