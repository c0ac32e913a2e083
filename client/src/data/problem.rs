//! Everything that can be wrong with a site's data, each one clear line.

use tributary_shared::outcome::{Failure, chain};

use super::dicom::DicomProblem;
use super::labels::TableProblem;
use super::slide::SlideProblem;
use super::volume::VolumeProblem;

/// Why a data source was refused.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system said no.
    #[error("{path} cannot be read")]
    Read {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Writing failed.
    #[error("{path} cannot be written")]
    Write {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither a folder, a manifest nor an npz.
    #[error(
        "{path} is no data source; give a folder with labels.csv, a .csv, .parquet or .npz file"
    )]
    UnknownSource {
        /// The file.
        path: String,
    },
    /// Labels are asked for and nothing says them.
    #[error(
        "{path} is not there; pictures with labels need a manifest, labels.csv or labels.parquet, that names each file, its patient and its label (docs/data.md)"
    )]
    NoManifest {
        /// The manifest that was looked for.
        path: String,
    },
    /// Two manifests and no word which.
    #[error("{path} holds labels.csv and labels.parquet; name one of them")]
    TwoManifests {
        /// The folder.
        path: String,
    },
    /// No case at all.
    #[error("{path} holds no cases")]
    Empty {
        /// The source.
        path: String,
    },
    /// One image file.
    #[error("{path}: {problem}")]
    Image {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: ImageProblem,
    },
    /// The manifest as a whole.
    #[error("{path}: {problem}")]
    Manifest {
        /// The manifest.
        path: String,
        /// What is wrong with it.
        problem: ManifestProblem,
    },
    /// One row of the manifest.
    #[error("{path}, {at}: {problem}")]
    Row {
        /// The manifest.
        path: String,
        /// Where the row is.
        at: At,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A DICOM file.
    #[error("{path}: {problem}")]
    Dicom {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: DicomProblem,
    },
    /// A NIfTI file.
    #[error("{path}: {problem}")]
    Volume {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: VolumeProblem,
    },
    /// A whole slide.
    #[error("{path}: {problem}")]
    Slide {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: SlideProblem,
    },
    /// More refusals than the site allows.
    #[error(
        "{refused} of {all} images refused, more than data.reading.refused_share_max = {share_max} \
         allows; the first: {first}"
    )]
    TooManyRefused {
        /// Refusals.
        refused: usize,
        /// Refusals and cases.
        all: usize,
        /// The bound.
        share_max: f64,
        /// The first refusal.
        first: String,
    },
    /// A folder too large to walk.
    #[error("{path} holds more than {max} files; name the ones to read in a manifest")]
    TooManyFiles {
        /// The folder.
        path: String,
        /// The bound.
        max: usize,
    },
    /// The run's dataset contract does not hold.
    #[error("the images are not what the run's [data] demands: {}", broken.join("; "))]
    Contract {
        /// Each demand that is not met, without paths or patients.
        broken: Vec<String>,
    },
    /// An npz file.
    #[error("{path}: {problem}")]
    Npz {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: NpzProblem,
    },
    /// More than is kept in memory, where nothing can be read twice.
    #[error("{bytes} bytes of resized images; at most {max} are kept of an npz, so save a folder")]
    TooLargeToKeep {
        /// What it would take.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The file changed between two readings.
    #[error("the data changed while they were read; run the command again")]
    SourceChanged,
    /// A rehearsal has no classes.
    #[error("a rehearsal reads no images; give a task with classes")]
    Rehearsal,
    /// A task whose truth the MedMNIST layout cannot hold.
    #[error("{path}: an npz holds no labels of a {task} task; give a folder with labels.csv")]
    TaskOfNpz {
        /// The file.
        path: String,
        /// The kind of task.
        task: &'static str,
    },
    /// Volumes where pictures are divided.
    #[error("{path} holds volumes; `data split` divides pictures, so save each volume as .nii.gz")]
    VolumesOfNpz {
        /// The file.
        path: String,
    },
    /// Images of one bag that do not fit together.
    #[error("bag `{bag}`: its images have different {what}; one bag has one label and one patient")]
    Bag {
        /// The bag.
        bag: String,
        /// What differs.
        what: &'static str,
    },
    /// An input that no image can be made for.
    #[error(
        "the input needs 1 or 3 channels, a size of 1 to 4096, one mean and std a channel and a \
         crop_pct of 0.5 to 1"
    )]
    Input,
    /// Pooling datasets that were prepared for different backbones.
    #[error("datasets prepared for different inputs cannot be pooled")]
    InputsDiffer,
    /// All cases are of one patient, so that none can be held out.
    #[error(
        "all {cases} cases have one patient id, `{patient}`, so that no patient can be held out; give each patient an id of its own in the manifest's column `patient`, or train with holdout = 0"
    )]
    OnePatient {
        /// Number of cases.
        cases: usize,
        /// The id.
        patient: String,
    },
    /// Pooling nothing.
    #[error("there is no dataset to pool")]
    NothingToConcat,
    /// Never overwrite somebody's files.
    #[error("{path} exists and is not empty; name a new folder or empty it first")]
    NotEmpty {
        /// The folder.
        path: String,
    },
    /// Arguments that make no sense.
    #[error("{argument}: {problem}")]
    Argument {
        /// The command line's flag.
        argument: &'static str,
        /// What is wrong and what would fit.
        problem: String,
    },
}

/// Where a row of a manifest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// The line of a text where it begins, from 1.
    Line(u64),
    /// Which row of a table it is, from 1.
    Row(u64),
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// What is wrong with an image file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageProblem {
    /// Zero bytes.
    #[error("the file is empty (0 bytes)")]
    Empty,
    /// Too many bytes.
    #[error("{bytes} bytes or more; an image file has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// A picture too large to decode safely.
    #[error("too large to decode; at most {side} pixels a side and {alloc_mib} MiB decoded")]
    Limits {
        /// Most pixels a side.
        side: u32,
        /// Most memory, MiB.
        alloc_mib: u64,
    },
    /// Not one of the three formats.
    #[error("not a PNG, JPEG or TIFF image")]
    Format,
    /// The data ends before the picture does.
    #[error("truncated: the data ends before the picture does; copy the file again")]
    Truncated,
    /// Broken in another way.
    #[error("damaged: {detail}")]
    Damaged {
        /// What the decoder said.
        detail: String,
    },
    /// A sound file that uses what we do not read.
    #[error("not readable here: {detail}; save it as PNG")]
    Unsupported {
        /// What the decoder said.
        detail: String,
    },
    /// CMYK.
    #[error("CMYK colours; save it as 8-bit grey or RGB")]
    Cmyk,
    /// More than 8 bits a sample.
    #[error("16 bits or more a sample; save it as 8-bit grey or RGB")]
    Depth,
    /// Transparency.
    #[error("has an alpha channel; save it as 8-bit grey or RGB")]
    Alpha,
    /// A mask in colours.
    #[error("a mask must be 8-bit grey, its levels class indices; this one has colours")]
    MaskColours,
    /// A level of a mask that is no class.
    #[error("a mask's level {level} is no class; the task has {classes}, and 255 marks none")]
    MaskClass {
        /// The level.
        level: u8,
        /// Classes of the task.
        classes: usize,
    },
    /// Any other sample layout.
    #[error("has the colour type {found}; save it as 8-bit grey or RGB")]
    Colour {
        /// What the decoder said.
        found: String,
    },
}

/// What is wrong with a manifest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestProblem {
    /// Too many bytes.
    #[error("{bytes} bytes; a manifest has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// A needed column is not there.
    #[error(
        "the column `{column}` is missing; the columns are file,patient and label \
         (survival: time,event; segmentation: mask)"
    )]
    MissingColumn {
        /// The column.
        column: &'static str,
    },
    /// A column is there twice.
    #[error("the column `{column}` is there twice")]
    DuplicateColumn {
        /// The column.
        column: &'static str,
    },
    /// One in Parquet.
    #[error(transparent)]
    Table(#[from] TableProblem),
}

/// What is wrong with a row of a manifest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// Bytes that are no text.
    #[error("not UTF-8; save the manifest as UTF-8")]
    NotUtf8,
    /// More or fewer fields than the first line.
    #[error("{found} fields; the first line has {expected}")]
    Fields {
        /// Fields in the first line.
        expected: u64,
        /// Fields here.
        found: u64,
    },
    /// Not CSV.
    #[error("not CSV: {detail}")]
    Csv {
        /// What the parser said.
        detail: String,
    },
    /// No text where one is needed.
    #[error("`{column}` is empty")]
    EmptyField {
        /// The column.
        column: &'static str,
    },
    /// A label outside the task's classes.
    #[error("`{label}` is not a class of this run; its classes are {classes}")]
    UnknownLabel {
        /// The label.
        label: String,
        /// All classes.
        classes: String,
    },
    /// No time of follow-up.
    #[error("the time `{text}` is not a number above 0")]
    Time {
        /// What stands there.
        text: String,
    },
    /// Neither seen nor not seen.
    #[error("the event `{text}` is neither 1 (seen) nor 0 (not seen)")]
    Event {
        /// What stands there.
        text: String,
    },
    /// One mask for the pictures of a whole file.
    #[error("`{file}` holds several pictures; a mask is of one, so save them one by one")]
    MaskOfSeveral {
        /// The file.
        file: String,
    },
    /// The same label twice in a row.
    #[error("the label `{label}` is there twice")]
    RepeatedLabel {
        /// The label.
        label: String,
    },
    /// The same file twice.
    #[error("`{file}` is already on {first}")]
    Duplicate {
        /// The file.
        file: String,
        /// Where it came first.
        first: At,
    },
    /// Nothing in the folder bears the row's id.
    #[error("no DICOM file in the folder bears `{key}`")]
    NoSuchKey {
        /// The id.
        key: String,
    },
    /// No such file.
    #[error("`{file}` does not exist in the folder")]
    MissingFile {
        /// The file.
        file: String,
    },
    /// A path that is not plainly inside the folder.
    #[error("`{file}` leaves the folder; name files relative to it, without `..`")]
    Escapes {
        /// The file.
        file: String,
    },
    /// A link to somewhere else.
    #[error("`{file}` is a link out of the folder; copy the file into it")]
    LinkOut {
        /// The file.
        file: String,
    },
    /// A folder, a pipe, a device.
    #[error("`{file}` is not a file")]
    NotAFile {
        /// The file.
        file: String,
    },
}

/// What is wrong with an npz file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NpzProblem {
    /// Not a zip archive.
    #[error("not an npz file: {detail}")]
    NotZip {
        /// What the reader said.
        detail: String,
    },
    /// None of the three splits.
    #[error("holds none of train_images, val_images, test_images (the MedMNIST layout)")]
    NoSplit,
    /// Images without labels or the other way round.
    #[error("the array `{array}` is missing, but `{present}` is there")]
    MissingArray {
        /// The array.
        array: String,
        /// Its companion.
        present: String,
    },
    /// Not an npy array.
    #[error("the array `{array}` is damaged: {detail}")]
    Damaged {
        /// The array.
        array: String,
        /// What the reader said.
        detail: String,
    },
    /// Fewer bytes than its header says.
    #[error("the array `{array}` is truncated")]
    Truncated {
        /// The array.
        array: String,
    },
    /// The wrong element type.
    #[error("the array `{array}` has dtype {found}; it must be {expected}")]
    Dtype {
        /// The array.
        array: String,
        /// Its dtype, as numpy writes it.
        found: String,
        /// What fits.
        expected: &'static str,
    },
    /// The wrong shape.
    #[error("the array `{array}` has shape {found}; it must be {expected}")]
    Shape {
        /// The array.
        array: String,
        /// Its shape.
        found: String,
        /// What fits.
        expected: String,
    },
    /// Volumes that cannot be read as asked.
    #[error("the array `{array}` {problem}")]
    Volume {
        /// The array.
        array: String,
        /// What is wrong.
        problem: VolumeProblem,
    },
    /// Column-major.
    #[error("the array `{array}` is in Fortran order; save np.ascontiguousarray of it")]
    FortranOrder {
        /// The array.
        array: String,
    },
    /// As many labels as images.
    #[error("`{images}` holds {image_count} images and `{array}` {count} rows")]
    Lengths {
        /// The array of images.
        images: String,
        /// How many.
        image_count: usize,
        /// The array beside it.
        array: String,
        /// How many.
        count: usize,
    },
    /// A label outside the task's classes.
    #[error("`{array}`[{row}] is {label}; the run has {classes} classes, so labels 0 to {}", classes - 1)]
    UnknownLabel {
        /// The array.
        array: String,
        /// Which case.
        row: usize,
        /// The label.
        label: i64,
        /// How many classes.
        classes: usize,
    },
    /// A multi-label mark that is neither 0 nor 1.
    #[error("`{array}`[{row}] holds {label}; a label of several is 0 or 1")]
    NotBinary {
        /// The array.
        array: String,
        /// Which case.
        row: usize,
        /// The mark.
        label: i64,
    },
    /// A patient id that is no text.
    #[error("`{array}`[{row}] is not a patient id; it must be printable and not empty")]
    Patient {
        /// The array.
        array: String,
        /// Which case.
        row: usize,
    },
}

impl DataError {
    /// A stable code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "unreadable",
            Self::Write { .. } => "unwritable",
            Self::UnknownSource { .. } => "unknown_source",
            Self::Empty { .. } => "no_cases",
            Self::Image { .. } => "bad_image",
            Self::Manifest { .. } | Self::TwoManifests { .. } | Self::NoManifest { .. } => {
                "bad_labels"
            }
            Self::Row { .. } => "bad_row",
            Self::Dicom { .. } => "bad_dicom",
            Self::Volume { .. } => "bad_volume",
            Self::Slide { .. } => "bad_slide",
            Self::TooManyRefused { .. } => "too_many_refused",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::OnePatient { .. } => "one_patient",
            Self::Contract { .. } => "contract",
            Self::Npz { .. } | Self::TaskOfNpz { .. } | Self::VolumesOfNpz { .. } => "bad_npz",
            Self::Bag { .. } => "bad_bag",
            Self::Rehearsal | Self::Input | Self::InputsDiffer | Self::NothingToConcat => "bad_use",
            Self::TooLargeToKeep { .. } => "too_large",
            Self::SourceChanged => "changed",
            Self::NotEmpty { .. } => "not_empty",
            Self::Argument { .. } => "bad_argument",
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::invalid(error.code(), chain(&error))
    }
}
