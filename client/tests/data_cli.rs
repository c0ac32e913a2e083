//! `tributary-client data` as a person types it.

use clap::Parser;
use tempfile::TempDir;
use tributary_client::cli::Format;
use tributary_client::cli::data::{self, DataCommand};
use tributary_shared::outcome::{ExitCode, Failure};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(subcommand)]
    command: DataCommand,
}

fn run(line: &str) -> Result<(), Failure> {
    let line = Line::try_parse_from(std::iter::once("data").chain(line.split(' ')));
    data::run(line.expect("parses").command, Format::Json)
}

#[test]
fn draw_look_and_divide() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    let synth = "synth --modality chest-xray --sites 1 --patients 8 --size 16 --seed 3";
    run(&format!("{synth} --out {at}/drawn")).expect("draws");
    run(&format!("check {at}/drawn/site-1 --classes clear,nodule")).expect("counts");
    run(&format!("inspect {at}/drawn/site-1/labels.csv")).expect("counts");
    run(&format!("split {at}/drawn/site-1 --sites 2 --out {at}/divided")).expect("divides");
    run(&format!("inspect {at}/divided/site-2")).expect("counts");
    // What site.toml names needs no path.
    let toml = "directory = \".\"\npolicy = \"p\"\ndata = { path = \"drawn/site-1\" }\n";
    std::fs::write(folder.path().join("site.toml"), toml).expect("written");
    run(&format!("split --sites 2 --config {at}/site.toml --out {at}/again")).expect("divides");
    run(&format!("inspect {at}/again/site-2")).expect("counts");

    let again = run(&format!("{synth} --out {at}/drawn")).expect_err("refused");
    assert_eq!((again.exit, again.code), (ExitCode::Invalid, "not_empty"));
}

#[test]
fn what_would_be_refused_is_exit_code_4_and_the_first_reason() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    std::fs::write(folder.path().join("bad.png"), b"").expect("written");
    let csv = "file,patient,label\nbad.png,p,ill\nnone.png,q,ill\n";
    std::fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let failure = run(&format!("check {at} --classes ill,well")).expect_err("refused");
    assert_eq!(failure.exit, ExitCode::Invalid);
    let real = folder.path().canonicalize().expect("there").display().to_string();
    assert_eq!(
        failure.to_string().replace(&real, "DIR"),
        "2 of 2 images would be refused, the first: DIR/labels.csv, line 3: `none.png` does not exist \
         in the folder"
    );
}

#[test]
fn a_missing_run_file_is_one_line() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display().to_string();
    let failure = run(&format!("check {at} --run {at}/run.toml")).expect_err("refused");
    assert_eq!(failure.to_string().replace(&at, "DIR"), "DIR/run.toml: No such file or directory");
}

#[test]
fn a_page_is_written_once_escapes_names_and_asks_for_nothing_outside() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    let name = "<img src=x onerror='1'>&.png";
    let ramp = image::GrayImage::from_fn(40, 40, |x, y| image::Luma([(3 * x + y) as u8]));
    ramp.save(folder.path().join(name)).expect("saved");
    ramp.save(folder.path().join("copy.png")).expect("saved");
    image::RgbImage::from_pixel(200, 20, image::Rgb([9, 9, 9]))
        .save(folder.path().join("strip.png"))
        .expect("saved");
    let csv = format!(
        "file,patient,label\n{name},p,<b>ill</b>\ncopy.png,q,<b>ill</b>\nstrip.png,r,well\n"
    );
    std::fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let line = format!("inspect {at} --html {at}/page.html");
    run(&line).expect("writes");
    let page = std::fs::read_to_string(folder.path().join("page.html")).expect("there");
    for there in [
        "It must stay at this site",
        "default-src 'none'",
        "&lt;b&gt;ill&lt;/b&gt;",
        "&lt;img src=x onerror=&#39;1&#39;&gt;&amp;.png",
        "different patients",
        "grey and colour pictures are mixed",
        "grey pictures stored as colour",
        "one side more than 3 times the other",
        "flat: nearly all pixels of one level",
    ] {
        assert!(page.contains(there), "{there}");
    }
    for never in ["<b>ill", "<img src=x", "http:", "https:", "<script", "url("] {
        assert!(!page.contains(never), "{never}");
    }
    assert_eq!(page.matches("data:image/png;base64,").count(), 3);
    let again = run(&line).expect_err("refused");
    assert_eq!(
        again.to_string().replace(&at.to_string(), "DIR"),
        "DIR/page.html exists; name another file for --html"
    );
}

#[test]
fn refusals_up_to_the_share_that_training_allows_are_no_failure_when_lenient() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    let mut csv = "file,patient,label\n".to_owned();
    for index in 0..20u8 {
        let image = image::GrayImage::from_pixel(40, 40, image::Luma([index]));
        image.save(folder.path().join(format!("{index}.png"))).expect("saved");
        csv += &format!("{index}.png,p{index},{}\n", if index < 9 { "ill" } else { "well" });
    }
    std::fs::write(folder.path().join("19.png"), b"").expect("written");
    std::fs::write(folder.path().join("labels.csv"), &csv).expect("written");
    run(&format!("inspect {at} --lenient")).expect("one in twenty");
    assert_eq!(run(&format!("inspect {at}")).expect_err("strict").code, "data_refused");
    std::fs::write(folder.path().join("18.png"), b"").expect("written");
    let failure = run(&format!("inspect {at} --lenient")).expect_err("two in twenty");
    assert_eq!((failure.exit, failure.code), (ExitCode::Invalid, "data_refused"));
}

#[test]
fn files_are_divided_as_the_site_reads_them() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path().display();
    let slides = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slides");
    for name in ["lossless.tif", "aperio.svs"] {
        std::fs::copy(slides.join(name), folder.path().join(name)).expect("copied");
    }
    let csv = "file,patient,label\nlossless.tif,p,ill\naperio.svs,q,well\n";
    std::fs::write(folder.path().join("labels.csv"), csv).expect("written");
    let split = |slides: &str, out: &str| {
        let site = format!(
            "directory = \".\"\npolicy = \"policy.toml\"\n[data]\npath = \".\"\n[data.reading]\n\
             slides = {{ {slides} }}\n"
        );
        std::fs::write(folder.path().join("site.toml"), site).expect("written");
        run(&format!("split {at} --sites 2 --config {at}/site.toml --out {at}/{out}"))
    };
    let finer = split("mpp = 0.25, tile = 64", "finer").expect_err("refused").to_string();
    assert!(finer.contains("has 0.5000 um a pixel; it cannot show 0.25"), "{finer}");
    split("mpp = 0.5, tile = 64", "out").expect("divides");
    for name in ["lossless.tif", "aperio.svs"] {
        let at = ["site-1", "site-2"].map(|site| folder.path().join("out").join(site).join(name));
        assert_eq!(at.iter().filter(|path| path.exists()).count(), 1, "{name}");
    }
}
