//! npz archives: those numpy wrote, and those with something wrong in them.

use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array3, Array4, ShapeBuilder};
use ndarray_npy::{NpzWriter, WriteNpyExt};
use tempfile::TempDir;
use tributary_client::data::{DataError, DataSource, Dataset, InputSpec, Label, task_of};
use tributary_shared::manifest::Task;
use tributary_shared::outcome::{ExitCode, Failure};

fn fixture(name: &str) -> DataSource {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name);
    DataSource::detect(&path).expect("an npz")
}

fn input(channels: usize) -> InputSpec {
    InputSpec::plain(4, channels, 0.0, 1.0)
}

fn three(many: bool) -> Task {
    task_of(["a", "b", "c"].map(str::to_owned).to_vec(), many)
}

#[test]
fn numpys_three_splits_are_pooled_in_order() {
    let dataset = Dataset::open(&fixture("plain.npz"), &three(false), &input(1)).expect("opens");
    let ids: Vec<&str> = dataset.cases().iter().map(|case| case.id.as_str()).collect();
    assert_eq!(
        ids,
        "train/0 train/1 train/2 train/3 val/0 val/1 test/0 test/1 test/2"
            .split(' ')
            .collect::<Vec<_>>()
    );
    let classes: Vec<Label> = dataset.cases().iter().map(|case| case.label.clone()).collect();
    assert_eq!(classes, [0, 1, 2, 1, 2, 0, 0, 1, 1].map(Label::Class));
    // Without patients each image is its own.
    assert!(dataset.cases().iter().all(|case| case.patient == case.id));
    let mut out = vec![0.0; 16];
    for (index, level) in [0, 10, 20, 30, 100, 110, 200, 210, 220].into_iter().enumerate() {
        dataset.pixels(index, &mut out).expect("kept");
        assert!(out.iter().all(|pixel| (pixel * 255.0 - level as f32).abs() < 1e-3), "{index}");
    }
}

#[test]
fn numpys_compressed_colours_labels_and_patients() {
    let dataset = Dataset::open(&fixture("packed.npz"), &three(true), &input(3)).expect("opens");
    let patients: Vec<&str> = dataset.cases().iter().map(|case| case.patient.as_str()).collect();
    assert_eq!(patients, ["anna", "bé", "anna"]);
    assert_eq!(dataset.cases()[0].label, Label::Many(vec![true, false, true]));
    let mut out = vec![0.0; 48];
    dataset.pixels(1, &mut out).expect("kept");
    assert_eq!(out[..16], [1.0; 16]);
    assert_eq!(out[16..], [0.0; 32]);
}

#[test]
fn the_labels_imply_a_task() {
    let classes = |numbers: &[&str]| numbers.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let plain = fixture("plain.npz").infer_task().expect("infers");
    assert_eq!(plain, Task::MultiClass { classes: classes(&["0", "1", "2"]) });
    let packed = fixture("packed.npz").infer_task().expect("infers");
    assert_eq!(packed, Task::MultiLabel { classes: classes(&["0", "1", "2"]) });
}

/// An archive being made wrong.
struct Bench {
    folder: TempDir,
    npz: NpzWriter<File>,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let npz = NpzWriter::new(File::create(folder.path().join("x.npz")).expect("created"));
        Self { folder, npz }
    }

    fn with(mut self, name: &str, array: &(impl WriteNpyExt + ?Sized)) -> Self {
        self.npz.add_array(name, array).expect("added");
        self
    }

    fn images(self, count: usize) -> Self {
        self.with("train_images", &Array3::<u8>::zeros((count, 4, 4)))
    }

    fn refusal(self, task: &Task) -> String {
        self.npz.finish().expect("finished");
        refusal(&self.folder.path().join("x.npz"), task)
    }
}

fn refusal(path: &Path, task: &Task) -> String {
    let opened = Dataset::open(&DataSource::Npz(path.to_owned()), task, &input(1));
    let Err(error) = opened else { panic!("{} was opened", path.display()) };
    let failure = Failure::from(error);
    assert_eq!(failure.exit, ExitCode::Invalid);
    failure.to_string().replace(&path.display().to_string(), "x.npz")
}

fn labels(labels: &[i64]) -> Array2<i64> {
    Array2::from_shape_vec((labels.len(), 1), labels.to_vec()).expect("a column")
}

#[test]
fn a_missing_array() {
    assert_eq!(
        Bench::new().images(2).refusal(&three(false)),
        "x.npz: the array `train_labels` is missing, but `train_images` is there"
    );
    assert_eq!(
        Bench::new().with("val_labels", &labels(&[0])).refusal(&three(false)),
        "x.npz: the array `val_images` is missing, but `val_labels` is there"
    );
}

#[test]
fn no_split_at_all() {
    assert_eq!(
        Bench::new().with("x", &labels(&[0])).refusal(&three(false)),
        "x.npz: holds none of train_images, val_images, test_images (the MedMNIST layout)"
    );
}

#[test]
fn the_wrong_dtype() {
    let floats = Array3::<f64>::zeros((1, 4, 4));
    assert_eq!(
        Bench::new()
            .with("train_images", &floats)
            .with("train_labels", &labels(&[0]))
            .refusal(&three(false)),
        "x.npz: the array `train_images` has dtype <f8; it must be uint8 (|u1)"
    );
    assert_eq!(
        Bench::new()
            .images(1)
            .with("train_labels", &Array2::<f32>::zeros((1, 1)))
            .refusal(&three(false)),
        "x.npz: the array `train_labels` has dtype <f4; it must be an integer type"
    );
}

#[test]
fn the_wrong_shape() {
    let column = labels(&[0]);
    assert_eq!(
        Bench::new()
            .with("train_images", &Array4::<u8>::zeros((1, 4, 4, 2)))
            .with("train_labels", &column)
            .refusal(&three(false)),
        "x.npz: the array `train_images` has shape [1, 4, 4, 2]; it must be \
         [N, H, W], [N, H, W, 3] or, of volumes, [N, D, H, W]"
    );
    assert_eq!(
        Bench::new().images(1).with("train_labels", &column).refusal(&three(true)),
        "x.npz: the array `train_labels` has shape [1, 1]; it must be [N, 3]"
    );
    assert_eq!(
        Bench::new()
            .with("train_images", &Array3::<u8>::zeros((1, 4, 20_000)))
            .with("train_labels", &column)
            .refusal(&three(false)),
        "x.npz: the array `train_images` has shape [1, 4, 20000]; it must be H and W of 1 to 16384"
    );
}

#[test]
fn fortran_order() {
    assert_eq!(
        Bench::new()
            .with("train_images", &Array3::<u8>::zeros((2, 4, 4).f()))
            .with("train_labels", &labels(&[0, 1]))
            .refusal(&three(false)),
        "x.npz: the array `train_images` is in Fortran order; save np.ascontiguousarray of it"
    );
}

#[test]
fn lengths_that_disagree() {
    assert_eq!(
        Bench::new().images(3).with("train_labels", &labels(&[0, 1])).refusal(&three(false)),
        "x.npz: `train_images` holds 3 images and `train_labels` 2 rows"
    );
    assert_eq!(
        Bench::new()
            .images(2)
            .with("train_labels", &labels(&[0, 1]))
            .with("train_patients", &Array1::<i32>::zeros(1))
            .refusal(&three(false)),
        "x.npz: `train_images` holds 2 images and `train_patients` 1 rows"
    );
}

#[test]
fn a_label_outside_the_classes() {
    assert_eq!(
        Bench::new().images(2).with("train_labels", &labels(&[0, 3])).refusal(&three(false)),
        "x.npz: `train_labels`[1] is 3; the run has 3 classes, so labels 0 to 2"
    );
    assert_eq!(
        Bench::new().images(1).with("train_labels", &labels(&[-1])).refusal(&three(false)),
        "x.npz: `train_labels`[0] is -1; the run has 3 classes, so labels 0 to 2"
    );
    let marks = Array2::from_shape_vec((1, 3), vec![0i64, 2, 1]).expect("a row");
    assert_eq!(
        Bench::new().images(1).with("train_labels", &marks).refusal(&three(true)),
        "x.npz: `train_labels`[0] holds 2; a label of several is 0 or 1"
    );
}

#[test]
fn not_a_zip_and_cut_off() {
    let folder = TempDir::new().expect("a folder");
    let path: PathBuf = folder.path().join("x.npz");
    std::fs::write(&path, b"not a zip").expect("written");
    let line = refusal(&path, &three(false));
    assert!(line.starts_with("x.npz: not an npz file: "), "{line}");
    let DataSource::Npz(plain) = fixture("plain.npz") else { panic!("an npz") };
    let bytes = std::fs::read(plain).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    let line = refusal(&path, &three(false));
    assert!(line.starts_with("x.npz: not an npz file: "), "{line}");
}

#[test]
fn every_flipped_byte_is_refused_or_harmless() {
    // No panic, no hang, no allocation by a header's word alone, and never other data.
    let DataSource::Npz(plain) = fixture("plain.npz") else { panic!("an npz") };
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("x.npz");
    let open = |path: &Path| {
        let dataset = Dataset::open(&DataSource::Npz(path.to_owned()), &three(false), &input(1))?;
        let mut pixels = vec![0.0; 16 * dataset.len()];
        for (index, out) in pixels.chunks_exact_mut(16).enumerate() {
            dataset.pixels(index, out)?;
        }
        let labels: Vec<Label> = dataset.cases().iter().map(|case| case.label.clone()).collect();
        Ok::<_, DataError>((labels, pixels))
    };
    let expected = open(&plain).expect("opens");
    let bytes = std::fs::read(&plain).expect("read");
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 0x55;
        std::fs::write(&path, &broken).expect("written");
        match open(&path) {
            Ok(found) => assert!(found == expected, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused * 2 > bytes.len(), "{refused} of {}", bytes.len());
}
