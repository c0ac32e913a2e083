//! Where a site's images are.

use std::path::{Path, PathBuf};

use tributary_shared::manifest::Task;

use super::labels::Labels;
use super::{DataError, npz};

/// The manifest's name in a folder when none is given, as text and as a table.
const MANIFEST_NAMES: [&str; 2] = ["labels.csv", "labels.parquet"];

/// Where a site's images are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// An `.npz` file in the MedMNIST layout: `{train,val,test}_images` uint8 `[N,H,W]` or
    /// `[N,H,W,3]`, `{..}_labels` `[N,1]` or `[N,L]`, optionally `{..}_patients` `[N]`. All
    /// splits that are present are pooled; class i is label i.
    Npz(PathBuf),
    /// A folder of PNG, JPEG, TIFF, DICOM or NIfTI files with a manifest, CSV or Parquet: columns `file`,
    /// `patient`, `label` (several labels separated by `;`); DICOM also by `SOPInstanceUID`,
    /// `StudyInstanceUID` or `PatientID` instead of `file`. Without labels, a folder without a
    /// manifest is read whole.
    Folder {
        /// No file outside it is ever read.
        root: PathBuf,
        /// The manifest, absolute or relative to the root.
        manifest: PathBuf,
    },
}

impl DataSource {
    /// A folder is read by its `labels.csv` or `labels.parquet`, a manifest by the folder it lies in,
    /// an `.npz` as itself.
    pub fn detect(path: &Path) -> Result<Self, DataError> {
        let shown = || path.display().to_string();
        let metadata =
            std::fs::metadata(path).map_err(|source| DataError::Read { path: shown(), source })?;
        if metadata.is_dir() {
            let [text, table] = MANIFEST_NAMES;
            let manifest = match (path.join(text).exists(), path.join(table).exists()) {
                (true, true) => return Err(DataError::TwoManifests { path: shown() }),
                (false, true) => table,
                (_, false) => text,
            };
            return Ok(Self::Folder { root: path.to_owned(), manifest: manifest.into() });
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("npz") => Ok(Self::Npz(path.to_owned())),
            Some("csv" | "parquet") => {
                let root = path.parent().filter(|p| !p.as_os_str().is_empty());
                let manifest = path.file_name().unwrap_or_default();
                Ok(Self::Folder {
                    root: root.unwrap_or(Path::new(".")).to_owned(),
                    manifest: manifest.into(),
                })
            }
            Some(_) | None => Err(DataError::UnknownSource { path: shown() }),
        }
    }

    /// The task that the labels themselves imply: classes in alphabetical order, or by number
    /// in an npz.
    pub fn infer_task(&self) -> Result<Task, DataError> {
        match self {
            Self::Npz(path) => npz::infer_task(path),
            Self::Folder { root, manifest } => Labels::infer_task(&root.join(manifest)),
        }
    }

    /// The file or folder, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::Npz(path) => path,
            Self::Folder { root, .. } => root,
        }
    }
}

/// The task with these classes.
pub fn task_of(classes: Vec<String>, many: bool) -> Task {
    if many {
        Task::MultiLabel { classes }
    } else if classes.len() == 2 {
        Task::Binary { classes }
    } else {
        Task::MultiClass { classes }
    }
}
