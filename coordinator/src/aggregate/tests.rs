//! Exact identities, a golden vector, a second implementation, and what must be refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use proptest::prelude::{prop_assert_eq, proptest};
use proptest::strategy::Strategy as _;
use tributary_shared::layout::{Layout, TensorSpec};
use tributary_shared::tensors::{Subject, decode, encode};

use super::*;

fn header(subject: Subject, shapes: &[usize]) -> Header {
    let tensors = shapes
        .iter()
        .enumerate()
        .map(|(i, elements)| TensorSpec { name: format!("t{i}"), shape: vec![*elements] });
    Header::new(subject, Digest::of(b"contract"), &Layout::new(tensors.collect()))
}

fn adapter(version: u32, shapes: &[usize]) -> Header {
    header(Subject::Adapter { run: "run".parse().unwrap(), version }, shapes)
}

fn delta(site: usize, cases: u64, shapes: &[usize]) -> Header {
    let site = format!("site-{site}").parse().unwrap();
    let (run, base) = ("run".parse().unwrap(), Digest::of(b"base"));
    header(Subject::Delta { run, round: 1, site, base, cases }, shapes)
}

/// Cuts a flat vector into tensors.
fn shaped(values: &[f32], shapes: &[usize]) -> Vec<Vec<f32>> {
    let mut rest = values;
    let tensors = shapes.iter().map(|elements| {
        let (tensor, others) = rest.split_at(*elements);
        rest = others;
        tensor.to_vec()
    });
    tensors.collect()
}

/// Base and deltas to the next adapter's bytes.
fn try_fold(
    base: &[f32],
    deltas: &[(u64, Vec<f32>)],
    shapes: &[usize],
    block_values: usize,
) -> Result<Vec<u8>, AggregateError> {
    let base_header = adapter(0, shapes);
    let base = encode(&base_header, &shaped(base, shapes));
    let bytes: Vec<Vec<u8>> = deltas
        .iter()
        .enumerate()
        .map(|(i, (cases, values))| encode(&delta(i, *cases, shapes), &shaped(values, shapes)))
        .collect();
    let inputs = bytes.iter().zip(deltas).enumerate();
    let inputs =
        inputs.map(|(i, (bytes, (cases, _)))| input(delta(i, *cases, shapes), bytes, *cases));
    let base = input(base_header, &base, 0);
    let mut out = Vec::new();
    let digest = fedavg(base, inputs.collect(), &adapter(1, shapes), &mut out, block_values)?;
    assert_eq!(digest, Digest::of(&out));
    Ok(out)
}

fn input(header: Header, bytes: &[u8], weight: u64) -> Input<&[u8]> {
    Input { header, digest: Digest::of(bytes), bytes, weight }
}

fn fold(base: &[f32], deltas: &[(u64, Vec<f32>)]) -> Vec<f32> {
    let shapes = [base.len()];
    let bytes = try_fold(base, deltas, &shapes, BLOCK_VALUES).unwrap();
    decode(&bytes, &adapter(1, &shapes)).unwrap().concat()
}

/// A second implementation: whole vectors, nothing in blocks.
fn reference(base: &[f32], deltas: &[(u64, Vec<f32>)]) -> Vec<f32> {
    let cases: f64 = deltas.iter().map(|(n, _)| *n as f64).sum();
    (0..base.len())
        .map(|i| {
            let sum: f64 = deltas.iter().map(|(n, d)| *n as f64 * f64::from(d[i])).sum();
            (f64::from(base[i]) + sum / cases) as f32
        })
        .collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    for (a, b) in found.iter().zip(expected) {
        let ulp = (b.abs() * f32::EPSILON).max(f32::MIN_POSITIVE);
        assert!((a - b).abs() <= ulp, "{a} is more than an ulp from {b}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn fedit_of_the_golden_factors() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/golden/fedit.json")).unwrap();
    let flat = |value: &serde_json::Value| -> Vec<f32> {
        let rows = value.as_array().unwrap().iter();
        rows.flat_map(|row| row.as_array().unwrap()).map(|v| v.as_f64().unwrap() as f32).collect()
    };
    for factor in ["A", "B"] {
        let deltas: Vec<_> = (0..3)
            .map(|k| (golden["n"][k].as_f64().unwrap() as u64, flat(&golden[factor][k])))
            .collect();
        let zeros = vec![0.0; deltas[0].1.len()];
        assert_close(&fold(&zeros, &deltas), &flat(&golden["fedit"][factor]));
    }
}

#[test]
fn one_site_and_equal_sites_give_exactly_that_delta() {
    let values = vec![0.1, -3.5e-8, 7.25e11, f32::MIN_POSITIVE, -0.0];
    let zeros = vec![0.0; values.len()];
    assert_eq!(fold(&zeros, &[(7, values.clone())]), values);
    let equal = [(3, values.clone()), (1, values.clone()), (9_999_991, values.clone())];
    assert_eq!(fold(&zeros, &equal), values, "weights of one value cancel without a trace");
}

#[test]
fn deltas_of_zero_change_nothing() {
    let base = vec![0.1, -2.5, 3e-39];
    assert_eq!(fold(&base, &[(5, vec![0.0; 3]), (6, vec![0.0; 3])]), base);
}

#[test]
fn each_site_shows_in_its_own_coordinate() {
    let total = (1u64 << 8) - 1;
    let one_hot = |k: usize| (0..8).map(|i| if i == k { total as f32 } else { 0.0 }).collect();
    let deltas: Vec<(u64, Vec<f32>)> = (0..8).map(|k| (1 << k, one_hot(k))).collect();
    let powers: Vec<f32> = (0..8u8).map(|k| f32::from(1u16 << k)).collect();
    assert_eq!(fold(&[0.0; 8], &deltas), powers, "weight 2^k in coordinate k, to the bit");
    let mut lost = deltas.clone();
    lost.remove(3);
    assert_ne!(fold(&[0.0; 8], &lost), powers, "a lost delta would be seen");
}

#[test]
fn what_cannot_be_aggregated_is_refused() {
    let one = |cases| [(cases, vec![1.0, 2.0])];
    let fold = |deltas: &[(u64, Vec<f32>)]| try_fold(&[0.0, 0.0], deltas, &[2], 8);
    assert!(matches!(fold(&[]), Err(AggregateError::Empty)));
    assert!(matches!(fold(&one(0)), Err(AggregateError::Empty)));
    let huge = [(1, vec![0.0, f32::MAX])];
    let over = try_fold(&[0.0, f32::MAX], &huge, &[2], 1);
    assert!(matches!(over, Err(AggregateError::NotFinite { index: 1, .. })), "{over:?}");
}

#[test]
fn inputs_that_are_not_what_their_header_says_are_refused() {
    let shapes = [3];
    let base = encode(&adapter(0, &shapes), &[vec![0.0; 3]]);
    let good = encode(&delta(0, 5, &shapes), &[vec![1.0; 3]]);
    let fold = |bytes: &[u8], header: Header| {
        let base = input(adapter(0, &shapes), &base, 0);
        let deltas = vec![input(header, bytes, 5)];
        run(&Strategy::FedAvg, base, deltas, &adapter(1, &shapes), &mut Vec::new()).unwrap_err()
    };
    let header = || delta(0, 5, &shapes);
    let cut = fold(&good[..good.len() - 1], header());
    assert!(matches!(cut, AggregateError::Short { input: 1 }), "{cut:?}");
    let longer = fold(&[&good[..], &[0]].concat(), header());
    assert!(matches!(longer, AggregateError::Trailing { input: 1 }), "{longer:?}");
    let foreign = fold(&good, delta(1, 5, &shapes));
    assert!(matches!(foreign, AggregateError::Header { input: 1 }), "{foreign:?}");
    let shape = fold(&good, delta(0, 5, &[2]));
    assert!(matches!(shape, AggregateError::Layout { input: 1 }), "{shape:?}");
    assert!(matches!(fold(b"", header()), AggregateError::Short { input: 1 }));
}

/// A10: nothing was hashed again, and a flipped bit on the disk became the published adapter.
/// Failed before: the fold succeeded, or called the outcome not finite and the delta good.
#[test]
fn bytes_that_changed_since_they_were_counted_are_named() {
    let shapes = [3];
    let base = encode(&adapter(0, &shapes), &[vec![0.0; 3]]);
    let good = encode(&delta(0, 5, &shapes), &[vec![1.0; 3]]);
    let flipped = |bytes: &[u8], mask: u8| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= mask;
        bytes
    };
    let fold = |base_now: &[u8], delta_now: &[u8]| {
        let base = Input { digest: Digest::of(&base), ..input(adapter(0, &shapes), base_now, 0) };
        let counted = input(delta(0, 5, &shapes), delta_now, 5);
        let deltas = vec![Input { digest: Digest::of(&good), ..counted }];
        run(&Strategy::FedAvg, base, deltas, &adapter(1, &shapes), &mut Vec::new())
    };
    fold(&base, &good).unwrap();
    // The second leaves the finite numbers.
    for mask in [0x01, 0x40] {
        let damaged = fold(&base, &flipped(&good, mask)).unwrap_err();
        assert!(matches!(damaged, AggregateError::Digest { input: 1 }), "{damaged:?}");
        assert_eq!(damaged.damaged(), Some(1));
    }
    let damaged = fold(&flipped(&base, 0x01), &good).unwrap_err();
    assert!(matches!(damaged, AggregateError::Digest { input: 0 }), "{damaged:?}");
}

/// Counts what is asked for at once.
struct Metered<'a> {
    bytes: &'a [u8],
    most: &'a AtomicUsize,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.most.fetch_max(buffer.len(), Ordering::Relaxed);
        self.bytes.read(buffer)
    }
}

fn metered<'a>(from: Input<&'a [u8]>, most: &'a AtomicUsize) -> Input<Metered<'a>> {
    let Input { header, digest, bytes, weight } = from;
    Input { header, digest, bytes: Metered { bytes, most }, weight }
}

#[test]
fn inputs_are_read_block_by_block_however_long_and_many() {
    let shapes = [10 * BLOCK_VALUES + 1];
    let zeros = vec![vec![0.0; shapes[0]]];
    let most = AtomicUsize::new(0);
    let base = encode(&adapter(0, &shapes), &zeros);
    let bytes: Vec<_> = (0..20).map(|i| encode(&delta(i, 5, &shapes), &zeros)).collect();
    let deltas = bytes.iter().enumerate();
    let deltas = deltas.map(|(i, b)| metered(input(delta(i, 5, &shapes), b, 5), &most)).collect();
    let base = metered(input(adapter(0, &shapes), &base, 0), &most);
    run(&Strategy::FedAvg, base, deltas, &adapter(1, &shapes), &mut io::sink()).unwrap();
    let most = most.into_inner();
    assert!(most > 0 && 21 * most <= BLOCKS_BYTES, "{most} bytes of each of 21 inputs");
}

fn finite() -> impl proptest::strategy::Strategy<Value = f32> {
    (-1e6f32..1e6).prop_map(|v| v * 1e-3)
}

proptest! {
    #[test]
    fn blocks_and_tensor_boundaries_leave_no_trace(
        shapes in proptest::collection::vec(1usize..40, 1..5),
        sites in 1usize..5,
        block in 1usize..100,
        seed in proptest::collection::vec(finite(), 1_000),
        cases in proptest::collection::vec(1u64..1_000_000, 5),
    ) {
        let count: usize = shapes.iter().sum();
        let vector = |k: usize| seed[k * 160..][..count].to_vec();
        let deltas: Vec<_> = (0..sites).map(|k| (cases[k], vector(k + 1))).collect();
        let whole = try_fold(&vector(0), &deltas, &shapes, usize::MAX).unwrap();
        prop_assert_eq!(&try_fold(&vector(0), &deltas, &shapes, block).unwrap(), &whole);
        let values = decode(&whole, &adapter(1, &shapes)).unwrap().concat();
        prop_assert_eq!(values, reference(&vector(0), &deltas), "the second implementation");
    }

    #[test]
    fn neither_order_nor_splitting_a_site_matters(
        values in proptest::collection::vec((finite(), finite(), finite()), 1..20),
        cases in (2u64..1_000, 1u64..1_000, 1u64..1_000),
        split in 0.0..1.0,
    ) {
        let a: Vec<f32> = values.iter().map(|v| v.0).collect();
        let b: Vec<f32> = values.iter().map(|v| v.1).collect();
        let base: Vec<f32> = values.iter().map(|v| v.2).collect();
        let one = fold(&base, &[(cases.0, a.clone()), (cases.1, b.clone())]);
        assert_close(&fold(&base, &[(cases.1, b.clone()), (cases.0, a.clone())]), &one);
        let part = 1 + ((cases.0 - 2) as f64 * split) as u64;
        let halves = [(part, a.clone()), (cases.0 - part, a), (cases.1, b)];
        assert_close(&fold(&base, &halves), &one);
    }
}

#[test]
#[ignore = "measures: cargo test -p tributary-coordinator --lib aggregate -- --ignored --nocapture"]
fn eight_sites_of_12_6_mb() {
    let shapes = [3_150_000];
    let values = vec![vec![0.5; shapes[0]]];
    let base = encode(&adapter(0, &shapes), &values);
    let base_digest = Digest::of(&base);
    let deltas: Vec<_> = (0..8).map(|i| encode(&delta(i, 5, &shapes), &values)).collect();
    let digests: Vec<_> = deltas.iter().map(|bytes| Digest::of(bytes)).collect();
    for _ in 0..5 {
        let begun = Instant::now();
        let inputs = deltas.iter().zip(&digests).enumerate();
        let inputs = inputs.map(|(i, (bytes, digest))| Input {
            header: delta(i, 5, &shapes),
            digest: *digest,
            bytes: &bytes[..],
            weight: 5,
        });
        let base =
            Input { header: adapter(0, &shapes), digest: base_digest, bytes: &base[..], weight: 0 };
        let next = adapter(1, &shapes);
        run(&Strategy::FedAvg, base, inputs.collect(), &next, &mut io::sink()).unwrap();
        println!("8 x 12.6 MB: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
}
