//! A folder of DICOM files as a PACS export leaves it.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tributary_client::config::reading::{Frames, Reading};
use tributary_client::data::{DataSource, Dataset, InputSpec, Label, task_of};
use tributary_shared::dataset::{DataContract, Plane};
use tributary_shared::manifest::Task;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dicom").join(name)
}

/// `CT/ct.dcm`, `MR/series/mr.dcm`, a plan, a text file, a link and a file that is broken.
fn export() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("MR/series")).expect("created");
    fs::create_dir(at("CT")).expect("created");
    fs::copy(fixture("CT_small.dcm"), at("CT/ct.dcm")).expect("copied");
    fs::copy(fixture("MR_small.dcm"), at("MR/series/mr")).expect("copied");
    fs::copy(fixture("rtplan.dcm"), at("plan.dcm")).expect("copied");
    fs::write(at("LIESMICH.TXT"), "no picture").expect("written");
    folder
}

fn input() -> InputSpec {
    InputSpec::plain(8, 1, 0.0, 1.0)
}

fn task() -> Task {
    task_of(vec!["healthy".to_owned(), "ill".to_owned()], false)
}

fn ids(dataset: &Dataset) -> Vec<(&str, &str)> {
    dataset.cases().iter().map(|c| (c.id.as_str(), c.patient.as_str())).collect()
}

#[test]
fn a_folder_without_a_manifest_is_walked_and_grouped_by_patient() {
    let folder = export();
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_unlabelled(&source, &input()).expect("opens");
    assert_eq!(ids(&dataset), [("CT/ct.dcm", "1CT1"), ("MR/series/mr", "4MR1")]);
    let report = dataset.report();
    assert_eq!(report.refused(), 0);
    let passed_over: Vec<_> = report.passed_over().iter().map(|(w, n)| (*w, *n)).collect();
    assert_eq!(
        passed_over,
        [("DICOM without a picture (reports, plans, curves)", 1), ("not a picture", 1)]
    );
    let mut pixels = vec![f32::NAN; 64];
    dataset.pixels(1, &mut pixels).expect("kept");
    assert!(pixels.iter().all(|p| (0.0..=1.0).contains(p)) && pixels[0] != pixels[30]);
}

#[test]
fn labels_by_instance_study_and_patient() {
    let ids = |name: &str| {
        let object = dicom_object::open_file(fixture(name)).expect("opens");
        let text = |tag| object.element(tag).expect("there").to_str().expect("text").into_owned();
        [(0x0008, 0x0018), (0x0020, 0x000D), (0x0010, 0x0020)]
            .map(|(group, element)| text(dicom_object::Tag(group, element)))
    };
    let (ct, mr) = (ids("CT_small.dcm"), ids("MR_small.dcm"));
    for (column, at) in
        [("SOPInstanceUID", 0), ("StudyInstanceUID", 1), ("PatientID", 2), ("patient", 2)]
    {
        let folder = export();
        let csv = format!("{column},label\n{},ill\n{},healthy\n", ct[at], mr[at]);
        fs::write(folder.path().join("labels.csv"), csv).expect("written");
        let source = DataSource::detect(folder.path()).expect("a folder");
        let dataset = Dataset::open(&source, &task(), &input()).expect("opens");
        let labels: Vec<_> = dataset.cases().iter().map(|case| case.label.clone()).collect();
        assert_eq!(labels, [Label::Class(1), Label::Class(0)], "{column}");
    }
    // A row about nothing in the folder is named.
    let folder = export();
    let csv = format!("PatientID,label\n{},ill\nnobody,ill\n", ct[2]);
    fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let reading = Reading { refused_share_max: 0.5, ..Reading::default() };
    let dataset = Dataset::open_as(&source, &task(), &input(), &reading).expect("opens");
    let lines = dataset.report().lines();
    assert!(lines[0].ends_with("line 3: no DICOM file in the folder bears `nobody`"), "{lines:?}");
}

#[test]
fn rows_may_name_files_and_leave_the_patient_to_the_header() {
    let folder = export();
    let csv = "file,label\nCT/ct.dcm,ill\nMR/series/mr,healthy\n";
    fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open(&source, &task(), &input()).expect("opens");
    assert_eq!(ids(&dataset), [("CT/ct.dcm", "1CT1"), ("MR/series/mr", "4MR1")]);
}

#[test]
fn a_corrupt_file_is_skipped_counted_and_named() {
    let folder = export();
    fs::copy(fixture("MR_truncated.dcm"), folder.path().join("broken.dcm")).expect("copied");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let reading = Reading { refused_share_max: 0.34, ..Reading::default() };
    let dataset = Dataset::open_unlabelled_as(&source, &input(), &reading).expect("opens");
    assert_eq!((dataset.len(), dataset.report().refused()), (2, 1));
    let line = &dataset.report().lines()[0];
    let told =
        "broken.dcm: the element (7FE0,0010) declares 8192 bytes, and 8130 are left in the file";
    assert!(line.contains(told), "{line}");
    let strict = Dataset::open_unlabelled(&source, &input()).err().expect("refused");
    let message = strict.to_string();
    assert!(
        message.starts_with(
            "1 of 3 images refused, more than data.reading.refused_share_max = 0.05 allows; the first: "
        ),
        "{message}"
    );
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    let folder = export();
    std::os::unix::fs::symlink("/", folder.path().join("root")).expect("linked");
    std::os::unix::fs::symlink(fixture("MR_small_RLE.dcm"), folder.path().join("x.dcm"))
        .expect("linked");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_unlabelled(&source, &input()).expect("opens");
    assert_eq!(dataset.len(), 2);
    assert_eq!(dataset.report().passed_over()["links are not followed"], 2);
}

#[test]
fn each_frame_or_the_middle_one() {
    let folder = TempDir::new().expect("a folder");
    fs::copy(fixture("SC_rgb_rle_2frame.dcm"), folder.path().join("x.dcm")).expect("copied");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let open = |frames| {
        let reading = Reading { frames, ..Reading::default() };
        Dataset::open_unlabelled_as(&source, &input(), &reading).expect("opens")
    };
    let all = open(Frames::All);
    let names: Vec<_> = all.cases().iter().map(|case| case.id.as_str()).collect();
    assert_eq!(names, ["x.dcm#0", "x.dcm#1"]);
    assert_eq!(all.cases()[0].patient, all.cases()[1].patient);
    assert_eq!(open(Frames::Middle).len(), 1);
}

#[test]
fn a_contract_is_held_or_every_breach_is_named_without_paths() {
    let folder = export();
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_unlabelled(&source, &input()).expect("opens");
    let check = |contract: &DataContract| {
        dataset.check_contract(contract, &task()).map_err(|error| error.to_string())
    };
    assert_eq!(check(&DataContract::default()), Ok(()));
    let held = DataContract {
        modalities: ["CT".to_owned(), "MR".to_owned()].into(),
        spacing_mm: Some([0.3, 0.7]),
        channels: Some(1),
        ..DataContract::default()
    };
    assert_eq!(check(&held), Ok(()));
    let broken = DataContract {
        modalities: ["CT".to_owned()].into(),
        plane: Some(Plane::Coronal),
        spacing_mm: Some([0.5, 0.7]),
        channels: Some(3),
        cases_per_class_min: Some(1),
        ..DataContract::default()
    };
    assert_eq!(
        check(&broken).unwrap_err(),
        "the images are not what the run's [data] demands: fewer than 10 cases of another or unknown modality \
         than CT; fewer than 10 cases not known to be coronal; pixel spacing outside 0.5 to 0.7 mm; fewer than 10 cases \
         grey; fewer than 1 cases of the class `healthy`; fewer than 1 cases of the class `ill`"
    );
}
