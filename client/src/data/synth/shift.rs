//! What makes one hospital's pictures unlike another's: lamp, film, scanner, staining.

use std::f32::consts::TAU;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Modality;
use super::canvas::{Colour, normal};
use super::histology::STAINS;

/// The look of one site's pictures; `strength` 0 gives every site the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SiteStyle {
    /// Factor on red, green, blue (colour temperature).
    pub gain: [f32; 3],
    /// Exponent on the levels.
    pub gamma: f32,
    /// Stretch around the middle grey.
    pub contrast: f32,
    /// Standard deviation of the sensor's noise, of full scale.
    pub noise: f32,
    /// Gaussian blur, share of the picture's side.
    pub blur: f32,
    /// The lit part of the picture, of half its width.
    pub field: f32,
    /// The lit part of the picture, of half its height.
    pub cut: f32,
    /// Where the side marker lies, if the site uses one.
    pub marker: Option<(f32, f32)>,
    /// Optical densities of haematoxylin and eosin.
    pub stains: [[f32; 3]; 2],
    /// How strongly each stains.
    pub stain_strength: [f32; 2],
}

impl SiteStyle {
    /// The style of site `index` of `sites`. Sites stand around a circle of looks, so that no
    /// two are alike by chance however few they are.
    pub(super) fn draw(
        rng: &mut ChaCha8Rng,
        modality: Modality,
        index: usize,
        sites: usize,
        strength: f32,
    ) -> Self {
        let turn = TAU * (index as f32 + rng.random_range(-0.15..0.15)) / sites as f32;
        let (sin, cos) = turn.sin_cos();
        let warm = strength * cos;
        // A slide's white stays nearly white, a film has no colour.
        let colour = match modality {
            Modality::Fundus => 1.0,
            Modality::ChestXray => 0.0,
            Modality::Histology => 0.3,
        };
        let base_cut = if modality == Modality::Fundus { 1.0 } else { 1.3 };
        let base_field = if modality == Modality::Fundus { 1.0 } else { 1.3 };
        let tight = strength * (0.5 + 0.5 * sin) * rng.random_range(0.6..1.0f32);
        let mut stains = STAINS;
        for stain in &mut stains {
            for density in stain.iter_mut() {
                *density = (*density + strength * 0.06 * normal(rng)).max(0.02);
            }
        }
        // Colder slides lean to violet, warmer ones to pink.
        stains[1][2] = (stains[1][2] - 0.14 * warm).max(0.02);
        stains[0][0] = (stains[0][0] + 0.12 * warm).max(0.05);
        let corner = if cos > 0.0 { -0.92 } else { 0.82 };
        Self {
            gain: [1.0 + 0.14 * warm * colour, 1.0, 1.0 - 0.24 * warm * colour],
            gamma: (0.30 * strength * sin).exp(),
            contrast: 1.0 + 0.16 * strength * (turn * 2.0).cos(),
            noise: 0.012 + 0.022 * strength * (0.5 - 0.5 * cos),
            blur: 0.0015 + 0.0065 * strength * (0.5 - 0.5 * sin),
            field: base_field
                * (1.0 - if modality == Modality::Fundus { 0.08 } else { 0.30 } * tight),
            cut: base_cut * (1.0 - if modality == Modality::Fundus { 0.16 } else { 0.30 } * tight),
            marker: (modality == Modality::ChestXray).then_some((corner, -0.90)),
            stains,
            stain_strength: [1.0 + 0.22 * strength * sin, 1.0 - 0.22 * strength * cos],
        }
    }

    /// The camera: optics first, then colour and tone, then noise.
    pub(super) fn develop(&self, mut colour: Colour, grey: bool, rng: &mut ChaCha8Rng) -> Colour {
        let sigma = self.blur * colour.side() as f32;
        for (plane, gain) in colour.planes.iter_mut().zip(self.gain) {
            plane.blur(sigma);
            for level in &mut plane.at {
                let toned = (*level * gain).clamp(0.0, 1.0).powf(self.gamma);
                // Black stays black: only what is lit is stretched.
                *level = if toned < 0.03 { toned } else { 0.45 + (toned - 0.45) * self.contrast };
            }
        }
        for index in 0..colour.planes[0].at.len() {
            let shared = normal(rng);
            for plane in &mut colour.planes {
                let own = if grey { shared } else { 0.6 * shared + 0.8 * normal(rng) };
                plane.at[index] += self.noise * own;
            }
        }
        colour
    }
}
