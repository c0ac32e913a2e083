//! Small images with something to find, stored as hospitals store them: bright ones belong to the
//! class `high` and have a bright quarter, which their mask marks.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{GrayImage, Luma};
use ndarray::{Array2, ArrayD};
use ndarray_npy::NpzWriter;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tributary_deploy::command::run;

use crate::binaries;

/// Side of a picture, pixels.
pub const SIDE: usize = 16;
/// One slide stands for all: tiled pyramids are not written here (client/tests/python/slide_fixture.py).
const SLIDE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../client/tests/fixtures/slides/lossless.tif");
/// Every image's class, by its first letter.
pub const CLASSES: [&str; 2] = ["low", "high"];

/// How images are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    /// PNG files under a `labels.csv`.
    Png,
    /// DICOM files under a `labels.csv`.
    Dicom,
    /// NIfTI volumes under a `labels.csv`, read slice by slice.
    Nifti,
    /// NIfTI volumes, read as three-plane patches.
    Patches,
    /// Whole slides, tiled pyramidal TIFF, read by tiles of tissue.
    Slide,
    /// One archive in the MedMNIST layout.
    Npz,
    /// One archive of volumes in the MedMNIST layout.
    Volumes,
}

impl Storage {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Png, Self::Dicom, Self::Nifti, Self::Patches, Self::Slide, Self::Npz, Self::Volumes];

    /// The name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Dicom => "DICOM",
            Self::Nifti => "NIfTI",
            Self::Patches => "patches",
            Self::Slide => "slides",
            Self::Npz => "npz",
            Self::Volumes => "npz-3D",
        }
    }

    /// What its sites' `[data.reading]` says.
    pub fn reading(self) -> Option<String> {
        match self {
            Self::Patches => Some("patches = { size = 8.0, stride = 8.0 }".to_owned()),
            Self::Slide => Some("slides = { mpp = 2.0, tile = 32, tiles_max = 4 }".to_owned()),
            Self::Png | Self::Dicom | Self::Nifti | Self::Npz | Self::Volumes => None,
        }
    }

    fn is_archive(self) -> bool {
        matches!(self, Self::Npz | Self::Volumes)
    }

    fn slices(self) -> usize {
        match self {
            Self::Nifti => 3,
            // A cube of eight fits.
            Self::Patches | Self::Volumes => 8,
            Self::Png | Self::Dicom | Self::Slide | Self::Npz => 1,
        }
    }

    /// Writes `cases` images of as many patients below `folder`; what `site.toml` then names.
    pub fn write(self, folder: &Path, cases: usize, seed: u64) -> PathBuf {
        fs::create_dir_all(folder).expect("the folder is made");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        if self.is_archive() {
            return write_npz(folder, cases, self.slices(), &mut rng);
        }
        let mut csv = "file,patient,bag,label,time,event,mask\n".to_owned();
        for case in 0..cases {
            let high = case % 2 == 1;
            let name = match self {
                Self::Png => format!("{case}.png"),
                Self::Dicom => format!("{case}.dcm"),
                Self::Slide => format!("{case}.tif"),
                Self::Nifti | Self::Patches | Self::Npz | Self::Volumes => format!("{case}.nii"),
            };
            let path = folder.join(&name);
            let slices = self.slices();
            let pixels: Vec<u8> = (0..slices).flat_map(|_| picture(high, &mut rng)).collect();
            match self {
                Self::Png => grey(&pixels).save(&path).expect("the picture is written"),
                Self::Dicom => fs::write(&path, dicom(case, &pixels)).expect("it is written"),
                Self::Slide => {
                    fs::copy(SLIDE, &path).map(|_| ()).expect("the slide is copied");
                }
                Self::Nifti | Self::Patches | Self::Npz | Self::Volumes => {
                    fs::write(&path, nifti(&pixels, slices)).expect("it is written");
                }
            }
            let mask = format!("mask-{case}.png");
            let marked =
                (0..SIDE * SIDE).map(|at| u8::from(high && bright(at))).collect::<Vec<_>>();
            grey(&marked).save(folder.join(&mask)).expect("the mask is written");
            let (class, event) = (CLASSES[usize::from(high)], u8::from(case % 3 != 0));
            let time = 1.0 + (case % 5) as f32 + if high { 0.0 } else { 5.0 };
            // Two images a patient, both of one class.
            let patient = case / 4 * 2 + usize::from(high);
            writeln!(csv, "{name},p{patient},b{patient},{class},{time},{event},{mask}")
                .expect("text takes text");
        }
        fs::write(folder.join("labels.csv"), csv).expect("the manifest is written");
        folder.to_owned()
    }
}

fn bright(at: usize) -> bool {
    at / SIDE < SIDE / 2 && at % SIDE < SIDE / 2
}

fn picture(high: bool, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let of = |at: usize| if high && bright(at) { 170 } else { 60 } + (rng.next_u32() % 60) as u8;
    (0..SIDE * SIDE).map(of).collect()
}

fn grey(pixels: &[u8]) -> GrayImage {
    let side = SIDE as u32;
    GrayImage::from_fn(side, side, |x, y| Luma([pixels[(y * side + x) as usize]]))
}

fn write_npz(folder: &Path, cases: usize, slices: usize, rng: &mut ChaCha8Rng) -> PathBuf {
    let pictures = (0..cases * slices).map(|at| picture(at / slices % 2 == 1, rng));
    let pixels: Vec<u8> = pictures.flatten().collect();
    let shape: &[usize] = match slices {
        1 => &[cases, SIDE, SIDE],
        _ => &[cases, slices, SIDE, SIDE],
    };
    let images = ArrayD::from_shape_vec(shape, pixels).expect("as many pixels");
    let labels = Array2::from_shape_fn((cases, 1), |(case, _)| (case % 2) as u8);
    let path = folder.join("images.npz");
    let mut writer = NpzWriter::new(fs::File::create(&path).expect("the archive is made"));
    writer.add_array("train_images", &images).expect("an array");
    writer.add_array("train_labels", &labels).expect("an array");
    writer.finish().expect("the archive is whole");
    path
}

/// An uncompressed 8-bit picture, explicit little endian (PS3.5 section 7.1.2, PS3.10 section 7.1).
fn dicom(case: usize, pixels: &[u8]) -> Vec<u8> {
    let side = (SIDE as u16).to_le_bytes();
    let (series, instance) = (format!("1.2.3.{case}"), format!("1.2.3.{case}.1"));
    let class = "1.2.840.10008.5.1.4.1.1.7";
    let mut meta = Vec::new();
    let uid =
        |text: &str| [text.as_bytes(), if text.len() % 2 == 1 { b"\0" } else { b"" }].concat();
    element(&mut meta, (2, 0x02), b"UI", &uid(class));
    element(&mut meta, (2, 0x03), b"UI", &uid(&instance));
    element(&mut meta, (2, 0x10), b"UI", &uid("1.2.840.10008.1.2.1"));
    element(&mut meta, (2, 0x12), b"UI", &uid("1.2.3"));
    let mut file = vec![0; 128];
    file.extend_from_slice(b"DICM");
    element(&mut file, (2, 0x00), b"UL", &(meta.len() as u32).to_le_bytes());
    file.extend(meta);
    element(&mut file, (8, 0x16), b"UI", &uid(class));
    element(&mut file, (8, 0x18), b"UI", &uid(&instance));
    element(&mut file, (8, 0x60), b"CS", b"CR");
    element(&mut file, (0x20, 0x0d), b"UI", &uid(&series));
    element(&mut file, (0x28, 0x02), b"US", &1u16.to_le_bytes());
    element(&mut file, (0x28, 0x04), b"CS", b"MONOCHROME2 ");
    element(&mut file, (0x28, 0x10), b"US", &side);
    element(&mut file, (0x28, 0x11), b"US", &side);
    for (number, value) in [(0x100, 8u16), (0x101, 8), (0x102, 7), (0x103, 0)] {
        element(&mut file, (0x28, number), b"US", &value.to_le_bytes());
    }
    file.extend([0xe0, 0x7f, 0x10, 0x00]);
    file.extend_from_slice(b"OB\0\0");
    file.extend((pixels.len() as u32).to_le_bytes());
    file.extend_from_slice(pixels);
    file
}

fn element(file: &mut Vec<u8>, (group, number): (u16, u16), kind: &[u8; 2], value: &[u8]) {
    file.extend(group.to_le_bytes());
    file.extend(number.to_le_bytes());
    file.extend_from_slice(kind);
    file.extend((value.len() as u16).to_le_bytes());
    file.extend_from_slice(value);
}

/// An 8-bit volume of axial slices, RAS, one millimetre (NIfTI-1.1).
fn nifti(pixels: &[u8], slices: usize) -> Vec<u8> {
    let mut header = vec![0u8; 352];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (i, size) in [3, SIDE, SIDE, slices, 1, 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * i, &(size as i16).to_le_bytes());
    }
    put(70, &2i16.to_le_bytes());
    put(72, &8i16.to_le_bytes());
    for i in 0..4 {
        put(76 + 4 * i, &1f32.to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    for row in 0..3 {
        put(280 + 20 * row, &1f32.to_le_bytes());
    }
    put(344, b"n+1\0");
    header.extend_from_slice(pixels);
    header
}

/// A backbone of two narrow blocks, and its manifest's tables.
pub fn backbone(folder: &Path, images: &Path) -> (PathBuf, String) {
    let out = folder.join("backbone.safetensors");
    let mut pretrain = Command::new(&binaries().client);
    pretrain.args(["--format", "json", "pretrain", "--epochs", "1", "--image-size"]);
    pretrain.args([&SIDE.to_string(), "--patch-size", "4", "--channels", "1", "--width", "16"]);
    pretrain.args(["--depth", "2", "--heads", "2", "--data"]).arg(images).arg("--out").arg(&out);
    let card = run(&mut pretrain).expect("pretraining").data;
    let shape = card["architecture"].as_object().expect("a table");
    let mut text = format!("[backbone]\ndigest = {}\nmean = [0.5]\nstd = [0.5]\n", card["digest"]);
    text += "[backbone.architecture]\n";
    for (key, value) in shape {
        writeln!(text, "{key} = {value}").expect("a string grows");
    }
    (out, text)
}
