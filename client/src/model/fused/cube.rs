//! burn's own kernels on a card, which CubeCL compiles there.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;

use super::{Fused, Kernels, attention};

type Own = FloatTensor<Cube>;

impl Fused for Cube {}

impl Kernels for Cube {
    type Kept = ();

    fn attend(qkv: [Own; 3]) -> (Own, ()) {
        (attention::forward::<Self>(qkv), ())
    }

    fn attention_back(qkv: [Own; 3], (mixed, ()): (Own, ()), by_mixed: Own) -> [Own; 3] {
        attention::back::<Self>(qkv, mixed, by_mixed)
    }
}
