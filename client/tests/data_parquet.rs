//! Manifests in Parquet: those of pyarrow and pandas say what their CSV says, and whatever is wrong with
//! one is one line.

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma};
use tempfile::TempDir;
use tributary_client::data::{Case, DataError, DataSource, Dataset, InputSpec, task_of};
use tributary_shared::manifest::Task;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/manifests").join(name)
}

/// The six pictures that the fixtures name.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for index in 0..6u8 {
        let picture = GrayImage::from_fn(8, 8, |x, _| Luma([20 * index + x as u8]));
        picture.save(folder.path().join(format!("{index}.png"))).expect("saved");
    }
    folder
}

fn open(source: &DataSource, task: &Task) -> Result<Dataset, DataError> {
    let input = InputSpec::plain(4, 1, 0.0, 1.0);
    Dataset::open(source, task, &input)
}

fn cases(folder: &TempDir, manifest: &str, task: &Task) -> Vec<String> {
    let path = folder.path().join(manifest);
    fs::copy(fixture(manifest), &path).expect("copied");
    let dataset = open(&DataSource::detect(&path).expect("a manifest"), task).expect("opens");
    assert_eq!(dataset.report().refused(), 0);
    let shown = |case: &Case| format!("{} {} {} {:?}", case.id, case.patient, case.bag, case.label);
    dataset.cases().iter().map(shown).collect()
}

fn classes(names: [&str; 2], many: bool) -> Task {
    task_of(names.map(str::to_owned).to_vec(), many)
}

#[test]
fn every_writer_says_what_its_csv_says() {
    let folder = folder();
    for (name, task) in [
        ("classes", classes(["healthy", "ill"], false)),
        ("survival", Task::Survival {}),
        ("several", classes(["a", "b"], true)),
        ("numbers", classes(["0", "1"], false)),
    ] {
        let text = cases(&folder, &format!("{name}.csv"), &task);
        assert_eq!(text.len(), 6);
        for kind in ["pandas", "none", "zstd", "gzip", "snappy"] {
            let table = format!("{name}-{kind}.parquet");
            assert_eq!(cases(&folder, &table, &task), text, "{table}");
            let source = DataSource::detect(&folder.path().join(&table)).expect("a manifest");
            assert_eq!(source.infer_task().expect("columns tell it"), task, "{table}");
        }
    }
}

#[test]
fn a_folder_is_read_by_its_table_unless_it_has_two_manifests() {
    let folder = folder();
    fs::copy(fixture("classes-pandas.parquet"), folder.path().join("labels.parquet"))
        .expect("copied");
    let task = classes(["healthy", "ill"], false);
    let source = DataSource::detect(folder.path()).expect("a folder");
    assert_eq!(open(&source, &task).expect("opens").len(), 6);
    // By its content, whatever its name.
    fs::rename(folder.path().join("labels.parquet"), folder.path().join("labels.csv"))
        .expect("renamed");
    let source = DataSource::detect(folder.path()).expect("a folder");
    assert_eq!(open(&source, &task).expect("opens").len(), 6);
    fs::write(folder.path().join("labels.parquet"), b"").expect("written");
    let line = DataSource::detect(folder.path()).expect_err("two").to_string();
    assert!(line.ends_with(" holds labels.csv and labels.parquet; name one of them"), "{line}");
}

/// The one line that a manifest of these bytes ends with.
fn refusal(folder: &TempDir, bytes: &[u8]) -> String {
    let path = folder.path().join("labels.parquet");
    fs::write(&path, bytes).expect("written");
    let source = DataSource::detect(&path).expect("a manifest");
    let error = open(&source, &classes(["healthy", "ill"], false)).err().expect("refused");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line.split_once("labels.parquet").expect("names the file").1.to_owned()
}

#[test]
fn what_is_wrong_with_a_table_is_one_line() {
    let folder = folder();
    let kind = |found: &str| {
        format!(": the column `label` holds {found}; save it as text, numbers or booleans")
    };
    let codec = |column: &str, codec: &str| {
        format!(
            ": the column `{column}` is compressed with {codec}; save it with snappy, zstd, gzip or none"
        )
    };
    for (name, expected) in [
        ("list", kind("lists or records")),
        ("record", kind("lists or records")),
        ("bytes", kind("bytes that are not marked as text")),
        ("date", kind("dates")),
        ("time", kind("points in time")),
        ("decimal", kind("decimals")),
        ("brotli", codec("file", "BROTLI")),
        ("lz4", codec("file", "LZ4_RAW")),
        (
            "delta",
            ": the column `label` has the encoding DELTA_BYTE_ARRAY; save it with the writer's defaults"
                .to_owned(),
        ),
        ("rows", ": 2000001 rows; a manifest has at most 2000000".to_owned()),
        (
            "null",
            ", row 2: `` is not a class of this run; its classes are healthy, ill".to_owned(),
        ),
    ] {
        let bytes = fs::read(fixture(&format!("refused-{name}.parquet"))).expect("read");
        let found = refusal(&folder, &bytes);
        // Of a refused row the whole source's line quotes the row's.
        assert!(found == expected || found.ends_with(&expected), "{name}: {found}");
    }
    let whole = ": not a whole Parquet file (PAR1 at both ends); save it again, or as CSV";
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"file,patient,label\n0.png,p,ill\n"] {
        let found = refusal(&folder, bytes);
        assert!(found == whole || found.starts_with(": damaged: "), "{found}");
    }
    let footer = [b"PAR1", &[0xFF; 4][..], b"PAR1"].concat();
    let found = refusal(&folder, &footer);
    assert_eq!(found, ": 4294967295 bytes of description; a manifest has at most 4194304");
    let missing = fs::read(fixture("survival-pandas.parquet")).expect("read");
    assert!(refusal(&folder, &missing).starts_with(": the column `label` is missing; "));
}

#[test]
fn every_truncated_or_flipped_table_is_read_or_refused() {
    let folder = folder();
    let path = folder.path().join("labels.parquet");
    let task = classes(["healthy", "ill"], false);
    let source = DataSource::Folder { root: folder.path().to_owned(), manifest: path.clone() };
    let try_open = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("written");
        open(&source, &task).map(|dataset| dataset.len())
    };
    for (kind, step) in [("pandas", 1), ("gzip", 5), ("zstd", 5)] {
        let bytes = fs::read(fixture(&format!("classes-{kind}.parquet"))).expect("read");
        assert_eq!(try_open(&bytes).expect("whole"), 6);
        for end in (0..bytes.len()).step_by(3 * step) {
            assert!(try_open(&bytes[..end]).is_err(), "{kind} {end}");
        }
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            match try_open(&flipped) {
                Ok(cases) => assert!(cases <= 6, "{kind} {at}"),
                Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{kind} {at}"),
            }
        }
    }
}
