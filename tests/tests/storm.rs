//! Restart storms: `kill -9` of the coordinator and of sites at random moments. Whatever is killed
//! when, no delta is lost, doubled or mis-weighted.
//!
//! `TRIBUTARY_STORM_SEEDS=50 cargo test -p tributary-tests --test storm` runs fifty seeds,
//! `TRIBUTARY_STORM_SEED=7` one of them again.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tributary_tests::{RehearsalRun, Scratch, seats};

const SITES: usize = 3;
const ROUNDS: u32 = 4;
const KILLS: usize = 6;

#[test]
fn no_delta_is_lost_doubled_or_misweighted() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seeds = match (number("TRIBUTARY_STORM_SEED"), number("TRIBUTARY_STORM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(3),
    };
    let mut scratch = Scratch::with_powers_of_two(SITES);
    scratch.start_sites();
    for seed in seeds {
        println!("storm seed {seed}");
        storm(&mut scratch, seed);
    }
    let audit = scratch.audit();
    assert_eq!(audit["verified"], true, "{audit}");
}

fn storm(scratch: &mut Scratch, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let name = format!("storm-{seed}");
    // Several chunks a delta, so that some kills fall into an upload.
    let run =
        RehearsalRun { payload_bytes: 3 << 20, ..RehearsalRun::new(&name, ROUNDS, SITES as u32) };
    scratch.start_run(&run.to_toml());
    for _ in 0..KILLS {
        // The fault's moment, not a wait for anything.
        std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
        match random.random_range(0..=SITES) {
            SITES => {
                scratch.federation.kill_coordinator();
                scratch.federation.start_coordinator().expect("the coordinator starts again");
            }
            site => {
                scratch.federation.kill_site(site);
                scratch.federation.start_site(site).expect("the site starts again");
            }
        }
    }
    let show = scratch.finish(&name);
    assert_eq!(show["state"], "completed", "seed {seed}: {show}");
    check_every_round(scratch, &name, &show);
}

/// Every round holds every site's delta exactly once with its own weight.
fn check_every_round(scratch: &Scratch, run: &str, show: &serde_json::Value) {
    let cases: f64 = (1..=SITES).map(|k| 100.0 * k as f64).sum();
    let weighted: f64 = (0..SITES).map(|k| 100.0 * (k + 1) as f64 * 2f64.powi(k as i32)).sum();
    for version in 1..=ROUNDS {
        let accepted = seats(show, version);
        assert!(accepted.iter().all(|(_, state, _)| state == "accepted"), "{accepted:?}");
        assert_eq!(accepted.len(), SITES);
        let payload = scratch.payload(run, version);
        let expected = f64::from(version) * weighted / cases;
        let error = (f64::from(payload[0]) - expected).abs();
        assert!(error <= 1e-5 * expected, "version {version}: {} for {expected}", payload[0]);
        assert!(payload[1..].iter().all(|v| *v == 0.0), "version {version}: stray values");
    }
}
