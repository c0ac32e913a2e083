//! Against pydicom: `tests/python/dicom_golden.py` writes what it makes of its own files.

use std::io::Write;
use std::path::PathBuf;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_object::OpenFileOptions;
use flate2::Compression;
use flate2::write::DeflateEncoder;

use tributary_shared::dataset::Window;

use super::*;
use crate::config::reading::Reading;
use crate::data::medium::{self, Kind, Opened, Part};

fn windowed(window: Window) -> Reading {
    Reading { window, ..Reading::default() }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/dicom")).join(name)
}

fn golden() -> serde_json::Map<String, serde_json::Value> {
    let text = std::fs::read(fixture("golden.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn level(picture: &Picture, x: u32, y: u32) -> Vec<f64> {
    match picture {
        Picture::Grey(grey) => grey.get_pixel(x, y).0.iter().map(|l| f64::from(*l)).collect(),
        Picture::Rgb(rgb) => rgb.get_pixel(x, y).0.iter().map(|l| f64::from(*l)).collect(),
    }
}

fn mean(picture: &Picture) -> f64 {
    let levels = match picture {
        Picture::Grey(grey) => grey.as_raw(),
        Picture::Rgb(rgb) => rgb.as_raw(),
    };
    levels.iter().map(|level| f64::from(*level)).sum::<f64>() / levels.len() as f64
}

#[test]
fn pictures_are_pydicoms() {
    let golden = golden();
    assert!(golden.len() >= 14, "{}", golden.len());
    for (name, expected) in golden {
        let header = header(&fixture(&name)).unwrap();
        assert_eq!(u64::from(header.frames), expected["frames"].as_u64().unwrap(), "{name}");
        let picture = Object::open(&fixture(&name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .frame(0, &windowed(Window::File))
            .unwrap();
        let (width, height) = picture.dimensions();
        assert_eq!(u64::from(width), expected["width"].as_u64().unwrap(), "{name}");
        assert_eq!(u64::from(height), expected["height"].as_u64().unwrap(), "{name}");
        assert_eq!(picture.is_colour(), expected["colour"].as_bool().unwrap(), "{name}");
        // Two JPEG decoders may differ by a level or two; everything else rounds.
        let tolerance: f64 =
            if name.contains("jpeg_dcmtk") || name.contains("eb+cr") { 4.0 } else { 0.6 };
        let difference = (mean(&picture) - expected["mean_level"].as_f64().unwrap()).abs();
        assert!(difference < tolerance.min(1.0), "{name}: mean differs by {difference}");
        for pixel in expected["pixels"].as_array().unwrap() {
            let at = |key: &str| u32::try_from(pixel[key].as_u64().unwrap()).unwrap();
            let found = level(&picture, at("x"), at("y"));
            let levels = pixel["level"].as_array().unwrap();
            assert_eq!(found.len(), levels.len(), "{name}");
            for (found, expected) in found.iter().zip(levels) {
                let difference = (found - expected.as_f64().unwrap()).abs();
                assert!(difference <= tolerance, "{name} {pixel}: {found}");
            }
        }
    }
}

#[test]
fn rescaled_values_are_pydicoms() {
    let mut compared = 0;
    for (name, expected) in golden() {
        let Some(expected) = expected.get("values") else { continue };
        let object = OpenFileOptions::new().open_file(fixture(&name)).unwrap();
        let decoded = object.decode_pixel_data_frame(0).unwrap();
        let values = grey::modality_values(&object, &decoded, 0).unwrap();
        let found = [
            f64::from(values.iter().copied().fold(f32::INFINITY, f32::min)),
            f64::from(values.iter().copied().fold(f32::NEG_INFINITY, f32::max)),
            values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64,
        ];
        for (key, found) in ["min", "max", "mean"].into_iter().zip(found) {
            let expected = expected[key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{name} {key}");
        }
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn a_given_window_cuts_hounsfield_units() {
    let object = Object::open(&fixture("CT_small.dcm")).unwrap();
    let window =
        |centre, width| object.frame(0, &windowed(Window::Given { centre, width })).unwrap();
    // Values run from -896 to 1167: all below, all above, and split in between.
    assert_eq!(mean(&window(3000.0, 100.0)), 0.0);
    assert_eq!(mean(&window(-3000.0, 100.0)), 255.0);
    let split = mean(&window(0.0, 1.0));
    assert!(split > 20.0 && split < 235.0, "{split}");
    let all = object.frame(0, &windowed(Window::Percentile { low: 0.0, high: 100.0 })).unwrap();
    assert_eq!(mean(&all), mean(&object.frame(0, &windowed(Window::MinMax)).unwrap()));
}

#[test]
fn the_header_tells_modality_plane_and_spacing() {
    let header = header(&fixture("CT_small.dcm")).unwrap();
    assert_eq!(header.facts.modality.as_deref(), Some("CT"));
    assert_eq!(header.facts.plane, Some(Plane::Axial));
    // python: pydicom.dcmread("CT_small.dcm").PixelSpacing -> ['0.661468', '0.661468']
    assert_eq!(header.facts.spacing_mm, Some(0.661468));
    assert_eq!((header.patient.as_str(), header.by_study), ("1CT1", false));
}

#[test]
fn a_patient_without_an_id_is_known_by_the_study_and_monochrome1_is_turned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.dcm");
    let mut object = OpenFileOptions::new().open_file(fixture("MR_small.dcm")).unwrap();
    let study = text(&object, STUDY_INSTANCE_UID);
    object.remove_element(PATIENT_ID);
    let plain = Object(object.clone()).frame(0, &windowed(Window::MinMax)).unwrap();
    let mut photometric = object.get(PHOTOMETRIC).unwrap().clone();
    photometric.update_value(|value| *value = "MONOCHROME1".into());
    object.put_element(photometric);
    object.write_to_file(&path).unwrap();
    let header = header(&path).unwrap();
    assert_eq!((header.patient, header.by_study), (study, true));
    assert!(header.facts.inverted);
    let turned = Object::open(&path).unwrap().frame(0, &windowed(Window::MinMax)).unwrap();
    for (x, y) in [(0, 0), (20, 30), (63, 63)] {
        assert_eq!(level(&turned, x, y)[0], 255.0 - level(&plain, x, y)[0]);
    }
}

#[test]
fn what_is_not_read_has_its_reason() {
    let refused = |name: &str| {
        let path = fixture(name);
        header(&path)
            .and_then(|_| Object::open(&path))
            .and_then(|object| object.frame(0, &windowed(Window::File)))
            .err()
            .map(|problem| problem.to_string())
            .unwrap_or_default()
    };
    assert_eq!(refused("rtplan.dcm"), "holds no picture (no pixel data)");
    let truncated = refused("MR_truncated.dcm");
    assert_eq!(
        truncated,
        "the element (7FE0,0010) declares 8192 bytes, and 8130 are left in the file"
    );
    let jpeg_ls = refused("MR_small_jpeg_ls_lossless.dcm");
    assert!(jpeg_ls.starts_with("the pixels cannot be decoded: "), "{jpeg_ls}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.dcm"), b"nothing of the kind").unwrap();
    let nothing = header(&folder.path().join("x.dcm")).err().unwrap().to_string();
    assert!(nothing.starts_with("not readable as DICOM: "), "{nothing}");
}

#[test]
fn any_prefix_of_a_file_is_a_picture_or_a_reason() {
    let reading = Reading::default();
    for name in ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.dcm");
        for cut in (0..bytes.len()).step_by(bytes.len() / 23) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            // The RLE decoder panics on some of them; that must not leave this room.
            let read = medium::contents(&path, Kind::Dicom, &reading)
                .and_then(|_| Opened::open(&path, Part::Frame(0), &reading))
                .and_then(|opened| opened.picture(&path, Part::Frame(0), &reading));
            match read {
                // A lossy stream may end early and still give a picture.
                Ok(picture) => assert!(picture.dimensions().0 > 0),
                Err(error) => assert!(error.to_string().contains("x.dcm: "), "{error}"),
            }
        }
    }
}

/// A file of explicit VR little endian with `elements` behind its meta information.
fn file(elements: &[u8]) -> tempfile::NamedTempFile {
    of_syntax(b"1.2.840.10008.1.2.1\0", elements)
}

/// A deflated data set of what `write` writes.
fn deflated(write: impl FnOnce(&mut DeflateEncoder<Vec<u8>>)) -> tempfile::NamedTempFile {
    let mut set = DeflateEncoder::new(Vec::new(), Compression::default());
    write(&mut set);
    of_syntax(b"1.2.840.10008.1.2.1.99", &set.finish().unwrap())
}

fn of_syntax(uid: &[u8], elements: &[u8]) -> tempfile::NamedTempFile {
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM\x02\0\0\0UL\x04\0");
    bytes.extend((8 + uid.len() as u32).to_le_bytes());
    bytes.extend(b"\x02\0\x10\0UI");
    bytes.extend((uid.len() as u16).to_le_bytes());
    bytes.extend(uid);
    bytes.extend(elements);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// A12a. Failed before: 262 bytes reserved 4 GiB and filled them.
#[test]
fn a_length_that_the_file_cannot_hold_is_refused_before_it_is_reserved() {
    for element in [
        // Private OB of 4 GiB, and UN of 2 GiB.
        b"\x09\0\x10\x10OB\0\0\xFE\xFF\xFF\xFF".as_slice(),
        b"\x09\0\x10\x10UN\0\0\xFE\xFF\xFF\x7F",
        // A short one at the end of the file.
        b"\x10\0\x20\0LO\x40\0abc",
        // Within a sequence.
        b"\x09\0\x10\x10SQ\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF\x09\0\x11\x10OB\0\0\xFE\xFF\xFF\xFF",
    ] {
        let file = file(element);
        for problem in [header(file.path()).err(), Object::open(file.path()).err()] {
            let problem = problem.unwrap();
            assert!(matches!(problem, DicomProblem::Length { .. }), "{problem}");
        }
    }
    // Behind an icon, whose pixels are not those of the file.
    let mut icon =
        b"\x88\0\0\x02SQ\0\0\x1C\0\0\0\xFE\xFF\0\xE0\x10\0\0\0\xE0\x7F\x10\0OB\0\0\x04\0\0\0abcd"
            .to_vec();
    icon[8..12].copy_from_slice(&24u32.to_le_bytes());
    icon.extend(b"\x99\0\x10\x10OB\0\0\xFE\xFF\xFF\xFF");
    let icon = file(&icon);
    let problem = header(icon.path()).err().unwrap();
    assert!(matches!(problem, DicomProblem::Length { .. }), "{problem}");
    // In the meta information itself.
    let meta = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM\x02\0\0\0UL\x04\0\x20\0\0\0\x02\0\x02\x01OB\0\0\xFE\xFF\xFF\xFF");
    bytes.extend([0; 40]);
    std::fs::write(meta.path(), bytes).unwrap();
    let problem = header(meta.path()).err().unwrap();
    assert!(matches!(problem, DicomProblem::Length { .. }), "{problem}");
}

/// Found by the fuzzer: an element of the meta information with an unknown value representation was read with a length
/// of two bytes by the survey and of four by the reader, so that another data set was surveyed than read: 566 bytes took
/// 1.9 GB.
#[test]
fn the_data_set_that_is_read_is_the_one_that_was_surveyed() {
    for unknown in [b"O{", b"zz", b"\0\0", b"ox"] {
        // (0002,0102), of two bytes and a length of four; or, with a length of two, of none before an odd element.
        let mut elements = b"\x02\0\x02\x01".to_vec();
        elements.extend(unknown);
        elements.extend(b"\0\0\x02\0\0\0\0\x01");
        let uid = b"1.2.840.10008.1.2.1\0";
        elements.extend(b"\x02\0\x10\0UI");
        elements.extend((uid.len() as u16).to_le_bytes());
        elements.extend(uid);
        let mut bytes = vec![0; 128];
        bytes.extend(b"DICM\x02\0\0\0UL\x04\0");
        bytes.extend((elements.len() as u32).to_le_bytes());
        bytes.extend(elements);
        bytes.extend(b"\x09\0\x10\x10OB\0\0\xFE\xFF\xFF\xFF");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        for problem in [header(file.path()).err(), Object::open(file.path()).err()] {
            let problem = problem.unwrap();
            assert!(matches!(problem, DicomProblem::Length { .. }), "{unknown:?}: {problem}");
        }
    }
    // What cannot be surveyed is not read.
    let surveyed = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        header(file.path()).err().unwrap().to_string()
    };
    let magic = surveyed(&[0; 200]);
    assert!(magic.contains("DICM"), "{magic}");
    let mut no_length = vec![0; 128];
    no_length.extend(b"DICM\x02\0\x10\0UI\x04\x001.2\0");
    let no_length = surveyed(&no_length);
    assert!(no_length.contains("(0002,0000)"), "{no_length}");
    let unread = header(of_syntax(b"1.2.3\0", b"").path()).err().unwrap().to_string();
    assert!(unread.contains("transfer syntax `1.2.3` is not read here"), "{unread}");
}

/// Found by the fuzzer: the reader takes whole values alone, so that after 18 bytes of UL (or an offset table of 6) it read
/// the next element two bytes earlier than the survey, which skipped 18: 3.6 KB took 1.1 GB.
#[test]
fn a_part_of_a_value_is_refused() {
    let behind = b"\x10\0\x20\0LO\x02\0p ";
    for element in [
        b"\x08\0\x14\0UL\x06\0\x01\0\0\0\0\0".as_slice(),
        b"\x08\0\x14\0US\x03\0\x01\0\0",
        b"\x08\0\x14\0FD\x0C\0\x01\0\0\0\0\0\0\0\0\0\0\0",
        b"\x09\0\x10\x10OV\0\0\x04\0\0\0\x01\0\0\0",
        b"\xE0\x7F\x10\0OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\x06\0\0\0\0\0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0",
    ] {
        let file = file(&[element, behind].concat());
        let problem = Object::open(file.path()).err().unwrap();
        assert!(matches!(problem, DicomProblem::Values { .. }), "{element:?}: {problem}");
    }
    // At the end of the file nothing can be misread behind it.
    let last = file(b"\xE0\x7F\x10\0OW\0\0\x03\0\0\0abc");
    let opened = Object::open(last.path()).err();
    assert!(!matches!(opened, Some(DicomProblem::Values { .. })), "{opened:?}");
}

/// Found by review: the representation of some elements follows from the value of (0028,0103), which the survey did not
/// read; and delimiters outside of any item or sequence ended the survey's own count, while the reader passed them over.
#[test]
fn an_element_that_the_reader_takes_for_another_than_the_survey_is_refused() {
    let signed = b"\x28\0\x03\x01US\x02\0\x01\0".as_slice();
    // A sequence of 4 GiB for the survey, words of two bytes for the reader; then three bytes of OB or SS.
    let sequence = b"\x28\0\x06\x01SQ\0\0\xFE\xFF\xFF\xFF\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF";
    let odd = b"\x28\0\x06\x01OB\0\0\x03\0\0\0abc\x10\0\x20\0LO\x02\0p ";
    let stray = b"\xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\xF0\xFF\xFF\xFF";
    for elements in [[signed, sequence].concat(), [signed, odd].concat(), stray.to_vec()] {
        let file = file(&elements);
        let problem = Object::open(file.path()).err().unwrap();
        let told = matches!(
            problem,
            DicomProblem::Length { .. } | DicomProblem::Values { .. } | DicomProblem::Format { .. }
        );
        assert!(told && problem != DicomProblem::NoPicture, "{elements:?}: {problem}");
        assert!(!problem.to_string().contains("Could not read value"), "the reader: {problem}");
    }
}

/// A12b. Failed before: the stack overflowed, which ends the program.
#[test]
fn a_hundred_thousand_nested_sequences_are_refused() {
    let level = b"\x09\0\x10\x10SQ\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF";
    let file = file(&level.repeat(100_000));
    let problem = header(file.path()).err().unwrap();
    assert_eq!(problem, DicomProblem::Depth { max: 64 });
}

/// Failed before: the reader made an element of each, about a gigabyte in all.
#[test]
fn a_header_of_two_million_empty_elements_is_refused() {
    let mut elements = Vec::new();
    for element in 0..2_000_000u32 {
        let group = 0x0011 + 2 * (element >> 16) as u16;
        elements.extend(group.to_le_bytes());
        elements.extend((element as u16).to_le_bytes());
        elements.extend(*b"LO\0\0");
    }
    let problem = header(file(&elements).path()).err().unwrap();
    assert_eq!(problem, DicomProblem::Elements { max: 1_000_000 });
}

/// Failed before: two gigabytes were unpacked of two megabytes.
#[test]
fn a_deflated_data_set_that_unpacks_to_far_more_than_it_is_is_refused() {
    let file = deflated(|set| {
        set.write_all(b"\x09\0\x10\x10OB\0\0").unwrap();
        set.write_all(&(600u32 << 20).to_le_bytes()).unwrap();
        (0..600).for_each(|_| set.write_all(&[0; 1 << 20]).unwrap());
    });
    let problem = header(file.path()).err().unwrap();
    assert!(matches!(problem, DicomProblem::Unpacked { max } if max < 515 << 20), "{problem:?}");
}

/// Failed before: the bound of a header was one of its packed bytes.
#[test]
fn a_deflated_header_is_bounded_by_its_unpacked_bytes() {
    let file = deflated(|set| {
        set.write_all(b"\x09\0\x10\x10OB\0\0").unwrap();
        set.write_all(&(100u32 << 20).to_le_bytes()).unwrap();
        (0..100).for_each(|_| set.write_all(&[0; 1 << 20]).unwrap());
    });
    let problem = header(file.path()).err().unwrap();
    assert_eq!(problem, DicomProblem::Header { max: 64 << 20 });
}

/// A12c. Failed before: the size of the JPEG, not that of the DICOM header, was reserved.
#[test]
fn the_size_that_a_compressed_picture_claims_is_read_without_decoding_it() {
    let jpeg = |sof: u8| {
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 1, 2, 0xFF, 0xFF, sof];
        bytes.extend([0, 17, 8, 0xFF, 0xFF, 0xFF, 0xFE, 3]);
        bytes
    };
    for sof in [0xC0, 0xC2, 0xC3, 0xC9, 0xF7] {
        assert_eq!(compressed::samples(&jpeg(sof)), Some(0xFFFF * 0xFFFE * 3));
    }
    assert_eq!(compressed::samples(&jpeg(0xC4)), None, "a table");
    let mut j2k = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 47, 0, 0];
    for word in [1000u32, 2000, 100, 200, 0, 0, 0, 0] {
        j2k.extend(word.to_be_bytes());
    }
    j2k.extend([0, 3]);
    assert_eq!(compressed::samples(&j2k), Some(900 * 1800 * 3));
    let mut jp2 = b"\0\0\0\x0CjP  \r\n\x87\n".to_vec();
    jp2.extend(vec![0; 100_000]);
    jp2.extend(&j2k);
    assert_eq!(compressed::samples(&jp2), Some(900 * 1800 * 3));
    let by_chance = [&[0, 1, 2][..], &j2k].concat();
    assert_eq!(compressed::samples(&by_chance), None, "not at its beginning, and no JP2 file");
    for end in 0..j2k.len() {
        compressed::samples(&j2k[..end]);
    }
}

/// Failed before: the product of rows, columns and samples overflowed 64 bits.
#[test]
fn a_number_of_samples_that_no_memory_holds_is_refused() {
    let mut object = Object::open(&fixture("MR_small.dcm")).unwrap();
    let samples = PrimitiveValue::U64(vec![u64::MAX].into());
    object.0.put_element(DataElement::new(SAMPLES_PER_PIXEL, VR::UV, samples));
    let problem = object.frame(0, &Reading::default()).err().unwrap();
    assert!(problem.to_string().contains("more than 512 MiB a frame"), "{problem}");
}
