//! JPEG and JPEG 2000 pictures: decoded in another process, because their decoders reserve what a stream says or have
//! unsafe code, and put back into the object as plain samples, so that everything after the decoder is one code for all
//! transfer syntaxes.

use dicom_core::value::PixelFragmentSequence;
use dicom_encoding::adapters::PixelDataObject;
use dicom_encoding::transfer_syntax::Codec;
use dicom_object::mem::InMemElement;
use dicom_object::{DefaultDicomObject, InMemDicomObject};
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};

use super::{DicomProblem, FRAMES_MAX, PIXEL_DATA};
use crate::config::reading::Reading;
use crate::data::isolate::{Coded, Limits, Request};

/// Encapsulated transfer syntaxes whose frames take no more memory than the header says: uncompressed and RLE. Any
/// other goes to another process: the decoders of JPEG reserve by the stream's own header.
const SAFE: [&str; 2] = [ENCAPSULATED, "1.2.840.10008.1.2.5"];
/// Encapsulated Uncompressed Explicit VR Little Endian (PS3.5 A.4.11): each fragment is the samples of a frame.
const ENCAPSULATED: &str = "1.2.840.10008.1.2.1.98";

/// True for an object whose pictures are decoded in another process; false also for a transfer syntax that is not
/// read, which the reader names.
pub(super) fn is_foreign(object: &DefaultDicomObject) -> bool {
    let uid = object.meta().transfer_syntax();
    let syntax = TransferSyntaxRegistry.get(uid);
    let codec = syntax.map(|syntax| syntax.codec());
    matches!(codec, Some(Codec::EncapsulatedPixelData(Some(_), _))) && !SAFE.contains(&uid)
}

/// The object with one frame as plain samples and the others empty.
pub(super) fn decoded(
    object: &DefaultDicomObject,
    frame: u32,
    reading: &Reading,
) -> Result<DefaultDicomObject, DicomProblem> {
    let pixels = |detail: &str| DicomProblem::Pixels { detail: detail.to_owned() };
    let lacks = |name: &str| DicomProblem::Pixels { detail: format!("{name} is missing") };
    let frames = object.number_of_frames().unwrap_or(1);
    let there = frame < frames && frames <= FRAMES_MAX;
    let stream = there.then(|| object.frame_pixel_data(frame)).flatten();
    let stream = stream.ok_or_else(|| pixels("the frame is missing or out of bounds"))?;
    let coded = Coded {
        syntax: object.meta().transfer_syntax(),
        rows: object.rows().ok_or_else(|| lacks("Rows"))?,
        columns: object.cols().ok_or_else(|| lacks("Columns"))?,
        samples: object.samples_per_pixel().ok_or_else(|| lacks("SamplesPerPixel"))?,
        bits_allocated: object.bits_allocated().ok_or_else(|| lacks("BitsAllocated"))?,
        bits_stored: object.bits_stored().ok_or_else(|| lacks("BitsStored"))?,
        stream: &stream,
    };
    let limits =
        Limits { memory_mib: reading.decoder_memory_mib, seconds: reading.decoder_seconds };
    let samples = reading.isolation.ask(&Request::Picture(coded), limits)?;
    let samples = samples.map_err(|detail| DicomProblem::Pixels { detail })?;
    let mut fragments = vec![Vec::new(); frames as usize];
    fragments[frame as usize] = samples;
    let element = object.get(PIXEL_DATA).ok_or(DicomProblem::NoPicture)?;
    let others = object.iter().filter(|element| element.header().tag != PIXEL_DATA).cloned();
    let mut plain = InMemDicomObject::from_element_iter(others);
    let fragments = PixelFragmentSequence::new_fragments(fragments);
    plain.put_element(InMemElement::new(PIXEL_DATA, element.vr(), fragments));
    let mut meta = object.meta().clone();
    meta.transfer_syntax = ENCAPSULATED.to_owned();
    Ok(plain.with_exact_meta(meta))
}
