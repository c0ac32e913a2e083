//! Volumes as cases: MedMNIST 3D archives and NIfTI files, by slices and by patches.

use std::fs::{self, File};
use std::path::Path;

use ndarray::{Array2, Array4};
use ndarray_npy::NpzWriter;
use tempfile::TempDir;
use tributary_client::config::reading::{Frames, Patches, Reading, Slices};
use tributary_client::data::divide::{self, DivideSpec};
use tributary_client::data::{DataSource, Dataset, InputSpec, Label, census, task_of};
use tributary_shared::dataset::{DataContract, Interpolation, Plane, Window};
use tributary_shared::manifest::Task;

const SIDE: usize = 8;

fn input(channels: usize) -> InputSpec {
    let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
    InputSpec {
        image_size: SIDE,
        channels,
        mean,
        std,
        interpolation: Interpolation::Bilinear,
        crop_pct: None,
    }
}

fn task() -> Task {
    task_of(["0", "1"].map(str::to_owned).to_vec(), false)
}

/// Level of voxel (i, j, k) of volume n.
fn level(n: usize, i: usize, j: usize, k: usize) -> u8 {
    (30 * n + 9 * i + 5 * j + 3 * k) as u8
}

/// Three volumes in the layout of MedMNIST 3D: uint8 `[N, 8, 8, 8]`, labels `[N, 1]`.
fn archive(folder: &Path) -> DataSource {
    let path = folder.join("cubes.npz");
    let mut npz = NpzWriter::new(File::create(&path).expect("created"));
    let cube = |first: usize, count: usize| {
        Array4::from_shape_fn((count, SIDE, SIDE, SIDE), |(n, i, j, k)| level(first + n, i, j, k))
    };
    let labels = |classes: &[u8]| Array2::from_shape_fn((classes.len(), 1), |(n, _)| classes[n]);
    npz.add_array("train_images", &cube(0, 2)).expect("added");
    npz.add_array("train_labels", &labels(&[1, 0])).expect("added");
    npz.add_array("test_images", &cube(2, 1)).expect("added");
    npz.add_array("test_labels", &labels(&[1])).expect("added");
    npz.finish().expect("finished");
    DataSource::Npz(path)
}

fn levels(dataset: &Dataset, index: usize) -> Vec<u8> {
    let mut out = vec![0.0; dataset.input().numbers()];
    dataset.pixels(index, &mut out).expect("kept");
    out.into_iter().map(|x| (x * 255.0).round() as u8).collect()
}

fn plane(of: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    (0..SIDE * SIDE).map(|at| of(at / SIDE, at % SIDE)).collect()
}

#[test]
fn an_archive_of_volumes_is_read_by_slices_as_they_are_stored() {
    let folder = TempDir::new().expect("a folder");
    let source = archive(folder.path());
    let dataset = Dataset::open(&source, &task(), &input(1)).expect("opens");
    assert_eq!(dataset.len(), 3 * SIDE);
    let case = &dataset.cases()[SIDE + 5];
    assert_eq!((case.id.as_str(), case.patient.as_str()), ("train/1#5", "train/1"));
    assert_eq!((case.bag.as_str(), &case.label), ("train/1", &Label::Class(0)));
    assert_eq!(dataset.cases()[2 * SIDE].id, "test/0#0");
    assert_eq!(levels(&dataset, SIDE + 5), plane(|row, column| level(1, 5, row, column)));
    assert_eq!(dataset.profile().planes[&Some(Plane::Axial)], 3 * SIDE);

    // 2.5D, every third slice, of another window.
    let slices = Slices { every_mm: Some(3.0), depth: 3, ..Slices::default() };
    let window = Window::Given { centre: 128.0, width: 256.0 };
    let reading = Reading { slices, window, ..Reading::default() };
    let dataset = Dataset::open_as(&source, &task(), &input(3), &reading).expect("opens");
    assert_eq!(dataset.len(), 3 * 3);
    let found = levels(&dataset, 3 + 1);
    for (channel, slice) in [0, 3, 6].into_iter().enumerate() {
        let expected = plane(|row, column| level(1, slice, row, column));
        assert_eq!(found[channel * SIDE * SIDE..][..SIDE * SIDE], expected, "{channel}");
    }
    let slices = Slices { take: Frames::Middle, plane: Plane::Sagittal, ..Slices::default() };
    let reading = Reading { slices, ..Reading::default() };
    let dataset = Dataset::open_as(&source, &task(), &input(1), &reading).expect("opens");
    // One picture a volume needs no number. The stored last axis lies across, run backwards.
    assert_eq!(dataset.cases()[1].id, "train/1");
    assert_eq!(dataset.len(), 3);
}

#[test]
fn patches_of_a_volume_are_one_bag() {
    let folder = TempDir::new().expect("a folder");
    let source = archive(folder.path());
    let patches = Some(Patches { size: 4.0, stride: 4.0 });
    let reading = Reading { patches, ..Reading::default() };
    let dataset = Dataset::open_as(&source, &task(), &input(3), &reading).expect("opens");
    assert_eq!(dataset.len(), 3 * 8);
    let bags: Vec<&str> = dataset.cases().iter().map(|case| case.bag.as_str()).collect();
    assert_eq!((bags[7], bags[8], bags[23]), ("train/0", "train/1", "test/0"));
    assert_eq!(dataset.cases()[9].id, "train/1#1");
    let seen = census::take(&source, &task(), &reading, 1).expect("counts");
    assert_eq!((seen.cases, seen.patients, seen.thumbnails.len()), (24, 3, 2));
    // The planes of a patch are no one plane, and an archive names no spacing.
    let contract = DataContract { plane: Some(Plane::Axial), ..DataContract::default() };
    let broken = dataset.check_contract(&contract, &task()).expect_err("refused").to_string();
    assert!(broken.ends_with("10 or more cases not known to be axial"), "{broken}");
}

#[test]
fn patches_of_a_nifti_file_are_the_bag_of_the_file_or_of_the_manifest() {
    let folder = TempDir::new().expect("a folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nifti/ras.nii");
    for name in ["a.nii", "b.nii"] {
        fs::copy(&from, folder.path().join(name)).expect("copied");
    }
    let reading =
        Reading { patches: Some(Patches { size: 6.0, stride: 6.0 }), ..Reading::default() };
    let bags = |manifest: &str| -> Vec<(String, String)> {
        fs::write(folder.path().join("labels.csv"), manifest).expect("written");
        let source = DataSource::detect(folder.path()).expect("a folder");
        let dataset = Dataset::open_as(&source, &task(), &input(3), &reading).expect("opens");
        // 7 x 12 x 15 mm.
        assert_eq!(dataset.len(), 2 * 2 * 2 * 3);
        let cases = dataset.cases().iter();
        cases.map(|case| (case.bag.clone(), case.patient.clone())).collect()
    };
    let of_file = bags("file,patient,label\na.nii,p,0\nb.nii,p,1\n");
    assert_eq!(of_file[0], ("a.nii".to_owned(), "p".to_owned()));
    assert_eq!(of_file[12], ("b.nii".to_owned(), "p".to_owned()));
    let of_manifest = bags("file,patient,bag,label\na.nii,p,visit,1\nb.nii,p,visit,1\n");
    assert!(of_manifest.iter().all(|(bag, _)| bag == "visit"));
}

#[test]
fn what_cannot_be_read_as_volumes_is_one_line() {
    let folder = TempDir::new().expect("a folder");
    let source = archive(folder.path());
    let path = source.path().display().to_string();
    let refused = |reading: Reading| {
        let opened = Dataset::open_as(&source, &task(), &input(1), &reading);
        opened.err().expect("refused").to_string().replace(&path, "cubes.npz")
    };
    let patches = Some(Patches { size: 1.0, stride: 0.1 });
    assert_eq!(
        refused(Reading { patches, ..Reading::default() }),
        "cubes.npz: the array `train_images` gives 357911 patches; at most 4096 are read, so write \
         a larger stride"
    );
    for patches in [Patches { size: 0.0, stride: 1.0 }, Patches { size: 1.0, stride: f64::NAN }] {
        let reading = Reading { patches: Some(patches), ..Reading::default() };
        assert_eq!(reading.check().expect_err("refused").0, "data.reading.patches");
    }
    let spec = DivideSpec { sites: 2, label_skew: 0.0, seed: 1 };
    let divided =
        divide::write(&source, &task(), &spec, &Reading::default(), &folder.path().join("out"));
    let line = divided.expect_err("refused").to_string();
    assert!(
        line.ends_with("`data split` divides pictures, so save each volume as .nii.gz"),
        "{line}"
    );
    assert!(!folder.path().join("out").exists());
}
