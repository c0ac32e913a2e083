//! Runs every kept input over its target: what was once found stays mended.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tributary_fuzz::{Outcome, TARGETS, on_own_panic};

/// Most files of one corpus, and most bytes of one file and of one corpus.
const FILES_MAX: usize = 64;
const FILE_BYTES_MAX: usize = 64 * 1024;
const CORPUS_BYTES_MAX: usize = 1 << 20;

static OWN_PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn every_kept_input_is_accepted_or_refused_and_each_corpus_has_both() {
    on_own_panic(|| {
        OWN_PANICS.fetch_add(1, Ordering::Relaxed);
    });
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let (mut files, mut bytes, mut accepted) = (0, 0, 0);
        for entry in fs::read_dir(&folder).expect("each target has a corpus") {
            let path = entry.expect("the corpus can be listed").path();
            let data = fs::read(&path).expect("the input can be read");
            assert!(data.len() <= FILE_BYTES_MAX, "{} is too long", path.display());
            let before = OWN_PANICS.load(Ordering::Relaxed);
            let outcome = target(&data);
            let after = OWN_PANICS.load(Ordering::Relaxed);
            assert_eq!(before, after, "{}: a panic in our code was caught", path.display());
            files += 1;
            bytes += data.len();
            accepted += usize::from(outcome == Outcome::Accepted);
        }
        assert!(
            files <= FILES_MAX && bytes <= CORPUS_BYTES_MAX,
            "{name}: {files} files, {bytes} B"
        );
        assert!(accepted > 0, "{name}: no input is accepted");
        assert!(accepted < files, "{name}: no input is refused");
    }
}
