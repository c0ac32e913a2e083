//! Keys of `[rounds]` that came later: runs from before keep their digests.

use tributary_shared::manifest::RunManifest;

fn manifest(rounds: &str) -> Result<RunManifest, String> {
    let text = format!(
        "schema_version = 1
        name = 'run'
        task = {{ kind = 'rehearsal', payload_bytes = 16 }}
        rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 30 {rounds} }}
        quorum = {{ sites = 1 }}"
    );
    RunManifest::from_toml(&text).map_err(|e| e.to_string())
}

#[test]
fn a_manifest_without_the_later_keys_keeps_its_bytes() {
    let before = manifest("").unwrap();
    assert_eq!((before.rounds.void_pause_s, before.rounds.answer_timeout_s), (60, 30));
    let json = String::from_utf8(before.to_json()).unwrap();
    assert!(!json.contains("void_pause_s") && !json.contains("answer_timeout_s"), "{json}");
    let same = manifest(", void_pause_s = 60, answer_timeout_s = 30").unwrap();
    assert_eq!(same.digest(), before.digest());
    let other = manifest(", void_pause_s = 0, answer_timeout_s = 5").unwrap();
    assert_ne!(other.digest(), before.digest());
    assert_eq!(RunManifest::from_json(&other.to_json()).unwrap(), other);
}

#[test]
fn an_answer_timeout_of_nothing_is_refused() {
    let refused = manifest(", answer_timeout_s = 0").unwrap_err();
    assert!(refused.contains("rounds.answer_timeout_s"), "{refused}");
}
