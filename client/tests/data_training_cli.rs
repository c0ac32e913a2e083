//! The training commands read images as `site.toml` says.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn client(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-client"));
    command.args(line.split_whitespace()).current_dir(folder).output().expect("runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// A folder with a slide, a broken one and a volume, and a site.toml about it.
fn site() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("created");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for file in ["slides/lossless.tif", "slides/flat.tif", "nifti/ras.nii"] {
        let name = Path::new(file).file_name().expect("a name");
        fs::copy(fixtures.join(file), images.join(name)).expect("copied");
    }
    let labels = "file,patient,label\nlossless.tif,a,x\nflat.tif,b,y\nras.nii,c,y\n";
    fs::write(images.join("labels.csv"), labels).expect("written");
    let site = "directory = \".\"\npolicy = \"policy.toml\"\n[data]\npath = \"images\"\n[data.reading]\n\
                refused_share_max = 0.1\npatches = { size = 8.0, stride = 8.0 }\n\
                slides = { mpp = 0.5, tile = 64 }\n";
    fs::write(folder.path().join("site.toml"), site).expect("written");
    folder
}

const SHAPE: &str = "--image-size 16 --patch-size 8 --width 32 --depth 1 --heads 1 --epochs 1";

#[test]
fn pretrain_and_probe_read_what_site_toml_says() {
    let folder = site();
    let pretrain = format!("pretrain {SHAPE} --format json --out b.safetensors");
    let done = client(folder.path(), &format!("{pretrain} --config site.toml"));
    // 25 tiles and 1 x 2 x 2 patches; the slide without tissue is left out and named.
    assert_eq!(json(&done)["data"]["images"], 29, "{done:?}");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        told.contains("refused: ") && told.contains("flat.tif: no tile of 64 pixels"),
        "{told}"
    );

    let probe = "probe --backbone b.safetensors --classes x,y --holdout 0.5 --format json";
    let done =
        client(folder.path(), &format!("{probe} --config site.toml --data images/labels.csv"));
    let data = &json(&done)["data"];
    let cases = data["train_cases"].as_u64().zip(data["holdout_cases"].as_u64());
    assert_eq!(cases.map(|(train, holdout)| train + holdout), Some(29), "{done:?}");
}

/// `data inspect` used to want a path beside the `site.toml` that names it.
#[test]
fn site_toml_names_the_images_to_look_at() {
    let folder = site();
    let look = client(folder.path(), "data inspect --config site.toml --format json --lenient");
    let by_path = "data inspect images --config site.toml --format json --lenient";
    let (found, again) = (json(&look), json(&client(folder.path(), by_path)));
    for fact in ["cases", "refused_count", "levels"] {
        assert_eq!(found["data"][fact], again["data"][fact], "{look:?}");
    }
    assert_eq!(found["data"]["cases"], 29);
    let nothing = client(folder.path(), "data inspect");
    let told = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(nothing.status.code() == Some(4) && told.contains("PATH"), "{told}");
    fs::write(folder.path().join("site.toml"), "directory = \".\"\npolicy = \"p\"\n").expect("ok");
    let nothing = client(folder.path(), "data inspect --config site.toml");
    let told = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(told.contains("the site.toml has no [data]"), "{told}");
}

#[test]
fn without_images_or_a_usable_site_toml_it_is_one_line() {
    let folder = site();
    let pretrain = format!("pretrain {SHAPE} --out b.safetensors");
    let nothing = client(folder.path(), &pretrain);
    assert_eq!(nothing.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("--data"), "{nothing:?}");
    fs::write(folder.path().join("site.toml"), "directory = \".\"\npolicy = \"p\"\n").expect("ok");
    let nothing = client(folder.path(), &format!("{pretrain} --config site.toml"));
    let line = String::from_utf8_lossy(&nothing.stderr);
    assert!(line.contains("the site.toml has no [data]; name images with --data"), "{line}");
    // The usual way reads slides at 224 pixels of 0.5 um and volumes by slices.
    let usual = client(folder.path(), &format!("{pretrain} --data images"));
    let line = String::from_utf8_lossy(&usual.stderr);
    assert!(line.contains("1 of 7 images refused, more than"), "{line}");
}

#[test]
fn a_probe_says_which_labels_it_is_judged_on() {
    let folder = TempDir::new().expect("a folder");
    for (task, instead) in [
        ("ordinal", "probe grades as --task multi-class"),
        ("survival", "train a run of that task"),
        ("segmentation", "train a run of that task"),
        ("bags", "train a run of that task"),
        ("colour", "multi-label labels"),
    ] {
        let line = format!("probe --backbone b --data d --classes x,y --task {task} --format json");
        let done = client(folder.path(), &line);
        assert_eq!(done.status.code(), Some(4), "{done:?}");
        let message = json(&done)["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("judged on binary, multi-class or multi-label"), "{message}");
        assert!(message.contains(instead), "{message}");
    }
}
