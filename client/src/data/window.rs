//! Stored values to grey levels.

use tributary_shared::dataset::Window;

/// The range that becomes 0 to 255, or a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Curve {
    /// DICOM LINEAR (PS3.3 C.11.2.1.2.1): a window counts whole units, so 256 units wide starting
    /// at 0 is centre 128, width 256.
    Linear { centre: f64, width: f64 },
    /// DICOM LINEAR_EXACT (C.11.2.1.3.2).
    LinearExact { centre: f64, width: f64 },
    /// DICOM SIGMOID (C.11.2.1.3.1).
    Sigmoid { centre: f64, width: f64 },
    /// From black to white; everything is black when they are equal.
    Range { black: f64, white: f64 },
}

impl Curve {
    /// For the two choices that look at the values; `None` for the others.
    pub(super) fn of_values(window: Window, values: &[f32]) -> Option<Self> {
        match window {
            Window::File | Window::Given { .. } => None,
            Window::MinMax => Some(Self::min_max(values)),
            Window::Percentile { low, high } => Some(Self::percentile(values, low, high)),
        }
    }

    pub(super) fn min_max(values: &[f32]) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let black = finite().fold(f32::INFINITY, f32::min);
        let white = finite().fold(f32::NEG_INFINITY, f32::max);
        if black > white {
            return Self::Range { black: 0.0, white: 0.0 };
        }
        Self::Range { black: f64::from(black), white: f64::from(white) }
    }

    /// Linear interpolation between the two nearest values, as numpy's default.
    pub(super) fn percentile(values: &[f32], low: f64, high: f64) -> Self {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
        if sorted.is_empty() {
            return Self::Range { black: 0.0, white: 0.0 };
        }
        let mut at = |percent: f64| {
            let place = percent / 100.0 * (sorted.len() - 1) as f64;
            let (_, below, above) = sorted.select_nth_unstable_by(place as usize, f32::total_cmp);
            let below = f64::from(*below);
            let next = above.iter().copied().min_by(f32::total_cmp).map_or(below, f64::from);
            below + (next - below) * place.fract()
        };
        Self::Range { black: at(low), white: at(high) }
    }

    /// The grey level of one value; what is no number is black.
    pub(super) fn level(self, value: f64) -> u8 {
        let share = match self {
            Self::Linear { centre, width } if width > 1.0 => {
                (value - (centre - 0.5)) / (width - 1.0) + 0.5
            }
            Self::Linear { centre, .. } => f64::from(u8::from(value > centre - 0.5)),
            Self::LinearExact { centre, width } => (value - centre) / width + 0.5,
            Self::Sigmoid { centre, width } => {
                1.0 / (1.0 + (-4.0 * (value - centre) / width).exp())
            }
            Self::Range { black, white } if white > black => (value - black) / (white - black),
            Self::Range { .. } => 0.0,
        };
        // A cast takes NaN to 0.
        (share.clamp(0.0, 1.0) * 255.0).round() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_window_counts_whole_units() {
        // PS3.3 C.11.2.1.2.1, note 4: c=2048, w=4096 maps 0..4095 onto the whole range.
        let curve = Curve::Linear { centre: 2048.0, width: 4096.0 };
        assert_eq!([0.0, 4095.0, -5.0, 9999.0].map(|v| curve.level(v)), [0, 255, 0, 255]);
        // c=0, w=1: black up to -0.5, white above.
        let step = Curve::Linear { centre: 0.0, width: 1.0 };
        assert_eq!([-0.5, -0.4].map(|v| step.level(v)), [0, 255]);
        assert_eq!(Curve::Sigmoid { centre: 5.0, width: 9.0 }.level(5.0), 128);
        assert_eq!(Curve::LinearExact { centre: 5.0, width: 10.0 }.level(10.0), 255);
    }

    #[test]
    fn percentiles_are_numpys() {
        // python: numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], [10, 75]) -> [1.0, 5.25]
        let values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, f32::NAN];
        let curve = Curve::percentile(&values, 10.0, 75.0);
        assert_eq!(curve, Curve::Range { black: 1.0, white: 5.25 });
        let all = Curve::percentile(&values, 0.0, 100.0);
        assert_eq!(all, Curve::Range { black: 1.0, white: 9.0 });
        assert_eq!(all, Curve::min_max(&values));
    }

    #[test]
    fn nothing_to_see_is_black_and_never_a_panic() {
        for values in [&[][..], &[f32::NAN], &[7.0, 7.0]] {
            let flat = Curve::min_max(values);
            assert_eq!(flat.level(7.0), 0);
            assert_eq!(flat.level(f64::NAN), 0);
            assert_eq!(Curve::percentile(values, 1.0, 99.0).level(7.0), 0);
        }
    }
}
