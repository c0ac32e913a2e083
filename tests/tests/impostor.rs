//! A coordinator that turns hostile while a site trains, with all the keys of the true one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::Value;
use tributary_proto::calls::Call;
use tributary_tests::impostor::Impostor;
use tributary_tests::{PATIENCE, RehearsalRun, Scratch};

/// Kinds of the entries in a site's ledger.
fn ledger(scratch: &Scratch) -> Vec<String> {
    let site = &scratch.federation.sites()[0];
    let ledger = fs::read_to_string(site.directory.join("ledger.jsonl")).unwrap();
    let entries = ledger.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect()
}

/// The head is true when the round is proved and forged when the delta is ready: the site looks once more.
#[tokio::test(flavor = "multi_thread")]
async fn no_delta_leaves_under_a_head_that_was_forged_while_a_site_trained() {
    let scratch = tokio::task::spawn_blocking(|| Scratch::with_powers_of_two(1));
    let mut scratch = scratch.await.unwrap();
    scratch.start_run(&RehearsalRun::new("forged", 1, 1).to_toml());
    let impostor = Impostor::before(&scratch, 0, Call::SiteAcceptTerms).await;
    let address = [("TRIBUTARY__ADDRESS", impostor.address.as_str())];
    scratch.federation.start_site_with(0, &address).unwrap();
    let site = scratch.federation.sites()[0].process().unwrap();
    let refused = |line: &str| line.contains("call the consortium");
    tokio::task::block_in_place(|| site.wait_stderr(PATIENCE, refused)).unwrap();
    let has = |kind: &str| ledger(&scratch).iter().any(|entry| entry == kind);
    assert!(has("trained") && !has("released"), "{:?}", ledger(&scratch));
    let deliveries = [Call::SiteUploadStatus, Call::SiteUpload, Call::SiteSubmit];
    let made = impostor.calls();
    assert!(made.contains(&Call::SiteAcceptTerms), "{made:?}");
    assert!(!made.iter().any(|call| deliveries.contains(call)), "{made:?}");

    impostor.stop_forging();
    let show = tokio::task::block_in_place(|| scratch.finish("forged"));
    assert_eq!(show["state"], "completed", "{show}");
    assert!(has("released") && has("answered"), "{:?}", ledger(&scratch));
    let made = impostor.calls();
    assert!(made.contains(&Call::SiteSubmit), "{made:?}");
}
