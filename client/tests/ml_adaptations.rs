//! Every kind of adaptation learns in one round, and leaves the frozen weights as they were.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use ml_support::{architecture, backbone, dataset, initial, manifest};
use tributary_client::data::HoldoutSalt;
use tributary_client::model::Compute;
use tributary_client::trainer::{Control, Inference, LocalTraining, train};

const ADAPTERS: [&str; 11] = [
    r#"{ "rank": 2, "alpha": 4.0, "targets": "qv" }"#,
    r#"{ "rank": 2, "alpha": 4.0, "targets": "qv", "scaling": "rslora", "last_blocks": 1 }"#,
    r#"{ "rank": 2, "alpha": 4.0, "targets": "qv", "dora": true }"#,
    r#"{ "kind": "houlsby", "bottleneck": 4 }"#,
    r#"{ "kind": "adaptformer", "bottleneck": 4 }"#,
    r#"{ "kind": "prompts", "prompts": 2 }"#,
    r#"{ "kind": "prompts", "prompts": 2, "deep": true }"#,
    r#"{ "kind": "bitfit" }"#,
    r#"{ "kind": "head_only" }"#,
    r#"{ "kind": "last_blocks", "last_blocks": 1 }"#,
    r#"{ "kind": "full" }"#,
];
const HEADS: [&str; 3] = [
    r#"{ "kind": "linear" }"#,
    r#"{ "kind": "mlp", "hidden": 6 }"#,
    r#"{ "kind": "attention_pool" }"#,
];

#[test]
fn one_round_lowers_the_training_loss_and_moves_nothing_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(&architecture());
    let (file, digest) = (backbone.to_bytes(), backbone.digest());
    let data = dataset(folder.path(), 60, 3);
    let (split, compute) = (data.split(&HoldoutSalt::public(), 0.25), Compute::cpu());
    let heads = HEADS.iter().cycle();
    let linear = ADAPTERS.iter().map(|adapter| (adapter, &HEADS[0]));
    for (adapter, head) in linear.chain(ADAPTERS.iter().zip(heads).skip(1)) {
        let mut run = manifest(&backbone, 2);
        run.adapter = Some(serde_json::from_str(adapter).unwrap());
        run.head = serde_json::from_str(head).unwrap();
        run.check().unwrap();
        let base = initial(&run);
        let loss = |values: &Vec<Vec<f32>>| {
            let (backbone, manifest, dataset) = (&backbone, &run, &data);
            let inference = Inference { backbone, manifest, values, dataset, compute: &compute };
            let said = inference.evaluate(&split.train, &Control::default(), &mut |_| {});
            said.unwrap().loss.unwrap()
        };
        let work = LocalTraining {
            backbone: &backbone,
            manifest: &run,
            base: &base,
            dataset: &data,
            split: &split,
            round: 1,
            site: "a",
            compute: &compute,
            cache: None,
        };
        let update = train(&work, &Control::default(), &mut |_| {}).unwrap();
        let (before, after) = (loss(&base), loss(&update.values));
        assert!(after < before, "{adapter} {head}: {before} -> {after}");
        let moved = update.values.iter().zip(&base).filter(|(a, b)| a != b).count();
        assert_eq!(moved, base.len(), "{adapter} {head}: every tensor is trained");
        assert_eq!(backbone.to_bytes(), file, "{adapter}");
    }
    assert_eq!(tributary_shared::digest::Digest::of(&file), digest);
}
