//! Hours of the day in which a site agrees to train.

use std::str::FromStr;

use tributary_shared::timestamp::Timestamp;

const DAY_MINUTES: i64 = 24 * 60;

/// Minutes after midnight, start included, end not; an end before its start lies on the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    start: i64,
    end: i64,
}

impl Window {
    /// Whether `now`, read on a clock `offset_minutes` east of UTC, lies inside.
    pub(super) fn holds(self, now: Timestamp, offset_minutes: i64) -> bool {
        let minute = (now.as_millis().div_euclid(60_000) + offset_minutes).rem_euclid(DAY_MINUTES);
        if self.start < self.end {
            (self.start..self.end).contains(&minute)
        } else {
            minute >= self.start || minute < self.end
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let window = text
            .split_once('-')
            .and_then(|(start, end)| Some(Self { start: minutes(start)?, end: minutes(end)? }));
        match window {
            Some(Self { start, end }) if start == end => {
                Err(format!("`{text}` is empty; leave `hours` out to train at any time"))
            }
            Some(window) => Ok(window),
            None => Err(format!("`{text}` is not a window; write e.g. \"18:00-06:00\"")),
        }
    }
}

/// Reads `HH:MM`; `24:00` ends a day.
fn minutes(text: &str) -> Option<i64> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two_digits = |t: &str| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
    if !two_digits(hour) || !two_digits(minute) {
        return None;
    }
    let (hour, minute): (i64, i64) = (hour.parse().ok()?, minute.parse().ok()?);
    let total = hour * 60 + minute;
    (minute < 60 && total <= DAY_MINUTES).then_some(total)
}

/// Reads `+HH:MM`, `-HH:MM` or `Z` as minutes east of UTC.
pub(super) fn utc_offset(text: &str) -> Result<i64, String> {
    let invalid = || format!("`{text}` is not an offset; write e.g. \"+01:00\"");
    let sign = match text.chars().next() {
        Some('Z') if text.len() == 1 => return Ok(0),
        Some('+') => 1,
        Some('-') => -1,
        Some(_) | None => return Err(invalid()),
    };
    let total = minutes(&text[1..]).filter(|m| *m <= 14 * 60).ok_or_else(invalid)?;
    Ok(sign * total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(hour: i64, minute: i64) -> Timestamp {
        Timestamp::from_millis(((20_000 * 24 + hour) * 60 + minute) * 60_000 + 59_999)
    }

    #[test]
    fn a_window_over_midnight_holds_both_evenings_and_mornings() {
        let night: Window = "18:00-06:00".parse().unwrap();
        for (hour, minute, inside) in
            [(17, 59, false), (18, 0, true), (23, 59, true), (5, 59, true), (6, 0, false)]
        {
            assert_eq!(night.holds(at(hour, minute), 0), inside, "{hour}:{minute}");
        }
        // 17:30 UTC is 18:30 an hour east.
        assert!(night.holds(at(17, 30), 60));
        assert!("12:00-24:00".parse::<Window>().unwrap().holds(at(23, 59), 0));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in ["", "18-06", "18:00", "25:00-06:00", "18:60-06:00", "06:00-06:00", "1:0-2:0"] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
        for bad in ["", "1", "+1", "+15:00", "é"] {
            assert!(utc_offset(bad).is_err(), "{bad}");
        }
        assert_eq!(utc_offset("-03:30"), Ok(-210));
    }

    proptest! {
        #[test]
        fn a_window_and_its_complement_share_no_minute(a in 0i64..1440, b in 0i64..1440, now: i32) {
            prop_assume!(a != b);
            let now = Timestamp::from_millis(i64::from(now) * 60_000);
            let window = Window { start: a, end: b };
            let complement = Window { start: b, end: a };
            prop_assert_ne!(window.holds(now, 0), complement.holds(now, 0));
        }
    }
}
