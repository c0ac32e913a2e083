//! Slides by OpenSlide: the same tiles and pixels as our own reader's where both can, and the known
//! content where only it can (tests/python/slide_fixture.py). Its library is named by
//! `TRIBUTARY__DATA__READING__OPENSLIDE`, as in a site's environment.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tributary_client::config::reading::{Reading, Slides};
use tributary_client::data::divide::{self, DivideSpec};
use tributary_client::data::{DataSource, Dataset, InputSpec, census, task_of};
use tributary_shared::manifest::Task;

const LIBRARY: &str = "TRIBUTARY__DATA__READING__OPENSLIDE";

/// The library, or none where nobody has it; where everything must be tested it must be there.
#[expect(clippy::print_stderr, reason = "a skip is told")]
fn library() -> Option<PathBuf> {
    let named = std::env::var_os(LIBRARY).map(PathBuf::from);
    if named.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{LIBRARY} names no library");
        eprintln!("SKIPPED: {LIBRARY} names no library (pip install openslide-bin has one)");
    }
    named
}

fn task() -> Task {
    task_of(["0", "1"].map(str::to_owned).to_vec(), false)
}

/// A folder with one slide of the fixtures under another name.
fn folder(fixture: &str, name: &str) -> TempDir {
    let slides = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slides");
    let folder = TempDir::new().expect("a folder");
    fs::copy(slides.join(fixture), folder.path().join(name)).expect("copied");
    let manifest = format!("file,patient,label\n{name},p,0\n");
    fs::write(folder.path().join("labels.csv"), manifest).expect("written");
    folder
}

fn reading(library: &Path, mpp: f64, tile: u32) -> Reading {
    let slides = Slides { mpp, tile, ..Slides::default() };
    Reading { openslide: Some(library.to_owned()), slides, ..Reading::default() }
}

/// Where the tiles are, and their pixels, 0 to 255.
fn tiles(folder: &TempDir, reading: &Reading) -> (Vec<String>, Vec<Vec<u8>>) {
    let input = InputSpec::plain(reading.slides.tile as usize, 3, 0.0, 1.0);
    let source = DataSource::detect(folder.path()).expect("a folder");
    let dataset = Dataset::open_as(&source, &task(), &input, reading).expect("opens");
    let place = |id: &str| id.rsplit('#').next().expect("a place").to_owned();
    let pixels = (0..dataset.len()).map(|index| {
        let mut out = vec![0.0; input.numbers()];
        dataset.pixels(index, &mut out).expect("decodes");
        out.into_iter().map(|level| (level * 255.0).round() as u8).collect()
    });
    (dataset.cases().iter().map(|case| place(&case.id)).collect(), pixels.collect())
}

#[test]
fn both_readers_see_the_same() {
    let Some(library) = library() else { return };
    // A scanner's ending leaves the file to OpenSlide, which looks at what it is.
    for (fixture, tolerance) in [("lossless.tif", 0), ("aperio.svs", 4)] {
        for (mpp, tile) in [(0.5, 64), (2.0, 32), (2.0, 64)] {
            let reading = reading(&library, mpp, tile);
            let (places, ours) = tiles(&folder(fixture, fixture), &reading);
            let (their_places, theirs) = tiles(&folder(fixture, "slide.scn"), &reading);
            assert!(!places.is_empty());
            assert_eq!(places, their_places, "{fixture} at {mpp}");
            for (place, (ours, theirs)) in places.iter().zip(ours.iter().zip(&theirs)) {
                let apart = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(apart <= Some(tolerance), "{fixture} at {mpp}, {place}: {apart:?}");
            }
        }
    }
}

#[test]
fn aperios_jpeg_2000_is_read_without_loss() {
    let Some(library) = library() else { return };
    let folder = folder("aperio-jp2k.svs", "aperio-jp2k.svs");
    let (places, pixels) = tiles(&folder, &reading(&library, 0.5, 64));
    // Of the large piece 6 x 4 tiles, of the small one one.
    assert_eq!((places.len(), places[0].as_str(), places[24].as_str()), (25, "128,64", "640,448"));
    for (place, pixels) in places.iter().zip(pixels) {
        let (left, top) = place.split_once(',').expect("two");
        let [left, top] = [left, top].map(|at| at.parse::<usize>().expect("a number"));
        for (index, level) in pixels.into_iter().enumerate() {
            let (channel, y, x) = (index / 4096, top + index / 64 % 64, left + index % 64);
            assert_eq!(usize::from(level), [200, x / 8, y / 8 + 64][channel], "{x},{y}");
        }
    }
}

#[test]
fn what_openslide_refuses_is_one_line() {
    let Some(library) = library() else { return };
    let refused = |folder: &TempDir, library: &Path| {
        let source = DataSource::detect(folder.path()).expect("a folder");
        let reading = reading(library, 0.5, 64);
        let census = census::take(&source, &task(), &reading, 0).expect("counts");
        assert_eq!((census.cases, census.refused.len()), (0, 1));
        let line = census.refused[0].split_once(": ").expect("names the file").1.to_owned();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    };
    let none = folder("flat.tif", "slide.ndpi");
    assert_eq!(
        refused(&none, &library),
        "no tile of 64 pixels at 0.5 um a pixel holds enough tissue"
    );
    let missing = refused(&none, Path::new("/nowhere/libopenslide.so"));
    assert!(missing.starts_with("needs OpenSlide, and /nowhere/libopenslide.so cannot be loaded"));
    fs::write(none.path().join("slide.ndpi"), b"no slide at all").expect("written");
    assert_eq!(
        refused(&none, &library),
        "not readable as a slide: no kind of slide that OpenSlide knows"
    );
    // Cut in the middle of its tiles.
    let cut = folder("aperio.svs", "slide.scn");
    let path = cut.path().join("slide.scn");
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() / 3]).expect("written");
    let line = refused(&cut, &library);
    assert!(line.starts_with("not readable as a slide: "), "{line}");
}

#[test]
fn a_slide_of_several_files_is_not_divided() {
    let Some(library) = library() else { return };
    let folder = folder("lossless.tif", "slide.vmu");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let spec = DivideSpec { sites: 1, label_skew: 0.0, seed: 1 };
    let out = folder.path().join("out");
    let refused = divide::write(&source, &task(), &spec, &reading(&library, 0.5, 64), &out);
    let line = refused.expect_err("refused").to_string();
    assert_eq!(line, "PATH: slide.vmu: a .vmu is of several files; save it as one");
}
