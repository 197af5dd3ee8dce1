//! The allocator of tests that count: bytes held, their maximum, and large blocks. A binary that declares this module has it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The system's allocator, with the bytes held but for those that a product packs in, their maximum, and the number of large blocks requested.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
pub static LARGE: AtomicUsize = AtomicUsize::new(0);

/// Size in bytes that separates blocks of tensor values from bookkeeping, in the step below.
const LARGE_BYTES: usize = 512;

/// Of a tensor's values. Blocks of wider alignment are where a matrix product packs its operands, and bytes where it notes what it has
/// packed: both depend on the CPU's vectors and caches (megabytes for a small product, where a cache of 480 MiB is reported).
const ALIGNMENTS: RangeInclusive<usize> = align_of::<u16>()..=align_of::<f64>();

/// Only one test at a time: others would allocate too.
pub static ALONE: Mutex<()> = Mutex::new(());

/// Bytes of a block that count as held.
fn counted(layout: Layout) -> usize {
    if layout.align() > *ALIGNMENTS.end() { 0 } else { layout.size() }
}

// SAFETY: everything is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = counted(layout);
        let held = HELD.fetch_add(bytes, SeqCst) + bytes;
        PEAK.fetch_max(held, SeqCst);
        let of_values = layout.size() >= LARGE_BYTES && ALIGNMENTS.contains(&layout.align());
        LARGE.fetch_add(usize::from(of_values), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(counted(layout), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes held at once while `body` runs, beyond what was held before, without those that products pack in.
pub fn peak<R>(body: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = body();
    (result, PEAK.load(SeqCst) - before)
}
