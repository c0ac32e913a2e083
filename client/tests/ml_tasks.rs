//! Each task from labels to a metric: what is learned beats chance, what does not fit is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

mod ml_support;

use std::fmt::Write as _;
use std::path::Path;

use image::GrayImage;
use ml_support::{architecture, backbone, dataset, initial, manifest, moved, unit};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, Label, Split};
use tributary_client::model::{Backbone, Compute, Values};
use tributary_client::trainer::{
    Control, Evaluation, Inference, LocalTraining, LocalUpdate, TrainError, train, trainable,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::Pool;
use tributary_shared::head::Head;
use tributary_shared::manifest::{RunManifest, Task};

/// A site whose folder is drawn by a test.
struct Site {
    folder: tempfile::TempDir,
    backbone: Backbone,
    run: RunManifest,
}

impl Site {
    /// A run of `task` (a TOML table) with `more` tables and keys of `[training]`.
    fn new(task: &str, more: &str) -> Self {
        let backbone = backbone(&architecture());
        let mut text = toml::to_string(&manifest(&backbone, 2)).unwrap();
        let (start, end) = (text.find("[task]").unwrap(), text.find("[backbone]").unwrap());
        text.replace_range(start..end, task);
        let run = RunManifest::from_toml(&format!("{text}\n{more}")).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), backbone, run }
    }

    fn picture(&self, name: &str, level: impl Fn(u32, u32) -> u8) {
        let picture = GrayImage::from_fn(16, 16, |x, y| image::Luma([level(x, y)]));
        picture.save(self.folder.path().join(name)).unwrap();
    }

    fn labels(&self, table: &str) {
        std::fs::write(self.folder.path().join("labels.csv"), table).unwrap();
    }

    fn open(&self) -> Result<Dataset, tributary_client::data::DataError> {
        let input = InputSpec::plain(16, 1, 0.5, 0.5);
        Dataset::open(&DataSource::detect(self.folder.path())?, &self.run.task, &input)
    }

    fn train(&self, data: &Dataset, base: &Values) -> Result<LocalUpdate, TrainError> {
        self.train_on(data, base, &data.split(&HoldoutSalt::public(), 0.25))
    }

    fn train_on(
        &self,
        data: &Dataset,
        base: &Values,
        split: &Split,
    ) -> Result<LocalUpdate, TrainError> {
        let work = LocalTraining {
            backbone: &self.backbone,
            manifest: &self.run,
            base,
            dataset: data,
            split,
            round: 1,
            site: "a",
            compute: &Compute::cpu(),
            cache: None,
        };
        train(&work, &Control::default(), &mut |_| {})
    }

    /// What `of` makes of an adapter with images to look at.
    fn infer<T>(
        &self,
        data: &Dataset,
        values: &Values,
        of: impl FnOnce(&Inference<'_>) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let compute = Compute::cpu();
        let (backbone, manifest) = (&self.backbone, &self.run);
        of(&Inference { backbone, manifest, values, dataset: data, compute: &compute })
    }

    fn evaluate(&self, data: &Dataset, values: &Values, indices: &[usize]) -> Evaluation {
        self.infer(data, values, |i| i.evaluate(indices, &Control::default(), &mut |_| {})).unwrap()
    }

    fn bag_shares(
        &self,
        data: &Dataset,
        values: &Values,
        indices: &[usize],
    ) -> Result<Vec<(usize, f32)>, TrainError> {
        self.infer(data, values, |i| i.bag_shares(indices, &Control::default(), &mut |_| {}))
    }

    /// What the held-out cases say before and after one round.
    fn before_and_after(&self, data: &Dataset) -> [Evaluation; 2] {
        self.round(data).1
    }

    /// The adapter before and after one round, and what the held-out cases say of each.
    fn round(&self, data: &Dataset) -> ([Values; 2], [Evaluation; 2]) {
        let base = initial(&self.run);
        let split = data.split(&HoldoutSalt::public(), 0.25);
        let update = self.train(data, &base).unwrap();
        assert_eq!(update.cases, trainable(&self.run, data, &split.train).unwrap());
        let moved = update.values.iter().zip(&base).filter(|(a, b)| a != b).count();
        assert_eq!(moved, base.len(), "every tensor of the adapter is trained");
        let [before, after] =
            [&base, &update.values].map(|values| self.evaluate(data, values, &split.holdout));
        assert!(after.loss < before.loss, "{:?} {:?}", before.loss, after.loss);
        assert_eq!(update.metrics.holdout_loss, before.loss);
        ([base, update.values], [before, after])
    }
}

/// Grey noise around `base`.
fn noisy(rng: &mut ChaCha8Rng, base: f32) -> u8 {
    (base + 40.0 * unit(rng)) as u8
}

fn noise(seed: u64, base: f32) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..256).map(|_| noisy(&mut rng, base)).collect()
}

/// Noise with the square at the top left brighter by `more`.
fn squared(seed: u64, more: u8) -> impl Fn(u32, u32) -> u8 {
    let noise = noise(seed, 80.0);
    move |x, y| noise[(16 * y + x) as usize] + if x < 8 && y < 8 { more } else { 0 }
}

const TRAINING: &str =
    "[training]\nepochs = 8\nbatch_size = 10\nlearning_rate = 0.02\nholdout = 0.25\nseed = 3\n";

/// `[training]` as the tests train, with `more` keys.
fn trained(site: &mut Site, more: &str) {
    let table: toml::Table = format!("{TRAINING}{more}").parse().unwrap();
    site.run.training = Some(table["training"].clone().try_into().unwrap());
    let checked = RunManifest::from_json(&site.run.to_json()).unwrap();
    assert_eq!(checked, site.run);
}

#[test]
fn grades_are_learned_in_their_order() {
    let mut site =
        Site::new("[task]\nkind = \"ordinal\"\nclasses = [\"none\", \"mild\", \"severe\"]\n", "");
    trained(&mut site, "class_weights = \"balanced\"\n");
    let mut table = "file,patient,label\n".to_owned();
    for case in 0..90u32 {
        let grade = case as usize % 3;
        site.picture(&format!("{case}.png"), squared(u64::from(case), 60 * grade as u8));
        let name = ["none", "mild", "severe"][grade];
        writeln!(table, "{case}.png,p{case},{name}").unwrap();
    }
    site.labels(&table);
    let data = site.open().unwrap();
    let [before, after] = site.before_and_after(&data);
    assert!(after.kappa > Some(0.6) && after.kappa > before.kappa, "{after:?}");
    assert!(after.grade_error < Some(0.5) && after.auroc > Some(0.8), "{after:?}");
    for (_, p) in &after.predictions {
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5, "three grades' probabilities");
    }
}

#[test]
fn risks_are_learned_from_times_that_are_partly_censored() {
    let mut site = Site::new("[task]\nkind = \"survival\"\n", "");
    trained(&mut site, "");
    let mut table = "file,patient,time,event\n".to_owned();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for case in 0..80u32 {
        let more = (case * 37 % 100) as u8;
        site.picture(&format!("{case}.png"), squared(u64::from(case), more));
        let time = 1.0 + 10.0 * (1.0 - f32::from(more) / 100.0) + unit(&mut rng);
        writeln!(table, "{case}.png,p{case},{time},{}", u8::from(case % 4 > 0)).unwrap();
    }
    site.labels(&table);
    let data = site.open().unwrap();
    let [_, after] = site.before_and_after(&data);
    assert!(after.concordance > Some(0.8), "{after:?}");
    assert_eq!(after.auroc, None);

    site.labels("file,patient,time,event\n0.png,p,-1,1\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(refused.ends_with("line 2: the time `-1` is not a number above 0"), "{refused}");
    site.labels("file,patient,time,event\n0.png,p,1,yes\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(refused.ends_with("the event `yes` is neither 1 (seen) nor 0 (not seen)"), "{refused}");
}

/// Bright discs somewhere, their masks beside them.
fn draw_discs(site: &Site, cases: u32) {
    let mut table = "file,patient,mask\n".to_owned();
    for case in 0..cases {
        let centre = (3 + case * 5 % 10, 3 + case * 7 % 10);
        let inside =
            move |x: u32, y: u32| x.abs_diff(centre.0).pow(2) + y.abs_diff(centre.1).pow(2) < 10;
        let noise = noise(u64::from(case), 80.0);
        site.picture(&format!("{case}.png"), |x, y| {
            noise[(16 * y + x) as usize] + if inside(x, y) { 120 } else { 0 }
        });
        site.picture(&format!("{case}-mask.png"), |x, y| u8::from(inside(x, y)));
        writeln!(table, "{case}.png,p{case},{case}-mask.png").unwrap();
    }
    site.labels(&table);
}

#[test]
fn regions_are_learned_by_both_decoders() {
    for decoder in ["linear\"", "convolutional\"\nchannels = 8"] {
        let task = "[task]\nkind = \"segmentation\"\nclasses = [\"background\", \"disc\"]\n";
        let mut site = Site::new(&format!("{task}[task.decoder]\nkind = \"{decoder}\n"), "");
        trained(&mut site, "[training.augment]\nflip_horizontal = true\nrotate_90 = true\n");
        draw_discs(&site, 60);
        let data = site.open().unwrap();
        let [before, after] = site.before_and_after(&data);
        assert!(after.dice > Some(0.6) && after.dice > before.dice, "{decoder}: {after:?}");
        assert_eq!(after.dice_of_class.len(), 2);
        assert!(after.predictions.iter().all(|(_, p)| (p[0] + p[1] - 1.0).abs() < 1e-5));
    }
}

#[test]
fn a_mask_that_is_none_is_refused_in_one_line() {
    let site =
        Site::new("[task]\nkind = \"segmentation\"\nclasses = [\"background\", \"disc\"]\n", "");
    site.picture("a.png", |_, _| 0);
    site.picture("three.png", |_, _| 3);
    site.labels("file,patient,mask\na.png,p,three.png\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(
        refused.ends_with(
            "three.png: a mask's level 3 is no class; the task has 2, and 255 marks none"
        ),
        "{refused}"
    );
    image::RgbImage::new(16, 16).save(site.folder.path().join("rgb.png")).unwrap();
    site.labels("file,patient,mask\na.png,p,rgb.png\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(refused.contains("rgb.png: a mask must be 8-bit grey"), "{refused}");
    site.labels("file,patient,mask\na.png,p,none.png\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(refused.ends_with("`none.png` does not exist in the folder"), "{refused}");
    site.labels("file,patient,label\na.png,p,disc\n");
    let refused = site.open().err().unwrap().to_string();
    assert!(refused.contains("the column `mask` is missing"), "{refused}");
}

const BINARY: &str = "[task]\nkind = \"binary\"\nclasses = [\"no\", \"yes\"]\n";

/// Bags of six images; in those that are positive two have the square.
fn draw_bags(site: &Site, bags: u64) {
    let mut table = "file,patient,label,bag\n".to_owned();
    for bag in 0..bags {
        for image in 0..6 {
            let found = squared_in_bag(bag, image);
            let name = format!("{bag}-{image}.png");
            site.picture(&name, squared(bag * 6 + image, if found { 120 } else { 0 }));
            writeln!(table, "{name},p{bag},{},slide-{bag}", ["no", "yes"][(bag % 2) as usize])
                .unwrap();
        }
    }
    site.labels(&table);
}

#[test]
fn bags_are_learned_from_the_few_images_that_matter() {
    let mut site = Site::new(BINARY, "[bags]\nattention_width = 8\ninstances_max = 5\n");
    trained(&mut site, "");
    draw_bags(&site, 60);
    let data = site.open().unwrap();
    assert_eq!(trainable(&site.run, &data, &(0..data.len()).collect::<Vec<_>>()).unwrap(), 60);
    let (values, [before, after]) = site.round(&data);
    assert!(after.auroc > Some(0.9), "{:?} {:?}", before.auroc, after.auroc);
    let held = data.split(&HoldoutSalt::public(), 0.25).holdout;
    assert_eq!(after.cases, held.len() as u64 / 6);
    // Two of six would have a third if the attention did not tell them apart.
    let squares = |values: Values| -> f32 {
        let positive = |case: &usize| data.cases()[*case].label == Label::Class(1);
        let seen: Vec<usize> = held.iter().copied().filter(positive).collect();
        let shares = site.bag_shares(&data, &values, &seen).unwrap();
        assert_eq!(shares.len(), seen.len());
        let bags = seen.len() as f32 / 6.0;
        shares.iter().filter(|(case, _)| has_square(&data, *case)).map(|(_, s)| s / bags).sum()
    };
    let [before, after] = values.map(squares);
    assert!(after > 0.5 && after > before, "{before} {after}");
}

/// A linear head says of a weighed mean the weighed mean of what it says of each image alone.
#[test]
fn shares_are_those_that_a_bags_outputs_are_made_of() {
    let site = Site::new(BINARY, "[bags]\nattention_width = 8\n");
    draw_bags(&site, 3);
    let data = site.open().unwrap();
    let mut values = moved(&site.run, 4);
    // The attention as decided as a trained one is.
    values.iter_mut().flatten().for_each(|v| *v *= 3.0);
    let logit = |indices: &[usize]| {
        let said =
            site.infer(&data, &values, |i| i.predict(indices, &Control::default(), &mut |_| {}));
        let p = f64::from(said.unwrap()[0][0]);
        (p / (1.0 - p)).ln()
    };
    // Each image by itself names its whole bag.
    let shares = site.bag_shares(&data, &values, &[0, 7, 17]).unwrap();
    assert_eq!(
        shares.iter().map(|(case, _)| *case).collect::<Vec<_>>(),
        (0..18).collect::<Vec<_>>()
    );
    for bag in shares.chunks(6) {
        let cases: Vec<usize> = bag.iter().map(|(case, _)| *case).collect();
        let weighed: f64 = bag.iter().map(|(case, s)| f64::from(*s) * logit(&[*case])).sum();
        assert!((logit(&cases) - weighed).abs() < 1e-4, "{} {weighed}", logit(&cases));
        let apart = bag.iter().any(|(_, share)| (share - 1.0 / 6.0).abs() > 0.01);
        assert!(apart, "all alike shows nothing: {bag:?}");
    }
}

fn has_square(data: &Dataset, case: usize) -> bool {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let (bag, image) = data.cases()[case].id.strip_suffix(".png").unwrap().split_once('-').unwrap();
    squared_in_bag(number(bag), number(image))
}

fn squared_in_bag(bag: u64, image: u64) -> bool {
    bag % 2 == 1 && image % 3 == bag % 3
}

#[test]
fn a_bag_has_one_label_and_one_patient() {
    let site = Site::new(BINARY, "[bags]\n");
    ["a.png", "b.png"].iter().for_each(|name| site.picture(name, |_, _| 9));
    for (table, what) in
        [("a.png,p,no,s\nb.png,p,yes,s\n", "labels"), ("a.png,p,no,s\nb.png,q,no,s\n", "patients")]
    {
        site.labels(&format!("file,patient,label,bag\n{table}"));
        let refused = trainable(&site.run, &site.open().unwrap(), &[0, 1]).err().unwrap();
        let TrainError::Data(error) = refused else { panic!("{refused:?}") };
        assert!(
            error.to_string().starts_with(&format!("bag `s`: its images have different {what}"))
        );
        // A bag's shares ask for no label, yet for one patient.
        let shares = site.bag_shares(&site.open().unwrap(), &initial(&site.run), &[0]);
        assert_eq!(shares.is_err(), what == "patients", "{shares:?}");
    }
}

/// Along its own gradient every tensor's loss rises by the gradient's norm.
#[test]
fn gradients_through_bags_sets_and_masks_are_the_slopes_of_the_loss() {
    let discs = "[task]\nkind = \"segmentation\"\nclasses = [\"background\", \"disc\"]\n[task.decoder]\nkind = \"convolutional\"\nchannels = 4\n";
    let bags = Site::new(BINARY, "[bags]\nattention_width = 4\n");
    draw_bags(&bags, 4);
    let masks = Site::new(discs, "");
    draw_discs(&masks, 10);
    let survival = Site::new("[task]\nkind = \"survival\"\n", "");
    let mut table = "file,patient,time,event\n".to_owned();
    for case in 0..20u32 {
        survival.picture(&format!("{case}.png"), squared(u64::from(case), case as u8));
        writeln!(table, "{case}.png,p{case},{},{}", 1 + case * 7 % 10, case % 2).unwrap();
    }
    survival.labels(&table);
    for site in [bags, masks, survival] {
        let data = site.open().unwrap();
        let all: Vec<usize> = (0..data.len()).collect();
        let values = moved(&site.run, 3);
        let compute = Compute::cpu();
        let at = |values: &Values| {
            let (backbone, manifest) = (&site.backbone, &site.run);
            let inference =
                Inference { backbone, manifest, values, dataset: &data, compute: &compute };
            inference.gradient(&all).unwrap()
        };
        let gradient = at(&values).values;
        for (tensor, spec) in site.run.contract().unwrap().layout.tensors().iter().enumerate() {
            let norm = gradient[tensor].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            // A shift of all scores or of all hazards changes nothing.
            let free = spec.name == "head.attention.score.bias"
                || (spec.name == "head.bias" && matches!(site.run.task, Task::Survival {}));
            if free {
                assert!(norm < 1e-6, "{spec}: {norm}");
                continue;
            }
            assert!(norm > 1e-6, "{spec}: no gradient arrives");
            let step = 0.01;
            let moved = |sign: f64| {
                let mut moved = values.clone();
                for (value, g) in moved[tensor].iter_mut().zip(&gradient[tensor]) {
                    *value += (sign * step * f64::from(*g) / norm) as f32;
                }
                at(&moved).loss
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!(
                (slope - norm).abs() < 3e-5 + 0.02 * norm,
                "{spec}: slope {slope}, norm {norm}"
            );
        }
    }
}

/// A binary site that is quick to train.
fn plain(more: &str) -> (Site, Dataset) {
    let mut site = Site::new(BINARY, "");
    trained(&mut site, more);
    let data = dataset(site.folder.path(), 60, 3);
    (site, data)
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let update = |most: usize| {
        let (mut site, data) = plain(&format!("micro_batch = {most}\n"));
        // Dropout's masks follow the passes.
        let Some(Adaptation::Lora(lora)) = &mut site.run.adapter else { panic!("LoRA is trained") };
        lora.dropout = 0.0;
        site.run.training.as_mut().unwrap().epochs = 1;
        site.train(&data, &initial(&site.run)).unwrap()
    };
    let (one, eight) = (update(1), update(8));
    let far = one.values.iter().flatten().zip(eight.values.iter().flatten());
    let far = far.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // AdamW divides by the gradient's own size, which magnifies rounding where it is near zero.
    assert!(far < 2e-3, "{far}");
    let loss = |update: &LocalUpdate| update.metrics.train_loss.unwrap();
    assert!((loss(&one) - loss(&eight)).abs() < 1e-5);
}

#[test]
fn a_varied_round_repeats_its_bits_on_any_number_of_threads() {
    let strengths = "[training.augment]\nflip_horizontal = true\nrotate_90 = true\ncrop_area_min = 0.6\nnoise = 0.05\ngamma = 0.2\n";
    let (site, data) = plain(strengths);
    let base = initial(&site.run);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| site.train(&data, &base).unwrap())
    };
    let one = on(1);
    assert_eq!(on(3).values, one.values);
    let (still, _) = plain("");
    let unvaried = still.train(&data, &base).unwrap();
    assert_ne!(unvaried.values, one.values);
    assert_eq!(unvaried.metrics.holdout_loss, one.metrics.holdout_loss, "evaluation is not varied");
}

#[test]
fn an_early_stop_sends_the_best_epoch() {
    // At this rate the held-out loss soon goes up.
    let wild = TRAINING.replace("0.02", "0.3").replace("epochs = 8", "epochs = 40");
    let (mut site, data) = plain("");
    let table: toml::Table = wild.parse().unwrap();
    site.run.training = Some(table["training"].clone().try_into().unwrap());
    let base = initial(&site.run);
    let all = site.train(&data, &base).unwrap();
    let stopped = |patience: u32| {
        let mut run = site.run.clone();
        let text = format!("{wild}[training.early_stop]\npatience = {patience}\n");
        let table: toml::Table = text.parse().unwrap();
        run.training = Some(table["training"].clone().try_into().unwrap());
        let site =
            Site { run, folder: tempfile::tempdir().unwrap(), backbone: site.backbone.clone() };
        let update = site.train(&data, &base).unwrap();
        let loss = site
            .evaluate(&data, &update.values, &data.split(&HoldoutSalt::public(), 0.25).holdout)
            .loss
            .unwrap();
        (update.metrics.steps, loss)
    };
    // The second has patience for every epoch there is.
    let (soon, patient) = (stopped(1), stopped(40));
    assert!(soon.0 < all.metrics.steps, "{soon:?} {}", all.metrics.steps);
    assert!(soon.0 <= patient.0 && patient.1 <= soon.1, "{soon:?} {patient:?}");
    let last = site
        .evaluate(&data, &all.values, &data.split(&HoldoutSalt::public(), 0.25).holdout)
        .loss
        .unwrap();
    assert!(patient.1 <= last, "the best epoch is no worse than the last: {patient:?} {last}");
}

#[test]
fn what_cannot_mean_a_run_is_refused_in_one_line() {
    let refused = |task: &str, more: &str| {
        let backbone = backbone(&architecture());
        let mut text = toml::to_string(&manifest(&backbone, 2)).unwrap();
        let (start, end) = (text.find("[task]").unwrap(), text.find("[backbone]").unwrap());
        text.replace_range(start..end, task);
        let text = text.replace("seed = 3\n", &format!("seed = 3\n{more}"));
        RunManifest::from_toml(&text).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let masks = "[task]\nkind = \"segmentation\"\nclasses = [\"a\", \"b\"]\n";
    let survival = "[task]\nkind = \"survival\"\n";
    for (task, more, line) in [
        (
            survival,
            "label_smoothing = 0.1\n",
            "training.label_smoothing: a survival task has no labels to smooth; remove it",
        ),
        (
            survival,
            "class_weights = \"balanced\"\n",
            "training.class_weights: a survival task has no classes; remove it",
        ),
        (
            masks,
            "class_weights = \"balanced\"\n",
            "training.class_weights: `balanced` needs one class a case; declare one factor a class for a segmentation task",
        ),
        (BINARY, "class_weights = [1.0]\n", "training.class_weights: 1 factors for 2 classes"),
        (
            BINARY,
            "class_weights = [0.0, 0.0]\n",
            "training.class_weights: factors lie between 0 and 1000000, one above 0",
        ),
        (BINARY, "micro_batch = 0\n", "training.micro_batch: 0 is not between 1 and 65536"),
        (
            BINARY,
            "[training.early_stop]\npatience = 0\n",
            "training.early_stop.patience: 0 is not between 1 and 10000",
        ),
        (
            BINARY,
            "[training.augment]\nhue = 0.7\n",
            "training.augment.hue: 0.7 is not between 0 and 0.5",
        ),
        (masks, "[bags]\n", "bags: a segmentation task has no bags; remove it"),
        (
            BINARY,
            "[bags]\nattention_width = 0\n",
            "bags.attention_width: 0 is not between 1 and 8192",
        ),
    ] {
        assert_eq!(refused(task, more), line);
    }
    assert_eq!(refused(BINARY, ""), "");
    assert!(refused("[task]\nkind = \"survival\"\nclasses = []\n", "").contains("unknown field"));
}

#[test]
fn a_segmentation_has_its_own_head_over_patches_alone() {
    let masks = "[task]\nkind = \"segmentation\"\nclasses = [\"a\", \"b\"]\n";
    let refused = |change: fn(&mut RunManifest)| {
        let mut run = Site::new(masks, "").run;
        change(&mut run);
        run.check().unwrap_err().to_string()
    };
    let head = "head: a segmentation has its own head, task.decoder; remove the table [head]";
    assert_eq!(refused(|run| run.head = Head::Mlp { hidden: 4 }), head);
    assert_eq!(refused(|run| run.head = Head::AttentionPool {}), head);
    let pool = refused(|run| {
        let backbone = run.backbone.as_mut().unwrap();
        backbone.architecture.pool = Pool::ClassTokenAndMean;
    });
    let only = "a segmentation reads patch tokens alone; use `class_token` or `mean`";
    assert_eq!(pool, format!("backbone.architecture.pool: {only}"));
}

#[test]
fn an_npz_holds_no_follow_ups() {
    let site = Site::new("[task]\nkind = \"survival\"\n", "");
    let npz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/plain.npz");
    let input = InputSpec::plain(16, 1, 0.5, 0.5);
    let refused = Dataset::open(&DataSource::Npz(npz), &site.run.task, &input).err().unwrap();
    assert!(
        refused
            .to_string()
            .ends_with("an npz holds no labels of a survival task; give a folder with labels.csv")
    );
}
