//! The dataset contract, `[data]` of a run's manifest: what every site's images must be, so that a
//! site with other images says so before round 1 and not in the metrics afterwards.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::problems::Problems;

/// Steps in which a run may ask for a number of cases.
const CASES_STEP: u64 = 10;

/// What a run demands of every site's images. An absent key demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataContract {
    /// DICOM modality codes that may occur, such as `CT`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub modalities: BTreeSet<String>,
    /// How slices lie in the patient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane: Option<Plane>,
    /// Least and largest distance of neighbouring pixels, millimetres.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<[f64; 2]>,
    /// 1: every picture is grey; 3: every picture is in colour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Cases that every class of the task must have at the site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_class_min: Option<u64>,
    /// How stored values become grey levels; goes before the site's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// How a slice lies in the patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// Across the body: head and feet on either side of it.
    Axial,
    /// Front and back on either side of it.
    Coronal,
    /// Left and right on either side of it.
    Sagittal,
}

impl Plane {
    /// The name in files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Axial => "axial",
            Self::Coronal => "coronal",
            Self::Sagittal => "sagittal",
        }
    }
}

/// How stored values (Hounsfield units, MR intensities) become 256 grey levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Window {
    /// The file's own: its VOI lookup table, else its first window, else 8-bit values as they are,
    /// else the least to the largest value. NIfTI: `cal_min` to `cal_max`, else the 0.5th to the
    /// 99.5th percentile of the volume.
    #[default]
    File,
    /// DICOM PS3.3 C.11.2.1.2 (LINEAR): black below `centre - width/2`, white above.
    Given {
        /// Middle of the range.
        centre: f64,
        /// Its length, at least 1.
        width: f64,
    },
    /// Least to largest value of the picture (NIfTI: of the volume).
    MinMax,
    /// Between two percentiles of the picture's values (NIfTI: of the volume's).
    Percentile {
        /// Black, from 0.
        low: f64,
        /// White, to 100.
        high: f64,
    },
}

/// How an image is resized to the backbone's square input. Both filters widen with the scale, so
/// shrinking does not alias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Linear between neighbours.
    #[default]
    Bilinear,
    /// Cubic convolution with a = -0.5 (Keys 1981).
    Bicubic,
}

impl Interpolation {
    /// The name in files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }

    /// Left out of manifests that say nothing else.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Window {
    /// What makes no sense in it, with the mend.
    pub fn check(&self) -> Result<(), String> {
        match *self {
            Self::File | Self::MinMax => Ok(()),
            Self::Given { centre, width } => {
                let fits = centre.is_finite() && width.is_finite() && width >= 1.0;
                fits.then_some(()).ok_or_else(|| {
                    format!("centre {centre}, width {width}: a width is at least 1, both finite")
                })
            }
            Self::Percentile { low, high } => {
                let fits = (0.0..=100.0).contains(&low) && low < high && high <= 100.0;
                fits.then_some(())
                    .ok_or_else(|| format!("{low} to {high}: write 0 <= low < high <= 100"))
            }
        }
    }
}

impl DataContract {
    /// Refuses what no image can be.
    pub fn check(&self, found: &mut Problems) {
        let code = |code: &String| {
            let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
            (1..=16).contains(&code.len()) && code.chars().all(plain)
        };
        let codes = self.modalities.len() <= 32 && self.modalities.iter().all(code);
        found.require(codes, "data.modalities", || {
            "at most 32 DICOM codes, in capitals, such as \"CT\"".to_owned()
        });
        if let Some([least, largest]) = self.spacing_mm {
            let range = least > 0.0 && least <= largest && largest.is_finite();
            found.require(range, "data.spacing_mm", || {
                format!("{least} to {largest}: write 0 < least <= largest, millimetres")
            });
        }
        let channels = self.channels.is_none_or(|channels| matches!(channels, 1 | 3));
        found.require(channels, "data.channels", || "write 1 (grey) or 3 (colour)".to_owned());
        let least = self.cases_per_class_min.unwrap_or_default();
        // A threshold of any size would tell the exact number of each class.
        let step = least.is_multiple_of(CASES_STEP) && least <= 1 << 40;
        found.require(step, "data.cases_per_class_min", || {
            format!("{least} is no multiple of {CASES_STEP} up to {}", 1_u64 << 40)
        });
        if let Some(Err(mend)) = self.window.map(|window| window.check()) {
            found.add("data.window", mend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(toml: &str) -> String {
        let contract: DataContract = toml::from_str(toml).unwrap();
        let found = Problems::of(|found| contract.check(found)).unwrap_err();
        found.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        assert_eq!(refused("modalities = [\"ct\"]"), "data.modalities");
        assert_eq!(refused("spacing_mm = [2.0, 1.0]"), "data.spacing_mm");
        assert_eq!(refused("spacing_mm = [1.0, inf]"), "data.spacing_mm");
        assert_eq!(refused("channels = 2"), "data.channels");
        assert_eq!(
            refused("channels = 2\nmodalities = [\"ct\"]\nspacing_mm = [2.0, 1.0]"),
            "data.modalities data.spacing_mm data.channels"
        );
        assert_eq!(refused("window = { kind = \"given\", centre = 0, width = 0 }"), "data.window");
        assert_eq!(
            refused("window = { kind = \"percentile\", low = 60, high = 50 }"),
            "data.window"
        );
        assert_eq!(refused("cases_per_class_min = 7"), "data.cases_per_class_min");
        assert!(toml::from_str::<DataContract>("modality = \"CT\"").is_err());
    }

    #[test]
    fn an_empty_contract_leaves_nothing_in_the_canonical_json() {
        assert_eq!(serde_json::to_string(&DataContract::default()).unwrap(), "{}");
        let full = "modalities = [\"CT\"]\nplane = \"axial\"\nspacing_mm = [0.5, 1.0]\nchannels = 1\n\
                    cases_per_class_min = 20\nwindow = { kind = \"given\", centre = 40, width = 400 }";
        let contract: DataContract = toml::from_str(full).unwrap();
        assert_eq!(Problems::of(|found| contract.check(found)), Ok(()));
        let json = serde_json::to_string(&contract).unwrap();
        assert_eq!(serde_json::from_str::<DataContract>(&json).unwrap(), contract);
    }

    #[test]
    fn the_usual_interpolation_leaves_older_digests_alone() {
        let text = "digest = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"\n\
                    mean = [0.5]\nstd = [0.5]\n[architecture]\nimage_size = 8\npatch_size = 4\n\
                    channels = 1\nwidth = 8\ndepth = 1\nheads = 1\nmlp_width = 8\n\
                    class_token = true\npool = \"mean\"\ngelu = \"exact\"\nlayer_norm_eps = 1e-6\n";
        let json = |text: &str| {
            let backbone: crate::manifest::Backbone = toml::from_str(text).unwrap();
            serde_json::to_string(&backbone).unwrap()
        };
        assert_eq!(json(&format!("interpolation = \"bilinear\"\n{text}")), json(text));
        assert!(!json(text).contains("interpolation"));
        assert!(
            json(&format!("interpolation = \"bicubic\"\n{text}"))
                .ends_with(",\"interpolation\":\"bicubic\"}")
        );
        assert!(!json(text).contains("crop_pct"));
        assert!(json(&format!("crop_pct = 0.875\n{text}")).ends_with(",\"crop_pct\":0.875}"));
    }
}
