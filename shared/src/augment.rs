//! How training images are varied: the `[training.augment]` table. Strengths of zero, and
//! switches that are off, leave an image as it is.

use serde::{Deserialize, Serialize};

use crate::problems::Problems;

/// Random changes of training images; evaluation never sees them. Pixels are in [0, 1].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Mirror left and right, every other time.
    pub flip_horizontal: bool,
    /// Mirror top and bottom, every other time.
    pub flip_vertical: bool,
    /// Turn by 0, 90, 180 or 270 degrees, each as often.
    pub rotate_90: bool,
    /// Cut out a rectangle of this share of the area or more (its sides at most 4:3) and stretch
    /// it to the input. 0, like 1, switches it off.
    pub crop_area_min: f64,
    /// Brightness is multiplied by a factor in 1 +- this.
    pub brightness: f64,
    /// Distances from the image's mean grey are multiplied by a factor in 1 +- this.
    pub contrast: f64,
    /// Distances from a pixel's own grey are multiplied by a factor in 1 +- this.
    pub saturation: f64,
    /// The hue turns by up to this share of the circle.
    pub hue: f64,
    /// Haematoxylin, eosin and DAB each are multiplied by a factor in 1 +- this and shifted by up
    /// to +- this, in the HED space of Ruifrok and Johnston 2001 (Tellez et al. 2018,
    /// arXiv:1808.05896).
    pub stain: f64,
    /// Intensities of all channels are multiplied by a factor in 1 +- this.
    pub gain: f64,
    /// Intensities of all channels are shifted by up to +- this.
    pub bias: f64,
    /// Intensities are raised to the power exp(u), u in +- this.
    pub gamma: f64,
    /// Standard deviation of Gaussian noise on every number.
    pub noise: f64,
}

impl Augment {
    /// Refuses strengths that leave no image.
    pub(crate) fn check(&self, found: &mut Problems) {
        let ranges = [
            ("crop_area_min", self.crop_area_min, 1.0),
            ("brightness", self.brightness, 1.0),
            ("contrast", self.contrast, 1.0),
            ("saturation", self.saturation, 1.0),
            ("hue", self.hue, 0.5),
            ("stain", self.stain, 1.0),
            ("gain", self.gain, 1.0),
            ("bias", self.bias, 1.0),
            ("gamma", self.gamma, 3.0),
            ("noise", self.noise, 1.0),
        ];
        for (key, value, high) in ranges {
            found.require((0.0..=high).contains(&value), format!("training.augment.{key}"), || {
                format!("{value} is not between 0 and {high}")
            });
        }
    }
}
