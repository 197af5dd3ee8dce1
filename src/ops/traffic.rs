//! What a step asks of a device: launches, and the bytes of the tensors that they read and write.
//!
//! Every operation that a step with kernels (gpu/) consists of names its tensors here: kernels as they are launched, and
//! products, sums and conversions. A tensor counts once for each launch that reads it, so what a kernel reads again, or
//! finds in a cache, is not seen. Operations of the CPU's kernels are not counted.
//!
//! Apart from these, multiply-adds are counted: of all products of the CPU's kernels, those within attention and gated DeltaNets
//! included, and of linears everywhere.

use candle_core::Tensor;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static READ: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);

/// Launches and bytes since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub launches: u64,
    pub read: u64,
    pub written: u64,
    pub multiply_adds: u64,
}

impl Traffic {
    pub fn so_far() -> Self {
        let [launches, read, written, multiply_adds] =
            [&LAUNCHES, &READ, &WRITTEN, &MULTIPLY_ADDS].map(|count| count.load(Relaxed));
        Self { launches, read, written, multiply_adds }
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            launches: self.launches - earlier.launches,
            read: self.read - earlier.read,
            written: self.written - earlier.written,
            multiply_adds: self.multiply_adds - earlier.multiply_adds,
        }
    }

    pub fn bytes(self) -> u64 {
        self.read + self.written
    }
}

/// Counts one launch that makes y of these tensors.
pub fn counted(y: Tensor, reads: &[&Tensor]) -> Tensor {
    launch(reads, &[&y]);
    y
}

/// Counts one launch.
pub fn launch(reads: &[&Tensor], writes: &[&Tensor]) {
    LAUNCHES.fetch_add(1, Relaxed);
    moved(reads, writes);
}

/// Counts bytes of a launch that is counted elsewhere.
pub fn moved(reads: &[&Tensor], writes: &[&Tensor]) {
    let bytes = |tensors: &[&Tensor]| tensors.iter().map(|x| x.elem_count() * x.dtype().size_in_bytes()).sum::<usize>();
    read(bytes(reads));
    WRITTEN.fetch_add(bytes(writes) as u64, Relaxed);
}

/// As [`moved`], for memory that is no tensor.
pub fn read(bytes: usize) {
    READ.fetch_add(bytes as u64, Relaxed);
}

/// Counts a product of [m, k] and [k, n].
pub fn product((m, n, k): (usize, usize, usize)) {
    MULTIPLY_ADDS.fetch_add((m * n * k) as u64, Relaxed);
}
