//! Who comes to which hospital, how ill they are, and what a perfect reader could say.

use std::f64::consts::TAU;

use rand::seq::SliceRandom;

use super::canvas::normal;
use super::{Modality, SynthSpec};

/// A patient.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The id in the manifest.
    pub patient: String,
    /// The class of all their pictures.
    pub class: usize,
    /// How ill they look in each picture: the patient's own latent plus the picture's.
    pub severities: Vec<f32>,
}

/// Mean latent severity of each class.
fn means(modality: Modality) -> &'static [f32] {
    match modality {
        Modality::Fundus => &[-0.8, 0.9, 2.6],
        Modality::ChestXray | Modality::Histology => &[-0.9, 0.9],
    }
}

/// Standard deviations of the latent severity: between patients of a class, between pictures of
/// a patient.
const BETWEEN: f32 = 0.50;
const WITHIN: f32 = 0.44;

/// The probability of each class given the latent severity, classes equally likely beforehand:
/// the best that anybody could say who saw the latent itself. A binary task has one column, as a
/// model's output does.
pub fn oracle_probabilities(modality: Modality, severity: f32) -> Vec<f32> {
    let variance = BETWEEN * BETWEEN + WITHIN * WITHIN;
    let likelihood = |mean: &f32| (-(severity - mean).powi(2) / (2.0 * variance)).exp();
    let likelihoods: Vec<f32> = means(modality).iter().map(likelihood).collect();
    let total: f32 = likelihoods.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    let probabilities = likelihoods.iter().map(|l| l / total);
    if likelihoods.len() == 2 { probabilities.skip(1).collect() } else { probabilities.collect() }
}

/// The share of each class at a site: classes sit around a circle and each site leans towards
/// its own. Logits grow in proportion to `skew`, so skew is monotone by construction.
pub fn priors(classes: usize, site: usize, sites: usize, skew: f64) -> Vec<f64> {
    let logits = (0..classes).map(|class| {
        let apart = site as f64 / sites.max(2) as f64 - class as f64 / classes as f64;
        skew * (TAU * apart).cos()
    });
    let weights: Vec<f64> = logits.map(f64::exp).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// Whole patients of each class by largest remainder: the knob shows without sampling noise.
pub(in crate::data) fn counts(priors: &[f64], patients: usize) -> Vec<usize> {
    let exact: Vec<f64> = priors.iter().map(|share| share * patients as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|e| e.floor() as usize).collect();
    let mut order: Vec<usize> = (0..priors.len()).collect();
    order.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()));
    let missing = patients - counts.iter().sum::<usize>();
    for class in order.into_iter().cycle().take(missing) {
        counts[class] += 1;
    }
    counts
}

/// The patients of one site (from 0), in the order of its manifest.
pub(super) fn of_site(spec: &SynthSpec, site: usize) -> Vec<Subject> {
    let means = means(spec.modality);
    let priors = priors(means.len(), site, spec.sites, spec.label_skew);
    let mut classes: Vec<usize> = counts(&priors, spec.patients)
        .iter()
        .enumerate()
        .flat_map(|(class, count)| std::iter::repeat_n(class, *count))
        .collect();
    classes.shuffle(&mut spec.stream(&format!("classes/{site}")));
    let subject = |(index, class): (usize, usize)| {
        let patient = format!("s{}-p{:04}", site + 1, index + 1);
        let mut rng = spec.stream(&format!("latent/{patient}"));
        let own = means[class] + BETWEEN * normal(&mut rng);
        let severities =
            (0..spec.images_per_patient).map(|_| own + WITHIN * normal(&mut rng)).collect();
        Subject { patient, class, severities }
    };
    classes.into_iter().enumerate().map(subject).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_skew_knob_is_monotone_and_zero_is_even() {
        for (classes, sites) in [(2, 2), (3, 3), (2, 3), (3, 5)] {
            for site in 0..sites {
                let mut last = 0.0;
                for step in 0..=12 {
                    let priors = priors(classes, site, sites, f64::from(step) / 4.0);
                    assert!((priors.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                    // Divergence from even shares.
                    let even = 1.0 / classes as f64;
                    let divergence: f64 = priors.iter().map(|p| p * (p / even).ln()).sum();
                    if step == 0 {
                        assert!(divergence.abs() < 1e-12);
                    } else {
                        assert!(divergence >= last - 1e-12, "{classes} {sites} {site} {step}");
                    }
                    last = divergence;
                }
            }
        }
    }

    #[test]
    fn every_patient_is_counted_once() {
        assert_eq!(counts(&[0.5, 0.3, 0.2], 7), [4, 2, 1]);
        assert_eq!(counts(&[1.0 / 3.0; 3], 10).iter().sum::<usize>(), 10);
    }

    #[test]
    fn the_oracle_of_two_classes_meets_in_the_middle() {
        assert_eq!(oracle_probabilities(Modality::ChestXray, 0.0), [0.5]);
        assert!(oracle_probabilities(Modality::ChestXray, 1.0)[0] > 0.95);
        let three = oracle_probabilities(Modality::Fundus, 0.9);
        assert!(three[1] > 0.9 && (three.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
