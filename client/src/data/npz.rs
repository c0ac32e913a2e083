//! An npz file in the MedMNIST layout, 2D or 3D, read image by image: memory does not grow with the
//! original resolution.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use image::{GrayImage, RgbImage};
use ndarray_npy::npy::header::Header;
use tributary_shared::manifest::Task;
use zip::ZipArchive;

use super::medium::{Facts, Part};
use super::pixels::{Kept, Picture, PixelStore};
use super::source::task_of;
use super::volume::{Grid, Volume};
use super::{Case, DataError, Label, NpzProblem};
use crate::config::reading::Reading;

const SPLITS: [&str; 3] = ["train", "val", "test"];
/// Longest npy header; numpy's own is 118 bytes.
const HEADER_BYTES_MAX: usize = 4096;
/// Largest label or patient array, bytes.
const COLUMN_BYTES_MAX: u64 = 256 << 20;
/// Most pixels a side, as for image files.
const SIDE_MAX: usize = super::image_file::SIDE_MAX as usize;

/// Least voxels along the last axis of a volume.
const VOLUME_SIDE_MIN: usize = 8;

/// Most classes of a run.
const CLASSES_MAX: usize = 10_000;

type Archive = ZipArchive<BufReader<File>>;

/// An npz that was read.
pub(super) struct Contents {
    pub(super) cases: Vec<Case>,
    /// What is known of every picture.
    pub(super) facts: Facts,
}

pub(super) fn read(
    path: &Path,
    task: Option<&Task>,
    reading: &Reading,
    kept: Kept,
) -> Result<(Contents, PixelStore, bool), DataError> {
    let mut kept = Colours { kept, colour: false };
    let contents = read_each(path, task, reading, &mut kept)?;
    Ok((contents, kept.kept.store(), kept.colour))
}

/// Hands every picture to `sink`, in the order of the cases returned.
pub(super) fn read_each(
    path: &Path,
    task: Option<&Task>,
    reading: &Reading,
    sink: &mut impl Sink,
) -> Result<Contents, DataError> {
    let problem = |problem| DataError::Npz { path: path.display().to_string(), problem };
    if let Some(task @ (Task::Survival {} | Task::Segmentation { .. })) = task {
        let (path, task) = (path.display().to_string(), task.as_str());
        return Err(DataError::TaskOfNpz { path, task });
    }
    let mut archive = open_archive(path)?;
    let asked = Asked { task, reading };
    let mut cases = Vec::new();
    let mut facts = Facts::default();
    for split in SPLITS {
        let read = read_split(&mut archive, split, asked, sink, &mut cases);
        // A split that is not there says nothing of the others.
        facts = read.map_err(|stop| stop.at(path))?.unwrap_or(facts);
    }
    if cases.is_empty() && !SPLITS.iter().any(|split| holds(&archive, &format!("{split}_images"))) {
        return Err(problem(NpzProblem::NoSplit));
    }
    facts.modality = reading.modality.clone();
    facts.spacing_mm = reading.spacing_mm;
    Ok(Contents { cases, facts })
}

/// Whether its pictures are parts of volumes.
pub(super) fn holds_volumes(path: &Path) -> Result<bool, DataError> {
    let problem = |problem| DataError::Npz { path: path.display().to_string(), problem };
    let mut archive = open_archive(path)?;
    for images in SPLITS.map(|split| format!("{split}_images")) {
        if holds(&archive, &images) {
            let array = open(&mut archive, &images).map_err(problem)?;
            return Ok(matches!(array.layout().map_err(problem)?, Layout::Volume(_)));
        }
    }
    Ok(false)
}

/// What the reader of an npz needs to know.
#[derive(Clone, Copy)]
struct Asked<'a> {
    task: Option<&'a Task>,
    reading: &'a Reading,
}

/// The task that the label arrays themselves imply; classes are named by their numbers.
pub(super) fn infer_task(path: &Path) -> Result<Task, DataError> {
    let problem = |problem| DataError::Npz { path: path.display().to_string(), problem };
    let mut archive = open_archive(path)?;
    let (mut many, mut classes) = (false, 2);
    for labels in SPLITS.map(|split| format!("{split}_labels")) {
        if !holds(&archive, &labels) {
            continue;
        }
        let mut array = open(&mut archive, &labels).map_err(problem)?;
        if let [_, width @ (2..)] = array.shape[..] {
            (many, classes) = (true, width);
        } else {
            let largest = array.integers().map_err(problem)?.into_iter().max().unwrap_or(0);
            classes = classes.max(usize::try_from(largest).unwrap_or(0).saturating_add(1));
        }
    }
    if classes > CLASSES_MAX {
        let array = "labels".to_owned();
        let detail = format!("{classes} classes; at most {CLASSES_MAX} are read");
        return Err(problem(NpzProblem::Damaged { array, detail }));
    }
    Ok(task_of((0..classes).map(|class| class.to_string()).collect(), many))
}

fn open_archive(path: &Path) -> Result<Archive, DataError> {
    let shown = || path.display().to_string();
    let file = File::open(path).map_err(|source| DataError::Read { path: shown(), source })?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| DataError::Npz {
        path: shown(),
        problem: NpzProblem::NotZip { detail: error.to_string() },
    })
}

fn holds(archive: &Archive, array: &str) -> bool {
    archive.index_for_name(&format!("{array}.npy")).is_some()
}

fn read_split(
    archive: &mut Archive,
    split: &str,
    Asked { task, reading }: Asked<'_>,
    sink: &mut impl Sink,
    cases: &mut Vec<Case>,
) -> Result<Option<Facts>, Stop> {
    let [images, labels, patients] =
        ["images", "labels", "patients"].map(|kind| format!("{split}_{kind}"));
    match (holds(archive, &images), holds(archive, &labels)) {
        (false, false) => return Ok(None),
        (false, true) => {
            return Err(NpzProblem::MissingArray { array: images, present: labels }.into());
        }
        (true, false) if task.is_some() => {
            return Err(NpzProblem::MissingArray { array: labels, present: images }.into());
        }
        (true, _) => {}
    }
    let labels = match task {
        Some(task) => Some((read_labels(archive, &labels, task)?, labels)),
        None => None,
    };
    let patients = match holds(archive, &patients) {
        true => Some((read_patients(archive, &patients)?, patients)),
        false => None,
    };
    let counts = [
        labels.as_ref().map(|(rows, array)| (rows.len(), array)),
        patients.as_ref().map(|(rows, array)| (rows.len(), array)),
    ];
    let check_length = |image_count| {
        for (count, array) in counts.iter().flatten() {
            if *count != image_count {
                let (images, array) = (images.clone(), (*array).clone());
                return Err(NpzProblem::Lengths { images, image_count, array, count: *count });
            }
        }
        Ok(())
    };
    let (count, parts, facts) =
        read_images(archive, &images, reading, sink, cases.len(), check_length)?;
    for index in 0..count {
        let name = format!("{split}/{index}");
        let patient = patients.as_ref().map_or_else(|| name.clone(), |(p, _)| p[index].clone());
        let label = labels.as_ref().map_or(Label::Unlabelled, |(l, _)| l[index].clone());
        cases.extend(parts.iter().map(|part| Case {
            id: part.id(&name, parts.len() > 1),
            bag: if part.shares_bag() { &name } else { &patient }.clone(),
            patient: patient.clone(),
            label: label.clone(),
        }));
    }
    Ok(Some(facts))
}

/// What becomes of the images, one after another.
pub(super) trait Sink {
    /// Hears how many images there will be so far, before they come.
    fn expect(&mut self, images: usize) -> Result<(), DataError>;
    /// Takes the next image.
    fn take(&mut self, picture: Picture) -> Result<(), DataError>;
}

/// For whoever wants the labels alone.
pub(super) struct Discard;

impl Sink for Discard {
    fn expect(&mut self, _images: usize) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, _picture: Picture) -> Result<(), DataError> {
        Ok(())
    }
}

/// Keeps the images and hears whether they are in colour.
struct Colours {
    kept: Kept,
    colour: bool,
}

impl Sink for Colours {
    fn expect(&mut self, images: usize) -> Result<(), DataError> {
        let (bytes, max) = (self.kept.bytes_of(images), self.kept.bytes_max);
        if bytes > max { Err(DataError::TooLargeToKeep { bytes, max }) } else { Ok(()) }
    }

    fn take(&mut self, picture: Picture) -> Result<(), DataError> {
        self.colour |= picture.is_colour();
        let fitted = picture.fit(&self.kept.input);
        self.kept.push(&fitted);
        Ok(())
    }
}

/// Why reading stopped: the archive, or whoever takes the images.
enum Stop {
    Archive(NpzProblem),
    Sink(DataError),
}

impl Stop {
    fn at(self, path: &Path) -> DataError {
        match self {
            Self::Archive(problem) => DataError::Npz { path: path.display().to_string(), problem },
            Self::Sink(error) => error,
        }
    }
}

impl From<NpzProblem> for Stop {
    fn from(problem: NpzProblem) -> Self {
        Self::Archive(problem)
    }
}

impl From<DataError> for Stop {
    fn from(error: DataError) -> Self {
        Self::Sink(error)
    }
}

/// An array whose header is read and whose data follows in `reader`.
struct Array<R> {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    reader: R,
}

fn open<'a>(archive: &'a mut Archive, name: &str) -> Result<Array<impl Read + 'a>, NpzProblem> {
    let array = || name.to_owned();
    let damaged = |detail: String| NpzProblem::Damaged { array: array(), detail };
    let mut reader =
        archive.by_name(&format!("{name}.npy")).map_err(|error| damaged(error.to_string()))?;
    let head = header_bytes(&mut reader).map_err(|error| data_error(name, &error))?;
    let header = Header::from_reader(&mut head.as_slice()).map_err(|e| damaged(e.to_string()))?;
    if header.layout.is_fortran() && header.shape.len() > 1 {
        return Err(NpzProblem::FortranOrder { array: array() });
    }
    let dtype = header.type_descriptor.to_string().trim_matches('\'').to_owned();
    Ok(Array { name: array(), dtype, shape: header.shape, reader })
}

/// Magic, version, length and dictionary, bounded before anything parses them.
fn header_bytes(reader: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; 10];
    reader.read_exact(&mut head)?;
    let mut length = usize::from(u16::from_le_bytes([head[8], head[9]]));
    // Version 1 has two bytes of length, the later ones four.
    if head[6] > 1 {
        let mut rest = [0; 2];
        reader.read_exact(&mut rest)?;
        length += usize::from(u16::from_le_bytes(rest)) << 16;
        head.extend(rest);
    }
    if length > HEADER_BYTES_MAX {
        return Err(std::io::Error::other(format!("a header of {length} bytes")));
    }
    let start = head.len();
    head.resize(start + length, 0);
    reader.read_exact(&mut head[start..])?;
    Ok(head)
}

fn data_error(array: &str, error: &std::io::Error) -> NpzProblem {
    let array = array.to_owned();
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        NpzProblem::Truncated { array }
    } else {
        NpzProblem::Damaged { array, detail: error.to_string() }
    }
}

impl<R: Read> Array<R> {
    fn wrong_shape(&self, expected: impl Into<String>) -> NpzProblem {
        let found = format!("{:?}", self.shape);
        NpzProblem::Shape { array: self.name.clone(), found, expected: expected.into() }
    }

    fn wrong_dtype(&self, expected: &'static str) -> NpzProblem {
        NpzProblem::Dtype { array: self.name.clone(), found: self.dtype.clone(), expected }
    }

    /// The whole data of a small array with `size` bytes an element.
    fn bytes(&mut self, size: usize) -> Result<Vec<u8>, NpzProblem> {
        let length = self.shape.iter().try_fold(size, |product, n| product.checked_mul(*n));
        let length = length
            .filter(|length| *length as u64 <= COLUMN_BYTES_MAX)
            .ok_or_else(|| self.wrong_shape(format!("at most {COLUMN_BYTES_MAX} bytes")))?;
        // Grows as data arrives: the header's word alone allocates nothing.
        let mut bytes = Vec::new();
        let mut limited = (&mut self.reader).take(length as u64);
        limited.read_to_end(&mut bytes).map_err(|error| data_error(&self.name, &error))?;
        if bytes.len() < length {
            return Err(NpzProblem::Truncated { array: self.name.clone() });
        }
        self.finish()?;
        Ok(bytes)
    }

    /// Reads to the end, where the archive's checksum is compared; nothing may be left.
    fn finish(&mut self) -> Result<(), NpzProblem> {
        let left = std::io::copy(&mut self.reader, &mut std::io::sink());
        match left.map_err(|error| data_error(&self.name, &error))? {
            0 => Ok(()),
            left => Err(NpzProblem::Damaged {
                array: self.name.clone(),
                detail: format!("{left} bytes more than its shape says"),
            }),
        }
    }

    /// Any integer type, as i64.
    fn integers(&mut self) -> Result<Vec<i64>, NpzProblem> {
        let expected = "an integer type";
        let signed = match self.dtype.get(1..2) {
            Some("i") => true,
            Some("u" | "b") => false,
            Some(_) | None => return Err(self.wrong_dtype(expected)),
        };
        let size = match self.dtype.get(2..) {
            Some("1") => 1,
            Some(size @ ("2" | "4" | "8")) if self.dtype.starts_with('<') => {
                size.parse().map_err(|_| self.wrong_dtype(expected))?
            }
            Some(_) | None => return Err(self.wrong_dtype(expected)),
        };
        let bytes = self.bytes(size)?;
        Ok(bytes.chunks_exact(size).map(|element| integer(element, signed)).collect())
    }
}

/// Little-endian, sign-extended. A u64 above i64 turns negative, which no label is.
fn integer(element: &[u8], signed: bool) -> i64 {
    let negative = signed && element.last().is_some_and(|high| high & 0x80 != 0);
    let mut wide = [if negative { 0xFF } else { 0 }; 8];
    wide[..element.len()].copy_from_slice(element);
    i64::from_le_bytes(wide)
}

fn read_labels(archive: &mut Archive, name: &str, task: &Task) -> Result<Vec<Label>, NpzProblem> {
    let mut array = open(archive, name)?;
    let classes = task.classes().len();
    let many = matches!(task, Task::MultiLabel { .. });
    let width = match array.shape.as_slice() {
        [_] => 1,
        [_, width] => *width,
        _ => 0,
    };
    let expected_width = if many { classes } else { 1 };
    if width != expected_width {
        return Err(array.wrong_shape(format!("[N, {expected_width}]")));
    }
    let unknown =
        |row, label| NpzProblem::UnknownLabel { array: name.to_owned(), row, label, classes };
    let not_binary = |row, label| NpzProblem::NotBinary { array: name.to_owned(), row, label };
    let rows = array.integers()?;
    let rows = rows.chunks_exact(width).enumerate();
    rows.map(|(row, labels)| match (many, labels) {
        (false, &[label]) => usize::try_from(label)
            .ok()
            .filter(|label| *label < classes)
            .map(Label::Class)
            .ok_or_else(|| unknown(row, label)),
        (_, marks) => match marks.iter().find(|mark| !matches!(mark, 0 | 1)) {
            Some(mark) => Err(not_binary(row, *mark)),
            None => Ok(Label::Many(marks.iter().map(|mark| *mark == 1).collect())),
        },
    })
    .collect()
}

/// Integers, or numpy's fixed-width bytes (`S`) or text (`U`, UCS-4).
fn read_patients(archive: &mut Archive, name: &str) -> Result<Vec<String>, NpzProblem> {
    let mut array = open(archive, name)?;
    if !matches!(array.shape.as_slice(), [_] | [_, 1]) {
        return Err(array.wrong_shape("[N]"));
    }
    let invalid = |row| NpzProblem::Patient { array: name.to_owned(), row };
    let width = array.dtype.get(2..).and_then(|w| w.parse::<usize>().ok()).filter(|w| *w <= 1024);
    let ids: Vec<Option<String>> = match (array.dtype.get(..2), width) {
        (Some("|S"), Some(width @ 1..)) => array
            .bytes(width)?
            .chunks_exact(width)
            .map(|id| String::from_utf8(id.to_vec()).ok())
            .collect(),
        (Some("<U"), Some(width @ 1..)) => array
            .bytes(4 * width)?
            .chunks_exact(4 * width)
            .map(|id| id.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])))
            .map(|points| points.map(char::from_u32).collect())
            .collect(),
        (Some("<S" | "|U" | ">U"), _) | (None, _) => {
            return Err(array.wrong_dtype("integers or text"));
        }
        (Some(_), _) => array.integers()?.iter().map(|id| Some(id.to_string())).collect(),
    };
    let ids = ids.into_iter().enumerate().map(|(row, id)| {
        // numpy pads with NUL.
        let id = id.map(|id| id.trim_end_matches('\0').to_owned());
        id.filter(|id| !id.is_empty() && !id.contains(char::is_control)).ok_or_else(|| invalid(row))
    });
    ids.collect()
}

/// What one element of the array of images is.
enum Layout {
    Picture {
        height: usize,
        width: usize,
        channels: usize,
    },
    /// Depth, height, width.
    Volume([usize; 3]),
}

impl<R: Read> Array<R> {
    fn layout(&self) -> Result<Layout, NpzProblem> {
        if self.dtype != "|u1" {
            return Err(self.wrong_dtype("uint8 (|u1)"));
        }
        let (height, width, layout) = match self.shape[..] {
            [_, height, width] => (height, width, Layout::Picture { height, width, channels: 1 }),
            [_, height, width, channels @ (1 | 3)] => {
                (height, width, Layout::Picture { height, width, channels })
            }
            // So thin a last axis is alpha or another kind of channel, not a volume.
            [_, depth, height, width] if width >= VOLUME_SIDE_MIN => {
                (height, width, Layout::Volume([depth, height, width]))
            }
            _ => {
                return Err(
                    self.wrong_shape("[N, H, W], [N, H, W, 3] or, of volumes, [N, D, H, W]")
                );
            }
        };
        let sides = 1..=SIDE_MAX;
        if !sides.contains(&height) || !sides.contains(&width) {
            return Err(self.wrong_shape(format!("H and W of 1 to {SIDE_MAX}")));
        }
        Ok(layout)
    }

    fn next_element(&mut self, bytes: usize) -> Result<Vec<u8>, NpzProblem> {
        let mut element = vec![0; bytes];
        self.reader.read_exact(&mut element).map_err(|error| data_error(&self.name, &error))?;
        Ok(element)
    }
}

/// How many elements there are, the pictures of each, and what is known of them.
fn read_images(
    archive: &mut Archive,
    name: &str,
    reading: &Reading,
    sink: &mut impl Sink,
    before: usize,
    check_length: impl Fn(usize) -> Result<(), NpzProblem>,
) -> Result<(usize, Vec<Part>, Facts), Stop> {
    let mut array = open(archive, name)?;
    let layout = array.layout()?;
    let count = array.shape[0];
    check_length(count)?;
    let (parts, facts) = match layout {
        Layout::Picture { height, width, channels } => {
            sink.expect(before.saturating_add(count))?;
            let (w, h) = (width as u32, height as u32);
            for _ in 0..count {
                let pixels = array.next_element(height * width * channels)?;
                let picture = match channels {
                    1 => GrayImage::from_raw(w, h, pixels).map(Picture::Grey),
                    _ => RgbImage::from_raw(w, h, pixels).map(Picture::Rgb),
                };
                sink.take(picture.expect("the buffer was made for this shape"))?;
            }
            (vec![Part::Whole], Facts::default())
        }
        Layout::Volume(shape) => {
            let array_name = || name.to_owned();
            let volume = |problem| NpzProblem::Volume { array: array_name(), problem };
            let grid = Grid::stored(shape).map_err(volume)?;
            let parts = grid.parts(reading).map_err(volume)?;
            sink.expect(before.saturating_add(count.saturating_mul(parts.len())))?;
            for _ in 0..count {
                let levels = array.next_element(shape.iter().product())?;
                let volume = Volume::of_levels(grid, &levels, reading.window);
                for part in &parts {
                    sink.take(volume.picture(reading, *part))?;
                }
            }
            (parts, grid.facts(reading))
        }
    };
    array.finish()?;
    Ok((count, parts, facts))
}
