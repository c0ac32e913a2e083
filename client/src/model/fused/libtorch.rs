//! LibTorch's own kernels for the way back.

#![expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]

use burn::backend::LibTorch;
use burn::backend::tensor::FloatTensor;
use tch::Tensor;

use super::{Attended, Fused, Kernels, attention};

type Own = FloatTensor<LibTorch>;

impl Fused for LibTorch {}

impl Kernels for LibTorch {
    fn attend(qkv: [Own; 3]) -> Attended<Self> {
        let [q, k, v] = qkv.each_ref().map(|x| &x.tensor);
        if q.device().is_cuda() {
            return Attended { mixed: attention::forward::<Self>(qkv), log_sums: None };
        }
        let no_mask = None::<&Tensor>;
        let (mixed, log_sums) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, false, no_mask, None,
        );
        Attended { mixed: Own::new(mixed), log_sums: Some(Own::new(log_sums)) }
    }

    fn attention_back(qkv: [Own; 3], attended: Attended<Self>, by_mixed: Own) -> [Own; 3] {
        let Attended { mixed, log_sums } = attended;
        let Some(log_sums) = log_sums else {
            return attention::back::<Self>(qkv, mixed, by_mixed);
        };
        let [q, k, v] = qkv.each_ref().map(|x| &x.tensor);
        let no_mask = None::<&Tensor>;
        let (by_q, by_k, by_v) =
            Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &by_mixed.tensor,
                q,
                k,
                v,
                &mixed.tensor,
                &log_sums.tensor,
                0.0,
                false,
                no_mask,
                None,
            );
        [by_q, by_k, by_v].map(Own::new)
    }

    /// As in `norm`, in fewer passes.
    fn standardize_back(x: Own, by_rows: Own, eps: f64) -> Own {
        let width = x.tensor.size().last().copied().unwrap_or(1);
        let nothing = None::<&Tensor>;
        let (rows, _, inverse) = x.tensor.native_layer_norm([width], nothing, nothing, eps);
        let by_rows = by_rows.tensor;
        let mean = |x: &Tensor| x.mean_dim(-1, true, None);
        let along = mean(&(&by_rows * &rows));
        let across = &by_rows - mean(&by_rows);
        Own::new((across - rows * along) * inverse)
    }
}
