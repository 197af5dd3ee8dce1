//! Memory for tensors: in huge pages, and kept in the process once freed.
//!
//! A training step allocates and frees the same buffers again and again. glibc gives large ones back to the kernel at
//! once, which then has to clear every page of the next: with gradient checkpointing that took 6 % of a step. And it leaves
//! them in pages of 4 KiB, of which a model has more than a CPU's tables hold: each row of a weight then begins with a walk
//! through them, on a virtual machine through two. So large blocks lie in a region of their own, which asks for pages of
//! 2 MiB before it is first written to; most distributions of Linux give them only where they are asked for.

#![allow(unsafe_code, reason = "hands out memory")]

mod extents;
mod region;

use region::REGION;
use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes from which on a block lies in the region.
const LARGE_BYTES: usize = 256 << 10;

/// The system's allocator but for large blocks, which lie in a region of huge pages where there can be one. For a program that names
/// it as its `#[global_allocator]`.
pub struct Allocator;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE_BYTES && layout.align() <= extents::UNIT
}

// SAFETY: a block comes from the region or from the system and goes back to where its address says that it came from.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout)
            && let Some(block) = REGION.take(layout.size())
        {
            return block.data;
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = is_large(layout).then(|| REGION.take(layout.size())).flatten() else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        };
        if !block.is_fresh {
            // SAFETY: the block has that many bytes, which nobody else has.
            unsafe { block.data.write_bytes(0, layout.size()) };
        }
        block.data
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        if REGION.has(data) {
            REGION.give_back(data, layout.size());
        } else {
            // SAFETY: the caller's promise; it came from the system.
            unsafe { System.dealloc(data, layout) }
        }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (is_ours, old) = (REGION.has(data), layout.size());
        if is_ours && REGION.resize(data, old, size) {
            return data;
        }
        if !is_ours && size < LARGE_BYTES {
            // SAFETY: the caller's promise; it came from the system.
            return unsafe { System.realloc(data, layout, size) };
        }
        // SAFETY: the caller promises a size that is valid with this alignment, and `old` bytes at `data`; the new block does not
        // overlap them, as both are in use.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(data, old.min(size));
                self.dealloc(data, layout);
            }
            new
        }
    }
}

/// Keeps freed buffers that are not in the region in the process, too. Call once, before threads start; does nothing unless the C library
/// is glibc.
pub fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes plain integers and only sets parameters of the allocator, under its lock.
    unsafe {
        // No block gets a mapping of its own, and the heap's end is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// A block filled with one byte.
    struct Held {
        data: *mut u8,
        layout: Layout,
        byte: u8,
    }

    impl Held {
        fn values(&mut self) -> &mut [u8] {
            // SAFETY: a live block of that size, which only this one has.
            unsafe { std::slice::from_raw_parts_mut(self.data, self.layout.size()) }
        }

        fn check(&mut self, length: usize) {
            let byte = self.byte;
            assert!(self.values()[..length].iter().all(|value| *value == byte), "another's values");
        }
    }

    /// Blocks of sizes around the limit are allocated, lengthened, shortened and freed by several threads at once.
    #[test]
    fn blocks_keep_their_values() {
        let work = |seed: u64| {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut held: Vec<Held> = vec![];
            for turn in 0..600u32 {
                let (size, byte) = (random.random_range(LARGE_BYTES / 4..LARGE_BYTES * 6), turn as u8 | 1);
                let place = random.random_range(0..8);
                // SAFETY: sizes are not 0, and each block is freed once, with the layout that it has by then.
                unsafe {
                    if place >= held.len() {
                        let layout = Layout::from_size_align(size, 8).unwrap();
                        let is_zeroed = turn.is_multiple_of(2);
                        let data = if is_zeroed { Allocator.alloc_zeroed(layout) } else { Allocator.alloc(layout) };
                        let mut new = Held { data, layout, byte: 0 };
                        if is_zeroed {
                            new.check(size);
                        }
                        held.push(new);
                    } else if turn % 3 == 0 {
                        let mut old = held.swap_remove(place);
                        old.check(old.layout.size());
                        Allocator.dealloc(old.data, old.layout);
                        continue;
                    } else {
                        let old = &mut held[place];
                        let before = old.layout.size();
                        old.data = Allocator.realloc(old.data, old.layout, size);
                        old.layout = Layout::from_size_align(size, 8).unwrap();
                        old.check(before.min(size));
                    }
                }
                let last = place.min(held.len() - 1);
                held[last].byte = byte;
                held[last].values().fill(byte);
            }
            for mut old in held {
                old.check(old.layout.size());
                // SAFETY: as above.
                unsafe { Allocator.dealloc(old.data, old.layout) };
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || work(seed)))));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn large_blocks_lie_in_the_region_and_others_do_not() {
        for (size, is_large) in [(LARGE_BYTES - 1, false), (LARGE_BYTES, true), (40 << 20, true)] {
            let layout = Layout::from_size_align(size, 4).unwrap();
            // SAFETY: the size is not 0, and the block is freed with its layout.
            unsafe {
                let data = Allocator.alloc(layout);
                assert_eq!(REGION.has(data), is_large, "{size} bytes");
                assert_eq!(data.addr() % extents::UNIT * usize::from(is_large), 0);
                Allocator.dealloc(data, layout);
            }
        }
        // The flag of the mappings that huge pages are asked for, where this kernel has any.
        let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = mappings.lines().filter(|line| line.starts_with("VmFlags:"));
        let has_huge_pages = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags.into_iter().any(|line| line.ends_with(" hg") || line.contains(" hg ")), has_huge_pages);
    }
}
