//! Calls whose caller is gone: a site that is killed takes the future of its call with it.

use std::path::Path;

use tributary_proto::channel::Role;

use super::*;

async fn driver(directory: &Path) -> Driver {
    let store = Store::open(&directory.join("tributary.db")).await.unwrap();
    let blobs = Blobs::at(directory).unwrap();
    let (connections, stop) = (Connections::default(), CancellationToken::new());
    let space = Space::of(&[directory], Some(1 << 20));
    Driver::start(store, blobs, connections, space, stop).await.unwrap()
}

fn rehearsal(name: &str) -> RunManifest {
    RunManifest::from_toml(&format!(
        "schema_version = 1
        name = '{name}'
        task = {{ kind = 'rehearsal', payload_bytes = 16 }}
        rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 30 }}
        quorum = {{ sites = 1 }}"
    ))
    .unwrap()
}

fn operator() -> Member {
    Member { role: Role::Operator, name: "anna".parse().unwrap() }
}

fn stop(reason: &str) -> Command {
    Command::Stop { reason: reason.to_owned() }
}

/// Asks, and is gone before the answer.
async fn hang_up<T>(call: impl Future<Output = T>) {
    tokio::select! {
        biased;
        _ = call => panic!("this call answers without waiting for anything"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn a_command_whose_caller_is_gone_is_carried_out_whole() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    driver.start_run(rehearsal("run"), &operator()).await.unwrap();
    let run = driver.run(&"run".parse().unwrap()).await.unwrap();
    hang_up(run.command(&driver, stop("first"))).await;
    // Decided on what the first command left, not taken for another coordinator's write.
    let second = run.command(&driver, stop("second")).await.unwrap_err();
    assert!(matches!(second, DriverError::Refused(_)), "{second:?}");
    assert!(!driver.stopping().is_cancelled());
}

#[tokio::test]
async fn a_run_whose_operator_is_gone_is_started_whole() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path()).await;
    hang_up(driver.start_run(rehearsal("run"), &operator())).await;
    let again = driver.start_run(rehearsal("run"), &operator()).await.unwrap_err();
    assert!(matches!(again, DriverError::RunExists(_)), "{again:?}");
    driver.run(&"run".parse().unwrap()).await.expect("the run lives in this process too");
}
