//! Messages between the client and a decoder's process, each with its length before it.

use std::io::{self, Read, Write};

use tributary_shared::text::printable;

use super::slide::Asked;

/// Most bytes of a request: a file has at most 2 GiB.
pub(super) const REQUEST_BYTES_MAX: u64 = (2 << 30) + (1 << 20);
/// Most bytes of an answer that is no picture.
pub(super) const WORDS_BYTES_MAX: u64 = 4096;
/// The five numbers and the length of the transfer syntax before a stream.
const HEAD_BYTES: usize = 11;
/// The first bytes of the requests.
const PICTURE: u8 = 0;
const FOOTER: u8 = 1;
const SLIDE: u8 = 2;

/// A request to a decoder's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) enum Request<'a> {
    /// To decode a picture: its samples are the answer.
    Picture(Coded<'a>),
    /// To read the description of a Parquet file, whose reader calls itself for each level of nested columns. Nothing is
    /// the answer where it can be read.
    Footer(&'a [u8]),
    /// To answer a question about the slide that is open in the process, or to open it.
    Slide(Asked<'a>),
}

impl<'a> Request<'a> {
    /// Least and most bytes of the answer.
    pub(super) fn answer_bytes(&self) -> [u64; 2] {
        match self {
            Self::Picture(coded) => [coded.bytes(); 2],
            Self::Footer(_) => [0; 2],
            Self::Slide(asked) => asked.answer_bytes(),
        }
    }

    /// Samples of the picture; 0 where none is asked for.
    pub(super) fn samples(&self) -> u64 {
        match self {
            Self::Picture(coded) => coded.samples(),
            Self::Footer(_) | Self::Slide(_) => 0,
        }
    }

    /// The bytes that are sent before [`Self::body`].
    pub(super) fn head(&self) -> Vec<u8> {
        match self {
            Self::Picture(coded) => coded.head(),
            Self::Footer(_) => vec![FOOTER],
            Self::Slide(asked) => [vec![SLIDE], asked.head()].concat(),
        }
    }

    /// The file's own bytes, or its path.
    pub(super) fn body(&self) -> &'a [u8] {
        match self {
            Self::Picture(coded) => coded.stream,
            Self::Footer(footer) => footer,
            Self::Slide(asked) => asked.body(),
        }
    }

    /// Takes a request apart; `None` when it is none.
    pub(super) fn read(request: &'a [u8]) -> Option<Self> {
        match request.split_first()? {
            (&PICTURE, rest) => Coded::read(rest).map(Self::Picture),
            (&FOOTER, footer) => Some(Self::Footer(footer)),
            (&SLIDE, asked) => Asked::read(asked).map(Self::Slide),
            _ => None,
        }
    }
}

/// One compressed picture, and what its decoder asks of the file around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) struct Coded<'a> {
    /// UID of its transfer syntax.
    pub(in crate::data) syntax: &'a str,
    pub(in crate::data) rows: u16,
    pub(in crate::data) columns: u16,
    pub(in crate::data) samples: u16,
    pub(in crate::data) bits_allocated: u16,
    pub(in crate::data) bits_stored: u16,
    pub(in crate::data) stream: &'a [u8],
}

impl<'a> Coded<'a> {
    /// Bytes of the decoded picture.
    pub(in crate::data) fn bytes(&self) -> u64 {
        u64::from(self.bits_allocated / 8) * self.samples()
    }

    fn samples(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.columns) * u64::from(self.samples)
    }

    /// Everything before the stream, as it is sent.
    fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(1 + HEAD_BYTES + self.syntax.len());
        head.push(PICTURE);
        for number in [self.rows, self.columns, self.samples, self.bits_allocated, self.bits_stored]
        {
            head.extend(number.to_le_bytes());
        }
        // A UID has at most 64 bytes; a longer one names no transfer syntax, and neither does its beginning.
        let syntax = self.syntax.as_bytes();
        let length = u8::try_from(syntax.len()).unwrap_or(u8::MAX);
        head.push(length);
        head.extend(&syntax[..usize::from(length)]);
        head
    }

    /// Takes what follows a request's first byte apart; `None` when it is no picture.
    fn read(request: &'a [u8]) -> Option<Self> {
        let (numbers, rest) = request.split_first_chunk::<10>()?;
        let number = |at: usize| u16::from_le_bytes([numbers[2 * at], numbers[2 * at + 1]]);
        let (length, rest) = rest.split_first()?;
        let (syntax, stream) = rest.split_at_checked(usize::from(*length))?;
        Some(Self {
            syntax: std::str::from_utf8(syntax).ok()?,
            rows: number(0),
            columns: number(1),
            samples: number(2),
            bits_allocated: number(3),
            bits_stored: number(4),
            stream,
        })
    }
}

/// An answer of a decoder's process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Samples side by side, little endian, or what else was asked for.
    Samples(Vec<u8>),
    /// The decoder's reason for not doing what was asked.
    Refused(String),
    /// The decoder was given less memory than it asked for.
    Memory,
}

impl Answer {
    pub(super) fn send(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Samples(samples) => send(to, &[&[0], samples]),
            Self::Refused(words) => {
                let words: String = words.chars().take(1000).collect();
                send(to, &[&[1], words.as_bytes()])
            }
            Self::Memory => send(to, &[&[2]]),
        }
    }

    /// Reads an answer to a request whose answer has so many bytes; `None` where it is none. The other side may say
    /// anything: its length is compared before anything is reserved.
    pub(super) fn receive(
        from: &mut impl Read,
        [least, most]: [u64; 2],
    ) -> io::Result<Option<Self>> {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let [length @ .., kind] = head;
        let Some(length) = u64::from_le_bytes(length).checked_sub(1) else { return Ok(None) };
        Ok(match kind {
            0 if (least..=most).contains(&length) => Some(Self::Samples(exactly(from, length)?)),
            1 if length <= WORDS_BYTES_MAX => {
                let words = exactly(from, length)?;
                Some(Self::Refused(printable(&String::from_utf8_lossy(&words))))
            }
            2 if length == 0 => Some(Self::Memory),
            _ => None,
        })
    }
}

/// Sends the parts as one message.
pub(super) fn send(to: &mut impl Write, parts: &[&[u8]]) -> io::Result<()> {
    let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
    to.write_all(&length.to_le_bytes())?;
    for part in parts {
        to.write_all(part)?;
    }
    to.flush()
}

/// The next message, of at most `most` bytes; `None` for a longer one.
pub(super) fn receive(from: &mut impl Read, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > most {
        return Ok(None);
    }
    exactly(from, length).map(Some)
}

fn exactly(from: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    let room = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    message.try_reserve_exact(room).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if from.take(length).read_to_end(&mut message)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_none_of_its_prefixes_panics() {
        let coded = Coded {
            syntax: "1.2.840.10008.1.2.4.90",
            rows: 3,
            columns: 500,
            samples: 3,
            bits_allocated: 16,
            bits_stored: 12,
            stream: b"stream",
        };
        let asked = Request::Picture(coded);
        let request = [asked.head(), asked.body().to_vec()].concat();
        assert_eq!(Request::read(&request), Some(asked.clone()));
        assert_eq!(asked.answer_bytes(), [3 * 500 * 3 * 2; 2]);
        for end in 0..asked.head().len() {
            assert_eq!(Request::read(&request[..end]), None, "{end}");
        }
        let asked = Request::Footer(b"footer");
        let request = [asked.head(), asked.body().to_vec()].concat();
        assert_eq!(Request::read(&request), Some(asked));
        let asked = Request::Slide(Asked::Open("a.svs"));
        let request = [asked.head(), asked.body().to_vec()].concat();
        assert_eq!(Request::read(&request), Some(asked));
        assert_eq!(Request::read(&[9, 9]), None);
    }

    #[test]
    fn an_answer_of_another_size_than_the_picture_is_none_and_reserves_nothing() {
        let answer = |bytes: &[u8]| Answer::receive(&mut &bytes[..], [4; 2]).unwrap();
        let mut sent = Vec::new();
        Answer::Samples(vec![1, 2, 3, 4]).send(&mut sent).unwrap();
        assert_eq!(answer(&sent), Some(Answer::Samples(vec![1, 2, 3, 4])));
        let mut sent = Vec::new();
        Answer::Samples(vec![1, 2, 3]).send(&mut sent).unwrap();
        assert_eq!(answer(&sent), None);
        let within = |range| Answer::receive(&mut &sent[..], range).unwrap().is_some();
        assert_eq!([[3, 9], [1, 3], [4, 9], [1, 2]].map(within), [true, true, false, false]);
        for kind in [0, 1, 2, 0xFF] {
            let claim = [u64::MAX.to_le_bytes().as_slice(), &[kind]].concat();
            assert_eq!(answer(&claim), None, "a length that would end the client");
        }
        let mut sent = Vec::new();
        Answer::Refused("a\u{1b}[2Jb\n".to_owned()).send(&mut sent).unwrap();
        assert_eq!(answer(&sent), Some(Answer::Refused("a [2Jb ".to_owned())));
        assert!(Answer::receive(&mut &sent[..10], [4; 2]).is_err(), "cut short");
    }
}
