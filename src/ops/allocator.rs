//! Keeps freed buffers in the process, so that later kernels reuse them.
//!
//! A training step allocates and frees the same buffers again and again. glibc gives large ones back to the kernel at
//! once, which then has to clear every page of the next: with gradient checkpointing that took 6 % of a step. Kept on
//! the heap, a freed buffer is reused by the next layer.

#![allow(unsafe_code, reason = "the allocator is only told its parameters through C")]

/// Keeps freed buffers in the process. Call once, before threads start; does nothing unless the C library is glibc.
pub fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes plain integers and only sets parameters of the allocator, under its lock.
    unsafe {
        // No block gets a mapping of its own, and the heap's end is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
