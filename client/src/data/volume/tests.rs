//! Against nibabel: `tests/python/nifti_golden.py` writes what it makes of these volumes.

use std::path::PathBuf;

use super::*;
use crate::config::reading::Patches;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nifti")).join(name)
}

fn golden() -> serde_json::Map<String, serde_json::Value> {
    let text = std::fs::read(fixture("golden.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn slices(plane: Plane, depth: u32) -> Slices {
    Slices { plane, depth, ..Slices::default() }
}

#[test]
fn slices_are_nibabels_whatever_the_storage() {
    let golden = golden();
    assert_eq!(golden.len(), 6);
    for (name, expected) in golden {
        let grid = grid(&fixture(&name)).unwrap();
        let volume = open(&fixture(&name), Window::MinMax).unwrap();
        let spacing = numbers(&expected["spacing_mm"]);
        for (found, expected) in grid.orientation.spacing_mm.iter().zip(&spacing) {
            assert!((found - expected).abs() < 1e-4, "{name} {found} {expected}");
        }
        let range = Curve::Range {
            black: f64::from(expected["min"].as_f64().unwrap() as f32),
            white: f64::from(expected["max"].as_f64().unwrap() as f32),
        };
        assert_eq!(volume.curve, range, "{name}");
        let shape = numbers(&expected["shape"]);
        for (plane, key) in
            [(Plane::Axial, "axial"), (Plane::Coronal, "coronal"), (Plane::Sagittal, "sagittal")]
        {
            let depth = grid.length(through(plane));
            assert_eq!(depth as f64, shape[through(plane)], "{name} {key}");
            let taken = grid.slices(&slices(plane, 1));
            assert_eq!(taken, (0..depth as u32).collect::<Vec<_>>());
            let Picture::Grey(grey) = volume.slice(&slices(plane, 1), depth as u32 / 2) else {
                panic!("{name}: colour")
            };
            let rows = expected[key].as_array().unwrap();
            assert_eq!(grey.height() as usize, rows.len(), "{name} {key}");
            for (y, row) in rows.iter().enumerate() {
                let row = numbers(row);
                assert_eq!(grey.width() as usize, row.len(), "{name} {key}");
                for (x, expected) in row.iter().enumerate() {
                    let found = f64::from(grey.get_pixel(x as u32, y as u32).0[0]);
                    assert!((found - expected).abs() < 0.51, "{name} {key} {x},{y}");
                }
            }
        }
    }
}

#[test]
fn patches_are_nibabels_and_scipys() {
    let text = std::fs::read(fixture("patches.json")).unwrap();
    let golden: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text).unwrap();
    assert_eq!(golden.len(), 6);
    let patches = Some(Patches { size: 4.0, stride: 2.5 });
    let reading = Reading { patches, ..Reading::default() };
    for (name, expected) in golden {
        let parts = grid(&fixture(&name)).unwrap().parts(&reading).unwrap();
        assert_eq!(parts.len() as u64, expected["count"].as_u64().unwrap(), "{name}");
        let volume = open(&fixture(&name), Window::MinMax).unwrap();
        let mut last = None;
        for (part, means) in parts.iter().zip(expected["means"].as_array().unwrap()) {
            let Picture::Rgb(picture) = volume.picture(&reading, *part) else { panic!("grey") };
            let pixels = f64::from(picture.width() * picture.height());
            for (channel, mean) in numbers(means).into_iter().enumerate() {
                let levels = picture.pixels().map(|pixel| f64::from(pixel.0[channel]));
                let found = levels.sum::<f64>() / pixels;
                assert!((found - mean).abs() < 0.5, "{name} {part:?} {channel}: {found} {mean}");
            }
            last = Some(picture);
        }
        let picture = last.expect("patches");
        for (channel, rows) in expected["last"].as_array().unwrap().iter().enumerate() {
            let rows = rows.as_array().unwrap();
            assert_eq!(picture.height() as usize, rows.len(), "{name}");
            for (y, row) in rows.iter().enumerate() {
                for (x, expected) in numbers(row).into_iter().enumerate() {
                    let found = f64::from(picture.get_pixel(x as u32, y as u32).0[channel]);
                    assert!((found - expected).abs() < 0.51, "{name} {channel} {x},{y}");
                }
            }
        }
    }
}

#[test]
fn without_a_window_of_its_own_a_volume_shows_its_percentiles() {
    for (name, expected) in golden() {
        let Curve::Range { black, white } = open(&fixture(&name), Window::File).unwrap().curve
        else {
            panic!("{name}")
        };
        let expected = numbers(&expected["percentiles"]);
        assert!((black - expected[0]).abs() < 1e-2 && (white - expected[1]).abs() < 1e-2, "{name}");
    }
}

#[test]
fn two_and_a_half_dimensions_are_three_neighbours() {
    let volume = open(&fixture("ras.nii"), Window::MinMax).unwrap();
    let grey = |at| match volume.slice(&slices(Plane::Axial, 1), at) {
        Picture::Grey(grey) => grey.into_raw(),
        Picture::Rgb(_) => panic!("colour"),
    };
    let channels = |slices: &Slices, at| match volume.slice(slices, at) {
        Picture::Rgb(rgb) => [0, 1, 2]
            .map(|c| -> Vec<u8> { rgb.as_raw().iter().skip(c).step_by(3).copied().collect() }),
        Picture::Grey(_) => panic!("grey"),
    };
    let near = slices(Plane::Axial, 3);
    assert_eq!(channels(&near, 2), [grey(1), grey(2), grey(3)]);
    assert_eq!(channels(&near, 0), [grey(0), grey(0), grey(1)]);
    assert_eq!(channels(&near, 4), [grey(3), grey(4), grey(4)]);
    // Slices are 3 mm apart, so 6 mm is every second one, and so are the neighbours.
    let far = Slices { every_mm: Some(6.0), ..near };
    assert_eq!(channels(&far, 2), [grey(0), grey(2), grey(4)]);
    let grid = grid(&fixture("ras.nii")).unwrap();
    assert_eq!(grid.slices(&far), [0, 2, 4]);
    assert_eq!(grid.slices(&Slices { take: Frames::Middle, ..far }), [2]);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.nii");
    let sound = std::fs::read(fixture("ras.nii")).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&path, Window::File).err().map(|p| p.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&sound), "");
    for cut in [0, 100, 347, 348, 352, sound.len() - 1] {
        assert_eq!(
            refused(&sound[..cut]),
            "truncated: the data ends before the volume does; copy the file again",
            "{cut}"
        );
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    // dim[1..4] at byte 42: 30000 voxels a side.
    let side = 30_000i16.to_le_bytes();
    let huge = refused(&with(42, &[side, side, side].concat()));
    assert!(huge.contains("at most 268435456 voxels"), "{huge}");
    // A fourth dimension of 2: dim[0] = 4, dim[4] = 2.
    let timed = with(40, &4i16.to_le_bytes());
    let mut timed = timed;
    timed[48..50].copy_from_slice(&2i16.to_le_bytes());
    assert!(refused(&timed).starts_with("has the shape [7, 6, 5, 2]"), "{}", refused(&timed));
    // datatype 128 is RGB24.
    let colour = refused(&with(70, &128i16.to_le_bytes()));
    assert!(!colour.is_empty());
    // srow_x at byte 280: no direction at all.
    assert!(refused(&with(280, &[0; 48])).starts_with("its affine"));
    assert!(refused(&with(344, b"ni1\0")).starts_with("a header without its voxels"));
}
