//! Fixtures that several tests of the site share.

use tributary_shared::manifest::RunManifest;

/// The manifest of a rehearsal `name` of two rounds and ten values.
pub(super) fn rehearsal(name: &str) -> RunManifest {
    RunManifest::from_toml(&format!(
        r#"
        schema_version = 1
        name = "{name}"
        task = {{ kind = "rehearsal", payload_bytes = 40 }}
        quorum = {{ sites = 1 }}
        rounds = {{ count = 2, round_deadline_s = 60, stall_timeout_s = 60 }}
        "#
    ))
    .unwrap()
}
