//! Writes the first inputs of every corpus: `cargo run -p tributary-fuzz --example seeds`.
//!
//! From the fixtures of the client and from this project's own writers.

mod dicom;
mod tables;
mod tiff;
mod wire;

use std::error::Error;
use std::fs;
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use tributary_coordinator::audit::ExportWriter;
use tributary_coordinator::round::event::RegistryEvent;
use tributary_coordinator::round::record::{Event, Record, Stream};
use tributary_coordinator::round::{Command, Run};
use tributary_fuzz::{MANIFEST, kit_file, signer};
use tributary_shared::digest::Digest;
use tributary_shared::initial::initial_adapter;
use tributary_shared::manifest::RunManifest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::leaf_hash;

type Done = Result<(), Box<dyn Error>>;
/// Files by their names.
type Files = Vec<(String, Vec<u8>)>;

/// Longest input kept, bytes.
const FILE_BYTES_MAX: usize = 64 * 1024;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn keep(target: &str, name: &str, bytes: &[u8]) -> Done {
    if bytes.len() > FILE_BYTES_MAX {
        return Ok(());
    }
    let folder = root().join("tests/fuzz/corpus").join(target);
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("seed-{name}"));
    // What is there stays: a certificate request has a new key each time.
    if !file.exists() {
        fs::write(file, bytes)?;
    }
    Ok(())
}

/// The files of a folder whose names end with one of `endings`, by their names.
fn fixtures(folder: &str, endings: &[&str]) -> Result<Files, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("client/tests/fixtures").join(folder))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push((name, fs::read(path)?));
        }
    }
    Ok(found)
}

fn files() -> Done {
    let of: [(&str, &str, &[&str]); 9] = [
        ("dicom", "dicom", &[".dcm"]),
        ("nifti", "nifti", &[".nii", ".nii.gz"]),
        ("tiff", "slides", &[".svs", ".tif"]),
        ("csv", "manifests", &[".csv"]),
        ("parquet", "manifests", &[".parquet"]),
        ("npz", "data", &[".npz"]),
        ("npz", "data", &[".jpg"]),
        ("checkpoint", "backbones", &[".pth", ".bin"]),
        ("safetensors", "backbones", &[".safetensors", "legacy.pth"]),
    ];
    for (target, folder, endings) in of {
        for (name, bytes) in fixtures(folder, endings)? {
            keep(target, &name, &bytes)?;
        }
    }
    for (name, bytes) in fixtures("backbones", &[".pth", ".bin"])? {
        let Ok(mut archive) = zip::ZipArchive::new(Cursor::new(bytes)) else { continue };
        let inside = archive.file_names().find(|name| name.ends_with("data.pkl"));
        let Some(inside) = inside.map(str::to_owned) else { continue };
        let mut pickle = Vec::new();
        archive.by_name(&inside)?.read_to_end(&mut pickle)?;
        keep("pickle", &name, &pickle)?;
    }
    for (name, bytes) in fixtures("peft", &["run.toml"])? {
        keep("manifest", &name, &bytes)?;
    }
    Ok(())
}

fn history() -> Result<(Vec<Record>, Vec<u8>), Box<dyn Error>> {
    let at = Timestamp::from_millis(1_000);
    let mut records = Vec::new();
    let (consortium, root) = ("demo".to_owned(), Digest::of(b"root"));
    let member = "site/a".to_owned();
    let by = "operator/o".to_owned();
    let registry = [
        RegistryEvent::Founded { consortium, root },
        RegistryEvent::Invited { member: member.clone(), expires: at, by, replaces: false },
        RegistryEvent::Enrolled { member, certificate: Digest::of(b"certificate") },
    ];
    for (seq, event) in (0..).zip(registry) {
        records.push(Record::new(at, Stream::Registry, seq, Event::Registry(event)));
    }
    let manifest = RunManifest::from_toml(MANIFEST)?;
    let stream = Stream::Run(manifest.name.clone());
    let adapter = initial_adapter(&manifest);
    let start = Run::start(manifest, Digest::of(&adapter), "operator/o");
    let run = Run::open(at, &start)?;
    let stop = run.decide(at, Command::Stop { reason: "a rehearsal was enough".to_owned() });
    let stopped = stop.map_err(|refusal| refusal.to_string())?;
    for (seq, event) in (0..).zip(std::iter::once(start).chain(stopped)) {
        records.push(Record::new(at, stream.clone(), seq, Event::Run(event)));
    }
    Ok((records, adapter))
}

fn log() -> Done {
    let (records, adapter) = history()?;
    let leaves: Vec<Vec<u8>> = records.iter().map(Record::to_bytes).collect();
    for (index, leaf) in leaves.iter().enumerate() {
        keep("record", &index.to_string(), leaf)?;
    }
    keep("record", "cut", &leaves[0][..20])?;
    keep("export", "lines", &leaves[..3].join(&b'\n'))?;
    keep("export", "run-lines", &leaves.join(&b'\n'))?;
    let mut frontier = Frontier::new();
    for leaf in &leaves {
        frontier.append(leaf_hash(leaf));
    }
    let note = Checkpoint::sign(frontier.size(), frontier.root(), signer());
    keep("note", "signed", note.as_bytes())?;
    let text = note.split("\n\n").next().unwrap_or_default();
    keep("note", "text", format!("{text}\n").as_bytes())?;
    keep("note", "cut", &note.as_bytes()[..40])?;
    let mut writer = ExportWriter::begin(Vec::new(), &note, frontier.size())?;
    for leaf in &leaves {
        writer.leaf(leaf, leaf_hash(leaf))?;
    }
    writer.tensor_from(Digest::of(&adapter), adapter.len() as u64, &adapter[..])?;
    let export = writer.finish()?;
    keep("export", "whole", &export)?;
    keep("export", "cut", &export[..export.len() / 2])?;
    keep("tensors", "initial", &adapter)?;
    keep("tensors", "cut", &adapter[..adapter.len() - 1])?;
    keep("manifest", "written", MANIFEST.as_bytes())?;
    keep("manifest", "travelled", &RunManifest::from_toml(MANIFEST)?.to_json())?;
    keep("manifest", "cut", &MANIFEST.as_bytes()[..60])?;
    let kit = kit_file(Digest::of(b"root"));
    keep("kit", "whole", kit.as_bytes())?;
    keep("kit", "cut", &kit.as_bytes()[..60])
}

fn main() -> Done {
    files()?;
    log()?;
    dicom::write()?;
    tables::write()?;
    tiff::write()?;
    wire::write()
}
