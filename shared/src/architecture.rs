//! The shape of the frozen backbone: a plain vision transformer (Dosovitskiy et al. 2021,
//! arXiv:2010.11929) described by numbers, so that both sides derive the same tensor layout.

mod tensors;

use serde::{Deserialize, Serialize};

use crate::problems::Problems;

/// Which GELU the multilayer perceptron uses; a gated one has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// x * Phi(x), as timm, transformers and DINOv2 compute it.
    #[default]
    Exact,
    /// The tanh approximation.
    Tanh,
    /// x * sigmoid(1.702 x), as OpenAI's CLIP computes it.
    Quick,
}

/// The multilayer perceptron of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// `fc2(gelu(fc1(x)))`.
    #[default]
    Gelu,
    /// `fc2(silu(a) * b)` with `a` and `b` the halves of `fc1(x)` (Shazeer 2020,
    /// arXiv:2002.05202), as DINOv2's giant, Virchow and UNI2 have it.
    Swiglu,
}

/// What the head sees of the last block's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    #[default]
    ClassToken,
    /// The mean of the patch tokens; neither class nor register tokens count.
    Mean,
    /// The class token, then the mean of the patch tokens: twice the width.
    ClassTokenAndMean,
}

/// Where the final LayerNorm stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalNorm {
    /// On every token, before pooling.
    #[default]
    Tokens,
    /// On what was pooled: `fc_norm` of timm, of the masked autoencoder's fine-tuning code and of
    /// RETFound.
    Pooled,
}

/// A vision transformer's shape. Widths and sizes in elements and pixels.
///
/// Keys after `layer_norm_eps` came later: at their defaults they are not written, so that files
/// and manifests from before keep their bytes and digests.
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
    /// Hidden width of the multilayer perceptron: what `fc2` reads.
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
    /// The kind of multilayer perceptron.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mlp: Mlp,
    /// Learned tokens between class token and patches that have no position and that no head
    /// sees (Darcet et al. 2024, arXiv:2309.16588).
    #[serde(default, skip_serializing_if = "is_default")]
    pub register_tokens: usize,
    /// Whether each branch of a block is scaled per channel before it is added (Touvron et al.
    /// 2021, arXiv:2103.17239).
    #[serde(default, skip_serializing_if = "is_default")]
    pub layer_scale: bool,
    /// Whether a LayerNorm stands between the embedding and the first block, as in CLIP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding_norm: bool,
    /// Where the final LayerNorm stands.
    #[serde(default, skip_serializing_if = "is_default")]
    pub final_norm: FinalNorm,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

fn layer_norm_eps() -> f64 {
    1e-6
}

impl Architecture {
    /// The plain vision transformer of timm's names on colour images: class token, exact GELU,
    /// perceptron four times as wide, eps 1e-6.
    pub fn plain(
        image_size: usize,
        patch_size: usize,
        width: usize,
        depth: usize,
        heads: usize,
    ) -> Self {
        Self {
            image_size,
            patch_size,
            channels: 3,
            width,
            depth,
            heads,
            mlp_width: width.saturating_mul(4),
            class_token: true,
            pool: Pool::ClassToken,
            gelu: Gelu::Exact,
            layer_norm_eps: layer_norm_eps(),
            mlp: Mlp::Gelu,
            register_tokens: 0,
            layer_scale: false,
            embedding_norm: false,
            final_norm: FinalNorm::Tokens,
        }
    }

    /// Patches along one side of the image.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one image.
    pub fn patches(&self) -> usize {
        self.side().pow(2)
    }

    /// Tokens before the patches: the class token and the registers.
    pub fn prefix(&self) -> usize {
        usize::from(self.class_token) + self.register_tokens
    }

    /// Tokens of one image: prefix and patches.
    pub fn tokens(&self) -> usize {
        self.prefix() + self.patches()
    }

    /// Rows of the position embedding: the class token's and the patches'; registers have none.
    pub fn position_rows(&self) -> usize {
        usize::from(self.class_token) + self.patches()
    }

    /// Outputs of a block's `fc1`: gate and value, or the hidden width alone.
    pub fn fc1_outputs(&self) -> usize {
        match self.mlp {
            Mlp::Gelu => self.mlp_width,
            Mlp::Swiglu => 2 * self.mlp_width,
        }
    }

    /// Numbers that the head sees of one image.
    pub fn features(&self) -> usize {
        match self.pool {
            Pool::ClassToken | Pool::Mean => self.width,
            Pool::ClassTokenAndMean => 2 * self.width,
        }
    }

    /// Refuses sizes that fit no vision transformer or no machine.
    pub fn check(&self, found: &mut Problems) {
        let key = |key: &str| format!("backbone.architecture.{key}");
        let mut within = |name: &str, value: usize, low, high| {
            found.require((low..=high).contains(&value), key(name), || {
                format!("{value} is not between {low} and {high}")
            })
        };
        // What follows from a wrong number is no problem of its own.
        let mut patched = within("image_size", self.image_size, 8, 2_048)
            && within("patch_size", self.patch_size, 1, self.image_size);
        let headed =
            within("width", self.width, 4, 8_192) && within("heads", self.heads, 1, self.width);
        within("depth", self.depth, 1, 128);
        within("mlp_width", self.mlp_width, 1, 65_536);
        within("register_tokens", self.register_tokens, 0, 64);
        let mut divides = |part_name: &str, part: usize, whole_name: &str, whole: usize| {
            found.require(whole.is_multiple_of(part), key(part_name), || {
                format!("{part} does not divide {whole_name} = {whole}")
            })
        };
        if patched {
            patched = divides("patch_size", self.patch_size, "image_size", self.image_size);
        }
        if headed {
            divides("heads", self.heads, "width", self.width);
        }
        found.require(!patched || self.patches() <= 65_536, key("patch_size"), || {
            format!("{} patches an image; at most 65536, with larger patches", self.patches())
        });
        found.require(matches!(self.channels, 1 | 3), key("channels"), || {
            format!("{} is neither 1 (grey) nor 3 (colour)", self.channels)
        });
        found.require(self.pool == Pool::Mean || self.class_token, key("pool"), || {
            "only `mean` can do without `class_token = true`".to_owned()
        });
        let both = self.pool == Pool::ClassTokenAndMean && self.final_norm == FinalNorm::Pooled;
        found.require(!both, key("final_norm"), || {
            "`pooled` goes with `pool = \"mean\"` or `\"class_token\"`".to_owned()
        });
        let eps = self.layer_norm_eps;
        found.require(eps > 0.0 && eps < 1.0, key("layer_norm_eps"), || {
            format!("{eps} is not between 0 and 1")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte for byte what the first release wrote: manifests and files are named by digests.
    #[test]
    fn later_keys_at_their_defaults_leave_no_trace() {
        let json = r#"{"image_size":64,"patch_size":8,"channels":3,"width":128,"depth":6,"heads":4,"mlp_width":512,"class_token":true,"pool":"class_token","gelu":"exact","layer_norm_eps":1e-6}"#;
        let architecture: Architecture = serde_json::from_str(json).expect("an architecture");
        assert_eq!(architecture, Architecture::plain(64, 8, 128, 6, 4));
        assert_eq!(serde_json::to_string(&architecture).expect("plain data"), json);
    }

    #[test]
    fn later_keys_are_written_and_read_when_set() {
        let giant = Architecture {
            mlp: Mlp::Swiglu,
            register_tokens: 4,
            layer_scale: true,
            embedding_norm: true,
            pool: Pool::ClassTokenAndMean,
            ..Architecture::plain(28, 14, 12, 2, 3)
        };
        let json = serde_json::to_string(&giant).expect("plain data");
        let expected =
            r#""mlp":"swiglu","register_tokens":4,"layer_scale":true,"embedding_norm":true}"#;
        assert!(json.ends_with(expected), "{json}");
        assert_eq!(serde_json::from_str::<Architecture>(&json).expect("its own json"), giant);
        assert_eq!((giant.tokens(), giant.position_rows(), giant.prefix()), (9, 5, 5));
        assert_eq!((giant.features(), giant.fc1_outputs()), (24, 96));
        assert_eq!(refused(&giant), Vec::<String>::new());
    }

    /// The keys that are refused.
    fn refused(architecture: &Architecture) -> Vec<String> {
        let mut found = Problems::default();
        architecture.check(&mut found);
        let keys = found.iter().map(|problem| problem.key.rsplit_once('.').map(|(_, key)| key));
        keys.flatten().map(str::to_owned).collect()
    }

    #[test]
    fn a_head_cannot_see_what_is_not_there() {
        let plain = Architecture::plain(28, 14, 12, 2, 3);
        for pool in [Pool::ClassToken, Pool::ClassTokenAndMean] {
            assert_eq!(
                refused(&Architecture { class_token: false, pool, ..plain.clone() }),
                ["pool"]
            );
        }
        let (pool, final_norm) = (Pool::ClassTokenAndMean, FinalNorm::Pooled);
        assert_eq!(refused(&Architecture { pool, final_norm, ..plain.clone() }), ["final_norm"]);
        assert_eq!(refused(&Architecture { register_tokens: 65, ..plain }), ["register_tokens"]);
    }

    #[test]
    fn every_wrong_number_is_named_and_none_that_follows_from_another() {
        let wrong = Architecture { channels: 2, depth: 0, ..Architecture::plain(28, 0, 12, 2, 0) };
        assert_eq!(refused(&wrong), ["patch_size", "heads", "depth", "channels"]);
        let uneven = Architecture::plain(28, 5, 12, 2, 5);
        assert_eq!(refused(&uneven), ["patch_size", "heads"]);
        let fine = Architecture::plain(2_048, 4, 12, 2, 3);
        assert_eq!(refused(&fine), ["patch_size"]);
    }
}
