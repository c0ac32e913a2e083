//! Pieces of a checkpoint put together as canonical tensors.

use std::collections::BTreeMap;

use tributary_shared::architecture::{Architecture, FinalNorm};
use tributary_shared::layout::TensorSpec;

use super::ImportError;
use super::checkpoint::Checkpoint;
use super::names::Library;
use super::positions::resample;
use crate::model::backbone::backbone_layout;

/// What a source tensor gives to a canonical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// One third of its rows.
    Third(usize),
    /// All of it, as the first or second half.
    Half(usize),
}

/// A source tensor's part in a canonical one.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) part: Part,
}

/// Canonical tensors in the making.
pub(super) struct Assembly<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) library: Library,
    /// The shape at the file's image size.
    pub(super) file: &'a Architecture,
    /// The shape at the image size asked for.
    pub(super) wanted: &'a Architecture,
    /// Whether the file's image size may be another than the architecture's.
    pub(super) any_size: bool,
    pub(super) pieces: BTreeMap<String, Vec<Piece>>,
    pub(super) filled: Vec<String>,
    pub(super) positions: Option<String>,
    pub(super) problems: Vec<String>,
}

/// Rows of a source's position embedding.
struct Rows {
    /// Rows before the patches'.
    before: usize,
    /// Patches along one side.
    side: usize,
}

impl Assembly<'_> {
    /// A masked autoencoder is published with the norm of its tokens, which fine-tuning with
    /// pooled features replaces by a new `fc_norm`. Returns what is left out for it.
    pub(super) fn settle_final_norm(&mut self) -> Vec<String> {
        if self.file.final_norm != FinalNorm::Pooled {
            return Vec::new();
        }
        let norms = ["norm.weight", "norm.bias"].map(|name| self.pieces.remove(name));
        norms.into_iter().flatten().flatten().map(|piece| piece.name).collect()
    }

    /// The values of the wanted layout, or problems added for what does not fit.
    pub(super) fn values(&mut self) -> Result<Vec<Vec<f32>>, ImportError> {
        let layout = backbone_layout(self.wanted);
        let known: Vec<String> = self.pieces.keys().cloned().collect();
        for name in known {
            if !layout.tensors().iter().any(|spec| spec.name == name) {
                for piece in self.pieces.remove(&name).unwrap_or_default() {
                    let line = format!("unused {} (the architecture has no {name})", piece.name);
                    self.problems.push(line);
                }
            }
        }
        let rows = self.position_rows();
        for spec in layout.tensors() {
            self.check(spec);
        }
        if !self.problems.is_empty() {
            return Ok(Vec::new());
        }
        let mut values = Vec::new();
        for spec in layout.tensors() {
            let tensor = match (spec.name.as_str(), &rows) {
                ("pos_embed", Some(rows)) => self.fitted_positions(rows)?,
                ("reg_tokens", Some(rows)) => self.registers(spec, rows)?,
                _ => self.tensor(spec)?,
            };
            if let Some(at) = tensor.iter().position(|v| !v.is_finite()) {
                self.problems.push(format!("{}[{at}] is {}", spec.name, tensor[at]));
            }
            values.push(tensor);
        }
        Ok(values)
    }

    /// Adds a problem unless the pieces of `spec` are there with its shape, or it may be filled.
    fn check(&mut self, spec: &TensorSpec) {
        let Some(pieces) = self.pieces.get(&spec.name) else {
            if self.fill(&spec.name).is_some() {
                self.filled.push(spec.name.clone());
            } else {
                self.problems.push(format!("missing {spec}"));
            }
            return;
        };
        let parts: Vec<Part> = pieces.iter().map(|piece| piece.part).collect();
        let complete = match parts[..] {
            [Part::Whole | Part::Third(_)] => true,
            [Part::Half(a), Part::Half(b)] => a != b,
            _ => false,
        };
        if !complete {
            let names: Vec<&str> = pieces.iter().map(|piece| piece.name.as_str()).collect();
            let line = format!("{spec} comes twice or in part: {}", names.join(", "));
            self.problems.push(line);
            return;
        }
        for piece in pieces.clone() {
            let stored = &self.checkpoint.tensors[&piece.name];
            let mut expected = spec.shape.clone();
            match piece.part {
                Part::Whole => {}
                Part::Third(_) => expected[0] *= 3,
                Part::Half(_) => expected[0] /= 2,
            }
            // Positions have been looked at as a grid.
            if spec.name != "pos_embed" && stored.shape != expected {
                let line =
                    format!("{}: expected {expected:?}, found {:?}", piece.name, stored.shape);
                self.problems.push(line);
            }
            if !stored.is_real() {
                let line = format!("{} holds {}, not real numbers", piece.name, stored.kind);
                self.problems.push(line);
            }
        }
    }

    /// The one value of every element of a tensor that a file may lack: biases that a model was
    /// built without, and the pooled norm before any fine-tuning.
    fn fill(&self, name: &str) -> Option<f32> {
        let none = |ending: &str| !self.pieces.keys().any(|name| name.ends_with(ending));
        match name {
            "fc_norm.weight" if none("fc_norm.bias") => Some(1.0),
            "fc_norm.bias" if none("fc_norm.weight") => Some(0.0),
            "patch_embed.bias" if self.file.embedding_norm => Some(0.0),
            _ => {
                let maps = [".attn.q.bias", ".attn.k.bias", ".attn.v.bias"];
                let unbiased = maps.iter().all(|map| none(map));
                (unbiased && maps.iter().any(|map| name.ends_with(map))).then_some(0.0)
            }
        }
    }

    fn tensor(&self, spec: &TensorSpec) -> Result<Vec<f32>, ImportError> {
        let Some(pieces) = self.pieces.get(&spec.name) else {
            return Ok(vec![self.fill(&spec.name).unwrap_or(0.0); spec.elements()]);
        };
        let mut halves = [Vec::new(), Vec::new()];
        for piece in pieces {
            let values = self.checkpoint.values(&piece.name)?;
            match piece.part {
                Part::Whole => return Ok(values),
                Part::Third(third) => {
                    let size = spec.elements();
                    return Ok(values[third * size..(third + 1) * size].to_vec());
                }
                Part::Half(half) => halves[half] = values,
            }
        }
        Ok(halves.concat())
    }

    /// How the source's position rows are laid out; `None`, with a problem, if they are no
    /// square grid of the expected size.
    fn position_rows(&mut self) -> Option<Rows> {
        let piece = self.pieces.get("pos_embed")?.first()?;
        let shape = &self.checkpoint.tensors[&piece.name].shape;
        let native = self.file.side();
        let class = usize::from(self.file.class_token);
        let rows = match shape[..] {
            [1, rows, width] if width == self.file.width => rows,
            _ => {
                let expected = [1, self.file.position_rows(), self.file.width];
                let line = format!("{}: expected {expected:?}, found {shape:?}", piece.name);
                self.problems.push(line);
                return None;
            }
        };
        // With the class token's row, without any row but the patches', or with a row for every
        // token: the fit with the architecture's own grid first.
        let mut befores = vec![class, 0, self.file.prefix()];
        befores.dedup();
        let mut fits: Vec<Rows> = befores
            .into_iter()
            .filter(|before| rows > *before)
            .map(|before| Rows { before, side: (rows - before).isqrt() })
            .filter(|fit| fit.side * fit.side + fit.before == rows)
            .collect();
        fits.sort_by_key(|fit| fit.side != native);
        let fit = fits.into_iter().next();
        let name = piece.name.clone();
        let Some(fit) = fit else {
            self.problems.push(format!("{name}: {rows} rows are no square grid of patches"));
            return None;
        };
        if fit.side != native && !self.any_size {
            let pixels = fit.side * self.file.patch_size;
            self.problems.push(format!(
                "{name}: positions of {pixels} pixel images, the architecture has {}; \
                 name the image size that you want",
                self.file.image_size
            ));
            return None;
        }
        Some(fit)
    }

    /// The class token's row (zero if the source adds no position to it), then the patches'.
    fn fitted_positions(&mut self, rows: &Rows) -> Result<Vec<f32>, ImportError> {
        let width = self.file.width;
        let source = self.source("pos_embed")?;
        let (before, patches) = source.split_at(rows.before * width);
        let mut fitted = Vec::new();
        if self.wanted.class_token {
            fitted.extend(before.get(..width).map_or_else(|| vec![0.0; width], <[f32]>::to_vec));
        }
        let side = self.wanted.side();
        if rows.side == side {
            fitted.extend_from_slice(patches);
        } else {
            let bicubic = self.library.bicubic(self.file.register_tokens);
            fitted.extend(resample(patches, width, rows.side, side, bicubic));
            let from = rows.side;
            let how = bicubic.describe();
            self.positions = Some(format!("{from} x {from} to {side} x {side} patches, {how}"));
        }
        Ok(fitted)
    }

    /// Registers, with their positions added where the source has some.
    fn registers(&self, spec: &TensorSpec, rows: &Rows) -> Result<Vec<f32>, ImportError> {
        let mut registers = self.tensor(spec)?;
        let class = usize::from(self.file.class_token);
        if rows.before > class {
            let positions = self.source("pos_embed")?;
            let own = &positions[class * self.file.width..];
            registers.iter_mut().zip(own).for_each(|(token, position)| *token += position);
        }
        Ok(registers)
    }

    fn source(&self, canonical: &str) -> Result<Vec<f32>, ImportError> {
        let piece = self.pieces.get(canonical).and_then(|pieces| pieces.first());
        piece.map_or_else(|| Ok(Vec::new()), |piece| self.checkpoint.values(&piece.name))
    }
}
