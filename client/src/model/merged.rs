//! An adapter merged into its backbone: one set of weights that computes what the two did.

use std::collections::BTreeMap;

use tributary_shared::adaptation::{Adaptation, Lora};
use tributary_shared::contract::AdapterContract;

use super::backbone::Backbone;

/// An adaptation that is no change of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "kind = \"{0}\" adds modules or tokens of its own, which no change of the backbone's weights replaces; only lora, bitfit, last_blocks, full and head_only can be merged"
)]
pub struct NotMergeable(&'static str);

/// The backbone with `values` (in the order of the contract's layout) merged in: its features are
/// the adapted ones. The head stays outside. Sums are made in f64 and rounded once.
///
/// # Panics
/// When `contract` is a rehearsal's, or `values` do not have its shapes.
pub fn merged(
    backbone: &Backbone,
    contract: &AdapterContract,
    values: &[Vec<f32>],
) -> Result<Backbone, NotMergeable> {
    let adaptation =
        contract.adaptation.as_ref().expect("the contract of a model has its adaptation");
    let trained: BTreeMap<&str, &[f32]> = contract
        .layout
        .tensors()
        .iter()
        .map(|spec| spec.name.as_str())
        .zip(values.iter().map(Vec::as_slice))
        .collect();
    if !merges(adaptation) {
        return Err(NotMergeable(adaptation.name()));
    }
    if *adaptation == Adaptation::HeadOnly {
        return Ok(backbone.clone());
    }
    let tensor = |name: &str, frozen: &[f32]| {
        if let Adaptation::Lora(lora) = adaptation {
            return with_factors(lora, &trained, name, frozen);
        }
        match trained.get(name) {
            Some(change) => frozen.iter().zip(*change).map(|(w, c)| w + c).collect(),
            None => frozen.to_vec(),
        }
    };
    let values = backbone.tensors().map(|(spec, frozen)| tensor(&spec.name, frozen)).collect();
    Ok(Backbone::from_values(backbone.architecture().clone(), values))
}

/// Whether the adaptation is a change of weights.
pub(crate) fn merges(adaptation: &Adaptation) -> bool {
    match adaptation {
        Adaptation::Lora(_)
        | Adaptation::BitFit { .. }
        | Adaptation::HeadOnly
        | Adaptation::LastBlocks { .. }
        | Adaptation::Full => true,
        Adaptation::Houlsby { .. }
        | Adaptation::AdaptFormer { .. }
        | Adaptation::Prompts { .. } => false,
    }
}

/// W + s B A, with DoRA every row at its trained length.
fn with_factors(
    lora: &Lora,
    trained: &BTreeMap<&str, &[f32]>,
    name: &str,
    frozen: &[f32],
) -> Vec<f32> {
    let part = |part: &str| {
        let module = name.strip_suffix(".weight")?;
        trained.get(format!("{module}.{part}").as_str()).copied()
    };
    let (Some(a), Some(b)) = (part("lora_A"), part("lora_B")) else { return frozen.to_vec() };
    let change = part("lora_magnitude");
    let input = a.len() / lora.rank;
    let mut merged = Vec::with_capacity(frozen.len());
    for (row, (weight, up)) in frozen.chunks(input).zip(b.chunks(lora.rank)).enumerate() {
        let mut sum: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        for (up, down) in up.iter().zip(a.chunks(input)) {
            let factor = lora.scale() * f64::from(*up);
            sum.iter_mut().zip(down).for_each(|(sum, down)| *sum += factor * f64::from(*down));
        }
        let scale = change.map_or(1.0, |change| {
            let adapted = sum.iter().map(|w| w * w).sum::<f64>().sqrt();
            (length(weight) + f64::from(change[row])) / adapted.max(SHORTEST)
        });
        merged.extend(sum.iter().map(|w| (w * scale) as f32));
    }
    merged
}

/// Least length of a row: one of zeros has no direction to keep.
const SHORTEST: f64 = 1e-12;

/// The lengths of a weight's `rows` rows, as DoRA counts them.
pub(crate) fn row_lengths(weight: &[f32], rows: usize) -> Vec<f64> {
    weight.chunks(weight.len() / rows).map(length).collect()
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt().max(SHORTEST)
}
