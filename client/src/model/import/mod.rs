//! A published checkpoint as a backbone of ours: other names, fused maps, another image size.
//!
//! Files are strangers: their index is read under limits, PyTorch's pickle as data only
//! ([`pickle`]), and nothing is guessed: what is missing, unused or of another shape is refused.

mod assemble;
mod checkpoint;
mod names;
mod pickle;
mod positions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tributary_shared::architecture::Architecture;
use tributary_shared::problems::Problems;

use self::assemble::{Assembly, Part, Piece};
pub(crate) use self::checkpoint::Checkpoint;
use self::names::{Library, Place, place};
pub(crate) use self::positions::bicubic_weights;
use super::backbone::Backbone;

/// A backbone, and what was done to get it.
#[derive(Debug)]
pub struct Imported {
    /// The canonical weights.
    pub backbone: Backbone,
    /// What was read and what was not.
    pub report: ImportReport,
}

/// What became of a file's tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Whose names they have.
    pub library: &'static str,
    /// What stood before every name.
    pub prefix: String,
    /// Tensors read.
    pub tensors: usize,
    /// Tensors that are no part of a backbone: a classifier, a decoder, a mask token; of tensors
    /// beside the model only where they are and how many.
    pub left_out: Vec<String>,
    /// Tensors that the file lacks and that have one harmless value.
    pub filled: Vec<String>,
    /// How positions were fitted to the image size, if they were.
    pub positions: Option<String>,
    /// What a careful person would check.
    pub notes: Vec<String>,
}

/// Why a file did not become a backbone.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not there, or not readable.
    #[error("checkpoint {}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Damaged, of an unknown format, or with something in it that is no weights.
    #[error("checkpoint {}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No vision transformer among its tensors.
    #[error("checkpoint {}: no vision transformer with the names of timm or transformers in it; it holds {holds}", path.display())]
    NoModel {
        /// The file.
        path: PathBuf,
        /// Some of its names.
        holds: String,
    },
    /// More than one, and none chosen.
    #[error("checkpoint {}: holds several models, whose names begin with {}; choose one by its prefix", path.display(), prefixes.join(", "))]
    SeveralModels {
        /// The file.
        path: PathBuf,
        /// What their names begin with.
        prefixes: Vec<String>,
    },
    /// Another model than the architecture says.
    #[error("checkpoint {}: does not fit the architecture: {}", path.display(), counted(problems))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// One line a missing, unused, mis-shaped or non-finite tensor: all of them.
        problems: Vec<String>,
    },
    /// An image size that the architecture cannot have.
    #[error("{0}")]
    Architecture(#[from] Problems),
}

/// How many of which kind, and the first.
fn counted(problems: &[String]) -> String {
    let of = |kind: &str| problems.iter().filter(|line| line.starts_with(kind)).count();
    let (missing, unused) = (of("missing "), of("unused "));
    let kinds = [
        (missing, "missing"),
        (unused, "unused"),
        (problems.len() - missing - unused, "of another shape or kind"),
    ];
    let kinds = kinds.iter().filter(|(count, _)| *count > 0);
    let kinds: Vec<String> = kinds.map(|(count, kind)| format!("{count} {kind}")).collect();
    let first = problems.first().map_or("", String::as_str);
    format!("{} (the first: {first})", kinds.join(", "))
}

/// Reads the model of shape `architecture` from the file at `path`.
///
/// `architecture` is at the image size of the file. `image_size` asks for another one, in pixels,
/// to which positions are interpolated. `prefix` chooses among several models of one file.
pub fn import_backbone(
    path: &Path,
    architecture: &Architecture,
    image_size: Option<usize>,
    prefix: Option<&str>,
) -> Result<Imported, ImportError> {
    Problems::of(|found| architecture.check(found))?;
    let mut wanted = architecture.clone();
    wanted.image_size = image_size.unwrap_or(architecture.image_size);
    Problems::of(|found| wanted.check(found))?;
    let checkpoint = Checkpoint::open(path)?;
    let (prefix, library) = model(path, &checkpoint, prefix)?;
    let sorted = sort(&checkpoint, &prefix);
    let mut assembly = Assembly {
        checkpoint: &checkpoint,
        library,
        file: architecture,
        wanted: &wanted,
        any_size: image_size.is_some(),
        pieces: sorted.pieces,
        filled: Vec::new(),
        positions: None,
        problems: sorted.unused,
    };
    let mut left_out = sorted.left_out;
    left_out.extend(assembly.settle_final_norm());
    let values = assembly.values()?;
    if !assembly.problems.is_empty() {
        let problems = assembly.problems;
        return Err(ImportError::Mismatch { path: path.to_owned(), problems });
    }
    let pieces = assembly.pieces.values().flatten().map(|piece| &piece.name);
    let report = ImportReport {
        library: library.name(),
        tensors: pieces.collect::<BTreeSet<_>>().len(),
        left_out,
        filled: assembly.filled,
        positions: assembly.positions,
        notes: notes(&checkpoint, &prefix, architecture),
        prefix,
    };
    Ok(Imported { backbone: Backbone::from_values(wanted, values), report })
}

/// The one model of the file, or the one chosen.
fn model(
    path: &Path,
    checkpoint: &Checkpoint,
    chosen: Option<&str>,
) -> Result<(String, Library), ImportError> {
    let names = || checkpoint.tensors.keys().map(String::as_str);
    let mut found = Library::find(names());
    if let Some(chosen) = chosen {
        found.retain(|(prefix, _)| prefix.trim_end_matches('.') == chosen.trim_end_matches('.'));
    }
    match found[..] {
        [(prefix, library)] => Ok((prefix.to_owned(), library)),
        [] => {
            let mut some: Vec<&str> = names().take(5).collect();
            if some.is_empty() {
                some.push("no tensor");
            }
            Err(ImportError::NoModel { path: path.to_owned(), holds: some.join(", ") })
        }
        _ => Err(ImportError::SeveralModels {
            path: path.to_owned(),
            prefixes: found.iter().map(|(prefix, _)| format!("`{prefix}`")).collect(),
        }),
    }
}

/// The file's tensors by what they are for.
struct Sorted {
    /// By canonical name.
    pieces: BTreeMap<String, Vec<Piece>>,
    left_out: Vec<String>,
    /// One line each.
    unused: Vec<String>,
}

fn sort(checkpoint: &Checkpoint, prefix: &str) -> Sorted {
    let mut sorted = Sorted { pieces: BTreeMap::new(), left_out: Vec::new(), unused: Vec::new() };
    let mut beside: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, stored) in &checkpoint.tensors {
        let Some(short) = name.strip_prefix(prefix) else {
            *beside.entry(name.split('.').next().unwrap_or(name)).or_default() += 1;
            continue;
        };
        let mut add = |canonical: String, part| {
            let piece = Piece { name: name.clone(), part };
            sorted.pieces.entry(canonical).or_default().push(piece);
        };
        match place(short) {
            Place::Whole(canonical) => add(canonical, Part::Whole),
            Place::Half(canonical, half) => add(canonical, Part::Half(half)),
            Place::Qkv(attention, part) => {
                for (third, map) in ["q", "k", "v"].into_iter().enumerate() {
                    add(format!("{attention}.{map}.{part}"), Part::Third(third));
                }
            }
            Place::LeftOut => sorted.left_out.push(name.clone()),
            Place::Unknown => sorted.unused.push(format!("unused {name} {:?}", stored.shape)),
        }
    }
    let count = |(name, tensors): (&str, usize)| format!("{name} ({tensors} beside the model)");
    sorted.left_out.extend(beside.into_iter().map(count));
    sorted
}

fn notes(checkpoint: &Checkpoint, prefix: &str, architecture: &Architecture) -> Vec<String> {
    let mut notes = Vec::new();
    let vit_of_transformers = checkpoint
        .tensors
        .keys()
        .any(|name| name.starts_with(prefix) && name.contains(".layernorm_before."));
    if vit_of_transformers && architecture.layer_norm_eps > 1e-9 {
        notes.push(format!(
            "transformers' ViT computes with layer_norm_eps = 1e-12 unless its config.json says \
             otherwise; this architecture has {:e}",
            architecture.layer_norm_eps
        ));
    }
    notes
}
