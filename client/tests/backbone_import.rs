//! Checkpoints that timm and transformers wrote become backbones that compute the same.
//!
//! The files and the features to expect come from tests/python/backbone_fixtures.py.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::Value;
use tributary_client::model::{
    AdaptedVit, Backbone, Compute, ImportError, Imported, import_backbone,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::{Architecture, FinalNorm, Pool};
use tributary_shared::contract::AdapterContract;
use tributary_shared::dataset::Interpolation;
use tributary_shared::head::Head;

/// What the script says of a file.
#[derive(Deserialize)]
struct Card {
    file: String,
    image_size: usize,
    prefix: Option<String>,
    architecture: Architecture,
    features: Vec<Vec<f64>>,
}

impl Card {
    fn of(name: &str) -> Self {
        serde_json::from_slice(&fs::read(fixture(&format!("{name}.json"))).unwrap()).unwrap()
    }

    fn all() -> Vec<Self> {
        let files = fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path());
        let cards = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
        cards.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    fn import(&self) -> Result<Imported, ImportError> {
        let size = (self.image_size != self.architecture.image_size).then_some(self.image_size);
        import_backbone(&fixture(&self.file), &self.architecture, size, self.prefix.as_deref())
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/backbones").join(name)
}

/// What the head would see of images that nobody drew: the same formula as in the script.
fn features(backbone: &Backbone, images: usize) -> Vec<f32> {
    let (digest, shape) = (backbone.digest(), backbone.architecture());
    let contract =
        AdapterContract::new(digest, shape, Adaptation::HeadOnly, Some(Head::default()), 1);
    let model = AdaptedVit::new(backbone, &contract, &Compute::cpu());
    let Architecture { channels, image_size, .. } = *backbone.architecture();
    let numbers = channels * image_size * image_size;
    let pixels: Vec<f32> =
        (0..images * numbers).map(|i| ((i * 7919) % 1_000) as f32 / 500.0 - 1.0).collect();
    let mut rows = Vec::new();
    pixels.chunks(numbers).for_each(|image| model.patchify(image, &mut rows));
    model.features(&rows, images)
}

fn problem(result: Result<Imported, ImportError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn every_checkpoint_computes_what_its_library_computes() {
    let cards = Card::all();
    assert_eq!(cards.len(), 19);
    for card in cards {
        let imported = card.import().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(imported.backbone.architecture().image_size, card.image_size);
        let found = features(&imported.backbone, card.features.len());
        let expected: Vec<f64> = card.features.into_iter().flatten().collect();
        assert_eq!(found.len(), expected.len(), "{}", card.file);
        for (found, expected) in found.iter().zip(&expected) {
            let difference = (f64::from(*found) - expected).abs();
            assert!(difference < 1e-4, "{}: {found} {expected}", card.file);
        }
    }
}

#[test]
fn an_import_is_the_same_bytes_again_and_opens_as_a_backbone() {
    let folder = tempfile::tempdir().unwrap();
    let card = Card::of("transformers-dinov2-smaller");
    let (first, again) = (card.import().unwrap().backbone, card.import().unwrap().backbone);
    assert_eq!(first.digest(), again.digest());
    let path = folder.path().join("b.safetensors");
    first.save(&path).unwrap();
    let opened = Backbone::open_described(&path).unwrap();
    assert_eq!(opened.digest(), first.digest());
    assert_eq!(opened.architecture(), first.architecture());
    assert_eq!(opened.to_bytes(), fs::read(&path).unwrap());
}

#[test]
fn one_model_under_other_names_is_one_backbone() {
    let digest = |name: &str| Card::of(name).import().unwrap().backbone.digest();
    assert_eq!(digest("timm-plain"), digest("timm-views"));
    assert_eq!(digest("timm-giant"), digest("dinov2-training"));
    assert_eq!(digest("timm-bare"), {
        let mut card = Card::of("timm-larger");
        card.image_size = card.architecture.image_size;
        card.import().unwrap().backbone.digest()
    });
}

#[test]
fn what_is_not_taken_is_told() {
    let report = Card::of("retfound-tuned").import().unwrap().report;
    assert_eq!((report.library, report.prefix.as_str()), ("timm", "model."));
    assert_eq!(report.filled, Vec::<String>::new());
    assert_eq!(report.left_out, ["model.head.bias", "model.head.weight"]);

    // The student of the teacher that is taken: 14 tensors of each of two blocks, and 7 around them.
    let report = Card::of("dinov2-training").import().unwrap().report;
    assert_eq!(report.left_out, ["student (35 beside the model)"]);

    let report = Card::of("retfound-published").import().unwrap().report;
    assert_eq!(report.filled, ["fc_norm.bias", "fc_norm.weight"]);
    for name in ["model.mask_token", "model.decoder_embed.weight", "model.norm.weight"] {
        assert!(report.left_out.iter().any(|left| left == name), "{name}: {report:?}");
    }

    let report = Card::of("timm-bare").import().unwrap().report;
    assert_eq!(report.filled.len(), 2 * 3, "{report:?}");
    let positions = Card::of("timm-smaller").import().unwrap().report.positions;
    let expected = "4 x 4 to 2 x 2 patches, bicubic with antialias, as timm";
    assert_eq!(positions.as_deref(), Some(expected));

    let mut card = Card::of("transformers-vit-saved");
    card.architecture.layer_norm_eps = 1e-6;
    let notes = card.import().unwrap().report.notes;
    assert!(notes[0].contains("layer_norm_eps = 1e-12"), "{notes:?}");
}

#[test]
fn a_pickle_that_would_run_a_command_is_refused_and_runs_nothing() {
    let line = problem(import_backbone(
        &fixture("hostile.pth"),
        &Card::of("timm-plain").architecture,
        None,
        None,
    ));
    assert!(line.contains("names the Python object `posix.system`"), "{line}");
    assert!(!Path::new("tributary-unpickled").exists());
}

#[test]
fn another_model_is_refused_with_every_difference() {
    let mut card = Card::of("timm-plain");
    card.architecture.depth = 3;
    card.architecture.mlp_width = 20;
    card.architecture.layer_scale = true;
    card.architecture.final_norm = FinalNorm::Pooled;
    card.architecture.pool = Pool::Mean;
    let Err(ImportError::Mismatch { problems, .. }) = card.import() else { panic!("refused") };
    for part in [
        "missing blocks.2.attn.q.weight [12, 12]",
        "missing blocks.0.ls1.gamma [12]",
        "blocks.1.mlp.fc1.weight: expected [20, 12], found [24, 12]",
        "blocks.0.mlp.fc2.weight: expected [12, 20], found [12, 24]",
    ] {
        assert!(problems.iter().any(|line| line == part), "{part} is not in: {problems:?}");
    }
    // A third block's 16, every block's 2 scales, and 3 shapes of 2 blocks.
    assert_eq!(problems.len(), 16 + 6 + 6, "{problems:?}");
    let line = problem(card.import());
    assert!(line.contains(": 22 missing, 6 of another shape or kind (the first: "), "{line}");

    let mut card = Card::of("timm-giant");
    card.architecture.register_tokens = 0;
    card.architecture.layer_scale = false;
    let Err(ImportError::Mismatch { problems, .. }) = card.import() else { panic!("refused") };
    for part in
        ["unused reg_token (the architecture has no reg_tokens)", "unused blocks.1.ls2.gamma"]
    {
        assert!(problems.iter().any(|line| line.starts_with(part)), "{part}: {problems:?}");
    }

    let mut card = Card::of("timm-plain");
    card.architecture.image_size = 24;
    card.image_size = 24;
    let line = problem(card.import());
    assert!(line.contains("positions of 16 pixel images, the architecture has 24"), "{line}");

    card.image_size = 30;
    assert!(matches!(card.import(), Err(ImportError::Architecture(_))));

    let mut card = Card::of("dinov2-training");
    card.prefix = None;
    let line = problem(card.import());
    assert!(line.contains("`student.backbone.`, `teacher.backbone.`"), "{line}");
    card.prefix = Some("ema".to_owned());
    assert!(matches!(card.import(), Err(ImportError::NoModel { .. })));
}

#[test]
fn a_damaged_file_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let architecture = Card::of("timm-plain").architecture;
    let import = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        problem(import_backbone(&path, &architecture, None, None))
    };
    for name in ["timm-plain.pth", "transformers-vit-saved.safetensors"] {
        let whole = fs::read(fixture(name)).unwrap();
        for length in [0, 7, 8, 9, 100, 1_000, whole.len() / 2, whole.len() - 1] {
            let line = import(&whole[..length]);
            assert!(line.starts_with(&format!("checkpoint {}: ", path.display())), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
    let legacy = import(&fs::read(fixture("legacy.pth")).unwrap());
    assert!(legacy.contains("before 1.6"), "{legacy}");
    assert!(import(b"<html>").contains("neither a safetensors file nor"));
    let header = import(b"\xff\xff\xff\xff\xff\xff\xff\x7f{}");
    assert!(header.contains("its header has"), "{header}");
    let missing = import_backbone(&folder.path().join("none"), &architecture, None, None);
    assert!(matches!(missing, Err(ImportError::Read { .. })));

    let mut nan = fs::read(fixture("transformers-vit-saved.safetensors")).unwrap();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    // The last tensor is the pooler's, which is not read; so is every other byte of it.
    fs::write(&path, &nan).unwrap();
    import_backbone(&path, &architecture, None, None).unwrap();
    let start = 8 + u64::from_le_bytes(*nan.first_chunk().unwrap()) as usize;
    nan[start..start + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(import(&nan).contains("cls_token[0] is inf"), "{}", import(&nan));
}

fn client(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tributary-client")).args(arguments).output().unwrap()
}

#[test]
fn the_command_line_imports_shows_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (arch, out) = (folder.path().join("arch.toml"), folder.path().join("b.safetensors"));
    let architecture = toml::to_string(&Card::of("retfound-tuned").architecture).unwrap();
    let text = format!(
        "mean = [0.5, 0.5, 0.5]\nstd = [1, 1, 1]\ninterpolation = \"bicubic\"\n\
         [architecture]\n{architecture}"
    );
    fs::write(&arch, text).unwrap();
    let checkpoint = fixture("retfound-tuned.pth");
    let [checkpoint, arch, out] = [&checkpoint, &arch, &out].map(|path| path.to_str().unwrap());
    let said = client(&["backbone", "import", checkpoint, "--arch", arch, "--out", out]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success(), "{text}");
    assert!(text.contains("[backbone.architecture]\nimage_size = 16\n"), "{text}");
    let table: toml::Table = toml::from_str(&text[text.find("[backbone]").unwrap()..]).unwrap();
    let table: tributary_shared::manifest::Backbone = table["backbone"].clone().try_into().unwrap();
    Backbone::open_for_run(Path::new(out), &table).unwrap();
    assert_eq!(table.interpolation, Interpolation::Bicubic);
    // The card says the same, for `tributary run new`.
    let card = fs::read(Path::new(out).with_extension("json")).unwrap();
    let card: tributary_shared::manifest::Backbone = serde_json::from_slice(&card).unwrap();
    assert_eq!(card, table);
    let digest = table.digest.to_string();

    let shown = client(&["backbone", "show", out, "--format", "json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["data"]["digest"], digest);
    assert!(client(&["backbone", "verify", out, "--digest", &digest]).status.success());
    let other = format!("sha256:{}", "0".repeat(64));
    let refused = client(&["backbone", "verify", out, "--digest", &other]);
    assert_eq!(refused.status.code(), Some(1));

    let listed = client(&["backbone", "list"]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains("retfound_vitl16"));
    let unknown = client(&["backbone", "import", checkpoint, "--arch", "resnet50", "--out", out]);
    assert_eq!(unknown.status.code(), Some(4));
    let line = String::from_utf8(unknown.stderr).unwrap();
    assert!(line.contains("no architecture of this name"), "{line}");
    let wrong = client(&[
        "backbone",
        "import",
        checkpoint,
        "--arch",
        "vit_tiny_patch16_224",
        "--out",
        out,
        "--format",
        "json",
    ]);
    let wrong: Value = serde_json::from_slice(&wrong.stdout).unwrap();
    assert_eq!(wrong["error"]["code"], "checkpoint");
}

/// The list is as long as it is: a line each, and the summary last, where it can be seen.
#[test]
fn another_model_is_told_a_line_a_tensor_with_the_summary_last() {
    let folder = tempfile::tempdir().unwrap();
    let import = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tributary-client"));
        command.args(["backbone", "import", "--arch", "vit_small_patch16_224", "--out"]);
        command.arg(folder.path().join("out")).arg(fixture("timm-plain.pth")).args(more);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        output
    };
    let told = String::from_utf8(import(&[]).stderr).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    let (summary, list) = lines.split_last().unwrap();
    assert!(summary.starts_with("error: checkpoint ") && summary.len() < 400, "{summary}");
    assert!(list.len() > 100 && list.iter().all(|line| line.len() < 120), "{told}");
    assert!(list.contains(&"  missing blocks.11.attn.q.weight [384, 384]"), "{told}");
    let envelope: serde_json::Value =
        serde_json::from_slice(&import(&["--format", "json"]).stdout).unwrap();
    assert_eq!(envelope["error"]["details"].as_array().unwrap().len(), list.len());
}
