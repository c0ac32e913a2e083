//! To and from Python: `peft`'s directories, timm's state dicts.

mod import;
mod names;
mod peft;
mod timm;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

pub use self::import::{ImportPeftError, import_peft};
pub use self::names::Transformers;
pub use self::peft::export_peft;
pub use self::timm::export_timm;
use crate::durable;

/// Why an adapter was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not a model that the other side computes.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A file that holds whole weights, or lengths of them, was asked for without the backbone.
    #[error("{0} needs the run's backbone beside the adapter")]
    NoBackbone(&'static str),
    /// The adapter's values do not have the contract's shapes.
    #[error("the adapter does not fit the run's contract")]
    Adapter,
    /// Something is there already.
    #[error("{} exists already; name a directory that does not", .0.display())]
    Exists(PathBuf),
    /// Not writable.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Refusal of a run whose outputs are not taken to Python.
const NO_HEAD: &str = "a self-supervised run has no head to export: write its features with `export --as backbone`, if its adaptation can be merged";

/// A tensor as another library names it.
struct Named {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Writes files into the new directory `out`: all, or nothing.
fn write_directory(out: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), ExportError> {
    if out.exists() {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let failed = |source| ExportError::Write { path: out.to_owned(), source };
    // Under a random name, and removed again unless it gets its own.
    let temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(durable::folder_of(out))
        .map_err(failed)?;
    write_all(temporary.path(), files)?;
    fs::rename(temporary.path(), out).map_err(failed)?;
    let _ = temporary.keep();
    Ok(())
}

fn write_all(directory: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), ExportError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Write { path, source }
    };
    for (name, bytes) in files {
        let path = directory.join(name);
        let mut file = fs::File::create_new(&path).map_err(failed(&path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(&path))?;
    }
    Ok(())
}

fn safetensors_of(tensors: &[Named]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&data).map(|(tensor, data)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data);
        (tensor.name.as_str(), view.expect("four bytes an element"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).expect("distinct names, whole tensors")
}
