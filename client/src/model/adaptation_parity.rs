//! Every adaptation and head against PyTorch: logits, and gradients by every trained value.
//!
//! The files come from tests/python/adaptation_fixtures.py, which says whose code computed them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tributary_shared::adaptation::Adaptation;
use tributary_shared::contract::AdapterContract;
use tributary_shared::head::Head;
use tributary_shared::problems::Problems;

use super::merged::merges;
use super::{AdaptedVit, Backbone, Compute, Dropout, Input, Values, merged};

const OUTPUTS: usize = 3;
const IMAGES: usize = 2;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adaptations")
}

/// One file: a trained adapter on a backbone, and what PyTorch makes of it.
struct Case {
    name: String,
    backbone: Backbone,
    contract: AdapterContract,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Case {
    fn of(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        let backbone = fixtures().join(format!("{}.backbone.safetensors", metadata["backbone"]));
        let backbone = Backbone::open_described(&backbone).unwrap();
        let adaptation: Adaptation = serde_json::from_str(&metadata["adapter"]).unwrap();
        let head: Head = serde_json::from_str(&metadata["head"]).unwrap();
        let architecture = backbone.architecture();
        Problems::of(|found| adaptation.check(Some(architecture), found)).unwrap();
        let contract =
            AdapterContract::new(backbone.digest(), architecture, adaptation, Some(head), OUTPUTS);
        let floats = |bytes: &[u8]| {
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
        };
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.iter().map(|(name, view)| (name.to_owned(), floats(view.data())));
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { name, backbone, contract, tensors: tensors.collect() }
    }

    fn all() -> Vec<Self> {
        let paths = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|p| !p.to_string_lossy().contains(".backbone.")).collect();
        paths.sort();
        paths.iter().map(|path| Self::of(path)).collect()
    }

    /// The tensors of the contract's layout that the file has as `what.NAME`.
    fn values(&self, what: &str) -> Values {
        let specs = self.contract.layout.tensors();
        let of = |name: &str| self.tensors[&format!("{what}.{name}")].clone();
        let values: Values = specs.iter().map(|spec| of(&spec.name)).collect();
        for (spec, values) in specs.iter().zip(&values) {
            assert_eq!(spec.elements(), values.len(), "{}: {spec}", self.name);
        }
        values
    }

    /// The same formula as in the script, exact in f32.
    fn rows(&self, model: &AdaptedVit) -> Vec<f32> {
        let shape = self.backbone.architecture();
        let numbers = shape.channels * shape.image_size.pow(2);
        let pixels: Vec<f32> =
            (0..IMAGES * numbers).map(|i| ((i * 7919) % 1_000) as f32 / 500.0 - 1.0).collect();
        let mut rows = Vec::new();
        pixels.chunks(numbers).for_each(|image| model.patchify(image, &mut rows));
        rows
    }

    fn assert_close(&self, found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
        assert_eq!(found.len(), expected.len(), "{}: {what}", self.name);
        let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far <= tolerance, "{}: {what}: {far} apart", self.name);
    }
}

#[test]
fn logits_and_gradients_are_pytorchs() {
    let cases = Case::all();
    assert_eq!(cases.len(), 16);
    for case in cases {
        let model = AdaptedVit::new(&case.backbone, &case.contract, &Compute::cpu());
        let (rows, values) = (case.rows(&model), case.values("trained"));
        let logits = model.logits(&values, &rows, IMAGES);
        case.assert_close(&logits, &case.tensors["logits"], 2e-5, "logits");
        // Half the squared logits, summed: its derivative is the logits.
        let half_square = |logits: &[f32]| (0.0, logits.to_vec());
        let input = Input::Patches { rows: &rows, images: IMAGES };
        let found =
            model.gradient(&model.place(&values), input, &mut Dropout::off(), half_square).values;
        let specs = case.contract.layout.tensors();
        for ((found, expected), spec) in found.iter().zip(case.values("gradient")).zip(specs) {
            let largest = expected.iter().map(|g| g.abs()).fold(0.0, f32::max);
            assert!(largest > 0.0 || spec.name.ends_with("attn.k.bias"), "{}: {spec}", case.name);
            case.assert_close(found, &expected, 1e-4 * largest.max(0.1), &spec.name);
        }
    }
}

/// The model that keeps attention says what the fused one says.
#[test]
fn looking_at_attention_changes_no_logit() {
    for case in Case::all() {
        let model = AdaptedVit::new(&case.backbone, &case.contract, &Compute::cpu());
        let rows = case.rows(&model);
        let one = &rows[..rows.len() / IMAGES];
        let looked = model.look(&case.values("trained"), one, |logits| vec![1.0; logits.len()]);
        case.assert_close(&looked.logits, &case.tensors["logits"][..OUTPUTS], 2e-5, "logits");
        for block in &looked.blocks {
            for row in block.probabilities.chunks(block.keys) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{}", case.name);
            }
        }
    }
}

/// The merged weights under the trained head give the adapted model's logits.
#[test]
fn a_merged_backbone_computes_what_the_adapter_did() {
    for case in Case::all() {
        let values = case.values("trained");
        let whole = merged(&case.backbone, &case.contract, &values);
        let adaptation = case.contract.adaptation.as_ref().unwrap();
        assert_eq!(whole.is_ok(), merges(adaptation), "{}", case.name);
        let Ok(whole) = whole else { continue };
        let head = AdapterContract::new(
            whole.digest(),
            whole.architecture(),
            Adaptation::HeadOnly,
            case.contract.head.clone(),
            OUTPUTS,
        );
        let of_head: Values = head
            .layout
            .tensors()
            .iter()
            .map(|spec| case.tensors[&format!("trained.{}", spec.name)].clone())
            .collect();
        let model = AdaptedVit::new(&whole, &head, &Compute::cpu());
        let logits = model.logits(&of_head, &case.rows(&model), IMAGES);
        case.assert_close(&logits, &case.tensors["logits"], 2e-5, "merged logits");
        let same = matches!(adaptation, Adaptation::HeadOnly);
        assert_eq!(whole.digest() == case.backbone.digest(), same, "{}", case.name);
    }
}
