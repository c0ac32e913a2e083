//! Whole slides: tiles of tissue at a resolution, against the known content of small pyramids
//! (tests/python/slide_fixture.py).

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tributary_client::config::reading::{Reading, Slides};
use tributary_client::data::{DataSource, Dataset, InputSpec, Label, census, task_of};
use tributary_shared::manifest::Task;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slides").join(name)
}

fn folder(slides: &[&str]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let mut manifest = "file,patient,label\n".to_owned();
    for (index, name) in slides.iter().enumerate() {
        fs::copy(fixture(name), folder.path().join(name)).expect("copied");
        manifest += &format!("{name},p{index},{}\n", index % 2);
    }
    fs::write(folder.path().join("labels.csv"), manifest).expect("written");
    folder
}

fn task() -> Task {
    task_of(["0", "1"].map(str::to_owned).to_vec(), false)
}

fn reading(slides: Slides) -> Reading {
    Reading { slides, ..Reading::default() }
}

fn open(folder: &TempDir, side: usize, slides: Slides) -> Dataset {
    let input = InputSpec::plain(side, 3, 0.0, 1.0);
    let source = DataSource::detect(folder.path()).expect("a folder");
    Dataset::open_as(&source, &task(), &input, &reading(slides)).expect("opens")
}

/// The colour of one pixel.
fn pixel(dataset: &Dataset, index: usize, [x, y]: [usize; 2]) -> [u8; 3] {
    let mut out = vec![0.0; dataset.input().numbers()];
    dataset.pixels(index, &mut out).expect("decodes");
    let side = dataset.input().image_size;
    [0, 1, 2].map(|c| (out[c * side * side + y * side + x] * 255.0).round() as u8)
}

fn corners(dataset: &Dataset) -> Vec<[usize; 2]> {
    let place = |id: &str| -> [usize; 2] {
        let (x, y) = id.rsplit('#').next().expect("a place").split_once(',').expect("two");
        [x.parse().expect("a number"), y.parse().expect("a number")]
    };
    dataset.cases().iter().map(|case| place(&case.id)).collect()
}

fn squares(
    side: usize,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
) -> Vec<[usize; 2]> {
    rows.flat_map(|row| columns.clone().map(move |column| [side * column, side * row])).collect()
}

#[test]
fn tiles_are_where_the_tissue_is_and_show_what_is_there() {
    let folder = folder(&["lossless.tif"]);
    let slides = Slides { mpp: 0.5, tile: 64, ..Slides::default() };
    let dataset = open(&folder, 64, slides);
    // The large piece is 6 x 4 tiles of 64 pixels, the small one is one.
    let mut expected = squares(64, 2..8, 1..5);
    expected.push([640, 448]);
    assert_eq!(corners(&dataset), expected);
    for (index, [x, y]) in expected.into_iter().enumerate() {
        for within in [[0, 0], [63, 17], [20, 63]] {
            let (x, y) = (x + within[0], y + within[1]);
            let expected = [200, (x / 8) as u8, (y / 8 + 64) as u8];
            assert_eq!(pixel(&dataset, index, within), expected, "{x},{y}");
        }
    }
    let case = &dataset.cases()[3];
    assert_eq!(case.id, "lossless.tif#320,64");
    assert_eq!((case.bag.as_str(), case.patient.as_str()), ("lossless.tif", "p0"));
    assert_eq!(case.label, Label::Class(0));
    assert_eq!(dataset.profile().modalities[&Some("SM".to_owned())], 25);
    assert_eq!(dataset.profile().spacing_mm, Some([0.0005; 2]));
}

#[test]
fn a_coarser_resolution_comes_from_a_coarser_level() {
    let folder = folder(&["lossless.tif"]);
    // 32 pixels of 2 um are 128 pixels of 0.5 um: read from the second level.
    let dataset = open(&folder, 32, Slides { mpp: 2.0, tile: 32, ..Slides::default() });
    // The upper edge of the large piece, 64, lies in the middle of the first row of tiles.
    assert_eq!(corners(&dataset), squares(128, 1..4, 0..3));
    // The second row of tiles lies wholly in it; a pixel is the mean of 4 x 4.
    for (index, column) in (3..6).zip(1..4) {
        let x = 128 * column + 4 * 5;
        assert_eq!(
            pixel(&dataset, index, [5, 9]),
            [200, (x / 8) as u8, ((128 + 36) / 8 + 64) as u8]
        );
    }
    // Between two levels: 0.75 um from the finest one, 96 pixels resized to 64.
    let dataset = open(&folder, 64, Slides { mpp: 0.75, tile: 64, ..Slides::default() });
    let at = corners(&dataset).iter().position(|corner| *corner == [192, 96]).expect("inside");
    let [r, g, b] = pixel(&dataset, at, [32, 32]);
    assert_eq!(r, 200);
    assert!(g.abs_diff((192 + 48) / 8) <= 1 && b.abs_diff((96 + 48) / 8 + 64) <= 1, "{g} {b}");
}

#[test]
fn a_share_of_tissue_and_a_number_of_tiles_can_be_asked_for() {
    let folder = folder(&["lossless.tif"]);
    let of = |tissue_min, tiles_max, seed| {
        let slides = Slides { mpp: 2.0, tile: 32, tissue_min, tiles_max, seed };
        corners(&open(&folder, 8, slides))
    };
    // Whole tiles alone; a quarter adds the small piece, 64 of 128 pixels either way.
    assert_eq!(of(0.9, 1000, 0), squares(128, 1..4, 1..2));
    let quarter = of(0.24, 1000, 0);
    assert!(quarter.contains(&[640, 384]) && quarter.len() == 10, "{quarter:?}");
    let drawn = of(0.24, 4, 1);
    assert_eq!(drawn.len(), 4);
    assert_eq!(drawn, of(0.24, 4, 1), "the same seed draws the same tiles");
    assert!((2..9).any(|seed| of(0.24, 4, seed) != drawn));
    assert!(drawn.iter().all(|corner| quarter.contains(corner)));
}

#[test]
fn aperios_jpeg_tiles_are_read_and_its_thumbnail_and_label_are_not() {
    let folder = folder(&["aperio.svs"]);
    let dataset = open(&folder, 64, Slides { mpp: 0.5, tile: 64, ..Slides::default() });
    let found = corners(&dataset);
    let mut expected = squares(64, 2..8, 1..5);
    expected.push([640, 448]);
    assert_eq!(found, expected);
    for (index, [x, y]) in found.into_iter().enumerate() {
        let expected = [200, ((x + 30) / 8) as u8, ((y + 30) / 8 + 64) as u8];
        let found = pixel(&dataset, index, [30, 30]);
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(found.abs_diff(expected) <= 6, "{x},{y}: {found} {expected}");
        }
    }
}

#[cfg(not(feature = "openslide"))]
fn refusals(names: &[&str], slides: Slides) -> Vec<String> {
    let folder = folder(names);
    let source = DataSource::detect(folder.path()).expect("a folder");
    let census = census::take(&source, &task(), &reading(slides), 0).expect("counts");
    assert_eq!(census.cases, 0);
    let root = format!("{}/", folder.path().canonicalize().expect("a folder").display());
    census.refused.iter().map(|line| line.replace(&root, "")).collect()
}

// With OpenSlide in the program, what is refused here is read by it or refused in its words.
#[cfg(not(feature = "openslide"))]
#[test]
fn what_is_wrong_with_a_slide_is_one_line() {
    let tile = Slides { mpp: 0.5, tile: 64, ..Slides::default() };
    assert_eq!(
        refusals(&["jp2k.svs", "flat.tif"], tile),
        [
            "jp2k.svs: its tiles are JPEG 2000; use a program built with --features openslide \
             (docs/data.md), or save it with JPEG, LZW or deflate",
            "flat.tif: no tile of 64 pixels at 0.5 um a pixel holds enough tissue",
        ]
    );
    assert_eq!(
        refusals(&["lossless.tif"], Slides { mpp: 0.25, ..tile }),
        ["lossless.tif: has 0.5000 um a pixel; it cannot show 0.25, so write \
             data.reading.slides.mpp above it"]
    );
}

#[cfg(not(feature = "openslide"))]
#[test]
fn a_broken_slide_costs_itself_alone() {
    let folder = folder(&["lossless.tif", "aperio.svs"]);
    let bytes = fs::read(fixture("aperio.svs")).expect("read");
    fs::write(folder.path().join("aperio.svs"), &bytes[..bytes.len() / 3]).expect("written");
    fs::write(folder.path().join("other.mrxs"), b"\xFF\xD8\xFF\xE0").expect("written");
    let manifest = "file,patient,label\nlossless.tif,a,0\naperio.svs,b,1\nother.mrxs,c,1\n";
    fs::write(folder.path().join("labels.csv"), manifest).expect("written");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let slides = Slides { mpp: 0.5, tile: 64, ..Slides::default() };
    let census = census::take(&source, &task(), &reading(slides), 0).expect("counts");
    assert_eq!((census.cases, census.refused_count), (25, 2));
    assert!(census.refused[0].contains("aperio.svs: not readable as a slide: "), "{census:?}");
    assert!(census.refused[1].contains("other.mrxs: a slide of the kind .mrxs; "), "{census:?}");
}

/// Failed before: each tile took the memory that its JPEG header asked for, up to 800 MB.
#[cfg(not(feature = "openslide"))]
#[test]
fn a_tile_whose_jpeg_says_that_it_is_larger_is_refused_before_it_is_decoded() {
    let folder = folder(&["lossless.tif", "aperio.svs"]);
    let mut bytes = fs::read(fixture("aperio.svs")).expect("read");
    for at in 0..bytes.len() - 9 {
        // A baseline frame header of three components and its height and width.
        if bytes[at..at + 5] == [0xFF, 0xC0, 0, 17, 8] {
            bytes[at + 5..at + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
        }
    }
    fs::write(folder.path().join("aperio.svs"), bytes).expect("written");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let slides = Slides { mpp: 0.5, tile: 64, ..Slides::default() };
    let census = census::take(&source, &task(), &reading(slides), 0).expect("counts");
    assert_eq!((census.cases, census.refused_count), (25, 1));
    let expected = "aperio.svs: not readable as a slide: the JPEG header of a tile of ";
    assert!(census.refused[0].contains(expected), "{census:?}");
}

#[test]
fn every_flipped_byte_of_a_slide_is_refused_or_harmless() {
    let folder = folder(&["lossless.tif"]);
    let bytes = fs::read(fixture("lossless.tif")).expect("read");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let slides = Slides { mpp: 4.0, tile: 16, ..Slides::default() };
    for at in (0..bytes.len()).step_by(bytes.len() / 150) {
        let mut broken = bytes.clone();
        broken[at] ^= 0x55;
        fs::write(folder.path().join("lossless.tif"), broken).expect("written");
        match census::take(&source, &task(), &reading(slides), 0) {
            Ok(census) => assert!(census.cases > 0 || census.refused_count == 1, "{at}"),
            Err(error) => panic!("{at}: {error}"),
        }
    }
}
