//! The frozen backbone as a file: safetensors, f32, canonical names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors, View};
use tributary_shared::architecture::Architecture;
use tributary_shared::digest::Digest;
use tributary_shared::layout::{Layout, TensorSpec};
use tributary_shared::problems::Problems;

use crate::durable;

/// The metadata key that holds the architecture as JSON.
const ARCHITECTURE_KEY: &str = "tributary.architecture";
/// Room for the safetensors header beside the tensors, bytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Largest file read when its architecture is only known from itself, bytes.
const FILE_BYTES_MAX: u64 = 16 << 30;
/// Differences named in one error.
const DIFFERENCES_MAX: usize = 64;

/// Every tensor of a backbone of this shape, in the order of their names.
pub fn backbone_layout(architecture: &Architecture) -> Layout {
    architecture.layout()
}

/// Frozen weights as a file holds them.
#[derive(Clone, Debug)]
pub struct Backbone {
    architecture: Architecture,
    digest: Digest,
    layout: Layout,
    values: Vec<Vec<f32>>,
}

/// A file that is not the backbone asked for.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// Not there, or not readable.
    #[error("backbone {}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not writable.
    #[error("backbone {}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More bytes than the architecture can need.
    #[error("backbone {}: {bytes} bytes; this architecture needs at most {bytes_max}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// Not safetensors.
    #[error("backbone {}: not a safetensors file", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What did not parse.
        source: SafeTensorError,
    },
    /// No architecture in the metadata, or one that makes no sense.
    #[error("backbone {}: {problem}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another set of tensors.
    #[error("backbone {}: does not fit the architecture: {}", path.display(), differences.join("; "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line a missing, unexpected, mis-shaped, mistyped or non-finite tensor.
        differences: Vec<String>,
    },
    /// The right shape, other weights.
    #[error("backbone {}: its digest is {found}; the run asks for {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The run's.
        expected: Digest,
        /// The file's.
        found: Digest,
    },
}

impl Backbone {
    /// Reads the file at `path`, which must hold exactly the tensors of `architecture`.
    pub fn open(path: &Path, architecture: &Architecture) -> Result<Self, BackboneError> {
        let bytes_max = backbone_layout(architecture).payload_bytes() + HEADER_BYTES_MAX;
        Self::parse(path, &read(path, bytes_max)?, architecture)
    }

    /// As [`Self::open`], and the file must be the very one that a run's manifest names.
    pub fn open_for_run(
        path: &Path,
        asked: &tributary_shared::manifest::Backbone,
    ) -> Result<Self, BackboneError> {
        let backbone = Self::open(path, &asked.architecture)?;
        if backbone.digest == asked.digest {
            Ok(backbone)
        } else {
            let (expected, found) = (asked.digest, backbone.digest);
            Err(BackboneError::Digest { path: path.to_owned(), expected, found })
        }
    }

    /// Reads a file that says itself what architecture it holds.
    pub fn open_described(path: &Path) -> Result<Self, BackboneError> {
        let bytes = read(path, FILE_BYTES_MAX)?;
        let problem =
            |problem: String| BackboneError::Architecture { path: path.to_owned(), problem };
        let (_, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|source| BackboneError::Format { path: path.to_owned(), source })?;
        let json = metadata.metadata().as_ref().and_then(|m| m.get(ARCHITECTURE_KEY)).ok_or_else(
            || problem(format!("names no architecture (metadata key `{ARCHITECTURE_KEY}`)")),
        )?;
        let architecture: Architecture = serde_json::from_str(json)
            .map_err(|e| problem(format!("metadata key `{ARCHITECTURE_KEY}`: {e}")))?;
        Problems::of(|found| architecture.check(found)).map_err(|e| problem(e.to_string()))?;
        Self::parse(path, &bytes, &architecture)
    }

    fn parse(
        path: &Path,
        bytes: &[u8],
        architecture: &Architecture,
    ) -> Result<Self, BackboneError> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|source| BackboneError::Format { path: path.to_owned(), source })?;
        let layout = backbone_layout(architecture);
        let (values, mut differences) = take_values(&file, &layout);
        if differences.is_empty() {
            let architecture = architecture.clone();
            return Ok(Self { architecture, digest: Digest::of(bytes), layout, values });
        }
        let more = differences.len().saturating_sub(DIFFERENCES_MAX);
        differences.truncate(DIFFERENCES_MAX);
        if more > 0 {
            differences.push(format!("and {more} more"));
        }
        Err(BackboneError::Tensors { path: path.to_owned(), differences })
    }

    /// Weights made here, with the digest of the file they would be.
    ///
    /// # Panics
    /// When `values` do not have the shapes of `backbone_layout(&architecture)`.
    pub fn from_values(architecture: Architecture, values: Vec<Vec<f32>>) -> Self {
        let layout = backbone_layout(&architecture);
        let fits = layout.tensors().iter().zip(&values).all(|(t, v)| t.elements() == v.len());
        assert!(fits && layout.tensors().len() == values.len(), "values of another architecture");
        let mut backbone = Self { architecture, digest: Digest::of(b""), layout, values };
        backbone.digest = Digest::of(&backbone.to_bytes());
        backbone
    }

    /// The shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// SHA-256 of the file's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Every tensor with its flat values, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, &[f32])> {
        self.layout.tensors().iter().zip(self.values.iter().map(Vec::as_slice))
    }

    /// Weights in all.
    pub fn parameters(&self) -> usize {
        self.layout.elements()
    }

    /// The canonical file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let views = self
            .tensors()
            .map(|(spec, values)| (spec.name.as_str(), Tensor { shape: &spec.shape, values }));
        let architecture =
            serde_json::to_string(&self.architecture).expect("an architecture is plain data");
        let metadata = [(ARCHITECTURE_KEY.to_owned(), architecture)].into();
        safetensors::serialize(views, Some(metadata)).expect("distinct names, whole tensors")
    }

    /// Writes the canonical file: whole and durable, or not at all.
    pub fn save(&self, path: &Path) -> Result<(), BackboneError> {
        write_whole(path, &self.to_bytes())
            .map_err(|source| BackboneError::Write { path: path.to_owned(), source })
    }
}

/// One tensor; its bytes are made when they are written, so that no second copy of all is held.
struct Tensor<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        self.values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BackboneError> {
    let failed = |source| BackboneError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        // A pipe or a device tells no length, and may have no end.
        return Err(failed(io::Error::other("it is no regular file; copy it to one")));
    }
    let bytes = metadata.len();
    if bytes > bytes_max {
        return Err(BackboneError::TooLarge { path: path.to_owned(), bytes, bytes_max });
    }
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// The layout's values, and a line for whatever does not fit.
fn take_values(file: &SafeTensors<'_>, layout: &Layout) -> (Vec<Vec<f32>>, Vec<String>) {
    let found: Vec<TensorSpec> = file
        .iter()
        .map(|(name, view)| TensorSpec { name: name.to_owned(), shape: view.shape().to_vec() })
        .collect();
    let mut found = Layout::new(found).tensors().to_vec();
    found.dedup();
    let mut problems: Vec<String> =
        layout.differences(&found).iter().map(ToString::to_string).collect();
    let by_name: BTreeMap<&str, TensorView<'_>> = file.iter().collect();
    let mut values = Vec::new();
    for spec in layout.tensors() {
        let Some(view) = by_name.get(spec.name.as_str()) else { continue };
        if view.dtype() != Dtype::F32 {
            problems.push(format!("{}: {:?}, must be F32", spec.name, view.dtype()));
            continue;
        }
        let tensor: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        if let Some(at) = tensor.iter().position(|v| !v.is_finite()) {
            problems.push(format!("{}[{at}] is {}", spec.name, tensor[at]));
        }
        values.push(tensor);
    }
    (values, problems)
}

/// Writes a file that only its owner reads, beside `path` under a random name, and
/// gives it its name when it is whole.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(durable::folder_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
