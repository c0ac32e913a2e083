//! Adapters to and from Python: what comes back is what went out, and what cannot is refused.
//!
//! That peft and timm compute the same is checked with them, by tests/python/export_parity.py.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ml_support::{backbone, manifest, moved};
use serde_json::{Value, json};
use tributary_client::model::{Backbone, Values};
use tributary_client::trainer::{
    ExportError, ImportPeftError, Transformers, export_peft, export_timm, import_peft,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::head::Head;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::encode;

const LORA: &str = r#"{ "rank": 3, "alpha": 4.0, "targets": "all_linear" }"#;
const DORA: &str = r#"{ "rank": 3, "alpha": 4.0, "targets": "qv", "dora": true }"#;

/// A run with a trained adapter, and a folder to write in.
struct Run {
    folder: tempfile::TempDir,
    backbone: Backbone,
    manifest: RunManifest,
    values: Values,
}

impl Run {
    fn new(adapter: &str) -> Self {
        let backbone = backbone(&ml_support::architecture());
        let mut manifest = manifest(&backbone, 2);
        manifest.adapter = Some(serde_json::from_str(adapter).unwrap());
        manifest.check().unwrap();
        let values = moved(&manifest, 6);
        Self { folder: tempfile::tempdir().unwrap(), backbone, manifest, values }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn export(&self, name: &str, version: Transformers) -> PathBuf {
        let out = self.path(name);
        export_peft(&out, &self.manifest, Some(&self.backbone), &self.values, version).unwrap();
        out
    }

    fn import(&self, folder: &Path) -> Result<Values, ImportPeftError> {
        import_peft(folder, &self.manifest.contract().unwrap(), Some(&self.backbone))
    }

    /// What is said of an export whose configuration is changed.
    fn with_config(&self, key: &str, value: Value) -> String {
        let folder = self.path("configured");
        let _ = fs::remove_dir_all(&folder);
        self.export("configured", Transformers::V5);
        let path = folder.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        self.import(&folder).expect_err("refused").to_string()
    }

    /// The files that a command line works on.
    fn written(&self) -> [String; 3] {
        let [run, adapter, backbone] =
            ["run.toml", "adapter.bin", "b.safetensors"].map(|name| self.path(name));
        fs::write(&run, toml::to_string(&self.manifest).unwrap()).unwrap();
        let contract = self.manifest.contract().unwrap();
        let header = adapter_header(&self.manifest.name, self.manifest.rounds.count, &contract);
        fs::write(&adapter, encode(&header, &self.values)).unwrap();
        self.backbone.save(&backbone).unwrap();
        [run, adapter, backbone].map(|path| path.to_str().unwrap().to_owned())
    }
}

#[test]
fn what_went_to_peft_comes_back_bit_for_bit() {
    let adapters = [
        LORA,
        r#"{ "rank": 2, "alpha": 4.0, "targets": "qv", "scaling": "rslora", "last_blocks": 1 }"#,
        r#"{ "kind": "head_only" }"#,
    ];
    for adapter in adapters {
        let run = Run::new(adapter);
        for (version, name) in [(Transformers::V4, "four"), (Transformers::V5, "five")] {
            assert_eq!(run.import(&run.export(name, version)).unwrap(), run.values, "{adapter}");
        }
    }
    // A sum of a length and its change is rounded once, to 2^-24 of about 1.
    let run = Run::new(DORA);
    let back = run.import(&run.export("dora", Transformers::V5)).unwrap();
    let far = back.iter().flatten().zip(run.values.iter().flatten());
    let far = far.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-6, "{far}");
}

#[test]
fn dora_goes_to_peft_and_back_beside_its_backbone_alone() {
    let run = Run::new(DORA);
    let out = run.path("out");
    let refused = export_peft(&out, &run.manifest, None, &run.values, Transformers::V5);
    assert!(matches!(refused, Err(ExportError::NoBackbone(_))), "{refused:?}");
    let exported = run.export("dora", Transformers::V5);
    let refused = import_peft(&exported, &run.manifest.contract().unwrap(), None);
    assert!(matches!(refused, Err(ImportPeftError::NoBackbone)), "{refused:?}");
}

#[test]
fn another_adapter_than_the_runs_is_refused_with_every_difference() {
    let run = Run::new(LORA);
    let other = Run::new(r#"{ "rank": 2, "alpha": 8.0, "targets": "qv", "scaling": "rslora" }"#);
    let line = run.import(&other.export("other", Transformers::V5)).unwrap_err().to_string();
    for part in [
        "r: expected 3, found 2",
        "lora_alpha: expected 4.0, found 8.0",
        "use_rslora: expected false, found true",
        "missing blocks.1.mlp.fc2.lora_B [16, 3]",
        "vit.layers.0.attention.q_proj.lora_A.weight: expected [3, 16], found [2, 16]",
    ] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    // Four maps of two blocks are missing, two have another rank, twice each; and three keys.
    assert_eq!(line.matches("; ").count() + 1, 16 + 8 + 3, "{line}");
    let line = other.import(&run.export("more", Transformers::V4)).unwrap_err().to_string();
    let unused = "unused base_model.model.vit.encoder.layer.1.output.dense.lora_B.weight [16, 3]";
    assert!(line.contains(unused), "{line}");
    let alone = Run::new(r#"{ "kind": "head_only" }"#);
    let line = alone.import(&run.export("lora", Transformers::V5)).unwrap_err().to_string();
    assert_eq!(line.matches("unused ").count(), 24, "{line}");
}

#[test]
fn a_configuration_that_computes_something_else_is_refused() {
    let run = Run::new(LORA);
    for (key, value, said) in [
        ("peft_type", json!("LOHA"), "peft_type: expected \"LORA\", found \"LOHA\""),
        ("use_dora", json!(true), "use_dora: expected false, found true"),
        ("bias", json!("all"), "bias: expected \"none\", found \"all\""),
        ("rank_pattern", json!({ "q_proj": 8 }), "rank_pattern is set, which no run computes"),
        ("lora_bias", json!(true), "lora_bias is set"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices is set"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights = \"pissa\" may have changed"),
    ] {
        let line = run.with_config(key, value);
        assert!(line.contains(said), "{said} is not in: {line}");
        assert_eq!(line.matches("; ").count(), 0, "{line}");
    }
}

#[test]
fn a_directory_that_is_none_of_pefts_is_one_clear_line() {
    let run = Run::new(LORA);
    let refused = run.import(&run.path("none"));
    assert!(matches!(refused, Err(ImportPeftError::Read { .. })), "{refused:?}");
    let folder = run.export("damaged", Transformers::V5);
    let (config, weights) =
        (folder.join("adapter_config.json"), folder.join("adapter_model.safetensors"));
    let good = fs::read(&weights).unwrap();

    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, nan).unwrap();
    assert!(run.import(&folder).unwrap_err().to_string().contains("] is NaN"));
    fs::write(&weights, &good[..good.len() - 1]).unwrap();
    assert!(matches!(run.import(&folder), Err(ImportPeftError::Weights(_))));
    fs::remove_file(&weights).unwrap();
    assert!(matches!(run.import(&folder), Err(ImportPeftError::NoWeights(_))));
    // Read as data: what it would run when Python loads it is not run.
    let hostile =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/backbones/hostile.pth");
    fs::copy(hostile, folder.join("adapter_model.bin")).unwrap();
    let line = run.import(&folder).unwrap_err().to_string();
    assert!(line.contains("names the Python object `posix.system`"), "{line}");

    for (text, said) in [("[]", "not a configuration"), ("{", "not a configuration")] {
        fs::write(&config, text).unwrap();
        let line = run.import(&folder).unwrap_err().to_string();
        assert!(line.contains(said) && !line.contains('\n'), "{line}");
    }
    fs::write(&config, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(run.import(&folder).unwrap_err().to_string().contains("1048577 bytes; at most"));
}

#[test]
fn peft_takes_and_gives_what_it_has_a_counterpart_for() {
    let run = Run::new(LORA);
    let exported = run.export("lora", Transformers::V5);
    let out = run.path("out");
    let refused = |run: &Run| {
        let to = export_peft(&out, &run.manifest, None, &run.values, Transformers::V5);
        assert!(matches!(to, Err(ExportError::Unsupported(_))), "{to:?}");
        to.unwrap_err().to_string()
    };
    for adapter in [
        r#"{ "kind": "houlsby", "bottleneck": 4 }"#,
        r#"{ "kind": "adaptformer", "bottleneck": 4 }"#,
        r#"{ "kind": "prompts", "prompts": 2 }"#,
        r#"{ "kind": "bitfit" }"#,
        r#"{ "kind": "last_blocks", "last_blocks": 1 }"#,
        r#"{ "kind": "full" }"#,
    ] {
        let run = Run::new(adapter);
        assert!(refused(&run).ends_with("export this run's adaptation to timm"));
        let from = run.import(&exported);
        assert!(matches!(from, Err(ImportPeftError::Unsupported(_))), "{from:?}");
    }
    let mut other = Run::new(LORA);
    other.manifest.head = Head::Mlp { hidden: 4 };
    assert!(refused(&other).contains("has a linear head"));
    assert!(matches!(other.import(&exported), Err(ImportPeftError::Unsupported(_))));
    let mut other = Run::new(LORA);
    other.manifest.bags = Some(serde_json::from_str("{}").unwrap());
    assert!(refused(&other).contains("a run on bags or regions cannot be exported"));
    let mut other = Run::new(LORA);
    let task = r#"{ "kind": "segmentation", "classes": ["no", "yes"] }"#;
    other.manifest.task = serde_json::from_str(task).unwrap();
    assert!(refused(&other).contains("a run on bags or regions cannot be exported"));
    assert!(!out.exists());
}

#[test]
fn a_model_for_timm_is_whole_or_not_there() {
    let mut run = Run::new(LORA);
    let out = run.path("timm");
    let export = |run: &Run, backbone: &Backbone, values: &[Vec<f32>]| {
        export_timm(&out, &run.manifest, backbone, values)
    };
    let another = Backbone::from_values(
        run.backbone.architecture().clone(),
        run.backbone.tensors().map(|(_, values)| vec![1.0; values.len()]).collect(),
    );
    assert!(matches!(export(&run, &another, &run.values), Err(ExportError::Adapter)));
    assert!(matches!(export(&run, &run.backbone, &run.values[1..]), Err(ExportError::Adapter)));
    assert!(!out.exists());
    assert!(export(&run, &run.backbone, &run.values).unwrap(), "timm alone computes it");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    assert!(matches!(export(&run, &run.backbone, &run.values), Err(ExportError::Exists(_))));
    fs::remove_dir_all(&out).unwrap();
    run.manifest.adapter = Some(Adaptation::Houlsby { bottleneck: 4, last_blocks: None });
    run.values = moved(&run.manifest, 6);
    assert!(!export(&run, &run.backbone, &run.values).unwrap());
    assert!(out.join("tributary_timm.py").exists());
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architecture"], "load_with_tributary_timm");
    assert_eq!(config["tributary"]["adapter"]["kind"], "houlsby");
}

fn client(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tributary-client")).args(arguments).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_command_line_merges_exports_and_imports() {
    let run = Run::new(DORA);
    let [manifest, adapter, backbone] = run.written();
    let [merged, exported, read] = ["merged.safetensors", "peft", "read.bin"]
        .map(|name| run.path(name).to_str().unwrap().to_owned());
    let export = |more: &[&str]| {
        client(&[&["export", "--run", &manifest, "--adapter", &adapter], more].concat())
    };
    let refused = export(&["--out", &exported]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(refused.stderr).contains("--backbone FILE"));
    let beside = ["--backbone", &backbone];
    let done = export(&[&beside[..], &["--as", "backbone", "--out", &merged]].concat());
    let said = text(done.stdout);
    let table: toml::Table = toml::from_str(&said[said.find("[backbone]").unwrap()..]).unwrap();
    let table: tributary_shared::manifest::Backbone = table["backbone"].clone().try_into().unwrap();
    assert_ne!(table.digest, run.backbone.digest());
    Backbone::open_for_run(Path::new(&merged), &table).unwrap();

    assert!(export(&[&beside[..], &["--out", &exported]].concat()).status.success());
    let import = ["import-adapter", &exported, "--run", &manifest, "--out", &read];
    let refused = client(&import);
    assert!(text(refused.stderr).contains("--backbone FILE"));
    let done = client(&[&import[..], &beside].concat());
    assert!(done.status.success(), "{}", text(done.stderr));
    assert_eq!(fs::metadata(&read).unwrap().len(), fs::metadata(&adapter).unwrap().len());

    let prompts = Run::new(r#"{ "kind": "prompts", "prompts": 2 }"#);
    let [manifest, adapter, backbone] = prompts.written();
    let common = ["--run", &manifest, "--adapter", &adapter, "--backbone", &backbone];
    let refused =
        client(&[&["export", "--as", "backbone", "--out", &merged], &common[..]].concat());
    let said = text(refused.stderr);
    assert!(said.contains("kind = \"prompts\" adds modules or tokens of its own"), "{said}");
    assert!(said.contains("--as timm"), "{said}");
}

#[test]
fn predictions_name_bags_and_are_nobody_elses_to_read() {
    let mut run = Run::new(LORA);
    run.manifest.bags = Some(serde_json::from_str(r#"{ "attention_width": 4 }"#).unwrap());
    run.values = moved(&run.manifest, 6);
    let [manifest, adapter, backbone] = run.written();
    let data = run.path("data");
    fs::create_dir(&data).unwrap();
    let mut table = "file,patient,label,bag\n".to_owned();
    for image in 0..4 {
        image::GrayImage::new(16, 16).save(data.join(format!("{image}.png"))).unwrap();
        let slide = image / 2;
        table += &format!("{image}.png,p{slide},dark,slide-{slide}\n");
    }
    fs::write(data.join("labels.csv"), table).unwrap();
    let out = run.path("predictions.csv");
    let [data, to] = [&data, &out].map(|path| path.to_str().unwrap());
    let common = ["--run", &manifest, "--adapter", &adapter, "--backbone", &backbone];
    let asked = ["evaluate", "--data", data, "--split", "all", "--predictions", to];
    let done = client(&[&asked[..], &common].concat());
    assert!(done.status.success(), "{}", text(done.stderr));
    let written = fs::read_to_string(&out).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(lines[0], "bag,case,patient,label,p(bright)");
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("slide-0,0.png,p0,dark,0."), "{}", lines[1]);
    assert!(lines[2].starts_with("slide-1,2.png,p1,dark,0."), "{}", lines[2]);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
}
