//! Weights out of files: safetensors and PyTorch's archive.

use std::io::{Cursor, Write as _};

use tributary_client::model::{Backbone, ImportError, import_backbone};
use tributary_shared::architecture::Architecture;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::Outcome;
use crate::scratch::with_file;

/// That of `timm-plain.pth` among the client's fixtures.
const ARCHITECTURE: &str = r#"{"image_size": 16, "patch_size": 4, "channels": 3, "width": 12,
    "depth": 2, "heads": 2, "mlp_width": 24}"#;
/// Storages beside a pickle, and the bytes of each: enough for every tensor of the fixtures.
const STORAGES: usize = 64;
const STORAGE_BYTES: usize = 2304;

/// A file of the wrong model was read; it is refused for what it holds.
fn imported(data: &[u8]) -> Outcome {
    let architecture: Architecture =
        serde_json::from_str(ARCHITECTURE).expect("an architecture in JSON");
    let read =
        with_file("weights", data, &[], |path| import_backbone(path, &architecture, None, None));
    match read {
        Err(ImportError::Format { .. } | ImportError::Read { .. }) => Outcome::Refused,
        Ok(_)
        | Err(
            ImportError::NoModel { .. }
            | ImportError::SeveralModels { .. }
            | ImportError::Mismatch { .. }
            | ImportError::Architecture(_),
        ) => Outcome::Accepted,
    }
}

/// A safetensors file, as a checkpoint of any library and as a backbone of ours.
pub(crate) fn safetensors(data: &[u8]) -> Outcome {
    let own = with_file("weights", data, &[], |path| Outcome::of(Backbone::open_described(path)));
    own.or(imported(data))
}

/// A PyTorch archive with its checksums.
pub(crate) fn checkpoint(data: &[u8]) -> Outcome {
    imported(data)
}

/// The pickle inside of an archive, so that no checksum stands before it.
pub(crate) fn pickle(data: &[u8]) -> Outcome {
    imported(&archive(data).expect("an archive in memory can be written"))
}

fn archive(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    archive.start_file("archive/data.pkl", stored)?;
    archive.write_all(pickle)?;
    for storage in 0..STORAGES {
        archive.start_file(format!("archive/data/{storage}"), stored)?;
        archive.write_all(&[0; STORAGE_BYTES])?;
    }
    Ok(archive.finish()?.into_inner())
}
