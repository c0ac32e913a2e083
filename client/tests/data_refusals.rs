//! Every bad input is one clear line, exit code 4.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, GrayImage, ImageFormat, RgbImage, RgbaImage};
use tempfile::TempDir;
use tributary_client::data::{DataSource, Dataset, InputSpec, task_of};
use tributary_shared::manifest::Task;
use tributary_shared::outcome::{ExitCode, Failure};

fn task() -> Task {
    task_of(vec!["healthy".to_owned(), "ill".to_owned()], false)
}

fn input() -> InputSpec {
    InputSpec::plain(4, 1, 0.5, 0.5)
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn png() -> Vec<u8> {
    encoded(GrayImage::from_fn(32, 32, |x, y| image::Luma([(x * y) as u8])), ImageFormat::Png)
}

/// A folder with one good image, `good.png`.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join("good.png"), png()).expect("written");
    folder
}

/// The one line that opening `path` ends with; the folder's own path is written as `DIR`.
fn refusal(folder: &Path, path: &Path, task: &Task) -> String {
    let opened = DataSource::detect(path).and_then(|s| Dataset::open(&s, task, &input()));
    let Err(error) = opened else { panic!("{} was opened", path.display()) };
    let failure = Failure::from(error);
    assert_eq!(failure.exit, ExitCode::Invalid);
    let line = failure.to_string();
    assert!(!line.contains('\n'));
    let real = folder.canonicalize().expect("the folder is there");
    // Above the share that may be refused; the report's first reason follows.
    let line = line.split_once(" allows; the first: ").map_or(line.as_str(), |(_, first)| first);
    line.replace(&real.display().to_string(), "DIR").replace(&folder.display().to_string(), "DIR")
}

fn refused_csv(folder: &TempDir, csv: impl AsRef<[u8]>) -> String {
    fs::write(folder.path().join("labels.csv"), csv).expect("written");
    refusal(folder.path(), folder.path(), &task())
}

fn refused_image(name: &str, bytes: &[u8]) -> String {
    let folder = folder();
    fs::write(folder.path().join(name), bytes).expect("written");
    refused_csv(&folder, format!("file,patient,label\ngood.png,a,ill\n{name},b,ill\n"))
}

#[test]
fn truncated_png() {
    let png = png();
    let line = refused_image("x.png", &png[..png.len() / 2]);
    assert_eq!(
        line,
        "DIR/x.png: truncated: the data ends before the picture does; copy the file again"
    );
}

#[test]
fn png_cut_inside_its_header() {
    let line = refused_image("x.png", &png()[..20]);
    assert_eq!(
        line,
        "DIR/x.png: truncated: the data ends before the picture does; copy the file again"
    );
}

#[test]
fn truncated_jpeg() {
    let jpeg = encoded(RgbImage::new(64, 64), ImageFormat::Jpeg);
    let line = refused_image("x.jpg", &jpeg[..jpeg.len() - 20]);
    assert_eq!(
        line,
        "DIR/x.jpg: truncated: the data ends before the picture does; copy the file again"
    );
}

#[test]
fn truncated_tiff() {
    let tiff = encoded(RgbImage::new(64, 64), ImageFormat::Tiff);
    let line = refused_image("x.tif", &tiff[..200]);
    assert_eq!(
        line,
        "DIR/x.tif: truncated: the data ends before the picture does; copy the file again"
    );
}

#[test]
fn empty_file() {
    assert_eq!(refused_image("x.png", b""), "DIR/x.png: the file is empty (0 bytes)");
}

#[test]
fn cmyk_jpeg() {
    let line = refused_image("x.jpg", include_bytes!("fixtures/data/cmyk.jpg"));
    assert_eq!(line, "DIR/x.jpg: CMYK colours; save it as 8-bit grey or RGB");
}

#[test]
fn sixteen_bit_png() {
    let deep = image::ImageBuffer::<image::Luma<u16>, _>::new(8, 8);
    let line = refused_image("x.png", &encoded(deep, ImageFormat::Png));
    assert_eq!(line, "DIR/x.png: 16 bits or more a sample; save it as 8-bit grey or RGB");
}

#[test]
fn png_with_alpha() {
    let line = refused_image("x.png", &encoded(RgbaImage::new(8, 8), ImageFormat::Png));
    assert_eq!(line, "DIR/x.png: has an alpha channel; save it as 8-bit grey or RGB");
}

#[test]
fn another_format_under_a_familiar_name() {
    let line = refused_image("x.png", b"GIF89a and so on");
    assert_eq!(line, "DIR/x.png: not a PNG, JPEG or TIFF image");
    assert_eq!(refused_image("x.png", b"x"), "DIR/x.png: not a PNG, JPEG or TIFF image");
}

#[test]
fn a_bit_flipped_in_a_png() {
    let mut png = png();
    let middle = png.len() / 2;
    png[middle] ^= 1;
    let line = refused_image("x.png", &png);
    assert!(line.starts_with("DIR/x.png: damaged: "), "{line}");
}

const TOO_LARGE: &str =
    "DIR/x.png: too large to decode; at most 16384 pixels a side and 512 MiB decoded";

/// A sound PNG whose header claims another size: a decompression bomb without its payload.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = encoded(RgbImage::new(8, 8), ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

#[test]
fn a_side_too_long() {
    assert_eq!(refused_image("x.png", &claiming(16_385, 1)), TOO_LARGE);
    assert_eq!(refused_image("x.png", &claiming(1, 2_000_000_000)), TOO_LARGE);
}

#[test]
fn a_decompression_bomb() {
    assert_eq!(refused_image("x.png", &claiming(16_384, 16_384)), TOO_LARGE);
}

#[test]
fn a_file_too_large() {
    let folder = folder();
    let file = fs::File::create(folder.path().join("x.png")).expect("created");
    file.set_len((256 << 20) + 7).expect("sparse");
    assert_eq!(
        refused_csv(&folder, "file,patient,label\nx.png,a,ill\n"),
        "DIR/x.png: 268435457 bytes or more; an image file has at most 268435456"
    );
}

#[test]
fn unknown_label() {
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,a,sick\n"),
        "DIR/labels.csv, line 2: `sick` is not a class of this run; its classes are healthy, ill"
    );
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,a,\n"),
        "DIR/labels.csv, line 2: `` is not a class of this run; its classes are healthy, ill"
    );
}

#[test]
fn a_label_twice_in_a_row() {
    let folder = folder();
    let csv = "file,patient,label\ngood.png,a,ill;ill\n";
    fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let task = task_of(vec!["healthy".to_owned(), "ill".to_owned()], true);
    assert_eq!(
        refusal(folder.path(), folder.path(), &task),
        "DIR/labels.csv, line 2: the label `ill` is there twice"
    );
}

#[test]
fn missing_file() {
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,a,ill\nbad.png,b,ill\n"),
        "DIR/labels.csv, line 3: `bad.png` does not exist in the folder"
    );
}

#[test]
fn a_folder_named_as_a_file() {
    let folder = folder();
    fs::create_dir(folder.path().join("x.png")).expect("created");
    assert_eq!(
        refused_csv(&folder, "file,patient,label\nx.png,a,ill\n"),
        "DIR/labels.csv, line 2: `x.png` is not a file"
    );
}

#[test]
fn missing_and_doubled_columns() {
    assert_eq!(
        refused_csv(&folder(), "file,label\ngood.png,ill\n"),
        "DIR/labels.csv: the column `patient` is missing; the columns are file,patient and label (survival: time,event; segmentation: mask)"
    );
    assert_eq!(
        refused_csv(&folder(), "file,patient,label,label\ngood.png,a,ill,ill\n"),
        "DIR/labels.csv: the column `label` is there twice"
    );
    assert_eq!(
        refused_csv(&folder(), ""),
        "DIR/labels.csv: the column `label` is missing; the columns are file,patient and label (survival: time,event; segmentation: mask)"
    );
}

#[test]
fn a_row_too_short() {
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,a\n"),
        "DIR/labels.csv, line 2: 2 fields; the first line has 3"
    );
}

#[test]
fn an_empty_field() {
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,,ill\n"),
        "DIR/labels.csv, line 2: `patient` is empty"
    );
}

#[test]
fn duplicate_row() {
    assert_eq!(
        refused_csv(&folder(), "file,patient,label\ngood.png,a,ill\n./good.png,b,ill\n"),
        "DIR/labels.csv, line 3: `./good.png` is already on line 2"
    );
}

#[test]
fn a_path_that_climbs_out() {
    for file in ["../good.png", "a/../../good.png", "/etc/hostname"] {
        assert_eq!(
            refused_csv(&folder(), format!("file,patient,label\n{file},a,ill\n")),
            format!(
                "DIR/labels.csv, line 2: `{file}` leaves the folder; name files relative to it, \
                 without `..`"
            )
        );
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder() {
    let (inside, outside) = (folder(), folder());
    let link = inside.path().join("link.png");
    std::os::unix::fs::symlink(outside.path().join("good.png"), link).expect("linked");
    assert_eq!(
        refused_csv(&inside, "file,patient,label\nlink.png,a,ill\n"),
        "DIR/labels.csv, line 2: `link.png` is a link out of the folder; copy the file into it"
    );
}

#[test]
fn not_utf8() {
    assert_eq!(
        refused_csv(&folder(), b"file,patient,label\ngood.png,M\xFCller,ill\n"),
        "DIR/labels.csv, line 2: not UTF-8; save the manifest as UTF-8"
    );
}

#[test]
fn no_cases() {
    assert_eq!(refused_csv(&folder(), "file,patient,label\n"), "DIR holds no cases");
}

#[test]
fn no_manifest_and_no_source() {
    let folder = folder();
    assert_eq!(
        refusal(folder.path(), folder.path(), &task()),
        "DIR/labels.csv is not there; pictures with labels need a manifest, labels.csv or labels.parquet, that names each file, its patient and its label (docs/data.md)"
    );
    let nowhere = folder.path().join("nowhere");
    assert_eq!(
        refusal(folder.path(), &nowhere, &task()),
        "DIR/nowhere cannot be read: No such file or directory"
    );
    assert_eq!(
        refusal(folder.path(), &folder.path().join("good.png"), &task()),
        "DIR/good.png is no data source; give a folder with labels.csv, a .csv, .parquet or .npz file"
    );
}

#[test]
fn a_rehearsal_reads_no_images() {
    let folder = folder();
    let rehearsal = Task::Rehearsal { payload_bytes: 4 };
    assert_eq!(
        refusal(folder.path(), folder.path(), &rehearsal),
        "a rehearsal reads no images; give a task with classes"
    );
}
