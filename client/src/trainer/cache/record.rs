//! One image's prefix as bytes: a header of fixed length, the numbers, a checksum over both.
//!
//! | offset | bytes | |
//! |--:|--:|---|
//! | 0 | 8 | `TRIBPFX1` |
//! | 8 | 4 | bytes of a number: 4 (f32) or 2 (f16), little-endian |
//! | 12 | 4 | how many numbers, little-endian |
//! | 16 | 32 | the shelf's digest |
//! | 48 | 32 | the image's digest |
//! | 80 | | the numbers, little-endian |
//! | | 32 | SHA-256 of everything before |

use half::f16;
use tributary_shared::digest::Digest;

use crate::config::cache::Precision;

const MAGIC: &[u8; 8] = b"TRIBPFX1";
const HEADER: usize = 80;
const CHECKSUM: usize = 32;

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) shelf: Digest,
    pub(super) image: Digest,
    /// How many numbers it has.
    pub(super) numbers: usize,
}

/// Bytes of a record of `numbers` numbers.
pub(super) fn bytes(numbers: usize, precision: Precision) -> usize {
    HEADER + numbers * width(precision) + CHECKSUM
}

fn width(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::F16 => 2,
    }
}

/// What is read back after `values` were kept.
pub(super) fn rounded(values: &mut [f32], precision: Precision) {
    if kept_as(values, precision) == Precision::F16 {
        values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
    }
}

/// f32 where a number is too large for f16.
fn kept_as(values: &[f32], precision: Precision) -> Precision {
    match precision {
        Precision::F16 if values.iter().all(|v| f16::from_f32(*v).is_finite()) => Precision::F16,
        Precision::F16 | Precision::F32 => Precision::F32,
    }
}

/// The record of `values`.
pub(super) fn encode(subject: &Subject, values: &[f32], precision: Precision) -> Vec<u8> {
    let precision = kept_as(values, precision);
    let mut record = Vec::with_capacity(bytes(values.len(), precision));
    record.extend_from_slice(&header(subject, precision));
    match precision {
        Precision::F32 => values.iter().for_each(|v| record.extend_from_slice(&v.to_le_bytes())),
        Precision::F16 => {
            values.iter().for_each(|v| record.extend_from_slice(&f16::from_f32(*v).to_le_bytes()))
        }
    }
    let checksum = Digest::of(&record);
    record.extend_from_slice(checksum.as_bytes());
    record
}

/// The numbers of a record of `subject`; what is wrong with it otherwise.
pub(super) fn decode(subject: &Subject, record: &[u8]) -> Result<Vec<f32>, &'static str> {
    let precision = [Precision::F32, Precision::F16]
        .into_iter()
        .find(|precision| record.len() == bytes(subject.numbers, *precision))
        .ok_or("has another length than it should")?;
    let (content, checksum) = record.split_at(record.len() - CHECKSUM);
    if Digest::of(content).as_bytes() != checksum {
        return Err("does not match its checksum");
    }
    let (head, numbers) = content.split_at(HEADER);
    if head != header(subject, precision) {
        return Err("is of something else");
    }
    Ok(match precision {
        Precision::F32 => {
            numbers.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Precision::F16 => {
            numbers.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
    })
}

fn header(subject: &Subject, precision: Precision) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&(width(precision) as u32).to_le_bytes());
    header[12..16].copy_from_slice(&(subject.numbers as u32).to_le_bytes());
    header[16..48].copy_from_slice(subject.shelf.as_bytes());
    header[48..].copy_from_slice(subject.image.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(numbers: usize) -> Subject {
        Subject { shelf: Digest::of(b"shelf"), image: Digest::of(b"image"), numbers }
    }

    #[test]
    fn what_was_kept_is_read_back() {
        let values = [0.1f32, -3.5, 1e-30, 65_000.0];
        let subject = subject(values.len());
        let f32s = encode(&subject, &values, Precision::F32);
        assert_eq!(decode(&subject, &f32s).unwrap(), values);
        let f16s = encode(&subject, &values, Precision::F16);
        assert_eq!(f32s.len() - f16s.len(), 2 * values.len());
        let mut halved = values;
        rounded(&mut halved, Precision::F16);
        assert_eq!(decode(&subject, &f16s).unwrap(), halved);
        assert!((halved[0] - 0.1).abs() <= 0.1 / 2048.0 && halved[1] == -3.5);
        // Too large for f16: kept whole.
        let large = [0.1f32, 70_000.0];
        let subject = Subject { numbers: 2, ..subject };
        let record = encode(&subject, &large, Precision::F16);
        assert_eq!(decode(&subject, &record).unwrap(), large);
        let mut same = large;
        rounded(&mut same, Precision::F16);
        assert_eq!(same, large);
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_other_subject_is_found() {
        let subject = subject(3);
        let record = encode(&subject, &[1.0, 2.0, 3.0], Precision::F32);
        for at in 0..record.len() {
            let mut flipped = record.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&subject, &flipped).is_err(), "byte {at}");
            assert!(decode(&subject, &record[..at]).is_err(), "{at} bytes");
        }
        for other in [
            Subject { shelf: Digest::of(b"other"), ..subject },
            Subject { image: Digest::of(b"other"), ..subject },
        ] {
            assert_eq!(decode(&other, &record), Err("is of something else"));
        }
        let longer = Subject { numbers: 4, ..subject };
        assert_eq!(decode(&longer, &record), Err("has another length than it should"));
    }
}
