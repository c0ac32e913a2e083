//! Questions about a slide that stays open in a decoder's process, and the description that the process gives of it.

/// Most levels of a slide.
pub(in crate::data) const LEVELS_MAX: usize = 64;
/// Bytes of a description without levels, and of each level.
const DESCRIPTION_BYTES: usize = 16;
const LEVEL_BYTES: usize = 8;
/// The first bytes of the questions.
const LIBRARY: u8 = 0;
const OPEN: u8 = 1;
const REGION: u8 = 2;

/// One question about a slide. Each is asked after the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) enum Asked<'a> {
    /// To load OpenSlide from a path, or as the system finds it. A refusal is about the library and not the slide.
    Library(Option<&'a str>),
    /// To open the slide at a path: its [`Description`] is the answer.
    Open(&'a str),
    /// To read a rectangle of the slide that is open: three bytes a pixel are the answer.
    Region(Region),
}

/// A rectangle of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) struct Region {
    pub(in crate::data) level: u32,
    /// Left and top edge, pixels of the level.
    pub(in crate::data) corner: [u32; 2],
    pub(in crate::data) size: [u32; 2],
}

impl<'a> Asked<'a> {
    /// Least and most bytes of the answer.
    pub(super) fn answer_bytes(&self) -> [u64; 2] {
        match self {
            Self::Library(_) => [0; 2],
            Self::Open(_) => [1, LEVELS_MAX].map(|n| (DESCRIPTION_BYTES + n * LEVEL_BYTES) as u64),
            Self::Region(Region { size: [width, height], .. }) => {
                [u64::from(*width).saturating_mul(u64::from(*height)).saturating_mul(3); 2]
            }
        }
    }

    /// The bytes that are sent before [`Self::body`].
    pub(super) fn head(&self) -> Vec<u8> {
        match self {
            Self::Library(path) => vec![LIBRARY, u8::from(path.is_some())],
            Self::Open(_) => vec![OPEN],
            Self::Region(Region { level, corner, size }) => {
                let numbers = [*level, corner[0], corner[1], size[0], size[1]];
                let numbers = numbers.into_iter().flat_map(u32::to_le_bytes);
                std::iter::once(REGION).chain(numbers).collect()
            }
        }
    }

    /// The path, if there is one.
    pub(super) fn body(&self) -> &'a [u8] {
        match self {
            Self::Library(path) => path.unwrap_or_default().as_bytes(),
            Self::Open(path) => path.as_bytes(),
            Self::Region(_) => &[],
        }
    }

    /// Takes a question apart; `None` when it is none.
    pub(super) fn read(asked: &'a [u8]) -> Option<Self> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        match asked.split_first()? {
            (&LIBRARY, [0]) => Some(Self::Library(None)),
            (&LIBRARY, [1, path @ ..]) => text(path).map(|path| Self::Library(Some(path))),
            (&OPEN, path) => text(path).map(Self::Open),
            (&REGION, numbers) => {
                let numbers: &[u8; 20] = numbers.try_into().ok()?;
                let [level, left, top, width, height] =
                    [0, 1, 2, 3, 4].map(|at| number(numbers, at));
                Some(Self::Region(Region { level, corner: [left, top], size: [width, height] }))
            }
            _ => None,
        }
    }
}

/// The number at a place of a row of numbers.
fn number(numbers: &[u8], at: usize) -> u32 {
    let bytes = &numbers[4 * at..][..4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Sides of the levels, resolution and magnification of a slide that was opened.
#[cfg(feature = "openslide")]
#[derive(Clone, Debug, PartialEq)]
pub(in crate::data) struct Description {
    /// Width and height of each level, finest first: at least one level, no side 0.
    pub(in crate::data) sides: Vec<(u32, u32)>,
    /// Micrometres a pixel of the finest level.
    pub(in crate::data) mpp: Option<f64>,
    /// Magnification of the objective, such as 20 or 40.
    pub(in crate::data) objective_power: Option<f64>,
}

#[cfg(feature = "openslide")]
impl Description {
    /// The bytes that are sent.
    pub(in crate::data) fn bytes(&self) -> Vec<u8> {
        let lengths = [self.mpp, self.objective_power].map(Option::unwrap_or_default);
        let lengths = lengths.into_iter().flat_map(f64::to_le_bytes);
        let sides = self.sides.iter().flat_map(|(width, height)| [*width, *height]);
        lengths.chain(sides.flat_map(u32::to_le_bytes)).collect()
    }

    /// Takes a description apart; `None` when it describes no slide. The other side may say anything.
    pub(in crate::data) fn read(bytes: &[u8]) -> Option<Self> {
        let (mpp, rest) = bytes.split_first_chunk::<8>()?;
        let (objective_power, levels) = rest.split_first_chunk::<8>()?;
        let count = levels.len() / LEVEL_BYTES;
        if levels.len() % LEVEL_BYTES != 0 || !(1..=LEVELS_MAX).contains(&count) {
            return None;
        }
        let sides =
            (0..count).map(|level| (number(levels, 2 * level), number(levels, 2 * level + 1)));
        let sides: Vec<_> = sides.collect();
        if sides.iter().any(|(width, height)| *width == 0 || *height == 0) {
            return None;
        }
        Some(Self { sides, mpp: positive(*mpp)?, objective_power: positive(*objective_power)? })
    }
}

/// A number above 0, or none where 0 stands for it; `None` for anything else.
#[cfg(feature = "openslide")]
fn positive(bytes: [u8; 8]) -> Option<Option<f64>> {
    match f64::from_le_bytes(bytes) {
        0.0 => Some(None),
        number if number.is_finite() && number > 0.0 => Some(Some(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let region = Region { level: 3, corner: [1, 70_000], size: [1024, 5] };
        for asked in [
            Asked::Library(None),
            Asked::Library(Some("/opt/lib/libopenslide.so.1")),
            Asked::Open("slides/a.mrxs"),
            Asked::Region(region),
        ] {
            let bytes = [asked.head(), asked.body().to_vec()].concat();
            assert_eq!(Asked::read(&bytes), Some(asked));
        }
        assert_eq!(Asked::Region(region).answer_bytes(), [1024 * 5 * 3; 2]);
        let region = Asked::Region(region).head();
        for none in [&[][..], &[LIBRARY], &[LIBRARY, 2], &[OPEN, 0xFF], &[9], &region[..20]] {
            assert_eq!(Asked::read(none), None, "{none:?}");
        }
    }

    #[cfg(feature = "openslide")]
    #[test]
    fn a_description_that_no_slide_has_is_none() {
        let described = Description {
            sides: vec![(70_000, 50_000), (17_500, 12_500)],
            mpp: Some(0.25),
            objective_power: None,
        };
        let bytes = described.bytes();
        let [least, most] = Asked::Open("").answer_bytes();
        assert!((least..=most).contains(&(bytes.len() as u64)));
        assert_eq!(Description::read(&bytes), Some(described.clone()));
        for end in 0..bytes.len() {
            // It may end between two levels.
            assert_eq!(Description::read(&bytes[..end]).is_some(), end == 24, "{end}");
        }
        let read = |change: &dyn Fn(&mut Description)| {
            let mut described = described.clone();
            change(&mut described);
            Description::read(&described.bytes())
        };
        assert_eq!(read(&|it| it.sides[1].0 = 0), None);
        assert_eq!(read(&|it| it.sides[0].1 = 0), None);
        for number in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(read(&|it| it.mpp = Some(number)), None, "{number}");
            assert_eq!(read(&|it| it.objective_power = Some(number)), None, "{number}");
        }
        assert!(read(&|it| it.sides = vec![(1, 1); 64]).is_some());
        assert_eq!(read(&|it| it.sides = vec![(1, 1); 65]), None);
    }
}
