//! Where tensors live and how many threads work on them.

use burn::tensor::Device;

/// The device that a model's tensors live on, chosen at run time.
#[derive(Clone, Debug)]
pub struct Compute {
    device: Device,
    shard: Shard,
    reads_ahead: bool,
}

/// How much of a step is computed in one piece; pieces run beside each other on our own threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    /// Most images.
    pub(crate) images_max: usize,
    /// Most multiplications of its forward pass, one image apart: a stop is heard after a shard.
    pub(crate) work_max: usize,
}

/// What a core's cache holds of the demo's model, two images of a ViT-S, and a stop within a second.
#[cfg(not(feature = "tch"))]
const OURS: Shard = Shard { images_max: 8, work_max: 10_000_000_000 };
/// One image of a ViT-S: two were 2 % faster in 15 % more memory, all at once no faster
/// (docs/performance.md).
#[cfg(feature = "tch")]
const LIBTORCH: Shard = Shard { images_max: 64, work_max: 2_000_000_000 };
/// A card wants few, large calls; shards in flight would only wait for one another.
#[cfg(feature = "tch")]
const CUDA: Shard = Shard { images_max: 64, work_max: usize::MAX };

impl Compute {
    /// The processor: LibTorch's kernels when built with `--features tch`, burn's own otherwise.
    #[cfg(not(feature = "tch"))]
    pub fn cpu() -> Self {
        Self { device: Device::flex(), shard: OURS, reads_ahead: true }
    }

    /// The processor: LibTorch's kernels when built with `--features tch`, burn's own otherwise.
    #[cfg(feature = "tch")]
    #[expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]
    pub fn cpu() -> Self {
        Self { device: Device::libtorch(), shard: LIBTORCH, reads_ahead: true }
    }

    /// The first CUDA device, through LibTorch.
    #[cfg(feature = "tch")]
    #[expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]
    pub fn cuda() -> Self {
        Self { device: Device::libtorch_cuda(0usize), shard: CUDA, reads_ahead: true }
    }

    /// Whether the next step's images are read while a step is computed; they are. The result is
    /// the same.
    pub fn reading_ahead(self, reads_ahead: bool) -> Self {
        Self { reads_ahead, ..self }
    }

    /// Threads that read ahead.
    pub(crate) fn readers(&self) -> usize {
        if self.reads_ahead { rayon::current_num_threads() } else { 0 }
    }

    /// How a step is cut.
    pub(crate) fn shard(&self) -> Shard {
        self.shard
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
/// Results do not depend on the number. In a program built with `--features tch` LibTorch's kernels
/// take as many, until a training gives them what its shards leave.
pub fn set_threads(threads: usize) -> Result<(), ThreadsError> {
    #[cfg(feature = "tch")]
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(ThreadsError)
}

/// Gives every core work when `shards` shards are computed beside each other: LibTorch's kernels
/// take the threads that are left to one of them. Twice as many threads as cores made a step a
/// seventh slower (docs/performance.md). burn's own kernels take idle threads by themselves.
pub(crate) fn spread_over(shards: usize) {
    #[cfg(feature = "tch")]
    {
        let each = rayon::current_num_threads() / shards.max(1);
        tch::set_num_threads(i32::try_from(each.max(1)).unwrap_or(i32::MAX));
    }
    #[cfg(not(feature = "tch"))]
    let _ = shards;
}
