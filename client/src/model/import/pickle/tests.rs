//! Pickles that are refused, and the few that are read.

use proptest::prelude::*;

use super::*;

fn refused(bytes: &[u8]) -> PickleError {
    Pickle::parse(bytes).expect_err("refused")
}

#[test]
fn a_call_of_the_systems_shell_is_refused_by_name() {
    let by_line = refused(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.");
    assert_eq!(by_line, PickleError::Name("os.system".to_owned()));
    let by_stack = refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
    assert_eq!(by_stack, PickleError::Name("builtins.eval".to_owned()));
    // INST and OBJ, which would import and call on their own.
    assert!(matches!(refused(b"(ios\nsystem\n."), PickleError::Instruction { .. }));
    assert!(matches!(refused(b"(o."), PickleError::Instruction { .. }));
    // An extension registry could stand for anything.
    assert!(matches!(refused(b"\x82\x01."), PickleError::Instruction { .. }));
}

#[test]
fn a_tensor_must_lie_within_its_storage() {
    let pickle = |offset: u8, extent: u8, stride: u8| {
        let mut bytes = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        bytes.extend(b"\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x08tQ");
        bytes.extend([b'K', offset, b'K', extent, 0x85, b'K', stride, 0x85, b't', b'R', b'.']);
        bytes
    };
    let good = Pickle::parse(&pickle(2, 3, 2)).expect("within");
    let Node::Tensor(view) = good.node(good.root()) else { panic!("{good:?}") };
    assert_eq!((view.offset, view.shape[0], view.strides[0]), (2, 3, 2));
    for (offset, extent, stride) in [(6, 3, 1), (0, 9, 1), (0, 5, 2), (0, 9, 0), (9, 1, 1)] {
        let error = refused(&pickle(offset, extent, stride));
        assert!(matches!(error, PickleError::Nonsense { .. }), "{error}");
    }
}

/// A12e. Failed before: 2 KB asked for 80 GB, because `torch.Size` copies its argument, and 64 MiB of
/// one-byte instructions (65 KB in a zip) for 7 GiB.
#[test]
fn a_small_pickle_cannot_fill_the_memory() {
    let doubling = |text: &[u8]| {
        let mut bytes = text.to_vec();
        bytes.extend(b"q\x00ctorch\nSize\nq\x01");
        for _ in 0..300 {
            bytes.extend(b"h\x01h\x00\x85R");
        }
        bytes.push(b'.');
        bytes
    };
    let mut list = b"](".to_vec();
    list.extend(std::iter::repeat_n(b'N', 1 << 20));
    list.push(b'e');
    assert_eq!(refused(&doubling(&list)), PickleError::Memory);
    let mut text = b"X\x00\x00\x10\x00".to_vec();
    text.extend(std::iter::repeat_n(b'a', 1 << 20));
    assert_eq!(refused(&doubling(&text)), PickleError::Memory);
    for one in [b"N".as_slice(), b"(", b"N\x94", b"N0"] {
        let many: Vec<u8> = one.iter().copied().cycle().take(40 << 20).collect();
        assert_eq!(refused(&many), PickleError::Memory, "{one:?}");
    }
}

#[test]
fn every_prefix_of_a_pickle_is_refused() {
    let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01ccollections\nOrderedDict\n)Ru.";
    Pickle::parse(whole).expect("whole");
    for end in 0..whole.len() {
        refused(&whole[..end]);
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Pickle::parse(&bytes);
    }

    #[test]
    fn instructions_in_any_order_never_panic(
        picks in proptest::collection::vec(0usize..40, 0..60),
    ) {
        let codes = b"(01N}])t\x85\x86\x87aesuq\x00h\x00Rb\x81Q\x94K\x01\x8f\x90\x91l.\x88";
        let bytes: Vec<u8> = picks.iter().map(|i| codes[i % codes.len()]).collect();
        let _ = Pickle::parse(&bytes);
    }
}
