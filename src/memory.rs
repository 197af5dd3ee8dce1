//! How the process keeps its memory.
//!
//! A training step allocates and frees the same buffers again and again. glibc gives large ones back to the kernel at
//! once, which then has to clear every page of the next: with gradient checkpointing that took 6 % of a step. Kept on the
//! heap, a freed buffer serves the next layer.

#![allow(unsafe_code, reason = "the allocator is only told its parameters through C")]

/// Lets freed buffers stay with the process. To be called once, before threads start; does nothing where the C library
/// is not glibc.
pub fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator, and no other thread runs yet.
    unsafe {
        // No block gets a mapping of its own, and the heap's end is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// The resident memory of this process, in bytes; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    let read = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    read().unwrap_or(0) * 1024
}
