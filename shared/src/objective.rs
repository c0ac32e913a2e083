//! What sites learn from images without labels: the `[task.objective]` table.
//!
//! The adapter and the objective's own layers travel; the layers (`head.*`) are of use within the
//! run alone.

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, FinalNorm, Mlp};
use crate::augment::Augment;
use crate::head::Head;
use crate::layout::TensorSpec;
use crate::problems::Problems;

/// Width of one attention head of a masked autoencoder's decoder.
pub const DECODER_HEAD_WIDTH: usize = 32;

/// Most images of a step that learns without labels: what contrast was published with, and what
/// comparing every view with every other one can bear.
pub const BATCH_MAX: usize = 8_192;

/// A self-supervised objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Masked autoencoding (He et al. 2021, arXiv:2111.06377): of most patches hidden, guess the
    /// pixels from the rest.
    Mae(Mae),
    /// Contrast of two views of each image with those of the batch's others (Chen et al. 2020,
    /// arXiv:2002.05709).
    #[serde(rename = "simclr")]
    SimClr(SimClr),
    /// Self-distillation: one view must foresee what a slowly following teacher makes of another
    /// (Caron et al. 2021, arXiv:2104.14294).
    Dino(Dino),
}

/// Numbers of masked autoencoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mae {
    /// Share of an image's patches hidden.
    pub mask_ratio: f64,
    /// Width of the decoder's tokens; a multiple of [`DECODER_HEAD_WIDTH`].
    pub decoder_width: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
}

impl Default for Mae {
    fn default() -> Self {
        Self { mask_ratio: 0.75, decoder_width: 64, decoder_depth: 1 }
    }
}

/// Numbers of the contrast of views.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimClr {
    /// Divides the views' cosines.
    pub temperature: f64,
    /// Width of the projection's hidden layer.
    pub hidden: usize,
    /// Numbers a view is projected to.
    pub projection: usize,
}

impl Default for SimClr {
    fn default() -> Self {
        Self { temperature: 0.2, hidden: 512, projection: 128 }
    }
}

/// Numbers of self-distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dino {
    /// Outputs that a view is sorted by.
    pub prototypes: usize,
    /// Width of the projection's hidden layer.
    pub hidden: usize,
    /// Numbers a view is projected to before it is compared with the prototypes.
    pub projection: usize,
    /// Divides the student's outputs.
    pub student_temperature: f64,
    /// Divides the teacher's centred outputs.
    pub teacher_temperature: f64,
    /// Share of the teacher that stays in each step. A round's teacher starts as its base adapter.
    pub teacher_momentum: f64,
    /// Share of the centre that stays in each step. A round's centre starts as the mean of the
    /// teacher's outputs on its first batch.
    pub centre_momentum: f64,
    /// Further views of each image, of small parts of it, which the student alone sees.
    pub local_views: usize,
    /// Such a part's least share of the image's area.
    pub local_area_min: f64,
    /// Side of the picture that such a part is shown as, pixels, a multiple of the patch; see
    /// [`Dino::local_side`] for the one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_size: Option<usize>,
}

impl Default for Dino {
    fn default() -> Self {
        Self {
            prototypes: 1024,
            hidden: 512,
            projection: 128,
            student_temperature: 0.1,
            teacher_temperature: 0.04,
            teacher_momentum: 0.996,
            centre_momentum: 0.9,
            local_views: 2,
            local_area_min: 0.1,
            local_size: None,
        }
    }
}

impl Objective {
    /// The name in manifests and tables.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mae(_) => "mae",
            Self::SimClr(_) => "simclr",
            Self::Dino(_) => "dino",
        }
    }

    /// The head over an image's features; `None` for a decoder over its tokens.
    pub fn head(&self) -> Option<Head> {
        match self {
            Self::Mae(_) => None,
            Self::SimClr(SimClr { hidden, .. }) | Self::Dino(Dino { hidden, .. }) => {
                Some(Head::Mlp { hidden: *hidden })
            }
        }
    }

    /// Outputs of the head over an image's features; 0 without one.
    pub fn head_outputs(&self) -> usize {
        match self {
            Self::Mae(_) => 0,
            Self::SimClr(SimClr { projection, .. }) | Self::Dino(Dino { projection, .. }) => {
                *projection
            }
        }
    }

    /// The tensors that the objective has beside those of [`Self::head`], in no particular order.
    pub fn tensors(&self, architecture: &Architecture) -> Vec<TensorSpec> {
        match self {
            Self::Mae(mae) => mae.decoder_tensors(architecture),
            Self::SimClr(_) => Vec::new(),
            Self::Dino(Dino { prototypes, projection, .. }) => {
                vec![spec("prototypes.weight", &[*prototypes, *projection])]
            }
        }
    }

    /// Refuses numbers that make no objective, alone or on `architecture` where it is known, or
    /// without the views that `augment` makes.
    pub fn check(
        &self,
        architecture: Option<&Architecture>,
        augment: Option<&Augment>,
        found: &mut Problems,
    ) {
        if !matches!(self, Self::Mae(_)) {
            let varied = augment.is_some_and(|a| *a != Augment::default());
            found.require(varied, "training.augment", || {
                format!(
                    "{} compares views of an image that differ; say how, for example \
                     crop_area_min = 0.4, flip_horizontal = true, brightness = 0.4, contrast = 0.4",
                    self.as_str()
                )
            });
        }
        match self {
            Self::Mae(mae) => mae.check(architecture, found),
            Self::SimClr(simclr) => simclr.check(found),
            Self::Dino(dino) => dino.check(architecture, augment, found),
        }
    }
}

fn within(key: &str, value: f64, low: f64, high: f64, found: &mut Problems) {
    found.require((low..=high).contains(&value), format!("task.objective.{key}"), || {
        format!("{value} is not between {low} and {high}")
    });
}

fn width(key: &str, value: usize, found: &mut Problems) {
    within(key, value as f64, 1.0, 65_536.0, found);
}

impl SimClr {
    fn check(&self, found: &mut Problems) {
        within("temperature", self.temperature, 0.01, 10.0, found);
        width("hidden", self.hidden, found);
        width("projection", self.projection, found);
    }
}

impl Dino {
    /// Side of the picture that a small part is shown as, pixels: as published, three sevenths of
    /// the image's (96 of 224), to the nearest whole patch, where the manifest names none.
    pub fn local_side(&self, architecture: &Architecture) -> usize {
        let Architecture { image_size, patch_size, .. } = *architecture;
        let patches = (6 * image_size + 7 * patch_size) / (14 * patch_size);
        self.local_size.unwrap_or(patches.max(1) * patch_size)
    }

    fn check(
        &self,
        architecture: Option<&Architecture>,
        augment: Option<&Augment>,
        found: &mut Problems,
    ) {
        within("prototypes", self.prototypes as f64, 2.0, 65_536.0, found);
        width("hidden", self.hidden, found);
        width("projection", self.projection, found);
        within("student_temperature", self.student_temperature, 0.01, 10.0, found);
        within("teacher_temperature", self.teacher_temperature, 0.01, 10.0, found);
        within("teacher_momentum", self.teacher_momentum, 0.0, 1.0, found);
        within("centre_momentum", self.centre_momentum, 0.0, 1.0, found);
        within("local_views", self.local_views as f64, 0.0, 32.0, found);
        within("local_area_min", self.local_area_min, 0.01, 1.0, found);
        if let (Some(size), Some(architecture)) = (self.local_size, architecture) {
            let Architecture { image_size, patch_size, .. } = *architecture;
            let fits = size.is_multiple_of(patch_size) && (patch_size..=image_size).contains(&size);
            found.require(fits, "task.objective.local_size", || {
                format!(
                    "{size} is not a multiple of {patch_size} between {patch_size} and {image_size}"
                )
            });
        }
        let Some(most) = augment.map(|augment| augment.crop_area_min) else { return };
        let least = self.local_area_min;
        let smaller = self.local_views == 0 || least < most;
        found.require(smaller, "training.augment.crop_area_min", || {
            format!(
                "{most} is not above task.objective.local_area_min, {least}: local views \
                 are to be smaller parts; raise it, or set local_views = 0"
            )
        });
    }
}

impl Mae {
    fn check(&self, architecture: Option<&Architecture>, found: &mut Problems) {
        let ratio = self.mask_ratio;
        found.require(ratio > 0.0 && ratio < 1.0, "task.objective.mask_ratio", || {
            format!("{ratio} is not above 0 and below 1")
        });
        let width = self.decoder_width;
        let whole = width.is_multiple_of(DECODER_HEAD_WIDTH)
            && (DECODER_HEAD_WIDTH..=8_192).contains(&width);
        found.require(whole, "task.objective.decoder_width", || {
            format!(
                "{width} is not a multiple of {DECODER_HEAD_WIDTH} between {DECODER_HEAD_WIDTH} and 8192"
            )
        });
        let depth = self.decoder_depth;
        found.require((1..=32).contains(&depth), "task.objective.decoder_depth", || {
            format!("{depth} is not between 1 and 32")
        });
        let patches = architecture.is_none_or(|architecture| architecture.patches() > 1);
        found.require(patches, "task.objective", || {
            "an image must have more than one patch to hide some".to_owned()
        });
    }

    /// The decoder's blocks and norm as a transformer of their own.
    pub fn decoder(&self, architecture: &Architecture) -> Architecture {
        Architecture {
            width: self.decoder_width,
            depth: self.decoder_depth,
            heads: self.decoder_width / DECODER_HEAD_WIDTH,
            mlp_width: 4 * self.decoder_width,
            mlp: Mlp::Gelu,
            layer_scale: false,
            final_norm: FinalNorm::Tokens,
            ..architecture.clone()
        }
    }

    fn decoder_tensors(&self, architecture: &Architecture) -> Vec<TensorSpec> {
        let Architecture { channels, patch_size, width, .. } = *architecture;
        let numbers = channels * patch_size.pow(2);
        let trunk = self.decoder(architecture).layout();
        let mut tensors: Vec<TensorSpec> = trunk
            .tensors()
            .iter()
            .filter(|spec| spec.name.starts_with("blocks.") || spec.name.starts_with("norm."))
            .map(|tensor| spec(&format!("decoder.{}", tensor.name), &tensor.shape))
            .collect();
        tensors.extend([
            spec("decoder.embed.weight", &[self.decoder_width, width]),
            spec("decoder.embed.bias", &[self.decoder_width]),
            spec("decoder.mask_token", &[1, 1, self.decoder_width]),
            spec("decoder.guess.weight", &[numbers, self.decoder_width]),
            spec("decoder.guess.bias", &[numbers]),
        ]);
        tensors
    }
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: format!("head.{name}"), shape: shape.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{InvalidManifest, RunManifest, Task};

    fn run(objective: &str, adapter: &str, more: &str) -> Result<RunManifest, InvalidManifest> {
        RunManifest::from_toml(&format!(
            r#"
            schema_version = 1
            name = "r"
            quorum = {{ sites = 1 }}
            rounds = {{ count = 1, round_deadline_s = 60, stall_timeout_s = 60 }}
            {adapter}
            [task]
            kind = "self_supervised"
            objective = {objective}
            [training]
            epochs = 1
            batch_size = 4
            learning_rate = 0.1
            holdout = 0.2
            seed = 1
            {more}
            [backbone]
            digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
            mean = [0.5]
            std = [0.5]
            [backbone.architecture]
            image_size = 16
            patch_size = 8
            channels = 1
            width = 64
            depth = 1
            heads = 4
            mlp_width = 20
            "#
        ))
    }

    const LORA: &str = r#"adapter = { rank = 2, alpha = 1.0, targets = ["q"] }"#;
    const VIEWS: &str = "augment = { crop_area_min = 0.4 }";

    #[test]
    fn the_objectives_own_layers_travel_beside_the_adapter() {
        let names = |objective, more| {
            let contract = run(objective, LORA, more).unwrap().contract().unwrap();
            let names = contract.layout.tensors().iter().map(ToString::to_string);
            names.filter(|name| !name.starts_with("blocks.")).collect::<Vec<_>>()
        };
        let simclr = r#"{ kind = "simclr", hidden = 6, projection = 5 }"#;
        let expected = [
            "head.bias [5]",
            "head.hidden.bias [6]",
            "head.hidden.weight [6, 64]",
            "head.weight [5, 6]",
        ];
        assert_eq!(names(simclr, VIEWS), expected);
        let dino = r#"{ kind = "dino", hidden = 6, projection = 5, prototypes = 7 }"#;
        assert_eq!(names(dino, VIEWS)[3], "head.prototypes.weight [7, 5]");
        let mae = names(r#"{ kind = "mae", decoder_width = 32 }"#, "");
        assert!(mae.contains(&"head.decoder.embed.weight [32, 64]".to_owned()), "{mae:?}");
        assert!(mae.contains(&"head.decoder.guess.weight [64, 32]".to_owned()), "{mae:?}");
        assert!(mae.contains(&"head.decoder.blocks.0.norm1.weight [32]".to_owned()), "{mae:?}");
    }

    #[test]
    fn what_no_objective_can_be_is_one_line() {
        let (simclr, dino) = (r#"{ kind = "simclr" }"#, r#"{ kind = "dino" }"#);
        let mae = r#"{ kind = "mae" }"#;
        let head_only = r#"adapter = { kind = "head_only" }"#;
        let head = format!("{LORA}\nhead = {{ kind = \"mlp\", hidden = 3 }}");
        for (objective, adapter, more, problem) in [
            (simclr, LORA, "", "training.augment: simclr compares views of an image that differ"),
            (
                dino,
                LORA,
                "augment = { gain = 0.1 }",
                "0 is not above task.objective.local_area_min",
            ),
            (mae, head_only, "", "adapter.kind: under head_only"),
            (mae, &head, "", "head: a self_supervised task has its objective's own layers"),
            (mae, LORA, "early_stop = { patience = 1 }", "training.early_stop: watches labels"),
            (mae, LORA, "class_weights = [1.0]", "training.class_weights: a self_supervised task"),
            (mae, LORA, "[bags]", "bags: a self_supervised task has no bags"),
            (r#"{ kind = "mae", mask_ratio = 1.0 }"#, LORA, "", "task.objective.mask_ratio: 1 is"),
            (r#"{ kind = "mae", decoder_width = 40 }"#, LORA, "", "40 is not a multiple of 32"),
            (r#"{ kind = "mae", decoder_depth = 0 }"#, LORA, "", "0 is not between 1 and 32"),
            (r#"{ kind = "simclr", temperature = 0.0 }"#, LORA, VIEWS, "0 is not between 0.01 and"),
            (r#"{ kind = "dino", prototypes = 1 }"#, LORA, VIEWS, "1 is not between 2 and 65536"),
            (r#"{ kind = "dino", teacher_momentum = 1.5 }"#, LORA, VIEWS, "between 0 and 1"),
            (
                r#"{ kind = "dino", local_size = 12 }"#,
                LORA,
                VIEWS,
                "12 is not a multiple of 8 between",
            ),
            (r#"{ kind = "dino", local_size = 24 }"#, LORA, VIEWS, "task.objective.local_size: 24"),
            (r#"{ kind = "rotation" }"#, LORA, "", "unknown variant `rotation`"),
        ] {
            let found = run(objective, adapter, more).unwrap_err().to_string();
            assert!(found.contains(problem), "{found}\n{problem}");
        }
    }

    #[test]
    fn a_small_part_is_shown_at_three_sevenths_of_the_image() {
        let side = |image_size, patch_size| {
            let architecture = Architecture::plain(image_size, patch_size, 64, 1, 1);
            Dino::default().local_side(&architecture)
        };
        // As published; DINOv2's; and never less than a patch.
        assert_eq!([side(224, 16), side(224, 14), side(16, 4), side(8, 8)], [96, 98, 8, 8]);
        let named = Dino { local_size: Some(64), ..Dino::default() };
        assert_eq!(named.local_side(&Architecture::plain(224, 16, 64, 1, 1)), 64);
        let run = run(r#"{ kind = "dino", local_size = 8 }"#, LORA, VIEWS).unwrap();
        let Task::SelfSupervised { objective: Objective::Dino(dino) } = run.task else {
            panic!("a run of self-distillation")
        };
        assert_eq!(dino.local_size, Some(8));
    }

    #[test]
    fn a_step_of_too_many_images_is_refused() {
        let text = |batch| {
            let run = run(r#"{ kind = "simclr" }"#, LORA, VIEWS).unwrap();
            toml::to_string(&run)
                .unwrap()
                .replace("batch_size = 4", &format!("batch_size = {batch}"))
        };
        assert!(RunManifest::from_toml(&text(BATCH_MAX)).is_ok());
        let found = RunManifest::from_toml(&text(BATCH_MAX + 1)).unwrap_err().to_string();
        let expected = "training.batch_size: 8193 is above 8192, the most of a step without labels";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_decoders_norms_begin_as_the_identity() {
        let run = run(r#"{ kind = "mae" }"#, LORA, "").unwrap();
        let contract = run.contract().unwrap();
        let header = crate::initial::adapter_header(&run.name, 0, &contract);
        let bytes = crate::initial::initial_adapter(&run);
        let values = crate::tensors::decode(&bytes, &header).unwrap();
        for (spec, values) in contract.layout.tensors().iter().zip(values) {
            let norm = spec.name.contains(".norm") && spec.name.ends_with("weight");
            assert_eq!(values.iter().all(|v| *v == 1.0), norm, "{spec}");
        }
    }
}
