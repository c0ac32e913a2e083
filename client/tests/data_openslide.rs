//! Slides by OpenSlide: the same tiles and pixels as our own reader's where both can, and the known
//! content where only it can (tests/python/slide_fixture.py), in this process and in one of its own, which may hang or die
//! without harm to the others. Its library is named by `TRIBUTARY__DATA__READING__OPENSLIDE`, as in a site's environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;
use tributary_client::config::reading::{Reading, Slides};
use tributary_client::data::divide::{self, DivideSpec};
use tributary_client::data::isolate::Isolation;
use tributary_client::data::{DataSource, Dataset, InputSpec, census, task_of};
use tributary_shared::manifest::Task;

const LIBRARY: &str = "TRIBUTARY__DATA__READING__OPENSLIDE";
const PROGRAM: &str = env!("CARGO_BIN_EXE_tributary-client");

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
    folder_of(fixture, &[name])
}

/// A folder with one slide of the fixtures under several names.
fn folder_of(fixture: &str, names: &[&str]) -> TempDir {
    let slides = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slides");
    let folder = TempDir::new().expect("a folder");
    let mut manifest = "file,patient,label\n".to_owned();
    for name in names {
        fs::copy(slides.join(fixture), folder.path().join(name)).expect("copied");
        manifest += &format!("{name},{name},0\n");
    }
    fs::write(folder.path().join("labels.csv"), manifest).expect("written");
    folder
}

fn reading(library: &Path, mpp: f64, tile: u32) -> Reading {
    let slides = Slides { mpp, tile, ..Slides::default() };
    Reading { openslide: Some(library.to_owned()), slides, ..Reading::default() }
}

fn open(folder: &TempDir, reading: &Reading) -> Dataset {
    let input = InputSpec::plain(reading.slides.tile as usize, 3, 0.0, 1.0);
    let source = DataSource::detect(folder.path()).expect("a folder");
    Dataset::open_as(&source, &task(), &input, reading).expect("opens")
}

/// Places of the tiles, and their pixels, 0 to 255.
fn tiles(folder: &TempDir, reading: &Reading) -> (Vec<String>, Vec<Vec<u8>>) {
    let dataset = open(folder, reading);
    let place = |id: &str| id.rsplit('#').next().expect("a place").to_owned();
    let pixels = (0..dataset.len()).map(|index| {
        let mut out = vec![0.0; dataset.input().numbers()];
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

/// The reason for which the slide of a folder is refused, the same in this process and in one of its own.
fn refused(folder: &TempDir, library: &Path) -> String {
    let [here, there] =
        [Isolation::InProcess, Isolation::processes(PROGRAM.into())].map(|isolation| {
            let source = DataSource::detect(folder.path()).expect("a folder");
            let reading = Reading { isolation, ..reading(library, 0.5, 64) };
            let census = census::take(&source, &task(), &reading, 0).expect("counts");
            assert_eq!((census.cases, census.refused.len()), (0, 1));
            census.refused[0].split_once(": ").expect("names the file").1.to_owned()
        });
    assert_eq!(here.lines().count(), 1, "{here}");
    assert_eq!(here, there);
    here
}

#[test]
fn what_openslide_refuses_is_one_line() {
    let Some(library) = library() else { return };
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
fn pixels_are_the_same_in_a_process_of_its_own() {
    let Some(library) = library() else { return };
    for (fixture, name) in [("aperio-jp2k.svs", "slide.svs"), ("aperio.svs", "slide.scn")] {
        let folder = folder(fixture, name);
        for (mpp, tile) in [(0.5, 64), (2.0, 32)] {
            let here = reading(&library, mpp, tile);
            let there = Reading { isolation: Isolation::processes(PROGRAM.into()), ..here.clone() };
            let (places, pixels) = tiles(&folder, &here);
            assert!(!places.is_empty());
            assert!((places, pixels) == tiles(&folder, &there), "{fixture} at {mpp}");
            // Decoded again for each tile that is asked for.
            let unkept = Reading { kept_bytes_max: 0, ..there };
            assert!(tiles(&folder, &here) == tiles(&folder, &unkept), "{fixture} at {mpp}");
        }
    }
}

/// A program that does `then` when it is started for the nth time, and reads slides at every other.
fn program(folder: &TempDir, nth: usize, then: &str) -> Isolation {
    let path = folder.path().join("decoder");
    // The first mark that is not there yet is this start's.
    let marks: String = (1..nth)
        .map(|at| format!("/bin/mkdir '{}/{at}' 2> /dev/null ||\n", folder.path().display()))
        .collect();
    let last = folder.path().join("last");
    let script = format!(
        "#!/bin/sh\n{marks}if /bin/mkdir '{}' 2> /dev/null; then\n{then}\nexit\nfi\n\
         exec '{PROGRAM}' \"$@\"\n",
        last.display()
    );
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
    Isolation::processes(path)
}

/// Of two slides of 25 tiles each, opened with `program`, how many tiles are cases, and why the others are not.
fn two_slides(library: &Path, isolation: Isolation, seconds: u64) -> (usize, Vec<String>) {
    let slides = folder_of("aperio-jp2k.svs", &["a.svs", "b.svs"]);
    let reading = reading(library, 0.5, 64);
    let reading =
        Reading { isolation, decoder_seconds: seconds, refused_share_max: 0.5, ..reading };
    let dataset = open(&slides, &reading);
    let lines = dataset.report().lines().to_vec();
    let named = |name: &str| lines.iter().all(|line| line.contains(name));
    assert!(named("a.svs") || named("b.svs"), "{lines:?}");
    (dataset.len(), lines)
}

#[test]
fn a_process_that_hangs_costs_one_slide() {
    let Some(library) = library() else { return };
    let scripts = TempDir::new().expect("a folder");
    let hangs = program(&scripts, 1, "exec /bin/sleep 600");
    let (cases, lines) = two_slides(&library, hangs, 5);
    assert_eq!((cases, lines.len()), (25, 1), "{lines:?}");
    let reason = "decoding took longer than 5 s (data.reading.decoder_seconds)";
    assert!(lines[0].ends_with(reason), "{lines:?}");
}

/// Runs the program until it has answered so many bytes, then dies.
fn dies_after(bytes: usize) -> String {
    format!("'{PROGRAM}' \"$@\" | {{ /bin/dd bs=1 count={bytes} 2> /dev/null; kill -SEGV $$; }}")
}

#[test]
fn a_process_that_dies_costs_one_slide() {
    let Some(library) = library() else { return };
    // At once; while it describes the slide; while it reads the smallest level.
    for bytes in [0, 25, 2000] {
        let scripts = TempDir::new().expect("a folder");
        let dies = program(&scripts, 1, &dies_after(bytes));
        let (cases, lines) = two_slides(&library, dies, 60);
        assert_eq!((cases, lines.len()), (25, 1), "{bytes}: {lines:?}");
        assert!(lines[0].contains("the decoder crashed (signal: 11"), "{lines:?}");
    }
}

#[test]
fn a_process_that_dies_at_a_tile_costs_the_tiles_that_follow() {
    let Some(library) = library() else { return };
    let scripts = TempDir::new().expect("a folder");
    // Two processes look for tissue. The third has answered about the library, the slide and a tile of 64 x 64 pixels.
    let dies = program(&scripts, 3, &dies_after(20_000));
    let (cases, lines) = two_slides(&library, dies, 60);
    assert_eq!((cases, lines.len()), (26, 24), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("the decoder crashed (signal: 11")), "{lines:?}");
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_no_reading_here() {
    let Some(library) = library() else { return };
    let folder = folder("aperio-jp2k.svs", "slide.svs");
    let source = DataSource::detect(folder.path()).expect("a folder");
    let isolation = Isolation::processes("/nowhere/decoder".into());
    let reading = Reading { isolation, ..reading(&library, 0.5, 64) };
    let census = census::take(&source, &task(), &reading, 0).expect("counts");
    assert_eq!((census.cases, census.refused.len()), (0, 1));
    let line = &census.refused[0];
    assert!(line.contains("the decoder's process cannot be started: /nowhere/decoder"), "{line}");
}

/// In a process of its own, since other tests load the library.
#[cfg(target_os = "linux")]
#[test]
fn the_client_does_not_load_the_library() {
    const TEST: &str = "the_client_does_not_load_the_library";
    const ALONE: &str = "TRIBUTARY_TEST_ALONE";
    let Some(library) = library() else { return };
    if std::env::var_os(ALONE).is_none() {
        let mut alone = Command::new(std::env::current_exe().expect("a program"));
        let output = alone.args(["--exact", TEST]).env(ALONE, "1").output().expect("runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let folder = folder("aperio-jp2k.svs", "slide.svs");
    let here = reading(&library, 0.5, 64);
    let there = Reading { isolation: Isolation::processes(PROGRAM.into()), ..here.clone() };
    let name = library.canonicalize().expect("there").display().to_string();
    let mapped = || fs::read_to_string("/proc/self/maps").expect("there").contains(&name);
    assert_eq!((tiles(&folder, &there).0.len(), mapped()), (25, false));
    assert_eq!((tiles(&folder, &here).0.len(), mapped()), (25, true));
}

/// A client finds the library on the loader's path, which its process for the slide is given too.
#[cfg(target_os = "linux")]
#[test]
fn a_library_on_the_search_path_is_found_by_its_name() {
    let Some(library) = library() else { return };
    let folder = folder("aperio-jp2k.svs", "slide.svs");
    let mut inspect = Command::new(PROGRAM);
    inspect.args(["data", "inspect"]).arg(folder.path()).env_remove(LIBRARY);
    inspect.env("LD_LIBRARY_PATH", library.parent().expect("a folder"));
    let output = inspect.output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Milliseconds for opening a dataset of one slide, and for each tile of the open slide.
fn times(folder: &TempDir, reading: &Reading) -> [f64; 2] {
    let begin = Instant::now();
    let dataset = open(folder, reading);
    let opened = begin.elapsed();
    let mut out = vec![0.0; dataset.input().numbers()];
    dataset.pixels(0, &mut out).expect("decodes");
    let begin = Instant::now();
    (1..dataset.len()).for_each(|index| dataset.pixels(index, &mut out).expect("decodes"));
    let tile = begin.elapsed() / (dataset.len() - 1) as u32;
    [opened, tile].map(|time| time.as_secs_f64() * 1e3)
}

#[test]
#[ignore = "a measurement: cargo test -p tributary-client --features openslide --test data_openslide -- --ignored --nocapture"]
fn cost_of_a_slide_beside_reading_it_in_process() {
    let Some(library) = library() else { return };
    for side in [64, 128] {
        let folder = folder("aperio.svs", "slide.scn");
        let here = Reading { kept_bytes_max: 0, ..reading(&library, 0.5, side) };
        let there = Reading { isolation: Isolation::processes(PROGRAM.into()), ..here.clone() };
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..31 {
            for (all, reading) in all.iter_mut().zip([&here, &there]) {
                all.push(times(&folder, reading));
            }
        }
        for (index, what) in ["open and look twice", "a tile"].into_iter().enumerate() {
            let [here, there] = [0, 1].map(|at: usize| {
                let mut times: Vec<f64> = all[at].iter().map(|times| times[index]).collect();
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            });
            println!("{side}: {what}: {here:.2} ms in process, {there:.2} ms isolated");
        }
    }
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
