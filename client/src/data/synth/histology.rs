//! Tiles of tissue stained with haematoxylin (nuclei) and eosin (the rest), coloured by the
//! Beer-Lambert law from a stain matrix as in Macenko et al. 2009.

use std::f32::consts::{PI, TAU};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson};

use super::canvas::{Blob, Colour, Noise, Plane, Point, normal, smooth};
use super::{Lesion, Painting, View};

/// Optical density a unit of stain, red, green, blue: haematoxylin, then eosin.
pub(super) const STAINS: [[f32; 3]; 2] = [[0.65, 0.70, 0.29], [0.09, 0.95, 0.28]];

pub(super) fn paint(view: &mut View<'_>) -> Painting {
    // Each tile is another place of the same slide: tissue texture and nuclei are drawn anew.
    let fibres = Noise::new(&mut view.moment, 4);
    let clumps = Noise::new(&mut view.moment, 3);
    let direction = view.moment.random_range(0.0..PI);
    let mut haematoxylin = Plane::new(view.side);
    let mut gaps = Plane::new(view.side);
    let glands = glands(view);
    let mut lesions = Vec::new();
    for gland in &glands {
        gaps.raise(&gland.lumen, 1.0);
        lesions.extend(gland.ring(&mut view.moment));
    }
    lesions.extend(scattered(view, &glands));
    lesions.retain(|nucleus| {
        let in_lumen = glands.iter().any(|gland| gland.lumen.cover(nucleus.at) > 0.0);
        !in_lumen && cleft(&fibres, nucleus.at) < 0.3
    });
    let pleomorphism = pleomorphism(view.severity);
    for nucleus in &lesions {
        draw_nucleus(nucleus, pleomorphism, &mut haematoxylin, &mut view.moment);
    }
    let strength = view.style.stain_strength;
    let (sin, cos) = direction.sin_cos();
    let colour = Colour::fill(view.side, |index, p| {
        let gap = gaps.at[index].max(cleft(&fibres, p));
        let chromatin = 1.0 + 0.30 * clumps.at(p, 22.0);
        let nucleus = haematoxylin.at[index];
        // Fibres run one way: stretch the noise along them.
        let along = Point::new((p.x * cos + p.y * sin) * 0.35, (p.y * cos - p.x * sin) * 1.6);
        let weave = fibres.at(along, 7.0);
        let eosin = (0.46 + 0.20 * weave + 0.10 * clumps.at(p, 5.0))
            * (1.0 - gap)
            * (1.0 - 0.45 * nucleus.min(1.0));
        let haze = 0.07 * (1.0 - gap) * (1.0 + 0.5 * clumps.at(p, 9.0));
        let blue = strength[0] * (nucleus * chromatin + haze);
        let pink = strength[1] * eosin.max(0.0);
        std::array::from_fn(|c| {
            let density = blue * view.style.stains[0][c] + pink * view.style.stains[1][c];
            0.97 * (-1.55 * density).exp()
        })
    });
    Painting { colour, lesions }
}

/// Tears between bundles of fibres, white because nothing is there to stain.
fn cleft(fibres: &Noise, p: Point) -> f32 {
    smooth(0.44, 0.58, fibres.at(Point::new(p.x + 5.0, p.y * 1.3), 2.6))
}

/// 0 in calm tissue, 1 in the wildest.
fn pleomorphism(severity: f32) -> f32 {
    smooth(-2.2, 2.2, severity)
}

/// A ring of cells around a hollow: what orderly tissue builds and a tumour forgets.
struct Gland {
    lumen: Blob,
    nuclei: usize,
}

fn glands(view: &mut View<'_>) -> Vec<Gland> {
    let expected = 2.4 * (1.0 - pleomorphism(view.severity)) + 0.15;
    let rng = &mut view.moment;
    let count = (expected + rng.random_range(0.0..1.0f32)).floor() as usize;
    let gland = |rng: &mut ChaCha8Rng| {
        let radius = rng.random_range(0.14..0.26);
        let centre = Point::new(rng.random_range(-0.85..0.85), rng.random_range(-0.85..0.85));
        let radii = (radius, radius * rng.random_range(0.7..1.0));
        let lumen = Blob { centre, radii, angle: rng.random_range(0.0..PI), softness: 0.12 };
        Gland { lumen, nuclei: (TAU * (radius + 0.10) / 0.135) as usize }
    };
    (0..count).map(|_| gland(rng)).collect()
}

impl Gland {
    fn ring(&self, rng: &mut ChaCha8Rng) -> Vec<Lesion> {
        let (sin, cos) = self.lumen.angle.sin_cos();
        let nucleus = |index: usize| {
            let turn = TAU * index as f32 / self.nuclei as f32 + 0.06 * normal(rng);
            let (a, b) = (self.lumen.radii.0 + 0.11, self.lumen.radii.1 + 0.11);
            let (x, y) = (a * turn.cos(), b * turn.sin());
            let centre = self.lumen.centre;
            let at = Point::new(centre.x + x * cos - y * sin, centre.y + x * sin + y * cos);
            Lesion { kind: "nucleus", at, radius: 0.050 * (1.0 + 0.08 * normal(rng)) }
        };
        (0..self.nuclei).map(nucleus).collect()
    }
}

/// A Poisson number of nuclei; more, larger and less alike with severity.
fn scattered(view: &mut View<'_>, glands: &[Gland]) -> Vec<Lesion> {
    let wild = pleomorphism(view.severity);
    let mean = 34.0 + 74.0 * wild;
    let rng = &mut view.moment;
    let count = Poisson::new(mean).map_or(0, |poisson| poisson.sample(rng) as usize);
    let mut nuclei: Vec<Lesion> = Vec::new();
    for _ in 0..count {
        let at = Point::new(rng.random_range(-1.05..1.05), rng.random_range(-1.05..1.05));
        let spread = 0.10 + 0.26 * wild;
        let radius = (0.046 + 0.026 * wild) * (spread * normal(rng)).exp().clamp(0.5, 2.2);
        let in_gland = glands.iter().any(|gland| {
            at.distance(gland.lumen.centre) < gland.lumen.radii.0.max(gland.lumen.radii.1) + 0.18
        });
        let crowded = nuclei.iter().any(|n| n.at.distance(at) < 0.72 * (n.radius + radius));
        if !in_gland && !crowded {
            nuclei.push(Lesion { kind: "nucleus", at, radius });
        }
    }
    nuclei
}

fn draw_nucleus(nucleus: &Lesion, wild: f32, plane: &mut Plane, rng: &mut ChaCha8Rng) {
    let stretch = 1.0 + (0.30 + 0.45 * wild) * rng.random_range(0.0..1.0f32);
    let radii = (nucleus.radius * stretch.sqrt(), nucleus.radius / stretch.sqrt());
    let angle = rng.random_range(0.0..PI);
    let dark = 0.80 + 0.18 * wild * normal(rng).clamp(-1.5, 1.5);
    plane.raise(&Blob { centre: nucleus.at, radii, angle, softness: 0.26 }, dark);
    // A nucleolus shows in large nuclei.
    if nucleus.radius > 0.062 {
        let centre = nucleus.at.step(rng.random_range(0.0..TAU), nucleus.radius * 0.3);
        plane.raise(&Blob::disc(centre, nucleus.radius * 0.24, 0.5), dark * 1.5);
    }
}
