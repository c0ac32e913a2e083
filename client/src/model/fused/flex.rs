//! What burn's own processor backend computes quicker by hand.

use burn::backend::Flex;
use burn::backend::TensorMetadata as _;
use burn::backend::ops::{ActivationOps as _, FloatTensorOps as _};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};
use rayon::prelude::*;

use super::{Fused, Kernels};

type Own = FloatTensor<Flex>;

impl Fused for Flex {}

impl Kernels for Flex {
    /// Keeps the slope Phi(x) + x phi(x), which shares its error function with the value.
    fn gelu_kept(x: Own) -> [Own; 2] {
        if x.dtype() != DType::F32 {
            return [Self::gelu(x.clone()), x];
        }
        let shape = x.shape();
        let x = x.to_contiguous();
        let (mut values, mut slopes) = (Vec::new(), Vec::new());
        let numbers = x.storage::<f32>();
        numbers
            .par_iter()
            .with_min_len(PIECE)
            .map(|x| gelu(*x))
            .unzip_into_vecs(&mut values, &mut slopes);
        [values, slopes].map(|numbers| Own::from_data(TensorData::new(numbers, shape.clone())))
    }

    fn gelu_back(kept: Own, by_y: Own) -> Own {
        match kept.dtype() {
            DType::F32 => Self::float_mul(kept, by_y),
            _ => Self::gelu_backward(kept, by_y),
        }
    }
}

/// Numbers worth a task of their own.
const PIECE: usize = 1 << 14;

/// x Phi(x) and its slope.
fn gelu(x: f32) -> (f32, f32) {
    /// 1 / sqrt(2 pi)
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let below = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * below, below + x * DENSITY_AT_ZERO * (-0.5 * x * x).exp())
}
