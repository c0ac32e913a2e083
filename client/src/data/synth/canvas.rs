//! Planes of numbers that pictures are composed on: strokes, blobs, noise, blur.

use image::RgbImage;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A square plane of numbers; positions are in [-1, 1], y downwards.
#[derive(Clone)]
pub(super) struct Plane {
    pub(super) side: usize,
    pub(super) at: Vec<f32>,
}

/// A point in [-1, 1]².
#[derive(Clone, Copy)]
pub(super) struct Point {
    pub(super) x: f32,
    pub(super) y: f32,
}

impl Point {
    pub(super) const fn new(x: f32, y: f32) -> Self {
        Self { x, y }
    }

    pub(super) fn distance(self, other: Self) -> f32 {
        (self.x - other.x).hypot(self.y - other.y)
    }

    /// One step of `length` in the direction `angle`.
    pub(super) fn step(self, angle: f32, length: f32) -> Self {
        Self::new(self.x + length * angle.cos(), self.y + length * angle.sin())
    }
}

/// An ellipse with a soft or hard edge.
pub(super) struct Blob {
    pub(super) centre: Point,
    pub(super) radii: (f32, f32),
    pub(super) angle: f32,
    /// Width of the edge as a share of the radius: 1 fades from the centre on.
    pub(super) softness: f32,
}

impl Blob {
    pub(super) fn disc(centre: Point, radius: f32, softness: f32) -> Self {
        Self { centre, radii: (radius, radius), angle: 0.0, softness }
    }

    /// 1 inside, 0 outside, smooth between.
    pub(super) fn cover(&self, p: Point) -> f32 {
        let (sin, cos) = self.angle.sin_cos();
        let (dx, dy) = (p.x - self.centre.x, p.y - self.centre.y);
        let across = (dx * cos + dy * sin) / self.radii.0;
        let along = (dy * cos - dx * sin) / self.radii.1;
        1.0 - smooth(1.0 - self.softness, 1.0 + 0.15 * self.softness, across.hypot(along))
    }
}

/// 0 before `from`, 1 past `to`, a cubic between; falls when `to` is the lower one.
pub(super) fn smooth(from: f32, to: f32, value: f32) -> f32 {
    let t = ((value - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

pub(super) fn mix(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    std::array::from_fn(|c| from[c] + (to[c] - from[c]) * share)
}

impl Plane {
    pub(super) fn new(side: usize) -> Self {
        Self { side, at: vec![0.0; side * side] }
    }

    pub(super) fn fill(side: usize, level: impl Fn(Point) -> f32) -> Self {
        let mut plane = Self::new(side);
        for y in 0..side {
            for x in 0..side {
                plane.at[y * side + x] = level(plane.point(x, y));
            }
        }
        plane
    }

    pub(super) fn point(&self, x: usize, y: usize) -> Point {
        let scale = 2.0 / self.side as f32;
        Point::new((x as f32 + 0.5) * scale - 1.0, (y as f32 + 0.5) * scale - 1.0)
    }

    /// The pixels whose points lie within `reach` of `centre`.
    fn window(&self, centre: Point, reach: f32) -> impl Iterator<Item = (usize, usize)> + use<> {
        let pixel = |v: f32| {
            ((v + 1.0) * 0.5 * self.side as f32).floor().clamp(0.0, self.side as f32 - 1.0) as usize
        };
        let (left, right) = (pixel(centre.x - reach), pixel(centre.x + reach));
        let (top, bottom) = (pixel(centre.y - reach), pixel(centre.y + reach));
        (top..=bottom).flat_map(move |y| (left..=right).map(move |x| (x, y)))
    }

    /// Raises the plane to `level` under the blob.
    pub(super) fn raise(&mut self, blob: &Blob, level: f32) {
        let reach = blob.radii.0.max(blob.radii.1) * 1.2 + 2.0 / self.side as f32;
        for (x, y) in self.window(blob.centre, reach) {
            let value = level * blob.cover(self.point(x, y));
            let at = &mut self.at[y * self.side + x];
            *at = at.max(value);
        }
    }

    /// Raises the plane to `level` along a segment of `width` with round ends.
    pub(super) fn stroke(&mut self, from: Point, to: Point, width: f32, level: f32) {
        let middle = Point::new((from.x + to.x) / 2.0, (from.y + to.y) / 2.0);
        let pixel = 2.0 / self.side as f32;
        let length = from.distance(to);
        for (x, y) in self.window(middle, length / 2.0 + width + pixel) {
            let p = self.point(x, y);
            let t = if length < 1e-6 {
                0.0
            } else {
                ((p.x - from.x) * (to.x - from.x) + (p.y - from.y) * (to.y - from.y))
                    / (length * length)
            };
            let t = t.clamp(0.0, 1.0);
            let nearest = Point::new(from.x + t * (to.x - from.x), from.y + t * (to.y - from.y));
            let inside = (width / 2.0 - p.distance(nearest)) / pixel + 0.5;
            // A stroke thinner than a pixel covers only a part of it.
            let cover = inside.clamp(0.0, 1.0) * (width / pixel).min(1.0);
            let at = &mut self.at[y * self.side + x];
            *at = at.max(level * cover);
        }
    }

    /// Gaussian blur with `sigma` in pixels of this plane; edges repeat.
    pub(super) fn blur(&mut self, sigma: f32) {
        if sigma < 0.05 {
            return;
        }
        let reach = (3.0 * sigma).ceil() as isize;
        let weights: Vec<f32> =
            (-reach..=reach).map(|d| (-(d * d) as f32 / (2.0 * sigma * sigma)).exp()).collect();
        let total: f32 = weights.iter().sum();
        let side = self.side as isize;
        for (step_x, step_y) in [(1, 0), (0, 1)] {
            let before = self.at.clone();
            for y in 0..side {
                for x in 0..side {
                    let sum: f32 = weights
                        .iter()
                        .zip(-reach..=reach)
                        .map(|(weight, d)| {
                            let x = (x + d * step_x).clamp(0, side - 1);
                            let y = (y + d * step_y).clamp(0, side - 1);
                            weight * before[(y * side + x) as usize]
                        })
                        .sum();
                    self.at[(y * side + x) as usize] = sum / total;
                }
            }
        }
    }

    /// Means of `factor`² pixels.
    pub(super) fn shrink(&self, factor: usize) -> Self {
        let mut small = Self::new(self.side / factor);
        let area = (factor * factor) as f32;
        for y in 0..small.side {
            for x in 0..small.side {
                let mut sum = 0.0;
                for dy in 0..factor {
                    let row = (y * factor + dy) * self.side + x * factor;
                    sum += self.at[row..row + factor].iter().sum::<f32>();
                }
                small.at[y * small.side + x] = sum / area;
            }
        }
        small
    }
}

/// Smooth noise in about [-1, 1]: several octaves of values on a lattice.
pub(super) struct Noise {
    lattice: Vec<f32>,
    octaves: u32,
}

const LATTICE: usize = 64;

impl Noise {
    pub(super) fn new(rng: &mut ChaCha8Rng, octaves: u32) -> Self {
        let lattice = (0..LATTICE * LATTICE).map(|_| rng.random_range(-1.0..1.0)).collect();
        Self { lattice, octaves }
    }

    /// The noise at `p` with `frequency` cells a unit.
    pub(super) fn at(&self, p: Point, frequency: f32) -> f32 {
        let (mut sum, mut weight, mut frequency) = (0.0, 1.0, frequency);
        let mut total = 0.0;
        for octave in 0..self.octaves {
            // Each octave looks at another part of the lattice.
            let shift = 17.3 * octave as f32;
            sum += weight * self.value(p.x * frequency + shift, p.y * frequency + 2.0 * shift);
            total += weight;
            weight *= 0.55;
            frequency *= 2.03;
        }
        1.5 * sum / total
    }

    fn value(&self, x: f32, y: f32) -> f32 {
        let (cell_x, cell_y) = (x.floor(), y.floor());
        let wrap = |v: f32| (v as i64).rem_euclid(LATTICE as i64) as usize;
        let corner =
            |dx: f32, dy: f32| self.lattice[wrap(cell_y + dy) * LATTICE + wrap(cell_x + dx)];
        let (tx, ty) = (smooth(0.0, 1.0, x - cell_x), smooth(0.0, 1.0, y - cell_y));
        let top = corner(0.0, 0.0) * (1.0 - tx) + corner(1.0, 0.0) * tx;
        let bottom = corner(0.0, 1.0) * (1.0 - tx) + corner(1.0, 1.0) * tx;
        top * (1.0 - ty) + bottom * ty
    }
}

/// Three planes, red first, in [0, 1].
pub(super) struct Colour {
    pub(super) planes: [Plane; 3],
}

impl Colour {
    pub(super) fn fill(side: usize, colour: impl Fn(usize, Point) -> [f32; 3]) -> Self {
        let mut planes = [Plane::new(side), Plane::new(side), Plane::new(side)];
        for index in 0..side * side {
            let point = planes[0].point(index % side, index / side);
            let levels = colour(index, point);
            for (plane, level) in planes.iter_mut().zip(levels) {
                plane.at[index] = level;
            }
        }
        Self { planes }
    }

    pub(super) fn shrink(&self, factor: usize) -> Self {
        Self { planes: self.planes.each_ref().map(|plane| plane.shrink(factor)) }
    }

    pub(super) fn side(&self) -> usize {
        self.planes[0].side
    }

    /// Rounded to 8 bits.
    pub(super) fn to_rgb(&self) -> RgbImage {
        let side = self.side() as u32;
        RgbImage::from_fn(side, side, |x, y| {
            let index = (y * side + x) as usize;
            image::Rgb(self.planes.each_ref().map(|plane| to_byte(plane.at[index])))
        })
    }
}

pub(super) fn to_byte(level: f32) -> u8 {
    (level.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// About the standard normal distribution: Box-Muller.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * rng.random_range(f32::MIN_POSITIVE..1.0).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random_range(0.0..1.0f32)).cos()
}
