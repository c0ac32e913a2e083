//! Sites at the worst moment: killed while they learn without labels, and without room on the disk.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use tributary_deploy::SiteOptions;
use tributary_tests::images::{Storage, backbone};
use tributary_tests::{PATIENCE, RehearsalRun, Scratch, read_adapter, seats};

fn accepted(scratch: &Scratch, run: &str) {
    let show = scratch.finish(run);
    assert_eq!(show["state"], "completed", "{show}");
    let seats = seats(&show, 1);
    assert_eq!(seats.len(), 2, "{seats:?}");
    assert!(seats.iter().all(|(_, state, _)| state == "accepted"), "{seats:?}");
}

fn pulled(scratch: &Scratch, run: &str) -> Vec<Vec<f32>> {
    let out = scratch.folder.path().join(format!("pulled-{run}"));
    let pull = ["run", "pull", run, "--version", "1", "--out", out.to_str().unwrap()];
    scratch.federation.operator(pull).unwrap();
    read_adapter(&out, 1)
}

/// What a site's ledger says of a run.
fn entries(site: &Path, run: &str) -> Vec<String> {
    let ledger = fs::read_to_string(site.join("ledger.jsonl")).unwrap();
    ledger.lines().filter(|line| line.contains(run)).map(str::to_owned).collect()
}

#[test]
fn a_site_killed_while_it_learns_without_labels_trains_again_and_counts_once() {
    let mut scratch = Scratch::found();
    let folder = scratch.folder.path().to_owned();
    let data: Vec<_> = (0..2u64)
        .map(|site| Storage::Png.write(&folder.join(format!("images-{site}")), 24, site))
        .collect();
    let (file, tables) = backbone(&folder, &data[0]);
    for (site, data) in data.into_iter().enumerate() {
        let (data, backbone) = (Some(data), Some(file.clone()));
        let options = SiteOptions { data, backbone, threads: Some(1), ..SiteOptions::default() };
        scratch.federation.enroll(&format!("site-{site}"), &options).unwrap();
    }
    scratch.start_sites();
    let manifest = |name: &str| {
        format!(
            "schema_version = 1\nname = \"{name}\"\n\
             adapter = {{ kind = \"lora\", rank = 2, alpha = 4.0, targets = \"qv\" }}\n\
             rounds = {{ count = 1, round_deadline_s = 100, stall_timeout_s = 60 }}\n\
             quorum = {{ sites = 2 }}\n\
             [task]\nkind = \"self_supervised\"\n\
             objective = {{ kind = \"dino\", hidden = 8, projection = 4, prototypes = 8 }}\n\
             [training]\nepochs = 60\nbatch_size = 8\nlearning_rate = 0.01\nholdout = 0.25\n\
             seed = 1\naugment = {{ crop_area_min = 0.4, flip_horizontal = true, gain = 0.2 }}\n\
             {tables}"
        )
    };
    scratch.start_run(&manifest("quiet"));
    accepted(&scratch, "quiet");

    scratch.start_run(&manifest("storm"));
    let mut history = scratch.federation.follow("storm").unwrap();
    history.until(PATIENCE, |e| e.is("terms_accepted", 1) && e.site() == "site-1").unwrap();
    scratch.federation.kill_site(1);
    let site = scratch.federation.sites()[1].directory.clone();
    let before = entries(&site, "storm");
    assert!(before.len() == 1 && before[0].contains("agreed"), "not while training: {before:?}");
    scratch.federation.start_site(1).unwrap();
    accepted(&scratch, "storm");
    let after = entries(&site, "storm");
    let trained = after.iter().filter(|line| line.contains("\"trained\"")).count();
    assert_eq!(trained, 1, "{after:?}");
    // Both sites' work, each once, the same bits as undisturbed.
    assert_eq!(pulled(&scratch, "storm"), pulled(&scratch, "quiet"));
    assert_eq!(scratch.audit()["verified"], true);
}

#[test]
fn a_site_without_room_for_its_delta_says_so_and_goes_on_when_there_is_some() {
    let mut scratch = Scratch::with_powers_of_two(2);
    scratch.start_sites();
    scratch.start_run(&RehearsalRun::new("room", 1, 2).to_toml());
    accepted(&scratch, "room");
    // As much room as the base adapter needs, which is fetched first, and less than a delta does.
    let site = scratch.federation.sites()[1].directory.clone();
    let bases = fs::read_dir(site.join("adapters")).unwrap();
    let room = bases.map(|base| base.unwrap().metadata().unwrap().len()).max().unwrap();
    let limit = |bytes| {
        scratch.federation.sites()[1].process().unwrap().limit_files(bytes).unwrap();
    };
    limit(Some(room));
    scratch.start_run(&RehearsalRun::new("full", 1, 2).to_toml());
    let process = scratch.federation.sites()[1].process().unwrap();
    let said = process.wait_stderr(PATIENCE, |line| line.contains("the outbox: ")).unwrap();
    assert!(said.contains("File too large") && said.contains("trying again"), "{said}");
    // Before, it showed nowhere: the operator saw a seat that was asked, and doctor was content.
    let coordinator = scratch.federation.coordinator().unwrap();
    coordinator.wait_stderr(PATIENCE, |line| line.contains("disk_full")).unwrap();
    let listed = scratch.federation.operator(["site", "list"]).unwrap().data;
    assert_eq!(listed[1]["trouble"], "disk_full", "{listed}");
    let show = scratch.show("full");
    let detail = show["seats"][1]["detail"].as_str().unwrap_or_default();
    assert_eq!(detail, "reports disk_full", "{show}");
    let config = site.join("site.toml");
    let doctor = ["doctor", "--config", config.to_str().unwrap()];
    let doctor = scratch.federation.client(doctor).unwrap_err();
    assert_eq!((doctor.exit, doctor.code.as_deref()), (Some(1), Some("doctor")), "{doctor:?}");
    // The doctor's own call takes nothing back.
    let listed = scratch.federation.operator(["site", "list"]).unwrap().data;
    assert_eq!(listed[1]["trouble"], "disk_full", "{listed}");
    let left: Vec<_> = fs::read_dir(site.join("outbox")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    limit(None);
    accepted(&scratch, "full");
    // (100 * 1 + 200 * 2) / 300 in element 0: both deltas, each with its own weight.
    let value = scratch.payload("full", 1)[0];
    assert!((f64::from(value) - 500.0 / 300.0).abs() < 1e-5, "{value}");
    assert_eq!(scratch.audit()["verified"], true);
}
