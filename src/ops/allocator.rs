//! The program's allocator: huge pages, and freed buffers that stay in the process.
//!
//! A model is larger than what a CPU's table of pages of 4 KiB covers, so that each row of a weight would begin with a walk through
//! the system's tables, on a virtual machine through two. jemalloc asks for pages of 2 MiB where the system gives them on request,
//! as most distributions do.
//!
//! A training step allocates and frees the same buffers again and again. Given back to the kernel, they would be cleared page by
//! page before the next layer gets them; kept, they are reused.

#![allow(unsafe_code, reason = "allocators are told their parameters through C")]

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
mod jemalloc {
    pub use tikv_jemallocator::Jemalloc as Allocator;

    /// Huge pages on request; freed memory is never given back. `_RJEM_MALLOC_CONF` in the environment overrules this.
    const PARAMETERS: &[u8; 47] = b"thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1\0";

    /// What is resident beyond the blocks that are held, at a training step's peak: sizes are rounded up to one of four between two
    /// powers of two, and pages are large. Measured: 6 to 9 (docs/performance.md).
    pub const LOST_PERCENT: usize = 8;

    // SAFETY: jemalloc declares this symbol, weakly, as a pointer to a string that ends with a zero, and reads it once.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    #[used]
    static MALLOC_CONF: &[u8; 47] = PARAMETERS;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
pub use jemalloc::{Allocator, LOST_PERCENT};
#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
mod system {
    pub use std::alloc::System as Allocator;

    /// As below; not measured.
    pub const LOST_PERCENT: usize = 0;
}
#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
pub use system::{Allocator, LOST_PERCENT};

/// Keeps freed buffers in the process, where the C library's allocator is used. Call once, before threads start; does nothing unless
/// that is glibc.
pub fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes plain integers and only sets parameters of the allocator, under its lock.
    unsafe {
        // No block gets a mapping of its own, and the heap's end is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
