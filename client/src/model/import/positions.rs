//! Position embeddings of another image size, by the bicubic interpolation of their library.

/// Which of PyTorch's two bicubic filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bicubic {
    /// `interpolate(mode="bicubic")`: a = -0.75, four neighbours whatever the scale. Transformers'
    /// ViT and DINOv2.
    Plain,
    /// `interpolate(mode="bicubic", antialias=True)`: a = -0.5, as wide as the scale when
    /// shrinking. timm, and transformers' DINOv2 with registers.
    Antialiased,
}

impl Bicubic {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Plain => "bicubic, as transformers",
            Self::Antialiased => "bicubic with antialias, as timm",
        }
    }

    /// For each place of the new axis the old places it is made of, with their weights.
    fn taps(self, from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
        let scale = from as f64 / to as f64;
        let taps = |place: usize| match self {
            Self::Plain => {
                let centre = (place as f64 + 0.5) * scale - 0.5;
                let first = centre.floor();
                let tap = |i: i32| {
                    let at = first + f64::from(i);
                    (at.clamp(0.0, (from - 1) as f64) as usize, cubic(at - centre, -0.75))
                };
                (-1..=2).map(tap).collect()
            }
            Self::Antialiased => {
                let wide = scale.max(1.0);
                let centre = (place as f64 + 0.5) * scale;
                let low = (centre - 2.0 * wide + 0.5).max(0.0) as usize;
                let high = ((centre + 2.0 * wide + 0.5) as usize).min(from);
                let weight = |at: usize| cubic((at as f64 - centre + 0.5) / wide, -0.5);
                let sum: f64 = (low..high).map(weight).sum();
                (low..high).map(|at| (at, weight(at) / sum)).collect()
            }
        };
        (0..to).map(taps).collect()
    }
}

/// Keys' cubic convolution kernel (1981).
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// Rows `[from * from, width]` of a square grid as rows `[to * to, width]`.
pub(super) fn resample(
    rows: &[f32],
    width: usize,
    from: usize,
    to: usize,
    bicubic: Bicubic,
) -> Vec<f32> {
    let taps = bicubic.taps(from, to);
    let mut resampled = Vec::with_capacity(to * to * width);
    let mut sum = vec![0.0f64; width];
    for vertical in &taps {
        for horizontal in &taps {
            sum.fill(0.0);
            for (y, by_y) in vertical {
                for (x, by_x) in horizontal {
                    let row = &rows[(y * from + x) * width..][..width];
                    let weight = by_y * by_x;
                    sum.iter_mut().zip(row).for_each(|(s, r)| *s += weight * f64::from(*r));
                }
            }
            resampled.extend(sum.iter().map(|s| *s as f32));
        }
    }
    resampled
}

/// What makes a square grid of `to` places a side of one of `from`, `[to * to, from * from]`: the
/// bicubic interpolation that self-distillation was published with (PyTorch's, plain).
pub(crate) fn bicubic_weights(from: usize, to: usize) -> Vec<f32> {
    let taps = Bicubic::Plain.taps(from, to);
    let mut weights = vec![0.0f64; to * to * from * from];
    for (row, (vertical, horizontal)) in
        taps.iter().flat_map(|v| taps.iter().map(move |h| (v, h))).enumerate()
    {
        for (y, by_y) in vertical {
            for (x, by_x) in horizontal {
                // Several taps fall on a place at the edge.
                weights[row * from * from + y * from + x] += by_y * by_x;
            }
        }
    }
    weights.into_iter().map(|weight| weight as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_stays_and_a_ramp_rises() {
        for bicubic in [Bicubic::Plain, Bicubic::Antialiased] {
            for (from, to) in [(3, 5), (7, 4), (1, 3)] {
                let flat = resample(&vec![2.5; from * from], 1, from, to, bicubic);
                assert_eq!(flat.len(), to * to);
                assert!(flat.iter().all(|v| (v - 2.5).abs() < 1e-6), "{flat:?}");
            }
            let ramp: Vec<f32> = (0..36).map(|i| (i % 6) as f32).collect();
            let found = resample(&ramp, 1, 6, 4, bicubic);
            assert!(found[..4].is_sorted_by(|a, b| a < b), "{found:?}");
            assert_eq!(found[..4], found[12..]);
        }
    }

    #[test]
    fn weights_do_as_resampling_does() {
        let rows: Vec<f32> = (0..50).map(|i| ((i * 37) % 11) as f32).collect();
        let expected = resample(&rows, 2, 5, 3, Bicubic::Plain);
        let weights = bicubic_weights(5, 3);
        for (to, weights) in weights.chunks(25).enumerate() {
            for at in 0..2 {
                let found: f32 = weights.iter().zip(rows.chunks(2)).map(|(w, r)| w * r[at]).sum();
                assert!((found - expected[to * 2 + at]).abs() < 1e-4, "{found} {expected:?}");
            }
        }
    }
}
