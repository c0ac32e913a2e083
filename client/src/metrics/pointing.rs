//! Whether a map over an image points at what is marked in it.

/// How a map's hottest pixels lie to the marked ones.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Pointing {
    /// Whether the hottest pixel is marked (the pointing game, Zhang et al. 2016, arXiv:1608.00507).
    pub hit: bool,
    /// Share of the hottest pixels that is marked.
    pub inside: f64,
    /// Share of all pixels that is marked: what `inside` would be by chance.
    pub area: f64,
}

impl Pointing {
    /// Of the hottest share `top` of `heat`, at least one pixel; ties go to the earlier pixel.
    /// `None` where nothing is marked.
    ///
    /// # Panics
    /// When the two have different lengths.
    pub fn of(heat: &[f32], marked: &[bool], top: f64) -> Option<Self> {
        assert_eq!(heat.len(), marked.len(), "one mark a pixel");
        if !marked.contains(&true) {
            return None;
        }
        let mut order: Vec<usize> = (0..heat.len()).collect();
        order.sort_by(|a, b| heat[*b].total_cmp(&heat[*a]));
        let hottest = ((heat.len() as f64 * top).round() as usize).clamp(1, heat.len());
        let share = |pixels: &[usize]| {
            pixels.iter().filter(|pixel| marked[**pixel]).count() as f64 / pixels.len() as f64
        };
        let (inside, area) = (share(&order[..hottest]), share(&order));
        Some(Self { hit: marked[order[0]], inside, area })
    }

    /// How many times more of the hottest pixels is marked than by chance.
    pub fn ratio(&self) -> f64 {
        self.inside / self.area
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_over_the_hottest_pixels() {
        let heat = [0.1, 0.9, 0.8, 0.0, 0.2, 0.3, 0.0, 0.0];
        let marked = [false, true, false, false, false, true, false, false];
        let found = Pointing::of(&heat, &marked, 0.25).unwrap();
        assert_eq!(found, Pointing { hit: true, inside: 0.5, area: 0.25 });
        assert_eq!(found.ratio(), 2.0);
        assert_eq!(Pointing::of(&heat, &marked, 0.0).unwrap().inside, 1.0, "one pixel at least");
        let all = Pointing::of(&heat, &marked, 1.0).unwrap();
        assert_eq!((all.inside, all.ratio()), (0.25, 1.0));
        assert_eq!(Pointing::of(&heat, &[false; 8], 0.5), None);
        let cold = Pointing::of(&[0.0; 8], &marked, 0.25).unwrap();
        assert!(!cold.hit, "the first pixel is not marked");
    }
}
