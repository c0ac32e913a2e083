//! The commented samples in `deploy/` are read by the code that reads the real files.

use std::path::Path;

use tributary_coordinator::config::CoordinatorConfig;
use tributary_shared::manifest::RunManifest;

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    std::fs::read_to_string(path).expect("the sample is there")
}

#[test]
fn the_sample_configuration_parses_and_shows_the_defaults() {
    let file = Path::new("/srv/coordinator.toml");
    let config = CoordinatorConfig::from_toml(file, &sample("coordinator.toml"), &[]).unwrap();
    assert_eq!(config.address.as_deref(), Some("coordinator.example.org:8443"));
    let least = "directory = \".\"\naddress = \"coordinator.example.org:8443\"";
    assert_eq!(config, CoordinatorConfig::from_toml(file, least, &[]).unwrap());
}

#[test]
fn the_sample_run_parses_and_every_optional_key_is_in_it() {
    let sample = sample("run.toml");
    // As it stands it asks nothing of the sites' images: most files say nothing of their modality.
    assert_eq!(RunManifest::read_toml(&sample).unwrap().data, None);
    let text = switched_on(&sample);
    let manifest = RunManifest::read_toml(&text).unwrap();
    // Untouched, it names no backbone.
    let found = manifest.problems();
    let keys_of: Vec<&str> = found.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys_of, ["backbone.digest"]);
    // What is written back has the same keys: none is missing from the sample.
    let written: toml::Table = toml::from_str(&text).unwrap();
    let meant: toml::Table = toml::from_str(&toml::to_string(&manifest).unwrap()).unwrap();
    assert_eq!(keys("", &written), keys("", &meant));
}

#[test]
fn the_sample_rehearsal_parses_and_asks_for_no_model() {
    let manifest = RunManifest::from_toml(&sample("rehearsal.toml")).unwrap();
    assert!(manifest.backbone.is_none() && manifest.cohort.is_none());
    // Before, it needed one site, which the sample policy refuses.
    let policy: toml::Table = toml::from_str(&sample("policy.toml")).unwrap();
    assert_eq!(policy["cohort_min"].as_integer(), Some(i64::from(manifest.quorum.sites)));
}

/// The sample with what stands in comments: tables, and keys with their values.
fn switched_on(text: &str) -> String {
    let code = |line: &str| {
        let bare = line.strip_prefix("# ")?;
        let key = bare.split(" = ").next().filter(|key| bare.len() > key.len());
        let is_key = key.is_some_and(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        (is_key || (bare.starts_with('[') && bare.ends_with(']'))).then(|| bare.to_owned())
    };
    text.lines().map(|line| code(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
    let mut all: Vec<String> = table
        .iter()
        .flat_map(|(key, value)| {
            let path = format!("{prefix}{key}");
            match value.as_table() {
                Some(inner) => keys(&format!("{path}."), inner),
                None => vec![path],
            }
        })
        .collect();
    all.sort();
    all
}
