//! Canonical bytes of adapters and deltas, and the check that reads them as they arrive.
//!
//! ```text
//! magic   8 bytes  TRIBTNS1
//! length  4 bytes  of the header, little-endian
//! header  JSON     subject, contract digest, tensor names and shapes in canonical order
//! data             every tensor's f32 values, little-endian, row-major, in that order
//! ```
//! The same content has one spelling only, so its SHA-256 names it.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::layout::{Layout, TensorSpec};
use crate::name::{RunName, SiteName};
use crate::refusal::Refusal;

const MAGIC: &[u8; 8] = b"TRIBTNS1";
const PREFIX_BYTES: usize = MAGIC.len() + 4;
/// Bytes by which another header may exceed the expected one.
const HEADER_SLACK_BYTES: usize = 64 << 10;
/// Differences reported of one header; a hostile one may hold any number.
const DIFFERENCES_MAX: usize = 16;

/// What the tensors are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Subject {
    /// A global adapter; version 0 is the initial one, each published round makes the next.
    Adapter {
        /// The run.
        run: RunName,
        /// The version.
        version: u32,
    },
    /// One site's change to a global adapter.
    Delta {
        /// The run.
        run: RunName,
        /// The round, from 1.
        round: u32,
        /// The site that trained.
        site: SiteName,
        /// Digest of the global adapter it changes.
        base: Digest,
        /// Training cases behind it: its weight in the mean.
        cases: u64,
    },
}

/// The header of canonical bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// What the tensors are.
    pub subject: Subject,
    /// Digest of the adapter contract they fit.
    pub contract: Digest,
    /// Their names and shapes.
    pub tensors: Vec<TensorSpec>,
}

impl Header {
    /// The header of tensors in `layout`.
    pub fn new(subject: Subject, contract: Digest, layout: &Layout) -> Self {
        Self { subject, contract, tensors: layout.tensors().to_vec() }
    }

    /// Magic, length and header: all bytes before the data.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a header is plain data");
        let length = u32::try_from(json.len()).expect("a header is far below 4 GiB");
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + json.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes
    }

    /// Size of header and data together, bytes.
    pub fn total_bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(TensorSpec::elements).sum();
        self.to_bytes().len() as u64 + data as u64 * 4
    }
}

/// Canonical bytes of `values` (one flat slice a tensor, in the header's order).
///
/// # Panics
/// When the slices do not have the header's shapes.
pub fn encode(header: &Header, values: &[Vec<f32>]) -> Vec<u8> {
    assert_eq!(values.len(), header.tensors.len(), "one slice a tensor");
    let mut bytes = header.to_bytes();
    for (spec, tensor) in header.tensors.iter().zip(values) {
        assert_eq!(tensor.len(), spec.elements(), "{spec}");
        bytes.extend(tensor.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes
}

/// Reads canonical bytes that must be what `expected` says; one flat vector a tensor.
pub fn decode(bytes: &[u8], expected: &Header) -> Result<Vec<Vec<f32>>, Refusal> {
    let mut reader = Reader::new(expected.clone());
    reader.push(bytes)?;
    reader.finish()?;
    let mut data = bytes[expected.to_bytes().len()..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(expected.tensors.iter().map(|spec| data.by_ref().take(spec.elements()).collect()).collect())
}

/// What was learned of bytes that passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checked {
    /// SHA-256 of all bytes.
    pub digest: Digest,
    /// L2 norm over all tensors, summed in order in f64.
    pub norm: f64,
}

/// Checks canonical bytes piece by piece, in constant memory beside two headers: the expected one, and one that is at most
/// 64 KiB longer.
#[derive(Clone, Debug)]
pub struct Reader {
    expected: Header,
    /// Bytes of the expected header's JSON.
    header_bytes: usize,
    total_bytes: u64,
    seen_bytes: u64,
    hasher: Hasher,
    /// Prefix and header while incomplete, then at most three bytes of a split f32.
    pending: Vec<u8>,
    header_passed: bool,
    tensor: usize,
    index: usize,
    sum_of_squares: f64,
}

impl Reader {
    /// Will accept exactly what `expected` describes.
    pub fn new(expected: Header) -> Self {
        Self {
            header_bytes: expected.to_bytes().len() - PREFIX_BYTES,
            total_bytes: expected.total_bytes(),
            expected,
            seen_bytes: 0,
            hasher: Hasher::new(),
            pending: Vec::new(),
            header_passed: false,
            tensor: 0,
            index: 0,
            sum_of_squares: 0.0,
        }
    }

    /// The header that the bytes must begin with.
    pub fn expected(&self) -> &Header {
        &self.expected
    }

    /// Bytes that will be accepted in all.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes seen.
    pub fn seen_bytes(&self) -> u64 {
        self.seen_bytes
    }

    /// Says whether the whole header has come and is the expected one.
    pub fn has_header(&self) -> bool {
        self.header_passed
    }

    /// Takes the next bytes; the first refusal is final.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        self.seen_bytes += bytes.len() as u64;
        self.hasher.update(bytes);
        if !self.header_passed {
            bytes = self.push_header(bytes)?;
            if !self.header_passed {
                return Ok(());
            }
        }
        if self.seen_bytes > self.total_bytes {
            return Err(Refusal::Size { expected: self.total_bytes, found: self.seen_bytes });
        }
        self.push_data(bytes)
    }

    /// Collects prefix and header; gives back what lies behind them.
    fn push_header<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Refusal> {
        let malformed = |detail: String| Refusal::Malformed { detail };
        let mut rest = bytes;
        let mut fill = |pending: &mut Vec<u8>, upto: usize| {
            let take = upto.saturating_sub(pending.len()).min(rest.len());
            pending.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            pending.len() >= upto
        };
        if !fill(&mut self.pending, PREFIX_BYTES) {
            return Ok(&[]);
        }
        if self.pending[..8] != *MAGIC {
            return Err(malformed("does not begin with TRIBTNS1".to_owned()));
        }
        let length = [self.pending[8], self.pending[9], self.pending[10], self.pending[11]];
        let length = u32::from_le_bytes(length) as usize;
        // One of another layout is told the differences, as long as it is not much longer.
        let most = self.header_bytes + HEADER_SLACK_BYTES;
        if length > most {
            return Err(malformed(format!("header of {length} bytes, above {most}")));
        }
        if !fill(&mut self.pending, PREFIX_BYTES + length) {
            return Ok(&[]);
        }
        self.check_header(&self.pending[PREFIX_BYTES..])?;
        self.pending = Vec::new();
        self.header_passed = true;
        Ok(rest)
    }

    fn check_header(&self, json: &[u8]) -> Result<(), Refusal> {
        let found: Header = serde_json::from_slice(json)
            .map_err(|e| Refusal::Malformed { detail: format!("header: {e}") })?;
        let expected = &self.expected;
        let mut diff: Vec<String> = Layout::new(expected.tensors.clone())
            .differences(&found.tensors)
            .iter()
            .map(|d| d.to_string().chars().take(200).collect())
            .collect();
        if !diff.is_empty() {
            let more = diff.len().saturating_sub(DIFFERENCES_MAX);
            diff.truncate(DIFFERENCES_MAX);
            if more > 0 {
                diff.push(format!("and {more} more"));
            }
            return Err(Refusal::Contract { diff });
        }
        if found.contract != expected.contract {
            return Err(wrong("contract", expected.contract, found.contract));
        }
        check_subject(&expected.subject, &found.subject)?;
        // Equal in content, so only the spelling can differ: extra spaces, another key order.
        if json != &expected.to_bytes()[PREFIX_BYTES..] {
            return Err(Refusal::Malformed {
                detail: "header is not in canonical form".to_owned(),
            });
        }
        Ok(())
    }

    fn push_data(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !self.pending.is_empty() && !bytes.is_empty() {
            self.pending.push(bytes[0]);
            bytes = &bytes[1..];
            if let [a, b, c, d] = self.pending[..] {
                self.pending.clear();
                self.push_values(&[a, b, c, d])?;
            }
        }
        let whole = bytes.len() / 4 * 4;
        self.push_values(&bytes[..whole])?;
        self.pending.extend_from_slice(&bytes[whole..]);
        Ok(())
    }

    /// Takes whole values, tensor by tensor.
    fn push_values(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let elements = self.expected.tensors[self.tensor].elements();
            let take = (elements - self.index).min(bytes.len() / 4);
            for (offset, b) in bytes[..take * 4].chunks_exact(4).enumerate() {
                let value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                if !value.is_finite() {
                    return Err(Refusal::NotFinite {
                        tensor: self.expected.tensors[self.tensor].name.clone(),
                        index: (self.index + offset) as u64,
                        value: value.to_string(),
                    });
                }
                self.sum_of_squares += f64::from(value) * f64::from(value);
            }
            self.index += take;
            bytes = &bytes[take * 4..];
            if self.index == elements {
                self.tensor += 1;
                self.index = 0;
            }
        }
        Ok(())
    }

    /// Ends the stream: every byte must have come.
    pub fn finish(self) -> Result<Checked, Refusal> {
        if !self.header_passed || self.seen_bytes != self.total_bytes {
            return Err(Refusal::Size { expected: self.total_bytes, found: self.seen_bytes });
        }
        Ok(Checked { digest: self.hasher.finish(), norm: self.sum_of_squares.sqrt() })
    }
}

fn wrong(field: &str, expected: impl ToString, found: impl ToString) -> Refusal {
    Refusal::Wrong {
        field: field.to_owned(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn check_subject(expected: &Subject, found: &Subject) -> Result<(), Refusal> {
    let same = |field: &str, expected: &dyn ToString, found: &dyn ToString| {
        let (expected, found) = (expected.to_string(), found.to_string());
        if expected == found { Ok(()) } else { Err(wrong(field, expected, found)) }
    };
    match (expected, found) {
        (
            Subject::Adapter { run, version },
            Subject::Adapter { run: found_run, version: found_version },
        ) => {
            same("run", run, found_run)?;
            same("version", version, found_version)
        }
        (
            Subject::Delta { run, round, site, base, cases },
            Subject::Delta {
                run: found_run,
                round: found_round,
                site: found_site,
                base: found_base,
                cases: found_cases,
            },
        ) => {
            same("run", run, found_run)?;
            same("round", round, found_round)?;
            same("site", site, found_site)?;
            same("base", base, found_base)?;
            same("cases", cases, found_cases)
        }
        (Subject::Adapter { .. }, Subject::Delta { .. }) => Err(wrong("kind", "adapter", "delta")),
        (Subject::Delta { .. }, Subject::Adapter { .. }) => Err(wrong("kind", "delta", "adapter")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let spec =
            |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        let layout = Layout::new(vec![spec("b", &[2, 3]), spec("a", &[1])]);
        let subject = Subject::Delta {
            run: "run".parse().unwrap(),
            round: 2,
            site: "site-a".parse().unwrap(),
            base: Digest::of(b"base"),
            cases: 7,
        };
        Header::new(subject, Digest::of(b"contract"), &layout)
    }

    fn values() -> Vec<Vec<f32>> {
        vec![vec![3.0], vec![0.0, 4.0, -0.0, 0.0, 0.0, 0.0]]
    }

    fn refusal(bytes: &[u8]) -> Refusal {
        decode(bytes, &header()).unwrap_err()
    }

    /// B5. Failed before: a header of up to 16 MiB was read, kept and compared tensor by tensor.
    #[test]
    fn a_header_much_longer_than_the_expected_one_is_refused_by_its_length() {
        let expected = header().to_bytes().len() - PREFIX_BYTES;
        let announced = |length: usize| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend((length as u32).to_le_bytes());
            let mut reader = Reader::new(header());
            let pushed = reader.push(&bytes);
            (pushed, reader.has_header())
        };
        let most = expected + HEADER_SLACK_BYTES;
        assert_eq!(announced(most), (Ok(()), false));
        let detail = format!("header of {} bytes, above {most}", most + 1);
        assert_eq!(announced(most + 1).0, Err(Refusal::Malformed { detail }));
    }

    #[test]
    fn round_trips_and_measures() {
        let bytes = encode(&header(), &values());
        assert_eq!(decode(&bytes, &header()).unwrap(), values());
        let mut reader = Reader::new(header());
        reader.push(&bytes).unwrap();
        let checked = reader.finish().unwrap();
        assert_eq!(checked.norm, 5.0);
        assert_eq!(checked.digest, Digest::of(&bytes));
    }

    #[test]
    fn shapes_that_would_broadcast_are_refused_with_a_diff() {
        let mut other = header();
        other.tensors[1].shape = vec![1, 3];
        let found = refusal(&encode(&other, &[vec![3.0], vec![0.0; 3]]));
        assert_eq!(
            found,
            Refusal::Contract { diff: vec!["b: expected [2, 3], found [1, 3]".into()] }
        );
    }

    #[test]
    fn not_finite_is_named() {
        for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")]
        {
            let mut wrong = values();
            wrong[1][4] = bad;
            let expected = Refusal::NotFinite { tensor: "b".into(), index: 4, value: name.into() };
            assert_eq!(refusal(&encode(&header(), &wrong)), expected);
        }
    }

    #[test]
    fn header_fields_are_compared_one_by_one() {
        let Subject::Delta { run, round, site, base, cases } = header().subject else {
            unreachable!()
        };
        let mut other = header();
        other.subject = Subject::Delta { run, round: round - 1, site, base, cases };
        let found = refusal(&encode(&other, &values()));
        assert_eq!(found, wrong("round", 2, 1));
    }

    #[test]
    fn short_long_and_foreign_bytes_are_refused() {
        let bytes = encode(&header(), &values());
        assert_eq!(refusal(&bytes[..bytes.len() - 1]).code(), "size");
        assert_eq!(refusal(&[&bytes[..], &[0]].concat()).code(), "size");
        assert_eq!(refusal(b"").code(), "size");
        assert_eq!(refusal(b"PK\x03\x04 something else").code(), "malformed");
        assert_eq!(refusal(b"TRIBTNS1\xff\xff\xff\xff").code(), "malformed");
    }

    #[test]
    fn a_header_has_one_spelling() {
        let bytes = encode(&header(), &values());
        let json_end = header().to_bytes().len();
        let json = std::str::from_utf8(&bytes[PREFIX_BYTES..json_end]).unwrap();
        let spaced = json.replacen(':', ": ", 1);
        let mut other = MAGIC.to_vec();
        other.extend_from_slice(&u32::try_from(spaced.len()).unwrap().to_le_bytes());
        other.extend_from_slice(spaced.as_bytes());
        other.extend_from_slice(&bytes[json_end..]);
        assert_eq!(refusal(&other).code(), "malformed");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0usize..400, 0..8)) {
            let bytes = encode(&header(), &values());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut reader = Reader::new(header());
            for pair in cuts.windows(2) {
                reader.push(&bytes[pair[0]..pair[1]]).unwrap();
            }
            prop_assert_eq!(reader.finish().unwrap().digest, Digest::of(&bytes));
        }

        #[test]
        fn any_flipped_byte_changes_the_digest_or_is_refused(at in 0usize..400, flip in 1u8..) {
            let mut bytes = encode(&header(), &values());
            let before = Digest::of(&bytes);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let mut reader = Reader::new(header());
            if let Ok(checked) = reader.push(&bytes).and_then(|()| reader.finish()) {
                prop_assert_ne!(checked.digest, before);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes, &header());
        }
    }
}
