//! Lookup tables: modality, VOI and palette share one form (PS3.3 C.7.6.3.1.5, C.11.1.1).

use dicom_object::{InMemDicomObject, Tag};

use super::DicomProblem;

const LUT_DESCRIPTOR: Tag = Tag(0x0028, 0x3002);
const LUT_DATA: Tag = Tag(0x0028, 0x3006);

pub(super) struct Lookup {
    first: i64,
    bits: u32,
    entries: Vec<u16>,
}

impl Lookup {
    /// The first table of a sequence such as Modality LUT Sequence.
    pub(super) fn of_sequence(
        object: &InMemDicomObject,
        sequence: Tag,
        table: &'static str,
    ) -> Result<Option<Self>, DicomProblem> {
        let items = object.get(sequence).and_then(|element| element.items());
        let Some(item) = items.and_then(<[_]>::first) else { return Ok(None) };
        Self::read(item, LUT_DESCRIPTOR, LUT_DATA, table).map(Some)
    }

    pub(super) fn read(
        object: &InMemDicomObject,
        descriptor: Tag,
        data: Tag,
        table: &'static str,
    ) -> Result<Self, DicomProblem> {
        let damaged = || DicomProblem::Lookup { table };
        let descriptor = object.get(descriptor).and_then(|e| e.to_multi_int::<i64>().ok());
        let descriptor = descriptor.ok_or_else(damaged)?;
        let [length, first, bits] = *descriptor.first_chunk::<3>().ok_or_else(damaged)?;
        // 16 bits cannot hold 65536, so 0 stands for it; a signed reading shows the rest below 0. A
        // file may spell the number in more bits.
        let length = match length & 0xFFFF {
            0 => 65_536,
            length => usize::try_from(length).map_err(|_| damaged())?,
        };
        let bits = u32::try_from(bits).ok().filter(|b| (1..=16).contains(b)).ok_or_else(damaged)?;
        let data = object.get(data).ok_or_else(damaged)?;
        let words = data.to_multi_int::<u16>().map_err(|_| damaged())?;
        let bytes_packed = bits <= 8 && words.len() == length.div_ceil(2) && length > 1;
        let entries = match bytes_packed {
            true => words.iter().flat_map(|word| word.to_le_bytes()).map(u16::from).collect(),
            false => words,
        };
        if entries.len() < length {
            return Err(damaged());
        }
        Ok(Self { first, bits, entries: entries.into_iter().take(length).collect() })
    }

    /// Values outside the table take its nearest end.
    pub(super) fn entry(&self, value: i64) -> u16 {
        let last = self.entries.len() - 1;
        let at = usize::try_from(value.saturating_sub(self.first)).unwrap_or(0).min(last);
        self.entries[at]
    }

    /// The entry as a share of the largest that its bits hold, in 0 to 255.
    pub(super) fn level(&self, value: i64) -> u8 {
        let largest = (1u32 << self.bits) - 1;
        let level = f64::from(self.entry(value)) / f64::from(largest) * 255.0;
        level.clamp(0.0, 255.0).round() as u8
    }
}

#[cfg(test)]
mod tests {
    use dicom_core::dicom_value;
    use dicom_core::{DataElement, PrimitiveValue, VR};

    use super::*;

    fn read(descriptor: PrimitiveValue, words: usize) -> Result<Lookup, DicomProblem> {
        let object = InMemDicomObject::from_element_iter([
            DataElement::new(LUT_DESCRIPTOR, VR::SV, descriptor),
            DataElement::new(LUT_DATA, VR::US, PrimitiveValue::U16(vec![7; words].into())),
        ]);
        Lookup::read(&object, LUT_DESCRIPTOR, LUT_DATA, "table")
    }

    /// Failed before: a length of 65536 in more than 16 bits was read as none, and the first value
    /// looked for an entry of an empty table.
    #[test]
    fn a_table_of_a_length_beyond_16_bits_has_entries_or_is_refused() {
        let descriptor = || dicom_value!(I64, [65_536, 0, 16]);
        assert!(read(descriptor(), 4).is_err());
        assert_eq!(read(descriptor(), 65_536).unwrap().entry(9), 7);
    }

    /// Failed before: the subtraction overflowed.
    #[test]
    fn values_far_from_the_first_one_take_an_end_of_the_table() {
        for first in [i64::MIN, i64::MAX] {
            let table = read(dicom_value!(I64, [4, first, 16]), 4).unwrap();
            for value in [i64::MIN, 0, i64::MAX] {
                assert_eq!(table.entry(value), 7);
            }
        }
    }
}
