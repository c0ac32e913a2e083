//! Files that outlive a process: backbones, exported adapters, the demo's backbone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use std::fs;
use std::path::{Path, PathBuf};

use ml_support::{backbone, manifest, moved};
use serde_json::Value;
use tributary_client::data::synth::{SynthSpec, write};
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec};
use tributary_client::model::{
    AdaptedVit, Backbone, BackboneError, Compute, Values, random_backbone,
};
use tributary_client::trainer::{
    Control, ExportError, Probed, Transformers, export_peft, linear_probe,
};
use tributary_shared::architecture::{Architecture, Pool};
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::{decode, encode};

const VERSIONS: [(Transformers, &str); 2] =
    [(Transformers::V5, "transformers-5"), (Transformers::V4, "transformers-4")];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name)
}

fn fixture_run() -> (RunManifest, Values) {
    let run = RunManifest::from_toml(&fs::read_to_string(fixture("run.toml")).unwrap()).unwrap();
    let header = adapter_header(&run.name, 2, &run.contract().unwrap());
    let values = decode(&fs::read(fixture("adapter.bin")).unwrap(), &header).unwrap();
    (run, values)
}

#[test]
#[ignore = "writes the fixture: cargo test -p tributary-client --test ml_artifacts -- --ignored write_the_peft_fixture; then tests/python/peft_parity.py --update"]
fn write_the_peft_fixture() {
    let mut architecture = ml_support::architecture();
    architecture.channels = 3;
    let backbone = backbone(&architecture);
    let run = manifest(&backbone, 3);
    let text = toml::to_string(&run).unwrap();
    let values = moved(&run, 6);
    backbone.save(&fixture("backbone.safetensors")).unwrap();
    fs::write(fixture("run.toml"), text).unwrap();
    let header = adapter_header(&run.name, 2, &run.contract().unwrap());
    fs::write(fixture("adapter.bin"), encode(&header, &values)).unwrap();
    for (version, name) in VERSIONS {
        // It may not be there yet.
        let _ = fs::remove_dir_all(fixture(name));
        export_peft(&fixture(name), &run, None, &values, version).unwrap();
    }
}

#[test]
fn logits_agree_with_transformers_and_peft() {
    let (run, values) = fixture_run();
    let asked = run.backbone.as_ref().unwrap();
    let backbone = Backbone::open_for_run(&fixture("backbone.safetensors"), asked).unwrap();
    let model = AdaptedVit::new(&backbone, &run.contract().unwrap(), &Compute::cpu());
    let Architecture { channels, image_size, .. } = asked.architecture;
    let numbers = channels * image_size * image_size;
    // The same formula as in tests/python/peft_parity.py, exact in f32.
    let pixels: Vec<f32> =
        (0..3 * numbers).map(|i| ((i * 7919) % 1_000) as f32 / 500.0 - 1.0).collect();
    let mut rows = Vec::new();
    pixels.chunks(numbers).for_each(|image| model.patchify(image, &mut rows));
    let found = model.logits(&values, &rows, 3);
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture("logits.json")).unwrap()).unwrap();
    let expected: Vec<Vec<f64>> = serde_json::from_value(expected["logits"].clone()).unwrap();
    for (found, expected) in found.iter().zip(expected.iter().flatten()) {
        assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
    }
    assert_eq!(found.len(), 3);
}

#[test]
fn an_export_is_the_directory_that_python_loaded() {
    let (run, values) = fixture_run();
    let folder = tempfile::tempdir().unwrap();
    for (version, name) in VERSIONS {
        let out = folder.path().join(name);
        export_peft(&out, &run, None, &values, version).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let found = fs::read(out.join(file)).unwrap();
            assert_eq!(found, fs::read(fixture(name).join(file)).unwrap(), "{name}/{file}");
        }
        let again = export_peft(&out, &run, None, &values, version);
        assert!(matches!(again, Err(ExportError::Exists(_))), "{again:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary left behind");
}

#[test]
fn what_transformers_cannot_compute_is_not_exported() {
    let (run, values) = fixture_run();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = export_peft(&out, &run, None, &values[1..], Transformers::V5);
    assert!(matches!(refused, Err(ExportError::Adapter)), "{refused:?}");
    let others: [fn(&mut Architecture); 3] =
        [|a| a.pool = Pool::Mean, |a| a.layer_scale = true, |a| a.register_tokens = 1];
    for change in others {
        let mut run = run.clone();
        change(&mut run.backbone.as_mut().unwrap().architecture);
        let refused = export_peft(&out, &run, None, &values, Transformers::V5);
        assert!(matches!(refused, Err(ExportError::Unsupported(_))), "{refused:?}");
    }
    assert!(!out.exists());
}

#[test]
fn a_backbone_round_trips_and_names_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let architecture = ml_support::architecture();
    let made = backbone(&architecture);
    made.save(&path).unwrap();
    let read = Backbone::open(&path, &architecture).unwrap();
    assert_eq!(read.digest(), made.digest());
    assert_eq!(read.to_bytes(), fs::read(&path).unwrap());
    let described = Backbone::open_described(&path).unwrap();
    assert_eq!(described.architecture(), &architecture);

    let mut deeper = architecture.clone();
    deeper.depth = 3;
    let mut other = deeper.clone();
    other.class_token = false;
    other.pool = Pool::Mean;
    other.mlp_width = 30;
    let line = Backbone::open(&path, &other).unwrap_err().to_string();
    for part in ["missing blocks.2.", "unexpected cls_token", "pos_embed: expected", "mlp.fc1"] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    let line = Backbone::open(&path, &deeper).unwrap_err().to_string();
    // Sixteen differences: 8 pairs of weights and biases, every one named.
    assert_eq!(line.matches("missing blocks.2.").count(), 16, "{line}");
}

#[test]
fn a_file_that_is_no_backbone_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let architecture = ml_support::architecture();
    let good = backbone(&architecture).to_bytes();
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Backbone::open(&path, &architecture).unwrap_err()
    };
    assert!(matches!(open(&[]), BackboneError::Format { .. }));
    assert!(matches!(open(&good[..good.len() - 1]), BackboneError::Format { .. }));
    assert!(matches!(open(b"PK\x03\x04 a zip file"), BackboneError::Format { .. }));
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = open(&nan);
    assert!(error.to_string().contains("is NaN"), "{error}");
    let huge = vec![0; good.len() + (17 << 20)];
    assert!(matches!(open(&huge), BackboneError::TooLarge { .. }));
    let missing = Backbone::open(&folder.path().join("none"), &architecture);
    assert!(matches!(missing, Err(BackboneError::Read { .. })));
    fs::write(&path, &good).unwrap();
    let mut asked = manifest(&backbone(&architecture), 0).backbone.unwrap();
    asked.digest = tributary_shared::digest::Digest::of(b"another");
    let other = Backbone::open_for_run(&path, &asked);
    assert!(matches!(other, Err(BackboneError::Digest { .. })));
}

/// The demo's backbone is what its card says. On histology it beats untrained weights; the card
/// says by how little, and that on the other two modalities it does not.
#[test]
fn the_demos_backbone_is_what_its_card_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/backbone");
    let card: Value =
        serde_json::from_slice(&fs::read(folder.join("backbone.json")).unwrap()).unwrap();
    let backbone = Backbone::open_described(&folder.join("backbone.safetensors")).unwrap();
    assert_eq!(card["digest"], backbone.digest().to_string());
    assert_eq!(card["parameters"], backbone.parameters());
    assert_eq!(card["architecture"], serde_json::to_value(backbone.architecture()).unwrap());
    let probe = &card["probe"];
    let spec = SynthSpec {
        modality: serde_json::from_value(probe["modality"].clone()).unwrap(),
        sites: 3,
        patients: 130,
        images_per_patient: 2,
        seed: 7,
        size: 64,
        label_skew: 0.0,
        site_shift: 1.0,
    };
    let (trained, untrained) = probes(&backbone, &spec);
    let margin = probe["margin_min"].as_f64().unwrap();
    assert!(margin > 0.0);
    assert!(trained - untrained >= margin, "{trained} {untrained}, the card promises {margin}");
}

fn probes(backbone: &Backbone, spec: &SynthSpec) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("probe");
    write(spec, &out, &|| {}).unwrap();
    let channels = backbone.architecture().channels;
    let input = InputSpec::plain(backbone.architecture().image_size, channels, 0.5, 0.5);
    let task = spec.modality.task();
    let site = |number: usize| {
        let source = DataSource::detect(&out.join(format!("site-{number}"))).unwrap();
        Dataset::open(&source, &task, &input).unwrap()
    };
    let dataset = Dataset::concat((1..=spec.sites).map(site).collect()).unwrap();
    let split = dataset.split(&HoldoutSalt::public(), 0.5);
    let of = |backbone: &Backbone| {
        let (control, compute) = (Control::default(), Compute::cpu());
        let probed = Probed { backbone, adapter: None };
        linear_probe(probed, &task, &dataset, &split, &compute, (&control, &mut |_| {}))
            .unwrap()
            .unwrap()
    };
    (of(backbone), of(&random_backbone(backbone.architecture(), 1)))
}
