//! Reading ahead of training: the same bits as without, and an error where its step begins.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use std::path::{Path, PathBuf};

use image::GrayImage;
use ml_support::{architecture, backbone, manifest, moved};
use tributary_client::config::cache::Precision;
use tributary_client::config::reading::Reading;
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, Split};
use tributary_client::model::{Backbone, Compute, Values};
use tributary_client::trainer::{
    Control, LocalTraining, LocalUpdate, Phase, PrefixCache, Pretraining, TrainError, pretrain,
    train,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::augment::Augment;
use tributary_shared::bags::Bags;
use tributary_shared::manifest::RunManifest;
use tributary_shared::objective::{Dino, Mae, Objective, SimClr};
use tributary_shared::task::Task;

const CASES: usize = 26;

/// A folder of images none of which is held in memory.
struct Site {
    folder: tempfile::TempDir,
    backbone: Backbone,
    run: RunManifest,
}

impl Site {
    fn new(change: impl FnOnce(&mut RunManifest)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut labels = "file,patient,bag,label,mask\n".to_owned();
        for case in 0..CASES {
            let level = |x: u32, y: u32| ((case as u32 * 29 + x * 7 + y * y * 3) % 256) as u8;
            let picture = GrayImage::from_fn(20, 18, |x, y| image::Luma([level(x, y)]));
            picture.save(folder.path().join(format!("{case}.png"))).unwrap();
            let mask = GrayImage::from_fn(20, 18, |x, y| image::Luma([level(y, x) / 128]));
            mask.save(folder.path().join(format!("mask-{case}.png"))).unwrap();
            // Bags of two images, all of a bag with one label.
            let (bag, label) = (case / 2, ["dark", "bright"][case / 2 % 2]);
            labels += &format!("{case}.png,p{bag},b{bag},{label},mask-{case}.png\n");
        }
        std::fs::write(folder.path().join("labels.csv"), labels).unwrap();
        let backbone = backbone(&architecture());
        let mut run = manifest(&backbone, 2);
        change(&mut run);
        run.check().unwrap();
        Self { folder, backbone, run }
    }

    fn picture(&self, case: usize) -> PathBuf {
        self.folder.path().join(format!("{case}.png"))
    }

    fn open(&self) -> Dataset {
        let input = InputSpec::plain(16, 1, 0.5, 0.5);
        let source = DataSource::detect(self.folder.path()).unwrap();
        let reading = Reading { kept_bytes_max: 0, ..Reading::default() };
        Dataset::open_as(&source, &self.run.task, &input, &reading).unwrap()
    }

    fn base(&self) -> Values {
        moved(&self.run, 1)
    }

    fn train(
        &self,
        (data, split): (&Dataset, &Split),
        compute: &Compute,
        cache: Option<&Path>,
        (control, heard): (&Control, &mut dyn FnMut(u64)),
    ) -> Result<LocalUpdate, TrainError> {
        let cache = cache.map(|dir| PrefixCache::open(dir, 1 << 20, Precision::F32).unwrap());
        let work = LocalTraining {
            backbone: &self.backbone,
            manifest: &self.run,
            base: &self.base(),
            dataset: data,
            split,
            round: 1,
            site: "a",
            compute,
            cache: cache.as_ref(),
        };
        train(&work, control, &mut |told| {
            if told.phase == Phase::Training {
                heard(told.step);
            }
        })
    }
}

fn training(run: &mut RunManifest) -> &mut tributary_shared::training::Training {
    run.training.as_mut().unwrap()
}

fn views() -> Augment {
    Augment { crop_area_min: 0.4, flip_horizontal: true, noise: 0.02, ..Augment::default() }
}

fn unlabelled(run: &mut RunManifest, objective: Objective) {
    let compared = !matches!(objective, Objective::Mae(_));
    training(run).augment = compared.then(views);
    run.task = Task::SelfSupervised { objective };
}

fn objectives() -> [Objective; 3] {
    [
        Objective::Mae(Mae { decoder_width: 32, ..Mae::default() }),
        Objective::SimClr(SimClr { hidden: 8, projection: 6, ..SimClr::default() }),
        Objective::Dino(Dino { prototypes: 7, hidden: 8, projection: 6, ..Dino::default() }),
    ]
}

type Change = Box<dyn FnOnce(&mut RunManifest)>;

/// Runs of every way from a file to a loss.
fn runs() -> Vec<(&'static str, Change)> {
    let last_block = "rank = 2\nalpha = 4.0\ntargets = \"qv\"\nlast_blocks = 1";
    let last_block = move |run: &mut RunManifest| {
        run.adapter = Some(toml::from_str::<Adaptation>(last_block).unwrap());
    };
    let mut runs: Vec<(&'static str, Change)> = vec![
        ("plain", Box::new(|_| {})),
        ("varied", Box::new(|run| training(run).augment = Some(views()))),
        (
            "early stop",
            Box::new(|run| {
                training(run).early_stop =
                    Some(toml::from_str("patience = 1\nmin_delta = 9.0").unwrap());
                training(run).epochs = 5;
            }),
        ),
        ("kept", Box::new(last_block)),
        (
            "bags",
            Box::new(|run| {
                run.bags =
                    Some(toml::from_str::<Bags>("attention_width = 4\ninstances_max = 1").unwrap());
                training(run).batch_size = 4;
            }),
        ),
        (
            "masks",
            Box::new(|run| {
                let task = "kind = \"segmentation\"\nclasses = [\"rest\", \"part\"]";
                run.task = toml::from_str(task).unwrap();
                training(run).augment = Some(views());
            }),
        ),
    ];
    for objective in objectives() {
        runs.push((objective.as_str(), Box::new(move |run| unlabelled(run, objective))));
    }
    runs
}

#[test]
fn the_result_is_the_same_bit_for_bit() {
    for (what, change) in runs() {
        let site = Site::new(change);
        let data = site.open();
        let split = data.split(&HoldoutSalt::public(), 0.25);
        let train = |compute: Compute, cache: Option<&str>| {
            let cache = cache.map(|name| site.folder.path().join(name));
            let data = (&data, &split);
            let mut update = site
                .train(data, &compute, cache.as_deref(), (&Control::default(), &mut |_| {}))
                .unwrap();
            update.metrics.train_s = 0.0;
            update
        };
        let expected = train(Compute::cpu().reading_ahead(false), None);
        assert_eq!(train(Compute::cpu(), None), expected, "{what}");
        if what == "kept" {
            // While the records are written, and once they are there.
            for _ in 0..2 {
                assert_eq!(train(Compute::cpu(), Some("ahead")), expected, "{what}");
                let inside = Compute::cpu().reading_ahead(false);
                assert_eq!(train(inside, Some("inside")), expected, "{what}");
            }
        }
    }
}

#[test]
fn pretraining_is_the_same_bit_for_bit() {
    for objective in objectives() {
        let site = Site::new(|run| unlabelled(run, objective.clone()));
        let plan = Pretraining {
            architecture: architecture(),
            augment: training(&mut site.run.clone()).augment.clone(),
            objective,
            epochs: 2,
            batch_size: 10,
            learning_rate: 1e-3,
            weight_decay: 0.05,
            seed: 1,
        };
        let made = |compute: Compute| {
            let control = Control::default();
            pretrain(&plan, &site.open(), &compute, &control, &mut |_| {}).unwrap()
        };
        let (ahead, inside) = (made(Compute::cpu()), made(Compute::cpu().reading_ahead(false)));
        assert_eq!(ahead.losses, inside.losses);
        assert_eq!(ahead.backbone.digest(), inside.backbone.digest());
    }
}

#[test]
fn a_file_that_goes_fails_the_step_that_needs_it_and_is_named() {
    let changes: [Change; 2] = [
        Box::new(|_| {}),
        Box::new(|run| {
            let [_, simclr, _] = objectives();
            unlabelled(run, simclr);
        }),
    ];
    for change in changes {
        let mut site = Site::new(change);
        training(&mut site.run).batch_size = 1;
        training(&mut site.run).epochs = 1;
        let data = site.open();
        let split = Split { train: (0..CASES).collect(), holdout: Vec::new() };
        let failed = |case: usize, reading_ahead: bool| {
            let compute = Compute::cpu().reading_ahead(reading_ahead);
            // Gone before the training begins: whichever step it is of.
            let gone = site.picture(case);
            let away = gone.with_extension("away");
            std::fs::rename(&gone, &away).unwrap();
            let mut steps = 0;
            let found = site.train(
                (&data, &split),
                &compute,
                None,
                (&Control::default(), &mut |step| steps = step),
            );
            std::fs::rename(&away, &gone).unwrap();
            let error = tributary_shared::outcome::chain(&found.unwrap_err());
            assert!(error.contains(&format!("{case}.png")), "{error}");
            (steps, error)
        };
        let expected = [11, 12].map(|case| failed(case, false));
        assert!(expected.iter().all(|(steps, _)| *steps < CASES as u64));
        assert_ne!(expected[0].0, expected[1].0, "each at its own step");
        assert_eq!([11, 12].map(|case| failed(case, true)), expected);
    }
}

#[test]
fn a_stop_is_heard_between_steps() {
    let mut site = Site::new(|_| {});
    training(&mut site.run).batch_size = 1;
    let data = site.open();
    let split = data.split(&HoldoutSalt::public(), 0.25);
    let control = Control::default();
    let mut heard = 0;
    let found = site.train(
        (&data, &split),
        &Compute::cpu(),
        None,
        (&control, &mut |step| {
            heard = step;
            if step == 3 {
                control.stop();
            }
        }),
    );
    assert!(matches!(found, Err(TrainError::Stopped)), "{found:?}");
    assert_eq!(heard, 3);
}
