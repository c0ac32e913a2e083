//! What the pages of a Parquet column claim, checked before anything is unpacked.
//!
//! The parquet crate reserves what a page header says and unpacks gzip to its end; a file of a few
//! bytes could so take all memory. Page headers are small structs of Thrift's compact protocol
//! (parquet-format, `PageHeader`), and five of their numbers are enough to bound it.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;

use super::table::TableProblem;

/// Largest page when unpacked, bytes; writers make pages of one MiB.
pub(super) const PAGE_BYTES_MAX: u64 = 64 << 20;
/// Deepest nesting in a page header; real ones have two.
const DEPTH_MAX: u8 = 4;

/// `PageType`, `Encoding` of parquet-format.
const DICTIONARY_PAGE: i64 = 2;
const PLAIN: i64 = 0;
const PLAIN_DICTIONARY: i64 = 2;
const RLE: i64 = 3;
const DELTA_BINARY_PACKED: i64 = 5;
const RLE_DICTIONARY: i64 = 8;

/// What a page's header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    kind: i64,
    unpacked: i64,
    packed: i64,
    /// Of its values.
    encoding: i64,
    /// How many values.
    values: i64,
    /// Bytes of levels before the packed ones (version 2).
    levels: i64,
}

/// Walks over the pages of one column chunk, `bytes`; gives what they take unpacked.
pub(super) fn check(
    column: &str,
    mut bytes: &[u8],
    compression: Compression,
) -> Result<u64, TableProblem> {
    let damaged = |what: &str| TableProblem::Damaged {
        detail: format!("a page of the column `{column}` {what}"),
    };
    let mut all = 0;
    while !bytes.is_empty() {
        let header = header(&mut bytes).ok_or_else(|| damaged("has no readable header"))?;
        let size = |value: i64| u64::try_from(value).map_err(|_| damaged("has a size below 0"));
        let (packed, unpacked, levels) =
            (size(header.packed)?, size(header.unpacked)?, size(header.levels)?);
        if unpacked > PAGE_BYTES_MAX {
            return Err(damaged(&format!("takes {unpacked} bytes, more than {PAGE_BYTES_MAX}")));
        }
        // Every value of a dictionary takes a bit at least, of text four bytes.
        if header.kind == DICTIONARY_PAGE && size(header.values)? > unpacked {
            return Err(damaged("has more values than bytes"));
        }
        // Others let a few bytes stand for gigabytes, and no writer takes them unless told to.
        if ![PLAIN, PLAIN_DICTIONARY, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY]
            .contains(&header.encoding)
        {
            let column = column.to_owned();
            return Err(TableProblem::Encoding { column, encoding: header.encoding });
        }
        let end = usize::try_from(packed).ok().filter(|end| *end <= bytes.len());
        let (page, rest) = bytes.split_at(end.ok_or_else(|| damaged("is cut off"))?);
        if let Compression::GZIP(_) = compression
            && let Some(packed) = page.get(levels as usize..)
        {
            let most = unpacked.saturating_sub(levels);
            let mut sink = std::io::sink();
            let read = std::io::copy(&mut MultiGzDecoder::new(packed).take(most + 1), &mut sink);
            // What is no gzip at all the decoder refuses by itself.
            if read.is_ok_and(|read| read > most) {
                return Err(damaged("holds more than it says"));
            }
        }
        all += unpacked;
        bytes = rest;
    }
    Ok(all)
}

/// Takes one header off `bytes`; none where it is no header that a writer writes.
fn header(bytes: &mut &[u8]) -> Option<Header> {
    let mut header = Header::default();
    read_struct(bytes, 0, 0, &mut |parent, id, value| match (parent, id) {
        (0, 1) => header.kind = value,
        (0, 2) => header.unpacked = value,
        (0, 3) => header.packed = value,
        // Data page, dictionary page and data page version 2.
        (5 | 7 | 8, 1) => header.values = value,
        (5 | 7, 2) | (8, 4) => header.encoding = value,
        (8, 5 | 6) => header.levels = header.levels.saturating_add(value),
        _ => {}
    })?;
    Some(header)
}

/// Reads a struct of the compact protocol and hands over its whole numbers, with the field that
/// the struct itself is (0 outermost). Each field has a greater id than the one before, so none is
/// said twice.
fn read_struct(
    bytes: &mut &[u8],
    parent: i64,
    depth: u8,
    take: &mut impl FnMut(i64, i64, i64),
) -> Option<()> {
    let mut id = 0;
    loop {
        let (head, rest) = bytes.split_first()?;
        *bytes = rest;
        if *head == 0 {
            return Some(());
        }
        let step = i64::from(head >> 4);
        if step == 0 {
            return None;
        }
        id += step;
        match head & 15 {
            1 | 2 => {}
            3 => *bytes = bytes.get(1..)?,
            4..=6 => {
                let value = varint(bytes)?;
                // Zigzag: the sign is the last bit.
                take(parent, id, (value >> 1) as i64 ^ -((value & 1) as i64));
            }
            7 => *bytes = bytes.get(8..)?,
            8 => {
                let length = usize::try_from(varint(bytes)?).ok()?;
                *bytes = bytes.get(length..)?;
            }
            12 if depth < DEPTH_MAX => {
                // Statistics inside a page's own struct say nothing that is wanted.
                let inner = if depth == 0 { id } else { -1 };
                read_struct(bytes, inner, depth + 1, take)?;
            }
            // Lists, sets and maps: page headers have none.
            _ => return None,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    /// A data page's header: sizes, values and encoding below 64 each.
    fn page(unpacked: u8, packed: u8, encoding: u8) -> Vec<u8> {
        let [unpacked, packed, encoding] = [unpacked, packed, encoding].map(|n| n << 1);
        vec![
            0x15, 0, 0x15, unpacked, 0x15, packed, 0x2C, 0x15, 8, 0x15, encoding, 0x15, 6, 0x15, 6,
            0, 0,
        ]
    }

    #[test]
    fn a_header_is_taken_apart_and_the_rest_is_left() {
        let bytes = [page(40, 7, 8), vec![9; 7]].concat();
        let mut rest = bytes.as_slice();
        let found = header(&mut rest).expect("a header");
        let expected =
            Header { unpacked: 40, packed: 7, encoding: 8, values: 4, ..Header::default() };
        assert_eq!((found, rest), (expected, &[9; 7][..]));
        for end in 0..bytes.len() - 7 {
            assert_eq!(header(&mut &bytes[..end]), None, "{end}");
        }
        // A field said twice, by the long form of its id.
        assert_eq!(header(&mut &[0x15, 0, 0x15, 2, 0x15, 2, 0x05, 4, 0x7E, 0][..]), None);
        // Lists, and structs without end.
        assert_eq!(header(&mut &[0x19, 0x10, 0][..]), None);
        assert_eq!(header(&mut &[0x1C; 100][..]), None);
    }

    #[test]
    fn what_a_page_cannot_hold_is_refused() {
        let line = |bytes: &[u8], compression| {
            check("label", bytes, compression).map_err(|problem| problem.to_string())
        };
        let plain = Compression::UNCOMPRESSED;
        assert_eq!(line(&[page(7, 7, 0), vec![0; 7]].concat(), plain), Ok(7));
        let cut = line(&[page(7, 7, 0), vec![0; 6]].concat(), plain).expect_err("cut off");
        assert_eq!(cut, "damaged: a page of the column `label` is cut off; save it again");
        let encoding = line(&[page(7, 7, 7), vec![0; 7]].concat(), plain).expect_err("encoding");
        assert!(encoding.contains("DELTA_BYTE_ARRAY"), "{encoding}");
        // 2^31 - 1 bytes unpacked.
        let huge = [0x15, 0, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x15, 0, 0];
        let huge = line(&huge, plain).expect_err("too large");
        assert!(huge.contains("takes 2147483647 bytes, more than 67108864"), "{huge}");
        // Gzip that goes on after what it says.
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&[0; 60]).expect("memory");
        let gzip = gzip.finish().expect("memory");
        let bytes = |unpacked| [page(unpacked, gzip.len() as u8, 0), gzip.clone()].concat();
        let packed = Compression::GZIP(parquet::basic::GzipLevel::default());
        assert_eq!(line(&bytes(60), packed), Ok(60));
        let more = line(&bytes(59), packed).expect_err("more");
        assert!(more.contains("holds more than it says"), "{more}");
    }
}
