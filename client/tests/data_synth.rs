//! Synthetic sites: the same bytes again, knobs that do what they say, and a card that tells the
//! truth.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tributary_client::config::reading::Reading;
use tributary_client::data::divide::{self, DivideSpec};
use tributary_client::data::synth::{self, Card, Modality, SynthSpec};
use tributary_client::data::{DataSource, Dataset, InputSpec, Label, census};
use tributary_client::metrics::macro_auroc;
use tributary_shared::digest::Digest;

fn spec(modality: Modality) -> SynthSpec {
    SynthSpec {
        modality,
        sites: 2,
        patients: 6,
        images_per_patient: 2,
        seed: 5,
        size: 32,
        label_skew: 0.0,
        site_shift: 1.0,
    }
}

fn written(spec: &SynthSpec) -> (TempDir, Card) {
    let folder = TempDir::new().expect("a folder");
    let card = synth::write(spec, &folder.path().join("out"), &|| ()).expect("written");
    (folder, card)
}

/// Every file under `folder` by its relative path.
fn tree(folder: &Path) -> BTreeMap<String, Digest> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("inside").display().to_string();
                files.insert(name, Digest::of(&fs::read(path).expect("read")));
            }
        }
    }
    files
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    for modality in [Modality::Fundus, Modality::ChestXray, Modality::Histology] {
        let (one, _) = written(&spec(modality));
        let (again, _) = written(&spec(modality));
        assert_eq!(tree(one.path()), tree(again.path()));
        let (other, _) = written(&SynthSpec { seed: 6, ..spec(modality) });
        let image = "out/site-1/images/s1-p0001-1.png";
        assert_ne!(tree(one.path())[image], tree(other.path())[image]);
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
#[test]
fn one_picture_of_each_kind_has_its_known_digest() {
    let digests = [Modality::Fundus, Modality::ChestXray, Modality::Histology].map(|modality| {
        let (folder, _) = written(&spec(modality));
        let picture = image::open(folder.path().join("out/site-2/images/s2-p0003-2.png"));
        // Pixels, not the file: an encoder may learn to compress better.
        Digest::of(picture.expect("a picture").as_bytes()).short()
    });
    assert_eq!(digests, ["3d1cd5d2c58d", "012a82eb2d15", "14101cd3f440"]);
}

#[test]
fn one_more_patient_changes_no_sites_look() {
    let (small, _) = written(&spec(Modality::Histology));
    let (large, _) = written(&SynthSpec { sites: 2, patients: 7, ..spec(Modality::Histology) });
    assert!(tree(small.path()).len() < tree(large.path()).len());
    let styles = |folder: &TempDir| {
        let card = fs::read(folder.path().join("out/card.json")).expect("a card");
        let card: Card = serde_json::from_slice(&card).expect("a card");
        card.sites.into_iter().map(|site| site.style).collect::<Vec<_>>()
    };
    assert_eq!(styles(&small), styles(&large));
}

#[test]
fn the_card_states_the_oracle_that_the_truth_files_hold() {
    for modality in [Modality::Fundus, Modality::ChestXray] {
        let spec = SynthSpec { patients: 12, label_skew: 0.5, ..spec(modality) };
        let (folder, card) = written(&spec);
        assert!(card.statement.contains("no medical claim follows"));
        let classes = modality.classes();
        let mut pooled = (Vec::new(), Vec::new());
        for site in &card.sites {
            let truth = folder.path().join("out").join(&site.site).join("truth.csv");
            let (mut rows, mut labels) = (Vec::new(), Vec::new());
            for row in csv::Reader::from_path(truth).expect("a csv").records() {
                let row = row.expect("a row");
                let columns = if classes.len() == 2 { 1 } else { classes.len() };
                let probability = |c: usize| row[4 + c].parse::<f32>().expect("a number");
                rows.push((0..columns).map(probability).collect::<Vec<f32>>());
                let class = classes.iter().position(|class| *class == &row[2]);
                labels.push(Label::Class(class.expect("a class")));
                let positions = row[5 + columns].split(';').filter(|p| !p.is_empty()).count();
                assert_eq!(row[4 + columns].parse(), Ok(positions));
            }
            assert_eq!(macro_auroc(&rows, &labels), site.oracle_auroc);
            assert_eq!(labels.len(), site.images);
            pooled.0.extend(rows);
            pooled.1.extend(labels);
        }
        let oracle = card.oracle_auroc.expect("both classes");
        assert_eq!(macro_auroc(&pooled.0, &pooled.1), Some(oracle));
        assert!((0.8..1.0).contains(&oracle), "{oracle}");
    }
}

#[test]
fn the_folders_open_and_hold_what_the_card_says() {
    for modality in [Modality::Fundus, Modality::ChestXray, Modality::Histology] {
        let (folder, card) = written(&spec(modality));
        let input = InputSpec::plain(16, 3, 0.5, 0.5);
        for site in &card.sites {
            let source = DataSource::detect(&folder.path().join("out").join(&site.site));
            let source = source.expect("a folder");
            let dataset = Dataset::open(&source, &modality.task(), &input).expect("opens");
            assert_eq!(dataset.len(), site.images);
            let census =
                census::take(&source, &modality.task(), &Reading::default(), 0).expect("counts");
            let counts: Vec<usize> = census.classes.iter().map(|class| class.cases).collect();
            assert_eq!(counts, site.images_per_class);
            assert_eq!(census.patients, site.patients);
            assert_eq!(census.sizes[0].width, 32);
            assert_eq!(census.refused, Vec::<String>::new());
        }
    }
}

#[test]
fn the_label_skew_knob_moves_the_counts() {
    let largest = |skew: f64| {
        let spec = SynthSpec {
            label_skew: skew,
            patients: 30,
            sites: 3,
            size: 16,
            ..spec(Modality::Histology)
        };
        let (_folder, card) = written(&SynthSpec { images_per_patient: 1, ..spec });
        card.sites[0].images_per_class.iter().copied().max()
    };
    let counts = [largest(0.0), largest(0.5), largest(1.0), largest(3.0)];
    assert_eq!(counts[0], Some(15));
    assert!(counts.is_sorted() && counts[3] >= Some(29), "{counts:?}");
}

#[test]
fn the_site_shift_knob_moves_the_looks() {
    // Distance between the mean colours of the two sites' pictures.
    let apart = |shift: f64| {
        let (folder, _) = written(&SynthSpec { site_shift: shift, ..spec(Modality::Fundus) });
        let mean = |site: usize| {
            let mut sums = [0.0; 3];
            let images = folder.path().join(format!("out/site-{site}/images"));
            for entry in fs::read_dir(images).expect("a folder") {
                let picture = image::open(entry.expect("an entry").path()).expect("a picture");
                for pixel in picture.to_rgb8().pixels() {
                    (0..3).for_each(|c| sums[c] += f64::from(pixel.0[c]));
                }
            }
            sums.map(|sum| sum / (12.0 * 32.0 * 32.0))
        };
        let (one, two) = (mean(1), mean(2));
        (0..3).map(|c| (one[c] - two[c]).powi(2)).sum::<f64>().sqrt()
    };
    assert!(apart(1.0) > 2.0 * apart(0.0), "{} {}", apart(1.0), apart(0.0));
}

#[test]
fn nothing_is_overwritten_and_nothing_left_half_written() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("created");
    fs::write(out.join("mine.txt"), "mine").expect("written");
    let error = synth::write(&spec(Modality::Fundus), &out, &|| ()).expect_err("refused");
    let expected =
        format!("{} exists and is not empty; name a new folder or empty it first", out.display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(tree(folder.path()).len(), 1);

    let bad = SynthSpec { size: 4, ..spec(Modality::Fundus) };
    let error = synth::write(&bad, &folder.path().join("new"), &|| ()).expect_err("refused");
    assert_eq!(error.to_string(), "--size: 4 is not between 16 and 4096");

    // A broken image in the middle of a division leaves no folder behind.
    let (data, _) = written(&spec(Modality::Fundus));
    let site = data.path().join("out/site-1");
    fs::write(site.join("images/s1-p0004-1.png"), b"broken").expect("written");
    let source = DataSource::detect(&site).expect("a folder");
    let spec = DivideSpec { sites: 2, label_skew: 0.0, seed: 1 };
    let new = folder.path().join("new");
    divide::write(&source, &Modality::Fundus.task(), &spec, &Reading::default(), &new)
        .expect_err("refused");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn dividing_moves_whole_patients_and_loses_no_image() {
    let data = SynthSpec { sites: 1, patients: 30, size: 16, ..spec(Modality::Fundus) };
    let (folder, _) = written(&data);
    let source = DataSource::detect(&folder.path().join("out/site-1")).expect("a folder");
    let task = source.infer_task().expect("infers");
    let out = folder.path().join("divided");
    let spec = DivideSpec { sites: 3, label_skew: 2.0, seed: 9 };
    let card = divide::write(&source, &task, &spec, &Reading::default(), &out).expect("divides");
    assert_eq!(card.sites.iter().map(|site| site.images).sum::<usize>(), 60);
    let input = InputSpec::plain(16, 3, 0.5, 0.5);
    let mut home = BTreeMap::new();
    for site in &card.sites {
        let source = DataSource::detect(&out.join(&site.site)).expect("a folder");
        let dataset = Dataset::open(&source, &card.task, &input).expect("opens");
        for case in dataset.cases() {
            let first = home.entry(case.patient.clone()).or_insert(&site.site);
            assert_eq!(*first, &site.site);
        }
    }
    assert_eq!(home.len(), 30);
}

#[test]
fn an_npz_is_divided_into_pictures() {
    let npz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/plain.npz");
    let source = DataSource::detect(&npz).expect("an npz");
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out");
    let spec = DivideSpec { sites: 2, label_skew: 0.0, seed: 1 };
    let task = source.infer_task().expect("infers");
    let card = divide::write(&source, &task, &spec, &Reading::default(), &out).expect("divides");
    assert_eq!(card.sites.iter().map(|site| site.images).sum::<usize>(), 9);
    // val/1 is the level 110, of class 0.
    let places: Vec<_> = card
        .sites
        .iter()
        .map(|site| out.join(&site.site).join("images/val-1.png"))
        .filter(|path| path.exists())
        .collect();
    assert_eq!(places.len(), 1);
    let picture = image::open(&places[0]).expect("a picture").to_luma8();
    assert_eq!((picture.dimensions(), picture.get_pixel(2, 2).0), ((6, 8), [110]));
}

/// Every lesion's middle is marked, and a picture without lesions has an empty mask.
#[test]
fn masks_mark_the_lesions_that_the_truth_names() {
    let folder = tempfile::tempdir().unwrap();
    for modality in [Modality::Fundus, Modality::ChestXray] {
        let out = folder.path().join(format!("{modality:?}"));
        let spec = SynthSpec { sites: 1, patients: 12, size: 64, ..spec(modality) };
        synth::write(&spec, &out, &|| ()).unwrap();
        let site = out.join("site-1");
        let mut truth = csv::Reader::from_path(site.join("truth.csv")).unwrap();
        let (mut lesions, mut empty) = (0, 0);
        for row in truth.records() {
            let row = row.unwrap();
            let mask = image::open(site.join(row[0].replace("images/", "masks/"))).unwrap();
            let mask = mask.into_luma8();
            let positions = row[row.len() - 1].to_owned();
            for lesion in positions.split(';').filter(|lesion| !lesion.is_empty()) {
                let numbers: Vec<f32> =
                    lesion.split(':').skip(1).map(|n| n.parse().unwrap()).collect();
                let pixel = |at: f32| {
                    let side = mask.width() as f32;
                    ((at + 1.0) / 2.0 * side).clamp(0.0, side - 1.0) as u32
                };
                // A lesion smaller than a pixel can lie between the middles of pixels.
                if numbers[2] * mask.width() as f32 > 2.0 {
                    assert_eq!(
                        mask.get_pixel(pixel(numbers[0]), pixel(numbers[1])),
                        &image::Luma([1])
                    );
                    lesions += 1;
                }
            }
            empty += usize::from(positions.is_empty());
            assert!(!positions.is_empty() || mask.pixels().all(|pixel| pixel.0 == [0]));
        }
        assert!(lesions > 5 && empty > 0, "{modality:?}: {lesions} lesions, {empty} without");
    }
}
