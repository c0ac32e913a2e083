//! Training with the frozen blocks' work kept on disk: the same result, in fewer steps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

mod ml_support;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ml_support::{architecture, backbone, dataset, manifest, moved};
use tributary_client::config::cache::Precision;
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, Split};
use tributary_client::model::{Backbone, Compute, Values};
use tributary_client::trainer::{
    Control, LocalTraining, LocalUpdate, PrefixCache, TrainError, train,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::augment::Augment;
use tributary_shared::bags::Bags;
use tributary_shared::manifest::RunManifest;
use tributary_shared::task::{Decoder, Task};

struct Site {
    folder: tempfile::TempDir,
    data: Dataset,
    backbone: Backbone,
    run: RunManifest,
    split: Split,
}

impl Site {
    fn new(run: impl FnOnce(&mut RunManifest)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = dataset(folder.path(), 30, 3);
        let backbone = backbone(&architecture());
        let mut manifest = manifest(&backbone, 2);
        run(&mut manifest);
        let split = data.split(&HoldoutSalt::public(), 0.25);
        Self { folder, data, backbone, run: manifest, split }
    }

    fn cache(&self, precision: Precision) -> PrefixCache {
        PrefixCache::open(&self.folder.path().join("kept"), 1 << 20, precision).unwrap()
    }

    fn try_train(
        &self,
        cache: Option<&PrefixCache>,
        control: &Control,
    ) -> Result<LocalUpdate, TrainError> {
        let base = moved(&self.run, 1);
        let work = LocalTraining {
            backbone: &self.backbone,
            manifest: &self.run,
            base: &base,
            dataset: &self.data,
            split: &self.split,
            round: 1,
            site: "a",
            compute: &Compute::cpu(),
            cache,
        };
        train(&work, control, &mut |_| {})
    }

    fn train(&self, cache: Option<&PrefixCache>) -> LocalUpdate {
        self.try_train(cache, &Control::default()).unwrap()
    }

    fn records(&self) -> Vec<PathBuf> {
        records(&self.folder.path().join("kept"))
    }
}

/// Every record below `folder`, sorted.
fn records(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(records(&path));
        } else if path.extension().is_some_and(|extension| extension == "prefix") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn last_block(run: &mut RunManifest) {
    let Some(Adaptation::Lora(lora)) = &mut run.adapter else { panic!("a run of LoRA") };
    lora.last_blocks = Some(1);
}

fn plain_lora(rank: usize) -> Adaptation {
    let text = format!("rank = {rank}\nalpha = 4.0\ntargets = \"qv\"\nlast_blocks = 1");
    toml::from_str(&text).unwrap()
}

type Change = fn(&mut RunManifest);

/// Runs whose lowest block is frozen, of every way from features to a loss.
fn runs() -> Vec<(&'static str, Change)> {
    vec![
        ("lora", last_block),
        ("early stop", |run| {
            last_block(run);
            let training = run.training.as_mut().unwrap();
            training.early_stop = Some(toml::from_str("patience = 1").unwrap());
        }),
        ("head only", |run| run.adapter = Some(Adaptation::HeadOnly)),
        ("attention pool", |run| {
            run.adapter = Some(Adaptation::HeadOnly);
            run.head = toml::from_str("kind = \"attention_pool\"").unwrap();
        }),
        ("last block", |run| run.adapter = Some(Adaptation::LastBlocks { last_blocks: 1 })),
        ("prompts", |run| {
            run.adapter =
                Some(Adaptation::Prompts { prompts: 2, deep: true, last_blocks: Some(1) });
        }),
        ("bags", |run| {
            run.adapter = Some(plain_lora(2));
            run.bags = Some(toml::from_str::<Bags>("attention_width = 4").unwrap());
        }),
    ]
}

fn assert_same(found: &LocalUpdate, expected: &LocalUpdate, what: &str) {
    if cfg!(feature = "tch") {
        // LibTorch sums a batch of another size in another order, and AdamW turns the noise of a
        // gradient that should be zero into whole steps: only the losses are alike.
        let (found, expected) = (found.metrics.train_loss, expected.metrics.train_loss);
        let apart = (found.unwrap() - expected.unwrap()).abs();
        assert!(apart < 1e-3, "{what}: {apart}");
        return;
    }
    assert_eq!(found.values, expected.values, "{what}");
    assert_eq!(found.metrics.train_loss, expected.metrics.train_loss, "{what}");
    assert_eq!(found.metrics.holdout_loss, expected.metrics.holdout_loss, "{what}");
}

fn largest_difference(a: &Values, b: &Values) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_cache_changes_no_bit_filled_or_empty() {
    for (what, run) in runs() {
        let site = Site::new(run);
        let expected = site.train(None);
        let cache = site.cache(Precision::F32);
        assert_same(&site.train(Some(&cache)), &expected, what);
        let kept = site.records();
        assert_eq!(kept.len(), site.data.len(), "{what}");
        assert_same(&site.train(Some(&cache)), &expected, what);
        assert_eq!(site.records(), kept, "{what}");
    }
}

#[test]
fn halves_move_the_result_by_little_and_alike_every_time() {
    let site = Site::new(last_block);
    let exact = site.train(None);
    let cache = site.cache(Precision::F16);
    let first = site.train(Some(&cache));
    let apart = largest_difference(&first.values, &exact.values);
    assert!(apart > 0.0 && apart < 0.01, "{apart}");
    // Read back or just computed: the numbers are the same.
    assert_same(&site.train(Some(&cache)), &first, "f16");
}

#[test]
fn what_is_kept_is_really_used() {
    let site = Site::new(last_block);
    let cache = site.cache(Precision::F32);
    let expected = site.train(Some(&cache));
    // Whole records, but of other images.
    let kept = site.records();
    let bytes: Vec<Vec<u8>> = kept.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, bytes) in kept.iter().zip(bytes.iter().skip(1)) {
        std::fs::write(path, bytes).unwrap();
    }
    assert_same(&site.train(Some(&cache)), &expected, "swapped records");
    let again: Vec<Vec<u8>> = kept.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(cfg!(feature = "tch") || again == bytes, "each was computed again");
    let inode = || std::fs::metadata(&kept[0]).unwrap().ino();
    let written = inode();
    site.train(Some(&cache));
    assert_eq!(inode(), written, "and then only read");
}

#[test]
fn another_image_preprocessing_backbone_or_block_is_another_key() {
    let site = Site::new(last_block);
    let cache = site.cache(Precision::F32);
    site.train(Some(&cache));
    let mut known = site.records().len();
    let mut trains_anew = |other: &Site, what: &str, anew: usize| {
        other.train(Some(&cache));
        let now = site.records().len();
        assert_eq!(now - known, anew, "{what}");
        known = now;
    };

    let images = Site { data: dataset(site.folder.path(), 30, 4), ..Site::new(last_block) };
    trains_anew(&images, "other images", 30);

    let mut mean = Site::new(|run| {
        last_block(run);
        run.backbone.as_mut().unwrap().mean = vec![0.25];
    });
    let input = InputSpec::plain(16, 1, 0.25, 0.5);
    let source = DataSource::Npz(mean.folder.path().join("data-3.npz"));
    mean.data = Dataset::open(&source, &mean.run.task, &input).unwrap();
    trains_anew(&mean, "another mean", 30);

    let mut values: Vec<Vec<f32>> = site.backbone.tensors().map(|(_, v)| v.to_vec()).collect();
    values[0][0] += 1e-3;
    let mut moved = Site::new(last_block);
    moved.backbone = Backbone::from_values(architecture(), values);
    moved.run.backbone.as_mut().unwrap().digest = moved.backbone.digest();
    trains_anew(&moved, "another backbone", 30);

    let pooled = Site::new(|run| run.adapter = Some(Adaptation::HeadOnly));
    trains_anew(&pooled, "another block", 30);
    let other_run = Site::new(|run| run.adapter = Some(plain_lora(1)));
    trains_anew(&other_run, "another run on the same blocks", 0);
}

#[test]
fn varied_and_wholly_trained_images_are_not_kept() {
    let whole = Site::new(|_| {});
    let cache = whole.cache(Precision::F32);
    let expected = whole.train(None);
    assert_same(&whole.train(Some(&cache)), &expected, "every block is trained");
    assert!(whole.records().is_empty());

    let varied = Site::new(|run| {
        last_block(run);
        let augment: Augment = toml::from_str("flip_horizontal = true").unwrap();
        run.training.as_mut().unwrap().augment = Some(augment);
    });
    let cache = varied.cache(Precision::F32);
    let expected = varied.train(None);
    assert_same(&varied.train(Some(&cache)), &expected, "varied");
    assert_eq!(varied.records().len(), varied.split.holdout.len(), "held-out images never vary");
}

#[test]
fn a_cache_too_small_for_the_images_is_not_used() {
    let site = Site::new(last_block);
    let expected = site.train(None);
    let small = PrefixCache::open(&site.folder.path().join("kept"), 4096, Precision::F32).unwrap();
    assert_same(&site.train(Some(&small)), &expected, "a small cache");
    assert!(site.records().is_empty());
}

#[test]
fn a_segmentations_tokens_are_kept_too() {
    let task = Task::Segmentation {
        classes: vec!["out".to_owned(), "in".to_owned()],
        decoder: Decoder::Linear {},
    };
    let folder = tempfile::tempdir().unwrap();
    let mut table = String::from("file,patient,mask\n");
    for case in 0..12u32 {
        let inside = move |x: u32, y: u32| x < 4 + case % 8 && y < 8;
        let image = image::GrayImage::from_fn(16, 16, |x, y| {
            image::Luma(
                [if inside(x, y) { 200 } else { 60 } + ((x * 7 + y * 13 + case) % 20) as u8],
            )
        });
        let mask = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([u8::from(inside(x, y))]));
        image.save(folder.path().join(format!("{case}.png"))).unwrap();
        mask.save(folder.path().join(format!("{case}-mask.png"))).unwrap();
        table.push_str(&format!("{case}.png,p{case},{case}-mask.png\n"));
    }
    std::fs::write(folder.path().join("labels.csv"), table).unwrap();
    for adaptation in [Adaptation::HeadOnly, plain_lora(2)] {
        let mut site = Site::new(|run| {
            run.task = task.clone();
            run.adapter = Some(adaptation.clone());
        });
        let input = InputSpec::plain(16, 1, 0.5, 0.5);
        let source = DataSource::detect(folder.path()).unwrap();
        site.data = Dataset::open(&source, &task, &input).unwrap();
        site.split = site.data.split(&HoldoutSalt::public(), 0.25);
        let expected = site.train(None);
        let cache = site.cache(Precision::F32);
        for filled in [false, true] {
            assert_same(&site.train(Some(&cache)), &expected, &format!("{filled}"));
        }
        assert_eq!(site.records().len(), 12);
    }
}
