//! The tensors of a backbone: both sides derive them from its shape.

use super::{Architecture, FinalNorm};
use crate::layout::{Layout, TensorSpec};

impl Architecture {
    /// Every tensor of a backbone of this shape, in the order of their names.
    pub fn layout(&self) -> Layout {
        let Self { width, mlp_width, channels, patch_size: patch, .. } = *self;
        let registers = self.register_tokens;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(TensorSpec { name, shape: shape.to_vec() });
        };
        let pair = |add: &mut dyn FnMut(String, &[usize]), name: &str, weight: &[usize]| {
            add(format!("{name}.weight"), weight);
            add(format!("{name}.bias"), &weight[..1]);
        };
        pair(&mut add, "patch_embed", &[width, channels, patch, patch]);
        add("pos_embed".to_owned(), &[1, self.position_rows(), width]);
        if self.class_token {
            add("cls_token".to_owned(), &[1, 1, width]);
        }
        if registers > 0 {
            add("reg_tokens".to_owned(), &[1, registers, width]);
        }
        if self.embedding_norm {
            pair(&mut add, "norm_pre", &[width]);
        }
        for block in 0..self.depth {
            let name = |part: &str| format!("blocks.{block}.{part}");
            for norm in ["norm1", "norm2"] {
                pair(&mut add, &name(norm), &[width]);
            }
            for map in ["attn.q", "attn.k", "attn.v", "attn.proj"] {
                pair(&mut add, &name(map), &[width, width]);
            }
            pair(&mut add, &name("mlp.fc1"), &[self.fc1_outputs(), width]);
            pair(&mut add, &name("mlp.fc2"), &[width, mlp_width]);
            if self.layer_scale {
                add(name("ls1.gamma"), &[width]);
                add(name("ls2.gamma"), &[width]);
            }
        }
        match self.final_norm {
            FinalNorm::Tokens => pair(&mut add, "norm", &[width]),
            FinalNorm::Pooled => pair(&mut add, "fc_norm", &[width]),
        }
        Layout::new(tensors)
    }
}
