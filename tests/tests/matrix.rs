//! Every adaptation with every task on every way of storing images, as far as they go together, each
//! in a federation of real processes. `docs/matrix.md` is what this test says it ran;
//! `TRIBUTARY_WRITE_MATRIX=1 cargo test -p tributary-tests --test matrix` writes it anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tributary_deploy::SiteOptions;
use tributary_tests::images::{CLASSES, Storage, backbone};
use tributary_tests::{Scratch, read_adapter, seats};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/matrix.md");
/// Images at each site.
const CASES: usize = 24;

const ADAPTATIONS: [(&str, &str); 12] = [
    ("LoRA", r#"kind = "lora", rank = 2, alpha = 4.0, targets = "qv""#),
    (
        "rsLoRA, all maps",
        r#"kind = "lora", rank = 2, alpha = 4.0, scaling = "rslora", targets = "all_linear""#,
    ),
    ("DoRA", r#"kind = "lora", rank = 2, alpha = 4.0, dora = true, targets = "qkvo""#),
    (
        "LoRA, last block",
        r#"kind = "lora", rank = 2, alpha = 4.0, targets = "mlp", last_blocks = 1"#,
    ),
    ("Houlsby", r#"kind = "houlsby", bottleneck = 4"#),
    ("AdaptFormer", r#"kind = "adaptformer", bottleneck = 4"#),
    ("prompts, shallow", r#"kind = "prompts", prompts = 2"#),
    ("prompts, deep", r#"kind = "prompts", prompts = 2, deep = true"#),
    ("BitFit", r#"kind = "bitfit""#),
    ("last block", r#"kind = "last_blocks", last_blocks = 1"#),
    ("everything", r#"kind = "full""#),
    ("head only", r#"kind = "head_only""#),
];

const HEADS: [(&str, &str); 3] = [
    ("", r#"kind = "linear""#),
    (", MLP", r#"kind = "mlp", hidden = 8"#),
    (", attention", r#"kind = "attention_pool""#),
];

/// What is learnt.
struct Learning {
    name: &'static str,
    task: String,
    more: &'static str,
    stored: &'static [Storage],
    /// Whether the run may choose its head.
    headed: bool,
    labelled: bool,
}

fn learnings() -> Vec<Learning> {
    use Storage::{Dicom, Nifti, Patches, Png, Slide};
    let classes = format!("classes = {CLASSES:?}");
    let labelled = |name, task: String, more, stored, headed| Learning {
        name,
        task,
        more,
        stored,
        headed,
        labelled: true,
    };
    let unlabelled = |name, objective: &str, more| Learning {
        name,
        task: format!("kind = \"self_supervised\"\nobjective = {objective}"),
        more,
        stored: &Storage::ALL,
        headed: false,
        labelled: false,
    };
    let files: &[Storage] = &[Png, Dicom, Nifti, Patches, Slide];
    let gathered: &[Storage] = &[Slide, Patches, Nifti, Png, Dicom];
    let pictures: &[Storage] = &[Png, Dicom];
    let kind = |kind: &str| format!("kind = \"{kind}\"\n{classes}");
    let views = "augment = { crop_area_min = 0.4, flip_horizontal = true, gain = 0.2 }";
    vec![
        labelled("binary", kind("binary"), "", &Storage::ALL, true),
        labelled(
            "multi-class",
            kind("multi_class"),
            "class_weights = \"balanced\"",
            &Storage::ALL,
            true,
        ),
        labelled("multi-label", kind("multi_label"), "", files, true),
        labelled("ordinal", kind("ordinal"), "", &Storage::ALL, true),
        labelled("survival", "kind = \"survival\"".to_owned(), "", files, true),
        labelled("segmentation", kind("segmentation"), "", pictures, false),
        labelled(
            "segmentation, convolutional",
            format!(
                "{}\ndecoder = {{ kind = \"convolutional\", channels = 4 }}",
                kind("segmentation")
            ),
            "augment = { flip_horizontal = true, rotate_90 = true }",
            pictures,
            false,
        ),
        labelled("bags", kind("binary"), "[bags]\nattention_width = 4", gathered, true),
        unlabelled("MAE", "{ kind = \"mae\", decoder_width = 32 }", ""),
        unlabelled("SimCLR", "{ kind = \"simclr\", hidden = 8, projection = 4 }", views),
        unlabelled(
            "DINO",
            "{ kind = \"dino\", hidden = 8, projection = 4, prototypes = 8 }",
            views,
        ),
    ]
}

/// One cell of the table.
struct Cell {
    run: String,
    said: String,
    manifest: String,
}

fn cell(row: usize, column: usize, learning: &Learning, backbone: &str) -> Option<Cell> {
    let (name, adaptation) = ADAPTATIONS[row];
    if name == "head only" && !learning.labelled {
        return None;
    }
    let stored = learning.stored[(row + column) % learning.stored.len()];
    let (head_name, head) = if learning.headed { HEADS[(row + 2 * column) % 3] } else { HEADS[0] };
    let run = format!("a{row}-t{column}");
    let sites: Vec<String> = (0..2).map(|site| site_name(stored, site)).collect();
    let (training, tables) = match learning.more.starts_with('[') {
        true => ("", learning.more),
        false => (learning.more, ""),
    };
    let head = if learning.headed { format!("head = {{ {head} }}") } else { String::new() };
    let manifest = format!(
        "schema_version = 1\nname = \"{run}\"\nadapter = {{ {adaptation} }}\n{head}\n\
         rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 60 }}\n\
         quorum = {{ sites = 2 }}\ncohort = {{ sites = {sites:?} }}\n\
         [task]\n{task}\n\
         [training]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.01\nholdout = 0.25\nseed = 1\n\
         {training}\n{tables}\n{backbone}",
        task = learning.task,
    );
    Some(Cell { run, said: format!("{}{head_name}", stored.as_str()), manifest })
}

fn site_name(stored: Storage, number: usize) -> String {
    format!("{}-{number}", stored.as_str().to_lowercase())
}

#[test]
fn everything_that_goes_together_runs_in_a_federation() {
    let mut scratch = Scratch::found();
    let folder = scratch.folder.path().to_owned();
    let mut images = BTreeMap::new();
    for stored in Storage::ALL {
        for number in 0..2 {
            let name = site_name(stored, number);
            let data = stored.write(&folder.join("images").join(&name), CASES, number as u64);
            images.insert(name, (data, stored.reading()));
        }
    }
    let (file, tables) = backbone(&folder, &images["png-0"].0);
    for (name, (data, reading)) in images {
        let options = SiteOptions {
            data: Some(data),
            reading,
            backbone: Some(file.clone()),
            threads: Some(1),
            ..SiteOptions::default()
        };
        scratch.federation.enroll(&name, &options).unwrap();
    }
    scratch.start_sites();
    a_breach_of_the_datas_contract_reaches_the_operator(&scratch, &tables);
    let learnings = learnings();
    let mut cells = Vec::new();
    for row in 0..ADAPTATIONS.len() {
        for (column, learning) in learnings.iter().enumerate() {
            cells.push((row, cell(row, column, learning, &tables)));
        }
    }
    let asked: Vec<&Cell> = cells.iter().filter_map(|(_, cell)| cell.as_ref()).collect();
    asked.iter().for_each(|cell| scratch.start_run(&cell.manifest));
    let failed: Vec<String> = asked.iter().filter_map(|cell| trouble(&scratch, cell)).collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), asked.len(), failed.join("\n"));
    let page = page(&learnings, &cells);
    if std::env::var_os("TRIBUTARY_WRITE_MATRIX").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(PAGE).unwrap(), page, "docs/matrix.md is of another test");
}

/// A site whose images are not what the run asks for declines with the demand that does not hold,
/// and with no name of a file or a patient; the other one goes on.
fn a_breach_of_the_datas_contract_reaches_the_operator(scratch: &Scratch, backbone: &str) {
    let learning = &learnings()[0];
    let cell = cell(0, 0, learning, backbone).unwrap();
    let manifest = cell
        .manifest
        .replace(&cell.run, "contract")
        .replace("\"png-1\"", "\"dicom-0\"")
        .replace("quorum = { sites = 2 }", "quorum = { sites = 1 }");
    scratch.start_run(&format!("{manifest}\n[data]\nmodalities = [\"CR\"]\n"));
    let show = scratch.finish("contract");
    assert_eq!(show["state"], "completed_partial", "{show}");
    let seats = seats(&show, 1);
    let (site, state, detail) = seats.iter().find(|(site, ..)| site == "png-0").unwrap();
    assert_eq!(state, "declined", "{site}: {detail}");
    assert!(
        detail.ends_with("10 or more cases of another or unknown modality than CR"),
        "{detail}"
    );
}

/// What is wrong with how a run ended, if anything is.
fn trouble(scratch: &Scratch, cell: &Cell) -> Option<String> {
    let show = scratch.finish(&cell.run);
    let said = |what: &str| Some(format!("{} ({}): {what}\n{show}", cell.run, cell.said));
    if show["state"] != "completed" {
        return said("did not complete");
    }
    let versions = [0, 1].map(|version: u32| {
        let out = scratch.folder.path().join(format!("pulled-{}-{version}", cell.run));
        let (number, path) = (version.to_string(), out.to_string_lossy().into_owned());
        let pull = ["run", "pull", &cell.run, "--version", &number, "--out", &path];
        scratch.federation.operator(pull).unwrap();
        read_adapter(&out, version)
    });
    let finite = versions[1].iter().flatten().all(|value| value.is_finite());
    let stayed = versions[0].iter().zip(&versions[1]).filter(|(before, after)| before == after);
    match (finite, stayed.count()) {
        (false, _) => said("the adapter is not finite"),
        (true, 0) => None,
        (true, tensors) => said(&format!("{tensors} tensors stayed as they were")),
    }
}

fn page(learnings: &[Learning], cells: &[(usize, Option<Cell>)]) -> String {
    let mut page = "# What runs with what\n\n\
        Every adaptation with every task, as far as they go together, each as a run of its own in one federation of real\n\
        processes: a coordinator and two sites for each way of storing images. A cell names how the two sites of its run\n\
        store theirs and, where it is not linear, the head; a dash is a combination that is refused. Each run completed\n\
        with both sites, and every trained tensor moved. Written and checked by `cargo test -p tributary-tests --test\n\
        matrix`; with `TRIBUTARY_WRITE_MATRIX=1` it writes this page.\n\n| |"
        .to_owned();
    for learning in learnings {
        write!(page, " {} |", learning.name).unwrap();
    }
    page += "\n|---|";
    page += &"---|".repeat(learnings.len());
    for (row, (name, _)) in ADAPTATIONS.iter().enumerate() {
        write!(page, "\n| {name} |").unwrap();
        for (_, cell) in cells.iter().filter(|(of, _)| *of == row) {
            let said = cell.as_ref().map_or("-", |cell| cell.said.as_str());
            write!(page, " {said} |").unwrap();
        }
    }
    page + "\n"
}
