//! What the pictures of a source are like, and whether a run's dataset contract holds for them.

use std::collections::BTreeMap;

use tributary_shared::dataset::{DataContract, Plane};
use tributary_shared::manifest::Task;

use super::Case;
use super::medium::Facts;

/// Bound by which a refusal names a number of cases: below it, or not.
const COUNT_TOLD: usize = 10;

/// What the pictures of a source are like: counts alone, no file and no patient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Cases of each DICOM modality; none where nothing names it.
    pub modalities: BTreeMap<Option<String>, usize>,
    /// Cases of each plane; none where nothing tells it or it is oblique.
    pub planes: BTreeMap<Option<Plane>, usize>,
    /// Least and largest distance of neighbouring pixels, millimetres.
    pub spacing_mm: Option<[f64; 2]>,
    /// Cases whose distances nothing names.
    pub without_spacing: usize,
    /// Grey cases.
    pub grey: usize,
    /// Cases in colour.
    pub colour: usize,
    /// Cases stored with white as the lowest value.
    pub inverted: usize,
}

impl Profile {
    pub(super) fn count(&mut self, facts: &Facts, colour: bool) {
        *self.modalities.entry(facts.modality.clone()).or_default() += 1;
        *self.planes.entry(facts.plane).or_default() += 1;
        match facts.spacing_mm {
            Some(mm) => self.widen([mm, mm]),
            None => self.without_spacing += 1,
        }
        self.inverted += usize::from(facts.inverted);
        *(if colour { &mut self.colour } else { &mut self.grey }) += 1;
    }

    fn widen(&mut self, [low, high]: [f64; 2]) {
        let [least, largest] = self.spacing_mm.unwrap_or([low, high]);
        self.spacing_mm = Some([least.min(low), largest.max(high)]);
    }

    pub(super) fn add(&mut self, other: Self) {
        for (modality, cases) in other.modalities {
            *self.modalities.entry(modality).or_default() += cases;
        }
        for (plane, cases) in other.planes {
            *self.planes.entry(plane).or_default() += cases;
        }
        if let Some(range) = other.spacing_mm {
            self.widen(range);
        }
        self.without_spacing += other.without_spacing;
        self.grey += other.grey;
        self.colour += other.colour;
        self.inverted += other.inverted;
    }

    /// Everything that `contract` demands and these cases are not, one phrase each. Safe to tell
    /// the operator: it holds rough counts, declared names and nothing else of the site.
    pub(super) fn against(
        &self,
        contract: &DataContract,
        task: &Task,
        cases: &[Case],
    ) -> Vec<String> {
        let mut broken = Vec::new();
        if !contract.modalities.is_empty() {
            let fits = |modality: &Option<String>| {
                modality.as_ref().is_some_and(|code| contract.modalities.contains(code))
            };
            let others = self.modalities.iter().filter(|(modality, _)| !fits(modality));
            let allowed: Vec<&str> = contract.modalities.iter().map(String::as_str).collect();
            count(&mut broken, others.map(|(_, cases)| cases).sum(), || {
                format!("of another or unknown modality than {}", allowed.join(", "))
            });
        }
        if let Some(plane) = contract.plane {
            let others = self.planes.iter().filter(|(found, _)| **found != Some(plane));
            count(&mut broken, others.map(|(_, cases)| cases).sum(), || {
                format!("not known to be {}", plane.as_str())
            });
        }
        if let Some([least, largest]) = contract.spacing_mm {
            count(&mut broken, self.without_spacing, || "of unknown pixel spacing".to_owned());
            // A thousandth is how far apart two programs write the same spacing.
            let outside = self
                .spacing_mm
                .is_some_and(|[low, high]| low < least * 0.999 || high > largest * 1.001);
            if outside {
                broken.push(format!("pixel spacing outside {least} to {largest} mm"));
            }
        }
        match contract.channels {
            Some(1) => count(&mut broken, self.colour, || "in colour".to_owned()),
            Some(_) => count(&mut broken, self.grey, || "grey".to_owned()),
            None => {}
        }
        if let Some(least) = contract.cases_per_class_min {
            for (index, class) in task.classes().iter().enumerate() {
                let shown = cases.iter().filter(|case| case.label.shows(index)).count() as u64;
                if shown < least {
                    broken.push(format!("fewer than {least} cases of the class `{class}`"));
                }
            }
        }
        broken
    }
}

/// A small count would say much of each case, and an exact one of a case more or less.
fn count(broken: &mut Vec<String>, cases: usize, what: impl FnOnce() -> String) {
    match cases {
        0 => {}
        1..COUNT_TOLD => broken.push(format!("fewer than {COUNT_TOLD} cases {}", what())),
        _ => broken.push(format!("{COUNT_TOLD} or more cases {}", what())),
    }
}
