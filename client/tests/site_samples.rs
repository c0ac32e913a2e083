//! The commented samples that `enroll` writes and the documents quote.

use std::path::Path;

use tributary_client::config::policy::{Backbones, Policy};
use tributary_client::config::site::SiteConfig;

fn sample(name: &str) -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    let text = std::fs::read_to_string(&path).expect("the repository holds the samples");
    (path, text)
}

/// The sample with every key that is only shown in a comment switched on.
fn uncommented(text: &str) -> String {
    let switched = |line: &str| {
        let bare = line.trim_start().trim_start_matches("# ");
        let key = bare.split(" = ").next().unwrap_or("");
        let is_key = bare.contains(" = ")
            && !key.is_empty()
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let is_digest = bare.starts_with("\"sha256:");
        if is_key || is_digest { bare.to_owned() } else { line.to_owned() }
    };
    text.lines().map(switched).collect::<Vec<_>>().join("\n")
}

#[test]
fn site_toml_parses_as_written_and_with_every_key() {
    let (path, text) = sample("site.toml");
    let config = SiteConfig::from_toml(&path, &text, &[]).unwrap();
    assert!(config.directory.ends_with("deploy/."));
    assert_eq!(config.proxy, None);
    let all = SiteConfig::from_toml(&path, &uncommented(&text), &[]).unwrap();
    assert!(all.proxy.is_some() && all.address.is_some());
    assert_eq!(all.device.threads, Some(8));
    assert_eq!(all.rehearsal.coordinate, Some(0));
    assert_eq!(all.data.unwrap().manifest.as_deref(), Some("labels-2026.csv"));
}

#[test]
fn policy_toml_parses_as_written_and_with_every_key() {
    let (path, text) = sample("policy.toml");
    let policy = Policy::from_toml(&path, &text).unwrap();
    // What `enroll` writes trains nothing until the site allows a backbone.
    assert_eq!(policy.backbones, Backbones::Listed([].into()));
    let all = uncommented(&text);
    assert!(all.contains("\nhours = ") && all.contains("\nutc_offset = "), "{all}");
    let all = Policy::from_toml(&path, &all).unwrap();
    assert!(matches!(all.backbones, Backbones::Listed(listed) if listed.len() == 1));
}

#[test]
fn a_sample_stays_in_step_with_what_it_explains() {
    // Every key that the program knows is named in the sample.
    let (path, text) = sample("site.toml");
    let unknown = format!("unknown_key = 1\n{text}");
    let error = SiteConfig::from_toml(&path, &unknown, &[]).unwrap_err().to_string();
    for key in error.split('`').skip(1).step_by(2).filter(|k| *k != "unknown_key") {
        assert!(text.contains(key), "{key} is not explained in site.toml");
    }
    let (path, text) = sample("policy.toml");
    let unknown = format!("unknown_key = 1\n{text}");
    let error = Policy::from_toml(&path, &unknown).unwrap_err().to_string();
    for key in error.split('`').skip(1).step_by(2).filter(|k| *k != "unknown_key") {
        assert!(text.contains(key), "{key} is not explained in policy.toml");
    }
}
