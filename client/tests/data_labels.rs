//! Looking at and dividing data of every kind of label.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma};
use tempfile::TempDir;
use tributary_client::config::reading::Reading;
use tributary_client::data::census::{self, Census, FollowUp};
use tributary_client::data::divide::{self, DivideSpec};
use tributary_client::data::{DataError, DataSource};
use tributary_shared::manifest::Task;
use tributary_shared::objective::{Mae, Objective};
use tributary_shared::task::Decoder;

/// Four pictures, each of another level, and the manifest.
fn folder(manifest: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("masks")).expect("created");
    for index in 0..4u8 {
        let picture = GrayImage::from_fn(40, 40, |x, _| Luma([40 * index + x as u8]));
        picture.save(folder.path().join(format!("{index}.png"))).expect("saved");
        // Class 0 everywhere; 1 in the first two; nothing is of class 2.
        let mask = GrayImage::from_fn(40, 40, |x, _| Luma([u8::from(index < 2 && x < 5)]));
        mask.save(folder.path().join(format!("masks/{index}.png"))).expect("saved");
    }
    fs::write(folder.path().join("labels.csv"), manifest).expect("written");
    folder
}

fn take(at: &Path, task: &Task) -> Result<Census, DataError> {
    census::take(&DataSource::detect(at).expect("a folder"), task, &Reading::default(), 0)
}

fn divided(folder: &TempDir, task: &Task) -> [String; 2] {
    let source = DataSource::detect(folder.path()).expect("a folder");
    let spec = DivideSpec { sites: 2, label_skew: 0.0, seed: 1 };
    let out = folder.path().join("out");
    divide::write(&source, task, &spec, &Reading::default(), &out).expect("divides");
    let mut patients = 0;
    let texts = ["site-1", "site-2"].map(|site| {
        // What is written can be read, for the same task.
        patients += take(&out.join(site), task).expect("reads").patients;
        fs::read_to_string(out.join(site).join("labels.csv")).expect("written")
    });
    assert_eq!(patients, 4);
    texts
}

/// The rows of all sites, in order.
fn rows(sites: &[String; 2]) -> Vec<&str> {
    let mut rows: Vec<&str> = sites.iter().flat_map(|text| text.lines().skip(1)).collect();
    rows.sort_unstable();
    rows
}

fn segmentation(classes: &[&str]) -> Task {
    let classes = classes.iter().map(|&class| class.to_owned()).collect();
    Task::Segmentation { classes, decoder: Decoder::default() }
}

#[test]
fn follow_up_is_counted_and_divided() {
    let folder = folder(
        "file,patient,time,event\n0.png,a,1.5,1\n1.png,b,20,0\n2.png,c,3,1\n3.png,d,7.25,0\n",
    );
    let source = DataSource::detect(folder.path()).expect("a folder");
    let task = source.infer_task().expect("the columns say it");
    assert_eq!(task, Task::Survival {});
    let census = take(folder.path(), &task).expect("counts");
    let expected = FollowUp { events: 2, time_min: 1.5, time_max: 20.0 };
    assert_eq!((census.follow_up, census.classes.len()), (Some(expected), 0));
    let sites = divided(&folder, &task);
    assert!(sites[0].starts_with("file,patient,time,event\n"), "{}", sites[0]);
    assert_eq!(rows(&sites), ["0.png,a,1.5,1", "1.png,b,20,0", "2.png,c,3,1", "3.png,d,7.25,0"]);
}

#[test]
fn masks_are_counted_by_what_they_show_and_travel_with_their_images() {
    let manifest = "file,patient,mask\n0.png,a,masks/0.png\n1.png,b,masks/1.png\n\
                    2.png,c,masks/2.png\n3.png,d,masks/3.png\n";
    let folder = folder(manifest);
    let source = DataSource::detect(folder.path()).expect("a folder");
    let line = source.infer_task().expect_err("no classes").to_string();
    assert!(line.ends_with("labels.csv names masks; their classes are in the run"), "{line}");
    let task = segmentation(&["skin", "lesion", "hair"]);
    let census = take(folder.path(), &task).expect("counts");
    let counts: Vec<usize> = census.classes.iter().map(|class| class.cases).collect();
    assert_eq!(counts, [4, 2, 0]);
    let decoding = census.decoding.expect("all were decoded");
    assert!(decoding.median_ms > 0.0 && decoding.median_ms <= decoding.slowest_ms, "{decoding:?}");
    assert!(["0.png", "1.png", "2.png", "3.png"].contains(&decoding.slowest.as_str()));
    let sites = divided(&folder, &task);
    assert!(sites[0].starts_with("file,patient,mask\n"), "{}", sites[0]);
    assert_eq!(rows(&sites)[3], "3.png,d,masks/3.png");
    // A level that is no class is told before anything is trained on it.
    GrayImage::from_pixel(40, 40, Luma([9]))
        .save(folder.path().join("masks/2.png"))
        .expect("saved");
    let census = take(folder.path(), &task).expect("counts");
    assert_eq!((census.cases, census.refused_count), (3, 1));
    assert!(census.refused[0].contains("a mask's level 9 is no class"), "{:?}", census.refused);
}

#[test]
fn bags_are_counted_and_kept() {
    let folder = folder(
        "file,patient,bag,label\n0.png,a,left,x\n1.png,b,b1,y\n2.png,c,c1,x\n3.png,d,d1,y\n",
    );
    let task = DataSource::detect(folder.path()).expect("a folder").infer_task().expect("x and y");
    assert_eq!(take(folder.path(), &task).expect("counts").bags, 4);
    let sites = divided(&folder, &task);
    assert!(sites[0].starts_with("file,patient,bag,label\n"), "{}", sites[0]);
    assert_eq!(rows(&sites)[0], "0.png,a,left,x");
}

#[test]
fn grades_are_divided_as_classes() {
    let folder = folder("file,patient,label\n0.png,a,g1\n1.png,b,g0\n2.png,c,g1\n3.png,d,g0\n");
    let task = Task::Ordinal { classes: ["g0", "g1"].map(str::to_owned).to_vec() };
    let sites = divided(&folder, &task);
    assert_eq!(rows(&sites)[1], "1.png,b,g0");
    // One of each grade at each site.
    for site in &sites {
        assert!(site.contains("g0") && site.contains("g1"), "{site}");
    }
}

#[test]
fn a_mask_beside_a_file_of_several_pictures_is_refused() {
    let folder = folder("file,patient,mask\nvolume.nii,a,masks/0.png\n1.png,b,masks/1.png\n");
    let volume = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nifti/ras.nii");
    fs::copy(volume, folder.path().join("volume.nii")).expect("copied");
    let task = segmentation(&["skin", "lesion"]);
    let census = take(folder.path(), &task).expect("counts");
    assert_eq!((census.cases, census.refused_count), (1, 1));
    assert!(
        census.refused[0].ends_with(
            "line 2: `volume.nii` holds several pictures; a mask is of one, so save them one by one"
        ),
        "{:?}",
        census.refused
    );
}

#[test]
fn without_a_manifest_masks_are_no_pictures() {
    let folder = folder("");
    fs::remove_file(folder.path().join("labels.csv")).expect("removed");
    let task = Task::SelfSupervised { objective: Objective::Mae(Mae::default()) };
    let census = take(folder.path(), &task).expect("counts");
    assert_eq!((census.cases, census.refused_count), (4, 0));
    assert_eq!(census.passed_over["in a folder `masks`: truth, not pictures"], 4);
    // A folder of that name is read when it is asked for.
    assert_eq!(take(&folder.path().join("masks"), &task).expect("counts").cases, 4);
}
