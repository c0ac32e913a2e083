//! The backbones that the field uses, by name: their shapes, and how they want their images.
//!
//! `docs/backbones.md` says where each fact comes from.

use serde::Serialize;
use tributary_shared::architecture::{Architecture, FinalNorm, Mlp, Pool};
use tributary_shared::dataset::Interpolation;

/// Mean and standard deviation of ImageNet's channels.
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// Pixels from [0, 1] to [-1, 1].
const CENTRED: ([f64; 3], [f64; 3]) = ([0.5; 3], [0.5; 3]);

/// A published model: what its file must hold and what its images must be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preset {
    /// What `--arch` calls it.
    pub name: &'static str,
    /// The model's name where it is published.
    pub model: &'static str,
    /// Its shape, at the image size of the published file.
    pub architecture: Architecture,
    /// Subtracted per channel from pixels in [0, 1].
    pub mean: [f64; 3],
    /// Divided by per channel.
    pub std: [f64; 3],
    /// How its authors resize.
    pub interpolation: Interpolation,
}

/// The preset called `name`.
pub fn preset(name: &str) -> Option<Preset> {
    presets().into_iter().find(|preset| preset.name == name)
}

/// Every preset, family by family.
pub fn presets() -> Vec<Preset> {
    [vits(), self_supervised(), dinov2(), medical(), pathology()].concat()
}

fn of(
    name: &'static str,
    model: &'static str,
    architecture: Architecture,
    (mean, std): ([f64; 3], [f64; 3]),
    interpolation: Interpolation,
) -> Preset {
    Preset { name, model, architecture, mean, std, interpolation }
}

/// ViT-S/16, B/16 and L/16 at 224 pixels.
fn sixteen(width: usize, depth: usize) -> Architecture {
    Architecture::plain(224, 16, width, depth, width / 64)
}

/// A DINOv2 model at its last training size.
fn fourteen(width: usize, depth: usize, register_tokens: usize) -> Architecture {
    let plain = Architecture::plain(518, 14, width, depth, width / 64);
    Architecture { layer_scale: true, register_tokens, ..plain }
}

/// DINOv2's giant shape, which others took over.
fn giant(image_size: usize, patch_size: usize, depth: usize) -> Architecture {
    let plain = Architecture::plain(image_size, patch_size, 1536, depth, 24);
    Architecture { layer_scale: true, mlp: Mlp::Swiglu, mlp_width: 4096, ..plain }
}

/// transformers' own ViT has another epsilon than everybody else's.
fn transformers(architecture: Architecture) -> Architecture {
    Architecture { layer_norm_eps: 1e-12, ..architecture }
}

fn vits() -> Vec<Preset> {
    use Interpolation::{Bicubic, Bilinear};
    let huge = Architecture::plain(224, 14, 1280, 32, 16);
    let (base, large) = (sixteen(768, 12), sixteen(1024, 24));
    let fine = Architecture { patch_size: 8, ..base.clone() };
    vec![
        of("vit_tiny_patch16_224", "timm", sixteen(192, 12), CENTRED, Bicubic),
        of("vit_small_patch16_224", "timm", sixteen(384, 12), CENTRED, Bicubic),
        of("vit_base_patch16_224", "timm", base.clone(), CENTRED, Bicubic),
        of("vit_base_patch8_224", "timm", fine, CENTRED, Bicubic),
        of("vit_large_patch16_224", "timm", large.clone(), CENTRED, Bicubic),
        of("vit_huge_patch14_224", "timm", huge, CENTRED, Bicubic),
        of("hf_vit_base_patch16_224", "google/vit-*", transformers(base), CENTRED, Bilinear),
        of("hf_vit_large_patch16_224", "google/vit-*", transformers(large), CENTRED, Bilinear),
    ]
}

fn self_supervised() -> Vec<Preset> {
    use Interpolation::Bicubic;
    let (small, base, large) = (sixteen(384, 12), sixteen(768, 12), sixteen(1024, 24));
    vec![
        of("dino_vits16", "facebookresearch/dino", small, IMAGENET, Bicubic),
        of("dino_vitb16", "facebookresearch/dino", base.clone(), IMAGENET, Bicubic),
        of("mae_vitb16", "facebookresearch/mae", base, IMAGENET, Bicubic),
        of("mae_vitl16", "facebookresearch/mae", large, IMAGENET, Bicubic),
    ]
}

fn dinov2() -> Vec<Preset> {
    let giant_with = |register_tokens| Architecture { register_tokens, ..giant(518, 14, 40) };
    [
        ("dinov2_vits14", fourteen(384, 12, 0)),
        ("dinov2_vits14_reg", fourteen(384, 12, 4)),
        ("dinov2_vitb14", fourteen(768, 12, 0)),
        ("dinov2_vitb14_reg", fourteen(768, 12, 4)),
        ("dinov2_vitl14", fourteen(1024, 24, 0)),
        ("dinov2_vitl14_reg", fourteen(1024, 24, 4)),
        ("dinov2_vitg14", giant_with(0)),
        ("dinov2_vitg14_reg", giant_with(4)),
    ]
    .map(|(name, architecture)| {
        of(name, "facebookresearch/dinov2", architecture, IMAGENET, Interpolation::Bicubic)
    })
    .to_vec()
}

fn medical() -> Vec<Preset> {
    use Interpolation::Bicubic;
    let large = sixteen(1024, 24);
    let retfound = Architecture { pool: Pool::Mean, final_norm: FinalNorm::Pooled, ..large };
    let chest = ([0.5307; 3], [0.2583; 3]);
    vec![
        of("retfound_vitl16", "rmaphoh/RETFound", retfound, IMAGENET, Bicubic),
        of("rad_dino", "microsoft/rad-dino", fourteen(768, 12, 0), chest, Bicubic),
    ]
}

fn pathology() -> Vec<Preset> {
    use Interpolation::{Bicubic, Bilinear};
    let (base, large) = (sixteen(768, 12), sixteen(1024, 24));
    let scaled = Architecture { layer_scale: true, ..large };
    let virchow = Architecture {
        mlp: Mlp::Swiglu,
        mlp_width: 3416,
        layer_scale: true,
        pool: Pool::ClassTokenAndMean,
        ..Architecture::plain(224, 14, 1280, 32, 16)
    };
    let virchow2 = Architecture { register_tokens: 4, ..virchow.clone() };
    let uni2 = Architecture { register_tokens: 8, ..giant(224, 14, 24) };
    vec![
        of("uni_vitl16", "MahmoodLab/UNI", scaled.clone(), IMAGENET, Bilinear),
        of("uni2_h", "MahmoodLab/UNI2-h", uni2, IMAGENET, Bilinear),
        of("virchow", "paige-ai/Virchow", virchow, IMAGENET, Bicubic),
        of("virchow2", "paige-ai/Virchow2", virchow2, IMAGENET, Bicubic),
        of("phikon_vitb16", "owkin/phikon", transformers(base), IMAGENET, Bilinear),
        of("phikon_v2_vitl16", "owkin/phikon-v2", scaled, IMAGENET, Bicubic),
        of("gigapath_vitg16", "prov-gigapath/prov-gigapath", giant(224, 16, 40), IMAGENET, Bicubic),
    ]
}

#[cfg(test)]
mod tests {
    use tributary_shared::problems::Problems;

    use super::*;
    use crate::model::backbone_layout;

    #[test]
    fn every_preset_is_a_vision_transformer_with_a_name_of_its_own() {
        let all = presets();
        for preset in &all {
            let checked = Problems::of(|found| preset.architecture.check(found));
            checked.expect(preset.name);
            assert_eq!(all.iter().filter(|other| other.name == preset.name).count(), 1);
        }
    }

    /// Weights in all, as the models' cards and papers count them.
    #[test]
    fn parameters_are_as_published() {
        let weights = |name: &str| {
            backbone_layout(&preset(name).expect("listed").architecture).elements() as f64 / 1e6
        };
        let published = [
            ("vit_base_patch16_224", 85.8),
            ("vit_large_patch16_224", 303.3),
            ("dinov2_vits14", 22.06),
            ("dinov2_vitb14", 86.58),
            ("dinov2_vitl14", 304.37),
            ("dinov2_vitg14", 1136.48),
            ("virchow", 631.2),
            ("uni2_h", 681.4),
            ("gigapath_vitg16", 1134.9),
        ];
        for (name, millions) in published {
            let found = weights(name);
            assert!((found / millions - 1.0).abs() < 2e-3, "{name}: {found} M, said {millions} M");
        }
    }
}
