//! JPEG and JPEG 2000 of DICOM are decoded in a process of their own: the same pixels, and a process that hangs, dies or asks for too much
//! costs one file.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dicom_core::PrimitiveValue;
use dicom_core::value::PixelFragmentSequence;
use dicom_object::mem::InMemElement;
use dicom_object::{DefaultDicomObject, Tag};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tributary_client::config::reading::Reading;
use tributary_client::data::isolate::Isolation;
use tributary_client::data::{DataSource, Dataset, InputSpec};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tributary-client");
const COMPRESSED: [&str; 4] =
    ["JPEG2000.dcm", "693_J2KI.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"];
const JPEG_2000: [&str; 3] = ["JPEG2000.dcm", "693_J2KI.dcm", "MR_small_jp2klossless.dcm"];
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dicom").join(name)
}

fn folder(names: &[&str]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for name in names {
        fs::copy(fixture(name), folder.path().join(name)).expect("copied");
    }
    folder
}

fn reading(isolation: Isolation) -> Reading {
    Reading { refused_share_max: 0.5, isolation, ..Reading::default() }
}

fn open(folder: &TempDir, reading: &Reading) -> Dataset {
    let source = DataSource::detect(folder.path()).expect("a folder");
    let input = InputSpec::plain(64, 1, 0.0, 1.0);
    Dataset::open_unlabelled_as(&source, &input, reading).expect("opens")
}

fn pixels(dataset: &Dataset) -> Vec<Vec<f32>> {
    let one = |at| {
        let mut pixels = vec![f32::NAN; 64 * 64];
        dataset.pixels(at, &mut pixels).expect("read");
        pixels
    };
    (0..dataset.len()).map(one).collect()
}

/// A program that does `first` when it is started first, and decodes when it is started again.
fn program(folder: &TempDir, first: &str) -> Isolation {
    let (path, mark) = (folder.path().join("decoder"), folder.path().join("mark"));
    let script = format!(
        "#!/bin/sh\nif /bin/mkdir '{}' 2> /dev/null; then\n{first}\nfi\nexec '{PROGRAM}' \"$@\"\n",
        mark.display()
    );
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
    Isolation::processes(path)
}

/// One of three files is refused, and the reason.
fn one_is_refused(isolation: Isolation, seconds: u64) -> String {
    let files = folder(&JPEG_2000);
    let reading = Reading { decoder_seconds: seconds, ..reading(isolation) };
    let dataset = open(&files, &reading);
    assert_eq!((dataset.len(), dataset.report().refused()), (2, 1));
    let line = dataset.report().lines()[0].clone();
    assert!(JPEG_2000.iter().any(|name| line.contains(name)), "{line}");
    line
}

#[test]
fn pixels_are_the_same_in_a_process_of_their_own() {
    let files = folder(&COMPRESSED);
    let here = pixels(&open(&files, &reading(Isolation::InProcess)));
    let there = open(&files, &reading(Isolation::processes(PROGRAM.into())));
    assert_eq!((there.len(), there.report().refused()), (4, 0));
    assert!(here == pixels(&there));
    assert!(here.iter().all(|image| image.iter().any(|level| *level != image[0])));
}

#[test]
fn a_decoder_that_hangs_is_killed_and_costs_one_file() {
    let scripts = TempDir::new().expect("a folder");
    let line = one_is_refused(program(&scripts, "exec /bin/sleep 600"), 5);
    assert!(
        line.ends_with("decoding took longer than 5 s (data.reading.decoder_seconds)"),
        "{line}"
    );
}

#[test]
fn a_decoder_that_dies_costs_one_file() {
    let scripts = TempDir::new().expect("a folder");
    // It has read the request: else it would have ended before it was given a picture.
    let line = one_is_refused(program(&scripts, "/bin/head -c 8 > /dev/null; kill -SEGV $$"), 60);
    assert!(line.contains("the decoder crashed (signal: 11"), "{line}");
}

#[test]
fn an_answer_that_makes_no_sense_costs_one_file() {
    let scripts = TempDir::new().expect("a folder");
    // A length of 2^63 and more.
    let nonsense = "/bin/cat /dev/zero | /usr/bin/tr '\\0' '\\377'";
    let line = one_is_refused(program(&scripts, nonsense), 60);
    assert!(line.ends_with("the decoder's process gave no valid answer"), "{line}");
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_no_decoding_here() {
    let files = folder(&["CT_small.dcm", "MR_small_jp2klossless.dcm"]);
    let dataset = open(&files, &reading(Isolation::processes("/nowhere/decoder".into())));
    assert_eq!((dataset.len(), dataset.report().refused()), (1, 1));
    let line = &dataset.report().lines()[0];
    assert!(line.contains("the decoder's process cannot be started: /nowhere/decoder"), "{line}");
}

fn set_sides(object: &mut DefaultDicomObject, side: u16) {
    for tag in [Tag(0x0028, 0x0010), Tag(0x0028, 0x0011)] {
        let vr = object.get(tag).expect("there").vr();
        object.put_element(InMemElement::new(tag, vr, PrimitiveValue::from(side)));
    }
}

fn change_stream(object: &mut DefaultDicomObject, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let element = object.get(PIXEL_DATA).expect("pixels");
    let (vr, stream) = (element.vr(), element.fragments().expect("fragments").concat());
    let fragments = PixelFragmentSequence::new_fragments(vec![change(stream)]);
    object.put_element(InMemElement::new(PIXEL_DATA, vr, fragments));
}

/// A picture of 11,000 pixels a side by its sizes, and of far fewer by its stream.
fn claim(folder: &TempDir) {
    const SIDE: u16 = 11_000;
    let mut object = dicom_object::open_file(fixture("693_J2KI.dcm")).expect("opens");
    set_sides(&mut object, SIDE);
    change_stream(&mut object, |mut stream| {
        // A short stream of a large picture is refused before anything is decoded.
        stream.resize(4 << 20, 0);
        // Width and height of the picture and of its tile (ITU-T T.800 A.5.1).
        for at in [8, 12, 24, 28] {
            stream[at..at + 4].copy_from_slice(&u32::from(SIDE).to_be_bytes());
        }
        stream
    });
    object.write_to_file(folder.path().join("claim.dcm")).expect("written");
}

#[test]
fn a_picture_that_needs_more_than_the_memory_costs_one_file() {
    let files = folder(&JPEG_2000);
    claim(&files);
    let isolation = Isolation::processes(PROGRAM.into());
    let dataset = open(&files, &Reading { decoder_memory_mib: 512, ..reading(isolation) });
    let lines = dataset.report().lines();
    assert_eq!((dataset.len(), lines.len()), (3, 1), "{lines:?}");
    assert!(lines[0].contains("claim.dcm: the decoder "), "{lines:?}");
    assert!(lines[0].ends_with("more than 512 MiB (data.reading.decoder_memory_mib)"), "{lines:?}");
}

/// Failed before: JPEG was decoded in the client, whose decoder reserved gigabytes for a progressive picture of 65,535 pixels
/// a side; a byte before the frame header, which decoders skip, hid it from the check of its size.
#[test]
fn a_jpeg_that_hides_its_size_costs_one_file() {
    let files = folder(&["SC_rgb_jpeg_dcmtk.dcm"]);
    let mut object = dicom_object::open_file(fixture("SC_rgb_jpeg_dcmtk.dcm")).expect("opens");
    change_stream(&mut object, |mut stream| {
        let frame = stream.windows(2).position(|bytes| bytes == [0xFF, 0xC0]).expect("a frame");
        stream[frame + 1] = 0xC2;
        stream[frame + 5..frame + 9].fill(0xFF);
        // The first scan of a progressive picture holds the mean levels alone (ITU-T T.81 G.1.1.1.1).
        let scan = stream.windows(2).position(|bytes| bytes == [0xFF, 0xDA]).expect("a scan");
        let components = usize::from(stream[scan + 4]);
        stream[scan + 6 + 2 * components] = 0;
        stream.insert(2, 0);
        stream
    });
    object.write_to_file(files.path().join("hidden.dcm")).expect("written");
    let isolation = Isolation::processes(PROGRAM.into());
    let dataset = open(&files, &Reading { decoder_memory_mib: 512, ..reading(isolation) });
    let lines = dataset.report().lines();
    assert_eq!((dataset.len(), lines.len()), (1, 1), "{lines:?}");
    assert!(lines[0].contains("hidden.dcm: the decoder "), "{lines:?}");
    assert!(lines[0].ends_with("more than 512 MiB (data.reading.decoder_memory_mib)"), "{lines:?}");
}

fn children(parent: u32) -> Vec<i32> {
    let parent = format!("PPid:\t{parent}");
    let of = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().any(|line| line == parent).then_some(pid)
    };
    fs::read_dir("/proc").expect("there").flatten().filter_map(of).collect()
}

#[test]
fn no_decoder_outlives_a_client_that_is_killed() {
    let files = TempDir::new().expect("a folder");
    let mut csv = "file,patient,label\n".to_owned();
    for at in 0..400 {
        fs::copy(fixture("693_J2KI.dcm"), files.path().join(format!("{at}.dcm"))).expect("copied");
        csv.push_str(&format!("{at}.dcm,p{at},ill\n"));
    }
    fs::write(files.path().join("labels.csv"), csv).expect("written");
    let mut client = Command::new(PROGRAM);
    client.args(["data", "inspect"]).arg(files.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = client.spawn().expect("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    // Its second thread reads requests: from then on it ends with its client.
    let serves = |pid: &i32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        threads.is_ok_and(|threads| threads.count() > 1)
    };
    let decoders = loop {
        let found = children(client.id());
        if !found.is_empty() && found.iter().all(serves) {
            break found;
        }
        assert!(Instant::now() < deadline, "no decoder was started");
        assert!(client.try_wait().expect("known").is_none(), "the client ended before");
    };
    // One that is busy does not notice by itself.
    let decoder = Pid::from_raw(decoders[0]).expect("a process");
    kill_process(decoder, Signal::STOP).expect("stopped");
    client.kill().expect("killed");
    client.wait().expect("ended");
    let lives = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.is_empty() && !status.contains("State:\tZ")
    };
    while decoders.iter().any(lives) {
        assert!(Instant::now() < deadline, "a decoder outlives its client");
        std::thread::yield_now();
    }
}

/// The stream of a picture of one tile, as a picture of 4 x 4 such tiles.
fn sixteen(stream: &[u8]) -> Vec<u8> {
    let begin = stream.windows(2).position(|marker| marker == [0xFF, 0x90]).expect("SOT");
    let length = u32::from_be_bytes(*stream[begin + 6..].first_chunk().expect("Psot")) as usize;
    let (mut out, tile) = (stream[..begin].to_vec(), &stream[begin..begin + length]);
    for at in [8, 12] {
        out[at..at + 4].copy_from_slice(&2048u32.to_be_bytes());
    }
    for index in 0..16u16 {
        let at = out.len();
        out.extend(tile);
        out[at + 4..at + 6].copy_from_slice(&index.to_be_bytes());
    }
    out.extend([0xFF, 0xD9]);
    out
}

/// A DICOM file of JPEG 2000 (16 bits a sample, one) of 512 or 2048 pixels a side.
fn jpeg_2000_of(side: u16) -> DefaultDicomObject {
    let mut object = dicom_object::open_file(fixture("693_J2KI.dcm")).expect("opens");
    if side == 2048 {
        set_sides(&mut object, side);
        change_stream(&mut object, |stream| sixteen(&stream));
    }
    object
}

/// A DICOM file of JPEG (8 bits a sample, three) of a colour wash under noise.
fn jpeg_of(side: u16) -> DefaultDicomObject {
    let mut object = dicom_object::open_file(fixture("SC_rgb_jpeg_dcmtk.dcm")).expect("opens");
    set_sides(&mut object, side);
    let mut noise = 1u32;
    let picture = RgbImage::from_fn(side.into(), side.into(), |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Rgb([x / 16, y / 16, (x + y) / 32].map(|level| (level % 224 + (noise >> 27)) as u8))
    });
    let mut stream = Vec::new();
    JpegEncoder::new_with_quality(&mut stream, 90).encode_image(&picture).expect("encoded");
    stream.resize(stream.len().next_multiple_of(2), 0);
    change_stream(&mut object, |_| stream);
    object
}

/// Milliseconds in this process and in one of its own, in turns: 31 pairs.
fn times_of(object: &DefaultDicomObject) -> Vec<[f64; 2]> {
    let files = TempDir::new().expect("a folder");
    object.write_to_file(files.path().join("x.dcm")).expect("written");
    let open = |isolation| open(&files, &Reading { kept_bytes_max: 0, ..reading(isolation) });
    let (here, there) = (open(Isolation::InProcess), open(Isolation::processes(PROGRAM.into())));
    assert!(pixels(&here) == pixels(&there));
    let time = |dataset| {
        let begin = Instant::now();
        drop(pixels(dataset));
        begin.elapsed().as_secs_f64() * 1e3
    };
    (0..31).map(|_| [&here, &there].map(time)).collect()
}

/// The least, and the median.
fn least_and_median(times: impl Iterator<Item = f64>) -> [f64; 2] {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    [times[0], times[times.len() / 2]]
}

#[test]
#[ignore = "a measurement: cargo test -p tributary-client --test data_isolation -- --ignored --nocapture"]
fn cost_of_a_picture_beside_decoding_it_in_process() {
    for side in [512, 2048] {
        for (kind, object) in [("JPEG 2000", jpeg_2000_of(side)), ("JPEG", jpeg_of(side))] {
            let pairs = times_of(&object);
            let [here, there] =
                [0, 1].map(|way| least_and_median(pairs.iter().map(|pair| pair[way])));
            let [_, more] = least_and_median(pairs.iter().map(|[here, there]| there - here));
            println!(
                "{kind}, {side}: least {:.2} ms, isolated {:.2}; median {:.2}, isolated {:.2}; \
                 median of the pairs' differences {more:.2}",
                here[0], there[0], here[1], there[1]
            );
        }
    }
}

/// A Parquet file without rows, whose columns lie `depth` levels within each other.
fn nested(depth: usize) -> Vec<u8> {
    // Thrift's compact protocol: the version, a list of `depth + 2` structs, no rows, no row groups.
    let mut footer = vec![0x15, 2, 0x19, 0xFC];
    let mut count = depth + 2;
    while count >= 0x80 {
        footer.push(count as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    // A group: required, an empty name, one child.
    let group = [0x35, 0, 0x18, 0, 0x15, 2, 0];
    footer.extend([0x48, 0, 0x15, 2, 0]);
    (0..depth).for_each(|_| footer.extend(group));
    // A number.
    footer.extend([0x15, 2, 0x25, 0, 0x18, 1, b'a', 0]);
    footer.extend([0x16, 0, 0x19, 0x0C, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1".as_slice(), &footer, &length, b"PAR1"].concat()
}

/// B2. Failed before: the reader called itself for each level until the stack was used up, which ended the program.
#[test]
fn a_parquet_file_of_deeply_nested_columns_is_refused_and_the_program_goes_on() {
    let inspect = |depth: usize| {
        let folder = folder(&["CT_small.dcm"]);
        fs::write(folder.path().join("labels.parquet"), nested(depth)).expect("written");
        let mut inspect = Command::new(PROGRAM);
        let output = inspect.args(["data", "inspect"]).arg(folder.path()).output().expect("runs");
        assert!(output.status.code().is_some(), "{depth}: {output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let shallow = inspect(20);
    assert!(!shallow.contains("levels within each other"), "{shallow}");
    let deep = inspect(40);
    assert!(deep.contains("columns lie more than 32 levels within each other"), "{deep}");
    let deepest = inspect(500_000);
    assert!(deepest.contains("its description was not read: the decoder"), "{deepest}");
}

/// A process that a shell starts after `first`, with at most 512 MiB beside what the program maps, and its answer to a
/// message: the process has its limits then, and ends when its input is closed.
fn answer_to(message: &[u8], first: &str) -> (Child, Vec<u8>) {
    let mut decoder = Command::new("/bin/sh");
    decoder.args(["-c", &format!("{first} exec '{PROGRAM}' decode-worker 512")]);
    let mut decoder =
        decoder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    let requests = decoder.stdin.as_mut().expect("a pipe");
    requests.write_all(&(message.len() as u64).to_le_bytes()).expect("sent");
    requests.write_all(message).expect("sent");
    let answers = decoder.stdout.as_mut().expect("a pipe");
    let mut length = [0; 8];
    answers.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; u64::from_le_bytes(length) as usize];
    answers.read_exact(&mut answer).expect("the rest");
    (decoder, answer)
}

/// The limit of its address space, and how much it has mapped now, bytes.
fn limit_and_mapped(mut decoder: Child) -> (u64, u64) {
    let number = |file: &str, name: &str| -> u64 {
        let path = format!("/proc/{}/{file}", decoder.id());
        let text = fs::read_to_string(path).expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().next().expect("a number").parse().expect("a number")
    };
    let numbers = (number("limits", "Max address space"), number("status", "VmSize:") << 10);
    drop(decoder.stdin.take());
    assert!(decoder.wait().expect("ended").success());
    numbers
}

/// Failed before: the limit was 512 MiB in all, which a program that maps more than that at its start exceeds at once.
#[test]
fn a_process_has_its_memory_beside_what_the_program_maps_at_its_start() {
    let (decoder, _) = answer_to(b"no request", "");
    let (limit, mapped_now) = limit_and_mapped(decoder);
    let mapped_at_start = limit.checked_sub(512 << 20).expect("at least its memory");
    // A mebibyte is less than the C library alone; since then the second thread's stack was mapped.
    assert!((1 << 20..mapped_now).contains(&mapped_at_start), "{mapped_at_start} bytes");
}

/// Failed before: the process tried to raise the limit, which the system does not allow, and ended. A program
/// with LibTorch may map more than this limit.
#[cfg(not(feature = "tch"))]
#[test]
fn a_lower_limit_that_the_client_runs_under_stays() {
    let (decoder, answer) = answer_to(b"no request", "ulimit -v 409600;");
    assert_eq!(answer, b"\x01no request");
    assert_eq!(limit_and_mapped(decoder).0, 400 << 20);
}

/// A program with OpenSlide is tried by data_openslide.rs.
#[cfg(not(feature = "openslide"))]
#[test]
fn a_process_without_openslide_says_so() {
    // Of slides, the library, wherever it is.
    let (mut decoder, answer) = answer_to(&[2, 0, 0], "");
    drop(decoder.stdin.take());
    assert!(decoder.wait().expect("ended").success());
    let words = String::from_utf8_lossy(&answer[1..]);
    assert_eq!((answer[0], words.as_ref()), (1, "the decoder's program was built without it"));
}
