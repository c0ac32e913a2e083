//! libFuzzer over the target that `FUZZ_TARGET` names; `run.sh` calls it.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tributary_fuzz::{Target, on_own_panic, target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        // In place of libFuzzer's hook, which ends at panics that the client catches.
        drop(std::panic::take_hook());
        on_own_panic(|| std::process::abort());
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
        CHOSEN.get_or_init(|| target(&name).expect("FUZZ_TARGET is one of the targets"));
    },
    |data: &[u8]| {
        CHOSEN.get().expect("chosen at the start")(data);
    }
);
