//! GELU forward and back.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use super::Kernels;

/// As a node of a graph.
pub(super) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let node = x.node();
    let x = x.into_primitive();
    match Nonlinearity.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let [y, kept] = B::gelu_kept(x);
            prepared.finish(kept, y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(B::gelu(x)),
    }
}

#[derive(Debug)]
struct Nonlinearity;

impl<B: Kernels> Backward<B, 1> for Nonlinearity {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let by_y = gradients.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, B::gelu_back(ops.state, by_y));
        }
    }
}
