//! Identifies this build: its version and the cargo features that change how it computes.

use std::sync::LazyLock;

/// The cargo features of this build that change how it computes.
pub fn features() -> Vec<&'static str> {
    [
        ("avx512", cfg!(feature = "avx512")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
        ("mkl", cfg!(feature = "mkl")),
        ("mpi", cfg!(feature = "mpi")),
        ("nccl", cfg!(feature = "nccl")),
        ("shim", cfg!(feature = "shim")),
    ]
    .into_iter()
    .filter_map(|(name, on)| on.then_some(name))
    .collect()
}

/// The version with the features of the build, such as `0.1.0 (avx512, cuda)`.
pub static VERSION: LazyLock<String> = LazyLock::new(|| match features().as_slice() {
    [] => env!("CARGO_PKG_VERSION").to_string(),
    features => format!("{} ({})", env!("CARGO_PKG_VERSION"), features.join(", ")),
});
