//! `explain`: pictures of where a model looked, which stay at the site.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use image::{GrayImage, Luma};
use ml_support::{architecture, backbone, manifest, moved};
use serde_json::Value;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::encode;

struct Site(tempfile::TempDir);

impl Site {
    /// Four images, the first with a mask beside it.
    fn new(change: impl FnOnce(&mut RunManifest)) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let backbone = backbone(&architecture());
        let mut run = manifest(&backbone, 2);
        change(&mut run);
        run.check().unwrap();
        backbone.save(&site.path("b.safetensors")).unwrap();
        fs::write(site.path("run.toml"), toml::to_string(&run).unwrap()).unwrap();
        let header = adapter_header(&run.name, 2, &run.contract().unwrap());
        fs::write(site.path("adapter.bin"), encode(&header, &moved(&run, 6))).unwrap();
        fs::create_dir_all(site.path("data/masks")).unwrap();
        let mut labels = "file,patient,label\n".to_owned();
        for case in 0..4u8 {
            let picture = GrayImage::from_fn(16, 16, |x, y| Luma([(x * y) as u8 + 9 * case]));
            picture.save(site.path(&format!("data/{case}.png"))).unwrap();
            labels += &format!("{case}.png,p{case},dark\n");
        }
        let mask = GrayImage::from_fn(16, 16, |x, y| Luma([u8::from(x < 4 && y < 8)]));
        mask.save(site.path("data/masks/0.png")).unwrap();
        fs::write(site.path("data/labels.csv"), labels).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn explain(&self, out: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-client"));
        command.arg("explain").current_dir(self.0.path());
        command.args(["--run", "run.toml", "--backbone", "b.safetensors"]);
        command.args(["--adapter", "adapter.bin", "--data", "data", "--out", out]);
        command.args(more).output().unwrap()
    }

    fn refusal(&self, more: &[&str]) -> String {
        let output = self.explain("refused", more);
        assert_eq!(output.status.code(), Some(4), "{more:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn every_case_has_two_pictures_that_its_owner_alone_reads() {
    let site = Site::new(|_| {});
    let done = site.explain("out", &["--case", "0.png", "2.png", "--format", "json"]);
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let data = &said["data"];
    let cases = data["cases"].as_array().unwrap();
    assert_eq!((&cases[0]["case"], &cases[1]["case"]), (&"0.png".into(), &"2.png".into()));
    assert_eq!(cases[0]["rollout"]["area"], 0.125);
    assert_eq!(cases[1]["rollout"], Value::Null, "no mask, nothing to point at");
    assert_eq!(data["gradient"]["cases"], 1);
    let inside = data["rollout"]["inside"].as_f64().unwrap();
    assert!((data["rollout"]["ratio"].as_f64().unwrap() - inside / 0.125).abs() < 1e-9);
    let files = fs::read_dir(site.path("out")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.collect();
    assert_eq!(files.len(), 4, "{files:?}");
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&site.path("out")), 0o700);
    for file in files {
        assert_eq!(mode(&file), 0o600);
        assert_eq!(image::open(&file).unwrap().width(), 256);
    }
    let likely = cases[0]["class"].as_str().unwrap();
    let other = if likely == "dark" { "bright" } else { "dark" };
    let done = site.explain("other", &["--class", other, "--case", "3.png"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && text.contains(other), "{text}");
    assert!(text.contains("2 pictures in other; they stay here"), "{text}");
}

#[test]
fn what_cannot_be_explained_is_one_clear_line() {
    let site = Site::new(|_| {});
    assert!(site.refusal(&["--case", "9.png"]).contains("the images have no case `9.png`"));
    assert!(site.refusal(&["--most", "0"]).contains("--most 0: must be at least 1"));
    assert!(site.refusal(&["--bag", "p0"]).contains("the run has no bags; name images by --case"));
    assert!(site.refusal(&["--class", "red"]).contains("the run has dark, bright"));
    assert!(site.refusal(&["--top", "0"]).contains("--top 0: must be above 0"));
    let all_seen = Site::new(|run| run.training.as_mut().unwrap().holdout = 0.0);
    assert!(all_seen.refusal(&[]).contains("training sees every patient, and no case is named"));
    fs::create_dir(site.path("there")).unwrap();
    let taken = site.explain("there", &["--case", "0.png"]);
    assert!(String::from_utf8(taken.stderr).unwrap().contains("a directory that does not exist"));

    let missing = site.refusal(&["--case", "1.png", "--masks", "data/masks"]);
    assert!(missing.contains("1.png"), "a directory that was named has every mask: {missing}");
    assert!(!site.path("refused").exists(), "all pictures or none");
    let task = r#"{ "kind": "segmentation", "classes": ["no", "yes"] }"#;
    let regions = Site::new(|run| run.task = serde_json::from_str(task).unwrap());
    assert!(regions.refusal(&[]).contains("a segmentation's output is itself a map"));
    let survival =
        Site::new(|run| run.task = serde_json::from_str(r#"{ "kind": "survival" }"#).unwrap());
    assert!(survival.refusal(&["--class", "dark"]).contains("says one number of an image"));
}

#[test]
fn of_a_bag_those_images_are_explained_that_count_the_most() {
    let site = Site::new(|run| run.bags = Some(serde_json::from_str("{}").unwrap()));
    let labels =
        "file,patient,label,bag\n0.png,p,dark,s\n1.png,p,dark,s\n2.png,p,dark,s\n3.png,q,dark,t\n";
    fs::write(site.path("data/labels.csv"), labels).unwrap();
    let explained = |out: &str, more: &[&str]| -> Vec<(String, f64)> {
        let done = site.explain(out, &[&["--format", "json"], more].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let said: Value = serde_json::from_slice(&done.stdout).unwrap();
        let of = |case: &Value| {
            let bag = if case["case"] == "3.png" { "t" } else { "s" };
            assert_eq!(case["bag"], bag);
            (case["case"].as_str().unwrap().to_owned(), case["bag_share"].as_f64().unwrap())
        };
        said["data"]["cases"].as_array().unwrap().iter().map(of).collect()
    };
    let both = explained("both", &["--bag", "s", "t"]);
    assert_eq!(both.len(), 4);
    let shares: Vec<f64> = both[..3].iter().map(|(_, share)| *share).collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{shares:?}");
    assert!(shares[0] > shares[1] && shares[1] > shares[2], "{shares:?}");
    assert_eq!(both[3], ("3.png".to_owned(), 1.0), "alone in its bag");
    assert_eq!(explained("two", &["--bag", "s", "--most", "2"]), both[..2]);
    assert_eq!(explained("named", &["--case", &both[2].0]), both[2..3]);

    let table = site.explain("table", &["--bag", "t"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("BAG") && table.contains("IN BAG"), "{table}");
    assert!(table.contains("100.0 %"), "{table}");
    assert!(site.refusal(&["--bag", "none"]).contains("the images have no bag `none`"));
}

/// Guards against an old fault: `--config` alone was refused for want of `--backbone`, although
/// `site.toml` names images and backbone.
#[test]
fn site_toml_names_images_and_backbone_for_every_command_that_computes() {
    let site = Site::new(|_| {});
    let toml = "directory = \".\"\npolicy = \"policy.toml\"\n[data]\npath = \"data\"\n\
                [backbone]\npath = \"b.safetensors\"\n";
    fs::write(site.path("site.toml"), toml).unwrap();
    let client = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-client"));
        command.current_dir(site.0.path()).args(line.split(' ')).args(["--config", "site.toml"]);
        command.output().unwrap()
    };
    for line in [
        "train --run run.toml --out trained.bin",
        "evaluate --run run.toml --adapter trained.bin --split all",
        "explain --run run.toml --adapter trained.bin --case 0.png --out seen",
    ] {
        let done = client(line);
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{line}: {told}");
    }
    let unnamed = toml.split("[backbone]").next().unwrap();
    fs::write(site.path("site.toml"), unnamed).unwrap();
    let refused = client("evaluate --run run.toml --adapter trained.bin");
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("the site.toml has no [backbone]"), "{told}");
    assert!(told.contains("--backbone FILE"), "{told}");
}
