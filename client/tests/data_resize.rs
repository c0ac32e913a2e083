//! Images are resized as Pillow does it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tributary_client::data::{DataSource, Dataset, InputSpec};
use tributary_shared::dataset::Interpolation;

/// Levels of Pillow's, `[channels, side, side]`, by "picture filter side".
fn golden() -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(fixtures().join("golden.json")).expect("the fixture");
    let hex: BTreeMap<String, String> = serde_json::from_str(&text).expect("JSON");
    hex.into_iter().map(|(key, levels)| (key, hex::decode(levels).expect("hex"))).collect()
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize")
}

fn resized(picture: &str, interpolation: Interpolation, side: usize) -> Vec<f64> {
    let folder = TempDir::new().expect("a folder");
    let file = format!("{picture}.png");
    fs::copy(fixtures().join(&file), folder.path().join(&file)).expect("copied");
    let channels = if picture == "grey" { 1 } else { 3 };
    let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
    let input = InputSpec { image_size: side, channels, mean, std, interpolation };
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_unlabelled(&source, &input).expect("opens");
    let mut out = vec![0.0; input.numbers()];
    dataset.pixels(0, &mut out).expect("decodes");
    out.into_iter().map(|x| f64::from(x) * 255.0).collect()
}

/// Pillow rounds to whole levels between its two passes and clamps them there; we do neither. The
/// grey noise is never clamped, the colour noise is as often as noise can be.
#[test]
fn both_filters_are_pillows_to_within_rounding() {
    let golden = golden();
    assert_eq!(golden.len(), 8);
    for (key, expected) in golden {
        let [picture, filter, side] = key.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{key}")
        };
        let interpolation = match filter {
            "bicubic" => Interpolation::Bicubic,
            _ => Interpolation::Bilinear,
        };
        let ours = resized(picture, interpolation, side.parse().expect("a number"));
        assert_eq!(ours.len(), expected.len());
        let apart = ours.iter().zip(expected).map(|(a, b)| (a - f64::from(b)).abs());
        let largest = apart.fold(0.0, f64::max);
        println!("{key}: {largest:.3} levels");
        let clamped = picture == "colour" && interpolation == Interpolation::Bicubic;
        assert!(largest < if clamped { 6.0 } else { 1.01 }, "{key}: {largest} levels");
    }
}

#[test]
fn the_filters_differ() {
    let of = |interpolation| resized("grey", interpolation, 32);
    let (linear, cubic) = (of(Interpolation::Bilinear), of(Interpolation::Bicubic));
    let apart = linear.iter().zip(&cubic).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 10.0, "{apart}");
}
