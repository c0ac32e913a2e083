//! Colour photographs of the back of the eye, with lesions of diabetic retinopathy.

use std::f32::consts::{PI, TAU};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::canvas::{Blob, Colour, Noise, Plane, Point, mix, normal, smooth};
use super::{Lesion, Painting, View};

const FOVEA: Point = Point::new(0.0, 0.03);
const DISC: Point = Point::new(0.46, -0.02);
const FIELD: f32 = 0.95;

/// What one eye looks like whatever the day.
struct Eye {
    pigment: f32,
    disc_radius: f32,
    cup: f32,
    arteries: Plane,
    veins: Plane,
    texture: Noise,
}

pub(super) fn paint(view: &mut View<'_>) -> Painting {
    let eye = Eye::draw(&mut view.anatomy, view.side);
    let lesions = lesions(&mut view.anatomy, view.severity);
    let light = view.moment.random_range(0.0..TAU);
    let exposure = 1.0 + 0.07 * normal(&mut view.moment);
    let mut red = Plane::new(view.side);
    let mut yellow = Plane::new(view.side);
    for lesion in &lesions {
        draw_lesion(lesion, &mut red, &mut yellow, &mut view.anatomy);
    }
    let field = FIELD * view.style.field;
    let edge = 3.0 / view.side as f32;
    let colour = Colour::fill(view.side, |index, p| {
        let radius = p.x.hypot(p.y);
        let inside = 1.0 - smooth(field - edge, field + edge, radius);
        let cut = 1.0 - smooth(0.0, 2.0 * edge, p.y.abs() - view.style.cut);
        if inside * cut <= 0.0 {
            return [0.012, 0.010, 0.010];
        }
        let mut colour = eye.background(p);
        colour = mix(colour, [0.50, 0.13, 0.07], 0.62 * eye.arteries.at[index]);
        colour = mix(colour, [0.34, 0.06, 0.045], 0.80 * eye.veins.at[index]);
        colour = mix(colour, [0.30, 0.035, 0.025], 0.88 * red.at[index].min(1.0));
        colour = mix(colour, [0.98, 0.88, 0.48], 0.92 * yellow.at[index].min(1.0));
        let lit = exposure * (1.0 + 0.10 * (p.x * light.cos() + p.y * light.sin()));
        let vignette = 1.0 - 0.28 * (radius / field).powi(4);
        colour.map(|level| level * lit * vignette * inside * cut)
    });
    Painting {
        colour: if view.mirrored { mirror(colour) } else { colour },
        lesions: mirror_lesions(lesions, view.mirrored),
    }
}

fn mirror(mut colour: Colour) -> Colour {
    for plane in &mut colour.planes {
        let side = plane.side;
        plane.at.chunks_exact_mut(side).for_each(<[f32]>::reverse);
    }
    colour
}

fn mirror_lesions(mut lesions: Vec<Lesion>, mirrored: bool) -> Vec<Lesion> {
    if mirrored {
        lesions.iter_mut().for_each(|lesion| lesion.at.x = -lesion.at.x);
    }
    lesions
}

impl Eye {
    fn draw(rng: &mut ChaCha8Rng, side: usize) -> Self {
        let mut eye = Self {
            pigment: rng.random_range(-1.0..1.0),
            disc_radius: rng.random_range(0.125..0.155),
            cup: rng.random_range(0.32..0.55),
            arteries: Plane::new(side),
            veins: Plane::new(side),
            texture: Noise::new(rng, 4),
        };
        // Superior and inferior, towards the fovea (temporal) and away from it (nasal).
        for (start, bend) in [(-2.0, -0.55), (2.0, 0.55), (-0.95, 0.25), (0.95, -0.25)] {
            for vein in [false, true] {
                let start = start + 0.14 * normal(rng) + if vein { 0.16 } else { -0.16 };
                let width = if vein { 0.044 } else { 0.030 };
                let tree = if vein { &mut eye.veins } else { &mut eye.arteries };
                let vessel = Vessel { at: DISC, angle: start, bend, width, depth: 0 };
                vessel.grow(tree, rng);
            }
        }
        eye
    }

    fn background(&self, p: Point) -> [f32; 3] {
        let radius = p.x.hypot(p.y);
        let mut colour = mix([0.86, 0.40, 0.16], [0.66, 0.24, 0.09], smooth(0.0, 1.0, radius));
        // Pigment: pale to brown eyes.
        colour = mix(
            colour,
            if self.pigment > 0.0 { [0.52, 0.22, 0.11] } else { [0.93, 0.50, 0.25] },
            0.30 * self.pigment.abs(),
        );
        let grain = self.texture.at(p, 4.0);
        let streak = self.texture.at(Point::new(p.x * 0.6, p.y * 1.7), 11.0);
        colour = colour.map(|level| level * (1.0 + 0.075 * grain + 0.05 * streak));
        let macula = (-(p.distance(FOVEA) / 0.20).powi(2)).exp();
        colour = mix(colour, [0.42, 0.13, 0.05], 0.50 * macula);
        let disc = Blob {
            centre: DISC,
            radii: (self.disc_radius, self.disc_radius * 1.12),
            angle: 0.1,
            softness: 0.22,
        };
        let halo = (-(p.distance(DISC) / 0.30).powi(2)).exp();
        colour = mix(colour, [0.95, 0.62, 0.30], 0.25 * halo);
        colour = mix(colour, [0.98, 0.80, 0.48], 0.95 * disc.cover(p));
        let cup = Blob::disc(Point::new(DISC.x - 0.015, DISC.y), self.disc_radius * self.cup, 0.5);
        mix(colour, [1.0, 0.94, 0.76], 0.85 * cup.cover(p))
    }
}

/// The growing tip of a vessel.
#[derive(Clone, Copy)]
struct Vessel {
    at: Point,
    angle: f32,
    bend: f32,
    width: f32,
    depth: u32,
}

impl Vessel {
    /// A random walk that bends around the macula, tapers, and splits.
    fn grow(mut self, plane: &mut Plane, rng: &mut ChaCha8Rng) {
        const STEP: f32 = 0.04;
        let mut wander = 0.0;
        let mut since_split = 0.0;
        while self.width > 0.006 && self.at.x.hypot(self.at.y) < 1.0 {
            wander = 0.75 * wander + 0.10 * normal(rng);
            // Arcades run out and then turn towards the horizontal.
            self.angle += STEP * self.bend * 1.9 + wander * 0.55;
            let next = self.at.step(self.angle, STEP);
            // Vessels pass around the fovea and thin out beside it.
            let near = smooth(0.34, 0.16, next.distance(FOVEA));
            if near > 0.0 {
                let away = (next.y - FOVEA.y).atan2(next.x - FOVEA.x) - self.angle;
                self.angle += 0.45 * near * away.sin();
                self.width *= 1.0 - 0.18 * near;
            }
            plane.stroke(self.at, next, self.width, 1.0);
            self.at = next;
            self.width *= 0.972;
            since_split += STEP;
            if since_split > 0.14 && self.depth < 4 && rng.random_bool(0.26) {
                since_split = 0.0;
                let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
                let branch = Self {
                    angle: self.angle + side * rng.random_range(0.45..0.95),
                    bend: -side * rng.random_range(0.0..0.5),
                    width: self.width * rng.random_range(0.5..0.72),
                    depth: self.depth + 1,
                    ..self
                };
                branch.grow(plane, rng);
                self.width *= 0.93;
                self.angle -= side * 0.12;
            }
        }
    }
}

/// Kinds, in the order in which disease shows them, with the expected number at severity z.
fn expected(kind: &str, severity: f32) -> f32 {
    let from = |start: f32, slope: f32| (slope * (severity - start)).max(0.0);
    match kind {
        "microaneurysm" => from(0.0, 5.0).min(16.0),
        "haemorrhage" => from(0.1, 3.0).min(13.0),
        _ => from(0.9, 3.6).min(14.0),
    }
}

fn lesions(rng: &mut ChaCha8Rng, severity: f32) -> Vec<Lesion> {
    let mut lesions = Vec::new();
    for (kind, most, low, high) in [
        ("microaneurysm", 16, 0.024, 0.040),
        ("haemorrhage", 13, 0.045, 0.095),
        ("hard_exudate", 14, 0.026, 0.052),
    ] {
        // The same list for every picture of the eye: a worse day shows more of it.
        let count = (expected(kind, severity) + rng.random_range(0.0..1.0f32)).floor() as usize;
        let cluster = Point::new(rng.random_range(-0.5..0.15), rng.random_range(-0.35..0.35));
        for index in 0..most {
            let at = place(rng, (kind == "hard_exudate").then_some(cluster));
            let radius = rng.random_range(low..high);
            if index < count {
                lesions.push(Lesion { kind, at, radius });
            }
        }
    }
    lesions
}

/// Somewhere in the field, off the disc; exudates gather.
fn place(rng: &mut ChaCha8Rng, cluster: Option<Point>) -> Point {
    loop {
        let at = match cluster {
            Some(centre) => {
                Point::new(centre.x + 0.20 * normal(rng), centre.y + 0.20 * normal(rng))
            }
            None => Point::default_in_disc(rng, 0.78),
        };
        if at.x.hypot(at.y) < 0.80 && at.distance(DISC) > 0.24 {
            return at;
        }
    }
}

impl Point {
    fn default_in_disc(rng: &mut ChaCha8Rng, radius: f32) -> Self {
        let r = radius * rng.random_range(0.0..1.0f32).sqrt();
        Self::new(0.0, 0.0).step(rng.random_range(-PI..PI), r)
    }
}

fn draw_lesion(lesion: &Lesion, red: &mut Plane, yellow: &mut Plane, rng: &mut ChaCha8Rng) {
    match lesion.kind {
        "microaneurysm" => red.raise(&Blob::disc(lesion.at, lesion.radius, 0.5), 0.95),
        "haemorrhage" => {
            // A blot with a ragged edge: a disc and its satellites.
            for part in 0..5 {
                let offset = if part == 0 { 0.0 } else { lesion.radius * 0.65 };
                let centre = lesion.at.step(rng.random_range(0.0..TAU), offset);
                let radius = lesion.radius * if part == 0 { 0.8 } else { 0.5 };
                red.raise(&Blob::disc(centre, radius, 0.45), 0.95);
            }
        }
        _ => {
            for _ in 0..3 {
                let centre = lesion.at.step(rng.random_range(0.0..TAU), lesion.radius * 0.7);
                let radii = (lesion.radius * rng.random_range(0.5..0.9), lesion.radius * 0.55);
                let angle = rng.random_range(0.0..PI);
                yellow.raise(&Blob { centre, radii, angle, softness: 0.25 }, 0.95);
            }
        }
    }
}
