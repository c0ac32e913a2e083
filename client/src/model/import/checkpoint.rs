//! A file of named tensors as its author's library wrote it: safetensors, or PyTorch's archive.
//!
//! Only the index is read at first; a tensor's numbers come from the file when they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use zip::{CompressionMethod, ZipArchive};

use super::ImportError;
use super::pickle::{Id, Node, PICKLE_BYTES_MAX, Pickle, TensorView};

/// Longest safetensors header read, bytes.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Largest tensor read, elements.
const ELEMENTS_MAX: usize = 1 << 31;
/// Most tensors and dict entries of a file that are looked at.
const ENTRIES_MAX: usize = 1 << 20;
/// Longest key of a state dict, bytes; what lies under a longer one is not looked at.
const KEY_BYTES_MAX: usize = 512;
/// How deep a state dict may lie in other dicts.
const DEPTH_MAX: usize = 16;
/// The first bytes of PyTorch's format before 1.6: a pickled magic number.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// The number formats that become f32.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    fn of(kind: &str) -> Option<Self> {
        match kind {
            "f16" => Some(Self::F16),
            "bf16" => Some(Self::Bf16),
            "f32" => Some(Self::F32),
            "f64" => Some(Self::F64),
            _ => None,
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Self::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F64 => {
                bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
            }
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    /// The number format as the file calls it.
    pub(crate) kind: String,
    /// Of each axis in elements; row-major if absent.
    strides: Option<Vec<usize>>,
    /// Of the first element, bytes from the start of the file.
    start: u64,
}

impl Stored {
    /// Whether its numbers can become f32.
    pub(crate) fn is_real(&self) -> bool {
        Number::of(&self.kind).is_some()
    }
}

/// The index of a file, and the file.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: File,
    /// By dotted name: a tensor inside nested dicts has their keys before its own.
    pub(crate) tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Reads the index of the file at `path`; its first bytes say which format it has.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let read = |source| ImportError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        let mut first = Vec::new();
        (&mut file).take(16).read_to_end(&mut first).map_err(read)?;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let indexed = if first.starts_with(b"PK\x03\x04") {
            torch_index(&mut file)
        } else if first.starts_with(LEGACY_MAGIC) {
            Err("written by PyTorch before 1.6 or without its zip format; load it there and \
                 `torch.save` it again"
                .to_owned())
        } else if first.get(8) == Some(&b'{') {
            safetensors_index(&mut file, bytes)
        } else {
            Err("neither a safetensors file nor a PyTorch checkpoint".to_owned())
        };
        let tensors =
            indexed.map_err(|problem| ImportError::Format { path: path.to_owned(), problem })?;
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    /// The numbers of a tensor of [`Self::tensors`], row-major.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, ImportError> {
        let stored = &self.tensors[name];
        let format = |problem: String| ImportError::Format { path: self.path.clone(), problem };
        let number = Number::of(&stored.kind)
            .ok_or_else(|| format(format!("{name} holds {}, not real numbers", stored.kind)))?;
        let elements = elements(&stored.shape)
            .ok_or_else(|| format(format!("{name} has more than {ELEMENTS_MAX} elements")))?;
        let dense = row_major(&stored.shape);
        let strides = stored.strides.as_ref().filter(|strides| **strides != dense);
        let strides = strides.unwrap_or(&dense);
        let last = stored.shape.iter().zip(strides).map(|(e, s)| e.saturating_sub(1) * s);
        let span = if elements == 0 { 0 } else { last.sum::<usize>() + 1 };
        let read = |source| ImportError::Read { path: self.path.clone(), source };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(stored.start)).map_err(read)?;
        let length = span as u64 * number.bytes();
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 != length {
            return Err(format(format!("the file ends inside {name}")));
        }
        let values = number.decode(&bytes);
        if *strides == dense {
            return Ok(values);
        }
        Ok((0..elements).map(|at| values[place(at, &stored.shape, strides)]).collect())
    }
}

/// The element of a storage that is the `at`th of a tensor in row-major order.
fn place(mut at: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut place = 0;
    for (extent, stride) in shape.iter().zip(strides).rev() {
        place += at % extent * stride;
        at /= extent;
    }
    place
}

fn elements(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |product, e| product.checked_mul(*e))?;
    (product <= ELEMENTS_MAX).then_some(product)
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

fn safetensors_index(file: &mut File, bytes: u64) -> Result<BTreeMap<String, Stored>, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("not a whole safetensors file: {e}");
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| damaged(&e))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX.min(bytes) {
        return Err(damaged(&format_args!("its header has {length} bytes")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| damaged(&e))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
    let data = length + 8;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let kind = kind(info.dtype);
        let held = elements(&info.shape)
            .ok_or_else(|| format!("{name} has more than {ELEMENTS_MAX} elements"))?;
        let needed = Number::of(&kind).map(|number| held as u64 * number.bytes());
        let fits = start <= end && needed.is_none_or(|needed| needed == end - start);
        if !fits || end > bytes.saturating_sub(data) {
            return Err(format!("the file ends before {name} does, or {name} overlaps its end"));
        }
        let shape = info.shape.clone();
        tensors.insert(name, Stored { shape, kind, strides: None, start: data + start });
    }
    Ok(tensors)
}

fn kind(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// An archive's `NAME/data.pkl` says what the tensors are, `NAME/data/KEY` holds their numbers.
fn torch_index(file: &mut File) -> Result<BTreeMap<String, Stored>, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("not a whole PyTorch checkpoint: {e}");
    let mut archive = ZipArchive::new(&mut *file).map_err(|e| damaged(&e))?;
    if archive.len() > ENTRIES_MAX {
        return Err(format!("{} entries in one archive; at most {ENTRIES_MAX}", archive.len()));
    }
    let names = archive.file_names();
    let pickles: Vec<&str> =
        names.filter(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).collect();
    let [pickle] = pickles[..] else {
        return Err("a zip archive that PyTorch did not write: one `data.pkl` is needed".to_owned());
    };
    let root = pickle.trim_end_matches("data.pkl").to_owned();
    let pickle = entry(&mut archive, &format!("{root}data.pkl"), PICKLE_BYTES_MAX)?;
    // Absent before PyTorch 2.1, which wrote little-endian almost everywhere.
    let order = format!("{root}byteorder");
    if archive.index_for_name(&order).is_some() && entry(&mut archive, &order, 16)? != b"little" {
        return Err("its numbers are big-endian; save it on a little-endian machine".to_owned());
    }
    let pickle = Pickle::parse(&pickle).map_err(|e| e.to_string())?;
    let mut found = BTreeMap::new();
    let mut left = ENTRIES_MAX;
    collect(&pickle, pickle.root(), "", DEPTH_MAX, &mut left, &mut found)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in found {
        let stored = locate(&mut archive, &root, view).map_err(|e| format!("{name}: {e}"))?;
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

type Archive<'a> = ZipArchive<&'a mut File>;

fn entry(archive: &mut Archive<'_>, name: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    let damaged =
        |e: &dyn std::fmt::Display| format!("not a whole PyTorch checkpoint: {name}: {e}");
    let entry = archive.by_name(name).map_err(|e| damaged(&e))?;
    let mut content = Vec::new();
    entry.take(bytes_max + 1).read_to_end(&mut content).map_err(|e| damaged(&e))?;
    if content.len() as u64 > bytes_max {
        return Err(format!("{name} has more than {bytes_max} bytes"));
    }
    Ok(content)
}

/// Every tensor below `id`, named by the keys on the way to it.
fn collect<'a>(
    pickle: &'a Pickle,
    id: Id,
    name: &str,
    depth: usize,
    left: &mut usize,
    found: &mut BTreeMap<String, &'a TensorView>,
) -> Result<(), String> {
    // One dict may stand in many places: what is counted are the visits.
    *left = left.checked_sub(1).ok_or(format!("more than {ENTRIES_MAX} entries"))?;
    let depth = depth.checked_sub(1).ok_or(format!("dicts nested deeper than {DEPTH_MAX}"))?;
    match pickle.node(id) {
        Node::Tensor(view) => drop(found.insert(name.to_owned(), view)),
        Node::Dict(pairs) => {
            for (key, value) in pairs {
                let key = match pickle.node(*key) {
                    Node::Text(text) if text.len() <= KEY_BYTES_MAX => text.clone(),
                    Node::Int(number) => number.to_string(),
                    Node::Opaque
                    | Node::Text(_)
                    | Node::Sequence(_)
                    | Node::Dict(_)
                    | Node::Name(_)
                    | Node::Storage(_)
                    | Node::Tensor(_) => continue,
                };
                let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                collect(pickle, *value, &name, depth, left, found)?;
            }
        }
        Node::Opaque
        | Node::Int(_)
        | Node::Text(_)
        | Node::Sequence(_)
        | Node::Name(_)
        | Node::Storage(_) => {}
    }
    Ok(())
}

fn locate(archive: &mut Archive<'_>, root: &str, view: &TensorView) -> Result<Stored, String> {
    let key = format!("{root}data/{}", view.storage.key);
    let entry = archive.by_name(&key).map_err(|e| format!("{key}: {e}"))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(format!("{key} is compressed or encrypted; PyTorch writes neither"));
    }
    let size = Number::of(view.storage.kind).map_or(0, Number::bytes);
    if view.storage.elements.checked_mul(size).is_none_or(|needed| needed > entry.size()) {
        return Err(format!("{key} has {} bytes, too few for its numbers", entry.size()));
    }
    Ok(Stored {
        shape: view.shape.clone(),
        kind: view.storage.kind.to_owned(),
        strides: Some(view.strides.clone()),
        start: entry.data_start() + view.offset * size,
    })
}
