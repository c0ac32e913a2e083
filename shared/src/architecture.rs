//! The shape of the frozen backbone: a plain vision transformer (Dosovitskiy et al. 2021,
//! arXiv:2010.11929) described by numbers, so that both sides derive the same tensor layout.

use serde::{Deserialize, Serialize};

/// Which GELU the multilayer perceptron uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// x * Phi(x), as timm, transformers and DINOv2 compute it.
    #[default]
    Exact,
    /// The tanh approximation.
    Tanh,
}

/// What the head sees of the last block's tokens (after the final LayerNorm).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    #[default]
    ClassToken,
    /// The mean of the patch tokens.
    Mean,
}

/// A vision transformer's shape. Widths and sizes in elements and pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Height and width of the square input image, pixels.
    pub image_size: usize,
    /// Height and width of one square patch, pixels; divides `image_size`.
    pub patch_size: usize,
    /// Colour channels of the input: 1 or 3.
    pub channels: usize,
    /// Width of a token.
    pub width: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Hidden width of the multilayer perceptron.
    pub mlp_width: usize,
    /// Whether a learned class token is prepended.
    #[serde(default = "yes")]
    pub class_token: bool,
    /// What the head sees.
    #[serde(default)]
    pub pool: Pool,
    /// Which GELU.
    #[serde(default)]
    pub gelu: Gelu,
    /// Epsilon of every LayerNorm (timm and DINOv2 1e-6, transformers ViT 1e-12).
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
}

fn yes() -> bool {
    true
}

fn layer_norm_eps() -> f64 {
    1e-6
}

/// Numbers that describe no vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backbone.architecture.{key}: {problem}")]
pub struct InvalidArchitecture {
    /// The key to mend.
    pub key: &'static str,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl Architecture {
    /// Patches of one image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Tokens of one image, the class token included.
    pub fn tokens(&self) -> usize {
        self.patches() + usize::from(self.class_token)
    }

    /// Refuses sizes that fit no vision transformer or no machine.
    pub fn check(&self) -> Result<(), InvalidArchitecture> {
        let within = |key, value: usize, low, high| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                let problem = format!("{value} is not between {low} and {high}");
                Err(InvalidArchitecture { key, problem })
            }
        };
        let divides = |key, part: usize, whole_name, whole: usize| {
            if whole.is_multiple_of(part) {
                Ok(())
            } else {
                let problem = format!("{part} does not divide {whole_name} = {whole}");
                Err(InvalidArchitecture { key, problem })
            }
        };
        within("image_size", self.image_size, 8, 2_048)?;
        within("patch_size", self.patch_size, 1, self.image_size)?;
        divides("patch_size", self.patch_size, "image_size", self.image_size)?;
        within("patch_size (patches per image)", self.patches(), 1, 65_536)?;
        if self.channels != 1 && self.channels != 3 {
            let problem = format!("{} is neither 1 (grey) nor 3 (colour)", self.channels);
            return Err(InvalidArchitecture { key: "channels", problem });
        }
        within("width", self.width, 4, 8_192)?;
        within("depth", self.depth, 1, 128)?;
        within("heads", self.heads, 1, self.width)?;
        divides("heads", self.heads, "width", self.width)?;
        within("mlp_width", self.mlp_width, 1, 65_536)?;
        if self.pool == Pool::ClassToken && !self.class_token {
            let problem = "`class_token` needs `class_token = true`; use `mean`".to_owned();
            return Err(InvalidArchitecture { key: "pool", problem });
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            let problem = format!("{} is not between 0 and 1", self.layer_norm_eps);
            return Err(InvalidArchitecture { key: "layer_norm_eps", problem });
        }
        Ok(())
    }
}
