//! Images and their labels, as a site opens them.

use std::path::Path;
use std::sync::LazyLock;

use tributary_client::config::reading::Reading;
use tributary_client::data::{DataSource, Dataset, InputSpec, task_of};
use tributary_shared::manifest::Task;

use crate::Outcome;
use crate::scratch::with_file;

/// A PNG of one pixel, which the rows of a manifest may name.
const PNG: &[u8] = include_bytes!("../one_pixel.png");

/// Pictures may be of any size; a slide needs a resolution and small tiles.
static READING: LazyLock<Reading> = LazyLock::new(|| {
    let mut reading = Reading { spacing_mm: Some(0.0005), ..Reading::default() };
    reading.slides.tile = 64;
    reading
});

fn input() -> InputSpec {
    InputSpec::plain(4, 1, 0.5, 0.5)
}

fn opened(source: &DataSource, task: Option<&Task>) -> Outcome {
    Outcome::of(match task {
        Some(task) => Dataset::open_as(source, task, &input(), &READING),
        None => Dataset::open_unlabelled_as(source, &input(), &READING),
    })
}

/// A folder without a manifest: every picture is decoded.
fn picture(name: &str, data: &[u8]) -> Outcome {
    with_file(name, data, &[], |path| {
        let root = path.parent().unwrap_or(Path::new(".")).to_owned();
        opened(&DataSource::Folder { root, manifest: "labels.csv".into() }, None)
    })
}

fn task() -> Task {
    task_of(vec!["healthy".to_owned(), "ill".to_owned()], false)
}

fn labels(name: &str, data: &[u8]) -> Outcome {
    let pictures =
        ["a.png", "0.png", "1.png", "2.png", "3.png", "4.png", "5.png"].map(|name| (name, PNG));
    with_file(name, data, &pictures, |path| {
        let root = path.parent().unwrap_or(Path::new(".")).to_owned();
        let source = DataSource::Folder { root, manifest: name.into() };
        let implied = source.infer_task().ok();
        let tasks = [None, Some(task()), implied];
        tasks
            .iter()
            .fold(Outcome::Refused, |so_far, task| so_far.or(opened(&source, task.as_ref())))
    })
}

/// An npz file, its task found in its labels.
pub(crate) fn npz(data: &[u8]) -> Outcome {
    with_file("input.npz", data, &[], |path| {
        let source = DataSource::Npz(path.to_owned());
        let task = source.infer_task();
        opened(&source, task.ok().as_ref()).or(opened(&source, None))
    })
}

/// A manifest in CSV.
pub(crate) fn csv(data: &[u8]) -> Outcome {
    labels("labels.csv", data)
}

/// A manifest in Parquet.
pub(crate) fn parquet(data: &[u8]) -> Outcome {
    labels("labels.parquet", data)
}

/// A DICOM file, all of its frames.
pub(crate) fn dicom(data: &[u8]) -> Outcome {
    picture("input.dcm", data)
}

/// A NIfTI file, all of its slices.
pub(crate) fn nifti(data: &[u8]) -> Outcome {
    picture(if data.starts_with(&[0x1F, 0x8B]) { "input.nii.gz" } else { "input.nii" }, data)
}

/// A TIFF as a picture, and as a whole slide.
pub(crate) fn tiff(data: &[u8]) -> Outcome {
    picture("input.tif", data).or(picture("input.svs", data))
}
