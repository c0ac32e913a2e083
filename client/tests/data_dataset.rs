//! Folders to normalised pixels: order, colours, resizing, pooling, splitting.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use tempfile::TempDir;
use tributary_client::config::reading::Reading;
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, Label, census, task_of};
use tributary_shared::dataset::Interpolation;
use tributary_shared::manifest::Task;

fn task() -> Task {
    task_of(vec!["healthy".to_owned(), "ill".to_owned()], false)
}

fn input(image_size: usize, channels: usize) -> InputSpec {
    InputSpec::plain(image_size, channels, 0.0, 1.0)
}

fn folder(images: &[(&str, image::DynamicImage)], csv: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for (name, image) in images {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        image.save(path).expect("saved");
    }
    fs::write(folder.path().join("labels.csv"), csv).expect("written");
    folder
}

fn open(folder: &Path, input: &InputSpec) -> Dataset {
    Dataset::open(&DataSource::detect(folder).expect("a folder"), &task(), input).expect("opens")
}

fn pixels(dataset: &Dataset, index: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; dataset.input().numbers()];
    dataset.pixels(index, &mut out).expect("kept");
    out
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn pixels_are_planes_normalised_per_channel() {
    let mut image = RgbImage::new(2, 2);
    image.put_pixel(0, 0, Rgb([255, 0, 51]));
    image.put_pixel(1, 1, Rgb([0, 102, 255]));
    let folder = folder(&[("a.png", image.into())], "file,patient,label\na.png,p,ill\n");
    let input = InputSpec {
        image_size: 2,
        channels: 3,
        mean: vec![0.5, 0.25, 0.0],
        std: vec![0.5, 0.25, 2.0],
        interpolation: Interpolation::Bilinear,
        crop_pct: None,
    };
    let dataset = open(folder.path(), &input);
    assert_close(
        &pixels(&dataset, 0),
        &[1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.6, 0.1, 0.0, 0.0, 0.5],
    );
}

#[test]
fn grey_is_repeated_and_rgb_becomes_luma() {
    let images = [
        ("grey.png", GrayImage::from_pixel(3, 3, Luma([51])).into()),
        ("red.tif", RgbImage::from_pixel(3, 3, Rgb([255, 0, 0])).into()),
    ];
    let folder = folder(&images, "file,patient,label\ngrey.png,p,ill\nred.tif,q,healthy\n");
    let colour = open(folder.path(), &input(3, 3));
    assert_close(&pixels(&colour, 0), &[0.2; 27]);
    let grey = open(folder.path(), &input(3, 1));
    assert_close(&pixels(&grey, 0), &[0.2; 9]);
    // Rec. 709: 0.2126 of 255, cut to a whole level.
    assert_close(&pixels(&grey, 1), &[54.0 / 255.0; 9]);
}

#[test]
fn shrinking_averages_instead_of_picking() {
    // A fine chequer board: picking pixels gives black or white, averaging gives grey.
    let board = GrayImage::from_fn(64, 64, |x, y| Luma([if (x + y) % 2 == 0 { 255 } else { 0 }]));
    let folder = folder(&[("a.png", board.into())], "file,patient,label\na.png,p,ill\n");
    let dataset = open(folder.path(), &input(8, 1));
    assert!(pixels(&dataset, 0).iter().all(|level| (level - 0.5).abs() < 0.02));
}

#[test]
fn spreadsheet_manifests_are_read() {
    let grey = || GrayImage::new(2, 2).into();
    let csv = "\u{feff}age,file,label,patient\r\n61, a.png , ill ,\"Doe, J\"\r\n70,sub/b.png,healthy,7\r\n";
    let folder = folder(&[("a.png", grey()), ("sub/b.png", grey())], csv);
    let dataset = open(folder.path(), &input(2, 1));
    let cases: Vec<_> = dataset
        .cases()
        .iter()
        .map(|case| (case.id.as_str(), case.patient.as_str(), case.label.clone()))
        .collect();
    assert_eq!(cases, [("a.png", "Doe, J", Label::Class(1)), ("sub/b.png", "7", Label::Class(0))]);
}

#[test]
fn several_labels_or_none() {
    let grey = || GrayImage::new(2, 2).into();
    let csv = "file,patient,label\na.png,p,edema; mass\nb.png,q,\n";
    let folder = folder(&[("a.png", grey()), ("b.png", grey())], csv);
    let source = DataSource::detect(folder.path()).expect("a folder");
    let inferred = source.infer_task().expect("infers");
    assert_eq!(inferred, task_of(vec!["edema".to_owned(), "mass".to_owned()], true));
    let classes = ["mass", "nodule", "edema"].map(str::to_owned).to_vec();
    let dataset = Dataset::open(&source, &task_of(classes, true), &input(2, 1)).expect("opens");
    assert_eq!(dataset.cases()[0].label, Label::Many(vec![true, false, true]));
    assert_eq!(dataset.cases()[1].label, Label::Many(vec![false; 3]));
}

#[test]
fn pretraining_needs_no_labels() {
    let folder = folder(&[("a.png", GrayImage::new(2, 2).into())], "file,patient\na.png,p\n");
    let source = DataSource::detect(&folder.path().join("labels.csv")).expect("a csv");
    let dataset = Dataset::open_unlabelled(&source, &input(2, 1)).expect("opens");
    assert_eq!(dataset.cases()[0].label, Label::Unlabelled);
}

#[test]
fn pooled_sites_keep_order_pixels_and_sides() {
    let site = |start: u8| {
        let name = |index| format!("{index}.png");
        let images: Vec<(String, image::DynamicImage)> = (0..40u8)
            .map(|i| (name(i), GrayImage::from_pixel(2, 2, Luma([start + i])).into()))
            .collect();
        let images: Vec<(&str, _)> = images.iter().map(|(n, i)| (n.as_str(), i.clone())).collect();
        let rows: String =
            (0..40).map(|i| format!("{},s{start}-p{},ill\n", name(i), i / 2)).collect();
        folder(&images, &format!("file,patient,label\n{rows}"))
    };
    let folders = [site(0), site(100)];
    let sites = || folders.iter().map(|folder| open(folder.path(), &input(2, 1)));
    let pooled = Dataset::concat(sites().collect()).expect("pools");
    assert_eq!(pooled.len(), 80);
    assert_close(&pixels(&pooled, 3), &[3.0 / 255.0; 4]);
    assert_close(&pixels(&pooled, 79), &[139.0 / 255.0; 4]);

    let splits: Vec<_> = sites().map(|site| site.split(&HoldoutSalt::public(), 0.3)).collect();
    let expected: Vec<usize> =
        splits[0].holdout.iter().copied().chain(splits[1].holdout.iter().map(|i| 40 + i)).collect();
    let split = pooled.split(&HoldoutSalt::public(), 0.3);
    assert_eq!(split.holdout, expected);
    assert!(!split.holdout.is_empty());
    assert_eq!(split.train.len() + split.holdout.len(), 80);
    // Two images a patient, always together.
    for index in (0..80).step_by(2) {
        assert_eq!(split.holdout.contains(&index), split.holdout.contains(&(index + 1)));
    }

    let other = open(folders[0].path(), &input(3, 1));
    let mixed = Dataset::concat(vec![open(folders[0].path(), &input(2, 1)), other]);
    assert_eq!(
        mixed.err().map(|error| error.to_string()).as_deref(),
        Some("datasets prepared for different inputs cannot be pooled")
    );
}

/// A de-identified export writes one patient id everywhere. Failed before: by that id's place all
/// cases were trained on with none held out, or none was left to train on.
#[test]
fn one_patient_id_for_all_is_named_before_a_patient_is_to_be_held_out() {
    let grey = |level| GrayImage::from_pixel(2, 2, Luma([level])).into();
    let images = [("a.png", grey(1)), ("b.png", grey(2))];
    let labels = |second| format!("file,patient,label\na.png,ANON,ill\nb.png,{second},ill\n");
    let same = folder(&images, &labels("ANON"));
    let dataset = open(same.path(), &input(2, 1));
    assert_eq!(dataset.only_patient(), Some("ANON"));
    assert!(dataset.check_patients(0.0).is_ok());
    let error =
        dataset.check_patients(0.25).expect_err("one patient cannot be divided").to_string();
    assert!(error.starts_with("all 2 cases have one patient id, `ANON`"), "{error}");
    let source = DataSource::detect(same.path()).expect("a folder");
    let task = task_of(vec!["ill".to_owned(), "well".to_owned()], false);
    let counted = census::take(&source, &task, &Reading::default(), 0).expect("counted");
    let odd = counted.oddities.iter().find(|(what, _)| what.contains("one patient id"));
    assert_eq!(odd.map(|(_, odd)| odd.examples.clone()), Some(vec!["ANON".to_owned()]));
    let other = folder(&images, &labels("B"));
    assert_eq!(open(other.path(), &input(2, 1)).only_patient(), None);
}
