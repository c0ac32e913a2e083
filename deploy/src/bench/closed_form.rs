//! What every adapter of the bench must hold: known in closed form.

use std::path::Path;

use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::decode;

use crate::command::Failed;

/// What site `index` (from 0) adds to every element.
pub(crate) fn addend(index: usize) -> f32 {
    (index + 1) as f32 / 1024.0
}

/// The cases that site `index` declares: its weight.
pub(crate) fn cases(index: usize) -> u64 {
    100 * (index as u64 + 1)
}

/// The value of every element of version `version`: as many steps of the weighted mean.
pub(crate) fn expected(sites: usize, version: u32) -> f64 {
    let weight: f64 = (0..sites).map(|i| cases(i) as f64).sum();
    let sum: f64 = (0..sites).map(|i| cases(i) as f64 * f64::from(addend(i))).sum();
    f64::from(version) * sum / weight
}

/// The largest difference of any element of the adapter in `file` from [`expected`].
pub(crate) fn largest_error(
    file: &Path,
    manifest: &RunManifest,
    sites: usize,
    version: u32,
) -> Result<f64, Failed> {
    let refused = |problem: String| Failed::new(&file.display().to_string(), None, &problem);
    let bytes = std::fs::read(file).map_err(|e| Failed::file(file, &e))?;
    let contract = manifest.contract().ok_or_else(|| refused("no contract".to_owned()))?;
    let header = adapter_header(&manifest.name, version, &contract);
    let tensors = decode(&bytes, &header).map_err(|e| refused(e.to_string()))?;
    let expected = expected(sites, version);
    let differences = tensors.iter().flatten().map(|v| (f64::from(*v) - expected).abs());
    Ok(differences.fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weighted_mean_is_the_one_worked_out_by_hand() {
        // (100 * 1 + 200 * 2) / 300 = 5/3, in 1024ths, a round.
        assert!((expected(2, 1) - 5.0 / 3.0 / 1024.0).abs() < 1e-15);
        assert!((expected(2, 3) - 5.0 / 1024.0).abs() < 1e-15);
        assert!((expected(1, 2) - 2.0 / 1024.0).abs() < 1e-15);
    }
}
