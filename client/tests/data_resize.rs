//! Images are resized as Pillow does it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::{GrayImage, Luma};
use tempfile::TempDir;
use tributary_client::data::{DataSource, Dataset, InputSpec};
use tributary_shared::dataset::Interpolation;
use tributary_shared::manifest::Task;
use tributary_shared::task::Decoder;

/// Levels, `[channels, side, side]`, by "picture filter side" and what else there is.
fn golden(file: &str) -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(fixtures().join(file)).expect("the fixture");
    let hex: BTreeMap<String, String> = serde_json::from_str(&text).expect("JSON");
    hex.into_iter().map(|(key, levels)| (key, hex::decode(levels).expect("hex"))).collect()
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize")
}

fn interpolation(name: &str) -> Interpolation {
    if name == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear }
}

fn resized(picture: &str, interpolation: Interpolation, side: usize) -> Vec<f64> {
    let channels = if picture == "grey" { 1 } else { 3 };
    let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
    let input = InputSpec { image_size: side, channels, mean, std, interpolation, crop_pct: None };
    pixels(picture, &input).into_iter().map(|x| f64::from(x) * 255.0).collect()
}

fn pixels(picture: &str, input: &InputSpec) -> Vec<f32> {
    let folder = TempDir::new().expect("a folder");
    let file = format!("{picture}.png");
    fs::copy(fixtures().join(&file), folder.path().join(&file)).expect("copied");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_unlabelled(&source, input).expect("opens");
    let mut out = vec![0.0; input.numbers()];
    dataset.pixels(0, &mut out).expect("decodes");
    out
}

/// Pillow rounds to whole levels between its two passes and clamps them there; we do neither. The
/// grey noise is never clamped, the colour noise is as often as noise can be.
#[test]
fn both_filters_are_pillows_to_within_rounding() {
    let golden = golden("golden.json");
    assert_eq!(golden.len(), 8);
    for (key, expected) in golden {
        let [picture, filter, side] = key.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{key}")
        };
        let interpolation = interpolation(filter);
        let ours = resized(picture, interpolation, side.parse().expect("a number"));
        assert_eq!(ours.len(), expected.len());
        let apart = ours.iter().zip(expected).map(|(a, b)| (a - f64::from(b)).abs());
        let largest = apart.fold(0.0, f64::max);
        println!("{key}: {largest:.3} levels");
        let clamped = picture == "colour" && interpolation == Interpolation::Bicubic;
        assert!(largest < if clamped { 6.0 } else { 1.01 }, "{key}: {largest} levels");
    }
}

/// The numbers that timm's evaluation transform gives a model (client/tests/python/crop_golden.py).
#[test]
fn the_middle_is_timms_to_within_rounding() {
    let golden = golden("crop.json");
    assert_eq!(golden.len(), 16);
    for (key, levels) in golden {
        let [picture, filter, side, share] = key.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{key}")
        };
        let input = InputSpec {
            image_size: side.parse().expect("a number"),
            channels: 3,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            interpolation: interpolation(filter),
            crop_pct: Some(share.parse().expect("a number")),
        };
        let ours = pixels(picture, &input);
        let plane = input.image_size * input.image_size;
        assert_eq!(ours.len(), levels.len());
        let mut largest = 0f64;
        for (at, (ours, level)) in ours.into_iter().zip(levels).enumerate() {
            let (mean, std) = (input.mean[at / plane], input.std[at / plane]);
            let theirs = (f64::from(level) / 255.0 - mean) / std;
            largest = largest.max((f64::from(ours) - theirs).abs() * std * 255.0);
        }
        println!("{key}: {largest:.3} levels");
        assert!(largest < 1.01, "{key}: {largest} levels");
    }
}

#[test]
fn a_mask_is_cut_where_its_image_is() {
    let folder = TempDir::new().expect("a folder");
    // 80 x 40: of the middle 40 x 40, the left half is white and of class 1.
    let level = |x: u32, on: u8| Luma([if (20..40).contains(&x) { on } else { 0 }]);
    GrayImage::from_fn(80, 40, |x, _| level(x, 255)).save(folder.path().join("a.png")).unwrap();
    GrayImage::from_fn(80, 40, |x, _| level(x, 1)).save(folder.path().join("mask.png")).unwrap();
    let manifest = "file,patient,mask\na.png,p,mask.png\n";
    fs::write(folder.path().join("labels.csv"), manifest).unwrap();
    let task = Task::Segmentation {
        classes: ["back", "front"].map(str::to_owned).to_vec(),
        decoder: Decoder::default(),
    };
    let input = InputSpec {
        image_size: 10,
        channels: 1,
        mean: vec![0.0],
        std: vec![1.0],
        interpolation: Interpolation::Bilinear,
        crop_pct: Some(1.0),
    };
    let source = DataSource::detect(folder.path()).unwrap();
    let dataset = Dataset::open(&source, &task, &input).unwrap();
    let mut pixels = vec![0.0; 100];
    dataset.pixels(0, &mut pixels).unwrap();
    let mask = dataset.mask(0).unwrap();
    for (at, (level, class)) in pixels.into_iter().zip(mask).enumerate() {
        assert_eq!((level > 0.5, class == 1), (at % 10 < 5, at % 10 < 5), "{at}: {level}");
    }
    // Stretched, the white is a quarter to a half of the width.
    let whole = Dataset::open(&source, &task, &InputSpec { crop_pct: None, ..input }).unwrap();
    assert_eq!(whole.mask(0).unwrap()[..10], [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn the_filters_differ() {
    let of = |interpolation| resized("grey", interpolation, 32);
    let (linear, cubic) = (of(Interpolation::Bilinear), of(Interpolation::Bicubic));
    let apart = linear.iter().zip(&cubic).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 10.0, "{apart}");
}
