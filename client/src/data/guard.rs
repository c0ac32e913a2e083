//! Panics of decoding libraries: caught, and told as what is wrong with one file.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    /// True while this thread is in a library that may panic on a damaged file.
    static IN_DECODER: Cell<bool> = const { Cell::new(false) };
    /// Panics of the library so far. A second one, while the first is dealt with, ends the program.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// The result of `read`, or `None` where it panicked. It holds no state of ours, and what it was about to give is dropped.
pub(super) fn caught<T>(read: impl FnOnce() -> T) -> Option<T> {
    let outer = IN_DECODER.replace(true);
    PANICS.set(0);
    let done = catch_unwind(AssertUnwindSafe(read));
    IN_DECODER.set(outer);
    done.ok()
}

/// Prints no message for a panic that is caught: the file is refused in words, and a folder of damaged files would fill
/// the log. At the level of debugging it stands in the log. Other panics are printed as before.
pub fn quiet_caught_panics() {
    let print = take_hook();
    set_hook(Box::new(move |panic| {
        let before = PANICS.replace(PANICS.get().saturating_add(1));
        if IN_DECODER.get() && before == 0 {
            tracing::debug!("a decoder panicked: {panic}");
        } else {
            print(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_what_was_read_and_the_mark_of_the_thread_is_taken_back() {
        let read: Option<u32> = caught(|| {
            assert_eq!(caught(|| 1), Some(1));
            assert!(IN_DECODER.get(), "the inner call leaves the mark of the outer one");
            panic!("a damaged file");
        });
        assert_eq!(read, None);
        assert!(!IN_DECODER.get());
    }
}
