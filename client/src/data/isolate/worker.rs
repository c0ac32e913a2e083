//! The decoder's process: reads requests from standard input, decodes, and answers on standard output. It ends with its
//! client.

use std::borrow::Cow;
use std::io::{self, stdin, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;

use dicom_encoding::adapters::{DecodeError, PixelDataObject, RawPixelData};
use dicom_encoding::transfer_syntax::Codec;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tributary_shared::outcome::chain;

use super::wire::{self, Answer, Coded, Request};
use crate::data::labels::check_footer;
#[cfg(feature = "openslide")]
pub(super) use crate::data::slide::Served;

/// The slide of a program without OpenSlide.
#[cfg(not(feature = "openslide"))]
#[derive(Default)]
pub(super) struct Served {}

#[cfg(not(feature = "openslide"))]
impl Served {
    #[expect(clippy::needless_pass_by_ref_mut, reason = "with OpenSlide a slide stays open")]
    fn answer(&mut self, _asked: &super::slide::Asked<'_>) -> Result<Vec<u8>, String> {
        Err("the decoder's program was built without it".to_owned())
    }
}

/// Answers requests until the client closes its end, with at most `memory_mib` MiB of address space beside what the
/// program has mapped when this is called.
///
/// # Errors
/// The limits cannot be set, or standard output is closed.
pub fn serve(memory_mib: u64) -> io::Result<()> {
    limit(Resource::Core, 0)?;
    // A program with LibTorch and CUDA maps gigabytes before it decodes anything.
    let mapped_kib = in_status("VmSize:").unwrap_or_default();
    let most_kib = memory_mib.saturating_mul(1 << 10).saturating_add(mapped_kib);
    limit(Resource::As, most_kib.saturating_mul(1 << 10))?;
    // The pool starts processes on a thread that lives as long as the client: the signal is sent when that thread ends.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let (hand_over, requests) = sync_channel(0);
    let read = move || {
        // This thread notices the end of the client even while a picture is being decoded.
        while let Ok(Some(request)) = wire::receive(&mut stdin().lock(), wire::REQUEST_BYTES_MAX) {
            if hand_over.send(request).is_err() {
                break;
            }
        }
        std::process::exit(0);
    };
    std::thread::Builder::new().name("requests".to_owned()).stack_size(256 << 10).spawn(read)?;
    let mut slide = Served::default();
    while let Ok(request) = requests.recv() {
        let answer = match Request::read(&request) {
            Some(request) => answer(&request, &mut slide),
            None => Answer::Refused("no request".to_owned()),
        };
        answer.send(&mut stdout().lock())?;
    }
    Ok(())
}

/// Limits a resource to `most`, or leaves a limit that is lower already.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = Some(getrlimit(resource).current.map_or(most, |already| already.min(most)));
    Ok(setrlimit(resource, Rlimit { current: most, maximum: most })?)
}

fn answer(request: &Request<'_>, slide: &mut Served) -> Answer {
    match catch_unwind(AssertUnwindSafe(|| carry_out(request, slide))) {
        Ok(Ok(samples)) => Answer::Samples(samples),
        // The decoder says of a refused allocation the same as of a damaged picture.
        Ok(Err(_)) if lacked_memory(request) => Answer::Memory,
        Ok(Err(words)) => Answer::Refused(words),
        Err(_) => Answer::Refused("the decoder gave up on it".to_owned()),
    }
}

/// True when the most memory that was taken so far leaves no room for the samples once more, which the decoder holds in
/// four bytes each.
fn lacked_memory(request: &Request<'_>) -> bool {
    let room = getrlimit(Resource::As).current.zip(in_status("VmPeak:"));
    room.is_some_and(|(limit, peak_kib)| (peak_kib << 10) + 4 * request.samples() > limit)
}

/// The number of KiB that Linux names so in the process's status (proc_pid_status(5)); none on other systems.
fn in_status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(name))?;
    kib.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Does what is asked in this process.
///
/// # Errors
/// The decoder's reason, in words.
pub(super) fn carry_out(request: &Request<'_>, slide: &mut Served) -> Result<Vec<u8>, String> {
    match request {
        Request::Picture(coded) => decode(coded),
        Request::Footer(footer) => check_footer(footer).map(|()| Vec::new()),
        Request::Slide(asked) => slide.answer(asked),
    }
}

/// Decodes one picture: samples side by side, little endian.
fn decode(coded: &Coded<'_>) -> Result<Vec<u8>, String> {
    let syntax = TransferSyntaxRegistry.get(coded.syntax);
    let Some(Codec::EncapsulatedPixelData(Some(decoder), _)) = syntax.map(|syntax| syntax.codec())
    else {
        return Err(format!("the transfer syntax {} is not read here", coded.syntax));
    };
    let mut samples = Vec::new();
    decoder.decode_frame(coded, 0, &mut samples).map_err(|error: DecodeError| chain(&error))?;
    if samples.len() as u64 != coded.bytes() {
        return Err("another number of bytes than the picture needs".to_owned());
    }
    Ok(samples)
}

impl PixelDataObject for Coded<'_> {
    fn transfer_syntax_uid(&self) -> &str {
        self.syntax
    }

    fn rows(&self) -> Option<u16> {
        Some(self.rows)
    }

    fn cols(&self) -> Option<u16> {
        Some(self.columns)
    }

    fn samples_per_pixel(&self) -> Option<u16> {
        Some(self.samples)
    }

    fn bits_allocated(&self) -> Option<u16> {
        Some(self.bits_allocated)
    }

    fn bits_stored(&self) -> Option<u16> {
        Some(self.bits_stored)
    }

    fn photometric_interpretation(&self) -> Option<&str> {
        None
    }

    fn number_of_frames(&self) -> Option<u32> {
        Some(1)
    }

    fn number_of_fragments(&self) -> Option<u32> {
        Some(1)
    }

    fn fragment(&self, fragment: usize) -> Option<Cow<'_, [u8]>> {
        (fragment == 0).then_some(Cow::Borrowed(self.stream))
    }

    fn offset_table(&self) -> Option<Cow<'_, [u32]>> {
        Some(Cow::Borrowed(&[0]))
    }

    fn raw_pixel_data(&self) -> Option<RawPixelData> {
        let fragments = std::iter::once(self.stream.to_vec()).collect();
        Some(RawPixelData { fragments, offset_table: std::iter::once(0).collect() })
    }
}
