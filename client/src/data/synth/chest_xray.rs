//! Frontal chest radiographs, with nodules.

use std::f32::consts::{PI, TAU};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::canvas::{Blob, Colour, Noise, Plane, Point, normal, smooth};
use super::{Lesion, Painting, View};

/// What one person's chest looks like whatever the day. Lengths in half picture sides.
struct Chest {
    lung_width: f32,
    lung_top: f32,
    dome: [f32; 2],
    heart: Blob,
    slope: f32,
    spacing: f32,
    bone: f32,
    tissue: Noise,
    lungs: Plane,
    vessels: Plane,
    ribs: Plane,
}

/// -1 is the left of the picture (the person's right lung).
const SIDES: [f32; 2] = [-1.0, 1.0];

pub(super) fn paint(view: &mut View<'_>) -> Painting {
    let chest = Chest::draw(&mut view.anatomy, view.side);
    let lesions = chest.nodules(&mut view.anatomy, view.severity);
    let mut nodules = Plane::new(view.side);
    for lesion in &lesions {
        draw_nodule(lesion, &mut nodules, &mut view.anatomy);
    }
    // Each exposure: the person stands a little elsewhere, breathes a little differently.
    let shift = Point::new(0.02 * normal(&mut view.moment), 0.02 * normal(&mut view.moment));
    let exposure = 1.0 + 0.05 * normal(&mut view.moment);
    let marker = marker(view);
    let (field, cut) = (view.style.field, view.style.cut);
    let colour = Colour::fill(view.side, |_, p| {
        let at = Point::new(p.x + shift.x, p.y + shift.y);
        let level = chest.level(at) + 0.36 * sample(&nodules, at);
        // A film saturates: a shoulder, not a clip.
        let level = 1.0 - (-1.55 * level.max(0.0) * exposure).exp();
        let collimated =
            smooth(0.0, 0.03, field - p.x.abs()) * smooth(0.0, 0.03, cut.min(1.2) - p.y.abs());
        [(level * collimated).max(marker_level(&marker, p)); 3]
    });
    // Where they are seen, not where they are.
    let seen = |lesion: &Lesion| Lesion {
        at: Point::new(lesion.at.x - shift.x, lesion.at.y - shift.y),
        ..*lesion
    };
    Painting { colour, lesions: lesions.iter().map(seen).collect() }
}

/// The value of the plane at a point, the nearest pixel's.
fn sample(plane: &Plane, p: Point) -> f32 {
    let pixel =
        |v: f32| ((v + 1.0) * 0.5 * plane.side as f32).clamp(0.0, plane.side as f32 - 1.0) as usize;
    plane.at[pixel(p.y) * plane.side + pixel(p.x)]
}

impl Chest {
    fn draw(rng: &mut ChaCha8Rng, side: usize) -> Self {
        let dome = rng.random_range(0.50..0.60);
        let heart = Blob {
            centre: Point::new(rng.random_range(0.12..0.18), rng.random_range(0.30..0.36)),
            radii: (rng.random_range(0.30..0.40), rng.random_range(0.25..0.30)),
            angle: 0.55,
            softness: 0.16,
        };
        let mut chest = Self {
            lung_width: rng.random_range(0.335..0.375),
            lung_top: rng.random_range(-0.84..-0.76),
            dome: [dome - 0.05, dome],
            heart,
            slope: rng.random_range(0.20..0.34),
            spacing: rng.random_range(0.150..0.172),
            bone: rng.random_range(0.8..1.15),
            tissue: Noise::new(rng, 4),
            lungs: Plane::new(side),
            vessels: Plane::new(side),
            ribs: Plane::new(side),
        };
        chest.lungs = Plane::fill(side, |p| chest.lung(p));
        chest.ribs = Plane::fill(side, |p| chest.rib(p));
        for outward in SIDES {
            for index in 0..9 {
                let hilum = Point::new(outward * 0.20, 0.02 + 0.03 * normal(rng));
                let angle = if outward > 0.0 { 0.0 } else { PI };
                let angle = angle + (index as f32 / 8.0 - 0.5) * 2.7 + 0.12 * normal(rng);
                vessel(&mut chest.vessels, hilum, angle, 0.038, rng);
            }
        }
        chest.vessels.blur(side as f32 / 160.0);
        chest
    }

    /// How much of the beam passes through air, 0 to 1.
    fn lung(&self, p: Point) -> f32 {
        let outward = if p.x < 0.0 { -1.0 } else { 1.0 };
        let dome = self.dome[usize::from(outward > 0.0)];
        let x = p.x * outward;
        // The floor rises towards the heart and falls to the angle at the ribs.
        let floor = dome + 1.3 * (x - 0.36).powi(2) - 0.05 + 0.28 * smooth(0.5, 0.72, x);
        let height = ((p.y - self.lung_top) / (floor - self.lung_top)).clamp(0.0, 1.0);
        // Narrow and round at the top, wide below.
        let rounded = (height * (2.0 - height)).max(0.0).sqrt();
        let wall = 0.36 + self.lung_width * rounded * (0.78 + 0.34 * height);
        let inner = 0.40 - self.lung_width * rounded * (0.70 + 0.06 * height);
        smooth(0.0, 0.05, wall - x)
            * smooth(0.0, 0.07, x - inner)
            * smooth(0.0, 0.05, floor - p.y)
            * smooth(0.0, 0.06, p.y - self.lung_top)
    }

    /// Back ribs slope gently down from the spine; front ones, fainter, steeply the other way.
    fn rib(&self, p: Point) -> f32 {
        let x = p.x.abs();
        let cage = smooth(0.80, 0.72, x) * smooth(-1.0, -0.80, p.y) * smooth(0.86, 0.62, p.y);
        let stripe = |offset: f32, width: f32| {
            let phase = (offset / self.spacing).rem_euclid(1.0);
            let from_middle = (phase - 0.5).abs() * self.spacing;
            let body = smooth(width, width * 0.72, from_middle);
            // The cortex at both borders is denser than the middle.
            let border = (-((from_middle - width * 0.78) / (width * 0.22)).powi(2)).exp();
            0.62 * body + 0.42 * border
        };
        let back = p.y - self.slope * (x * 1.25 - 0.6 * x * x) + 0.75 * (x - 0.45).max(0.0).powi(2);
        let front = p.y + 0.55 * x - 0.9 * (x - 0.62).powi(2);
        let front_part = smooth(0.24, 0.44, x) * smooth(-0.7, -0.4, p.y);
        cage * (stripe(back, 0.040) + 0.34 * front_part * stripe(front + 0.06, 0.046))
    }

    /// How much of the beam is stopped, before the film.
    fn level(&self, p: Point) -> f32 {
        let body = self.body(p);
        if body <= 0.0 {
            return 0.01;
        }
        let heart = self.heart.cover(p);
        let arch = Blob::disc(Point::new(0.12, -0.22), 0.12, 0.4).cover(p);
        // Heart and aorta hide what air is behind them.
        let lung = sample(&self.lungs, p) * (1.0 - 0.80 * heart) * (1.0 - 0.45 * arch);
        let texture = self.tissue.at(p, 5.0);
        let mut level = 0.60 + 0.10 * smooth(-0.2, 0.9, p.y) + 0.05 * texture;
        level += 0.16 * (-(p.x / 0.16).powi(2)).exp();
        level += self.spine(p);
        level *= 1.0 - 0.74 * lung * (1.0 - 0.10 * texture);
        level += lung * (0.05 + 0.12 * sample(&self.vessels, p) + 0.03 * self.tissue.at(p, 14.0));
        level += 0.13 * self.bone * sample(&self.ribs, p) * (0.45 + 0.55 * lung);
        level += 0.08 * heart * smooth(0.0, 0.4, sample(&self.lungs, p));
        // Windpipe, collar bones, bubble of the stomach.
        let windpipe = smooth(0.055, 0.025, (p.x + 0.01).abs()) * smooth(-0.10, -0.25, p.y);
        level *= 1.0 - 0.26 * windpipe;
        level += 0.19 * self.bone * self.collar_bone(p);
        let bubble =
            Blob { centre: Point::new(0.42, 0.80), radii: (0.15, 0.09), angle: 0.1, softness: 0.3 };
        level -= 0.22 * bubble.cover(p);
        level * body
    }

    fn body(&self, p: Point) -> f32 {
        let x = p.x.abs();
        let shoulder = -0.84 + 0.34 * smooth(0.25, 1.0, x) - 0.5 * smooth(0.28, 0.10, x);
        let flank = 0.94 - 0.06 * smooth(-0.4, 0.2, p.y) + 0.2 * smooth(-0.35, -0.55, p.y);
        smooth(0.0, 0.08, p.y - shoulder) * smooth(0.0, 0.05, flank - x)
    }

    fn spine(&self, p: Point) -> f32 {
        let column = smooth(0.11, 0.07, p.x.abs());
        let disc = (p.y * 13.0).sin().abs().powi(4);
        self.bone * column * (0.11 - 0.06 * disc)
    }

    fn collar_bone(&self, p: Point) -> f32 {
        let x = p.x.abs();
        let middle = -0.60 - 0.16 * (x - 0.10) - 0.05 * (5.0 * x).sin();
        smooth(0.036, 0.022, (p.y - middle).abs()) * smooth(0.08, 0.13, x) * smooth(0.82, 0.70, x)
    }

    fn nodules(&self, rng: &mut ChaCha8Rng, severity: f32) -> Vec<Lesion> {
        let expected = (1.6 * (severity + 0.25)).clamp(0.0, 5.0);
        let count = (expected + rng.random_range(0.0..1.0f32)).floor() as usize;
        let mut lesions = Vec::new();
        for index in 0..6 {
            let at = loop {
                let at = Point::new(rng.random_range(-0.62..0.62), rng.random_range(-0.66..0.50));
                if sample(&self.lungs, at) > 0.9 && self.heart.cover(at) < 0.1 {
                    break at;
                }
            };
            let radius = rng.random_range(0.060..0.115);
            if index < count {
                lesions.push(Lesion { kind: "nodule", at, radius });
            }
        }
        lesions
    }
}

/// Branching from the hilum outwards, thinner and thinner.
fn vessel(plane: &mut Plane, mut at: Point, mut angle: f32, mut width: f32, rng: &mut ChaCha8Rng) {
    while width > 0.008 {
        angle += 0.10 * normal(rng);
        let next = at.step(angle, 0.05);
        plane.stroke(at, next, width, (width / 0.03).min(1.0));
        at = next;
        width *= 0.88;
        if width > 0.012 && rng.random_bool(0.28) {
            let side = if rng.random_bool(0.5) { 0.6 } else { -0.6 };
            vessel(plane, at, angle + side, width * 0.7, rng);
        }
    }
}

fn draw_nodule(lesion: &Lesion, plane: &mut Plane, rng: &mut ChaCha8Rng) {
    plane.raise(&Blob::disc(lesion.at, lesion.radius, 0.55), 1.0);
    for _ in 0..3 {
        let centre = lesion.at.step(rng.random_range(0.0..TAU), lesion.radius * 0.5);
        plane.raise(&Blob::disc(centre, lesion.radius * 0.6, 0.6), 0.92);
    }
}

/// The lead letter L, which each hospital puts elsewhere.
fn marker(view: &View<'_>) -> Vec<(Point, Point)> {
    let Some(at) = view.style.marker else { return Vec::new() };
    let at = Point::new(at.0, at.1);
    let foot = Point::new(at.x, at.y + 0.13);
    vec![(at, foot), (foot, Point::new(at.x + 0.07, at.y + 0.13))]
}

fn marker_level(strokes: &[(Point, Point)], p: Point) -> f32 {
    let near = strokes.iter().any(|(from, to)| {
        let inside = |v: f32, a: f32, b: f32| v > a.min(b) - 0.016 && v < a.max(b) + 0.016;
        inside(p.x, from.x, to.x) && inside(p.y, from.y, to.y)
    });
    if near { 0.97 } else { 0.0 }
}
