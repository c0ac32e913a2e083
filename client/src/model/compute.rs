//! Where tensors live and how many threads work on them.

use burn::tensor::Device;

/// The device that a model's tensors live on, chosen at run time.
#[derive(Clone, Debug)]
pub struct Compute {
    device: Device,
}

impl Compute {
    /// The processor: LibTorch's kernels when built with `--features tch`, burn's own otherwise.
    #[cfg(not(feature = "tch"))]
    pub fn cpu() -> Self {
        Self { device: Device::flex() }
    }

    /// The processor: LibTorch's kernels when built with `--features tch`, burn's own otherwise.
    #[cfg(feature = "tch")]
    #[expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]
    pub fn cpu() -> Self {
        Self { device: Device::libtorch() }
    }

    /// The first CUDA device, through LibTorch.
    #[cfg(feature = "tch")]
    #[expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]
    pub fn cuda() -> Self {
        Self { device: Device::libtorch_cuda(0usize) }
    }

    /// burn's handle.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

impl Default for Compute {
    fn default() -> Self {
        Self::cpu()
    }
}

/// The thread pool was in use before its size was set.
#[derive(Debug, thiserror::Error)]
#[error("the compute threads are already running; set their number before anything is computed")]
pub struct ThreadsError(#[source] rayon::ThreadPoolBuildError);

/// Sets how many threads compute, once per process and before the first tensor.
/// Results do not depend on the number. LibTorch's own threads are set by `OMP_NUM_THREADS`.
pub fn set_threads(threads: usize) -> Result<(), ThreadsError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(ThreadsError)
}
