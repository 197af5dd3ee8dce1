//! Addresses reserved for large blocks, made memory from their beginning on, as far as they are needed.

#![allow(unsafe_code, reason = "asks the system for addresses and memory")]

use super::extents::{Extents, Taken, padded};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The region of this process.
pub static REGION: Region =
    Region { begin: AtomicUsize::new(0), end: AtomicUsize::new(0), state: Mutex::new(State::new()) };

/// A page of the larger kind, in bytes, on x86-64 and on most systems of 64-bit Arm.
const HUGE_PAGE: usize = 2 << 20;

/// Made memory at a time, in bytes. None of it counts as used before it is written to.
const STEP: usize = 32 * HUGE_PAGE;

/// How many times the machine's memory is reserved in addresses, as what is free between blocks takes some too.
const ADDRESSES: usize = 4;

pub struct Region {
    /// Addresses; both 0 before the first block, and always if nothing could be reserved.
    begin: AtomicUsize,
    end: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    extents: Extents,
    /// Bytes from the beginning that are memory.
    usable: usize,
    asked: bool,
}

/// A block of the region.
pub struct Block {
    pub data: *mut u8,
    /// Whether it is all zeros, since nobody had it before.
    pub is_fresh: bool,
}

impl Region {
    /// A block of at least `size` bytes; `None` if there is no region or no room left in it.
    pub fn take(&self, size: usize) -> Option<Block> {
        let mut state = self.state();
        let begin = self.reserved(&mut state)?;
        let (length, limit) = (padded(size)?, self.end.load(Relaxed) - begin);
        let Taken { start, is_fresh } = state.extents.take(length, limit)?;
        if !state.make_usable(begin, limit) {
            state.extents.give_back(start, length);
            return None;
        }
        Some(Block { data: ptr::with_exposed_provenance_mut(begin + start), is_fresh })
    }

    /// Whether a block came from here.
    pub fn has(&self, data: *mut u8) -> bool {
        let address = data.addr();
        // Whoever has a block of the region sees its bounds: they were written before it was handed out.
        self.begin.load(Relaxed) <= address && address < self.end.load(Relaxed)
    }

    /// Takes a block of `size` bytes back.
    pub fn give_back(&self, data: *mut u8, size: usize) {
        let mut state = self.state();
        if let Some(length) = padded(size) {
            state.extents.give_back(data.addr() - self.begin.load(Relaxed), length);
        }
    }

    /// Makes a block of `old` bytes one of `new` where it is, if that is possible.
    pub fn resize(&self, data: *mut u8, old: usize, new: usize) -> bool {
        let (Some(old), Some(new)) = (padded(old), padded(new)) else { return false };
        let mut state = self.state();
        let (begin, end) = (self.begin.load(Relaxed), self.end.load(Relaxed));
        let start = data.addr() - begin;
        if new <= old {
            if new < old {
                state.extents.give_back(start + new, old - new);
            }
            return true;
        }
        if !state.extents.lengthen(start, old, new - old, end - begin) {
            return false;
        }
        if state.make_usable(begin, end - begin) {
            return true;
        }
        state.extents.give_back(start + old, new - old);
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first address, reserved now if that was not tried before.
    fn reserved(&self, state: &mut State) -> Option<usize> {
        if !state.asked {
            state.asked = true;
            if let Some((begin, end)) = reserve() {
                self.begin.store(begin, Relaxed);
                self.end.store(end, Relaxed);
            }
        }
        Some(self.begin.load(Relaxed)).filter(|begin| *begin > 0)
    }
}

impl State {
    const fn new() -> Self {
        Self { extents: Extents::new(), usable: 0, asked: false }
    }

    /// Makes memory of all that has ever been taken; false if the system refuses.
    fn make_usable(&mut self, begin: usize, limit: usize) -> bool {
        let needed = self.extents.end();
        if needed <= self.usable {
            return true;
        }
        let usable = needed.next_multiple_of(STEP).min(limit);
        let new = ptr::with_exposed_provenance_mut(begin + self.usable);
        // SAFETY: within what was reserved, where nothing else lies.
        let made = unsafe { libc::mprotect(new, usable - self.usable, libc::PROT_READ | libc::PROT_WRITE) } == 0;
        if made {
            self.usable = usable;
        }
        made
    }
}

/// Addresses without memory behind them, several times as many as the machine has bytes, for which huge pages are asked for; `None` where
/// the system refuses, as under a limit on addresses (`ulimit -v`).
#[cfg(target_os = "linux")]
fn reserve() -> Option<(usize, usize)> {
    // SAFETY: both only ask for a number.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let memory = usize::try_from(pages).ok()?.checked_mul(usize::try_from(page).ok()?)?;
    let length = memory.checked_mul(ADDRESSES)?.checked_next_multiple_of(HUGE_PAGE)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a mapping of its own wherever the system finds room for it; nothing that is mapped changes.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), length + HUGE_PAGE, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let begin = mapped.expose_provenance().next_multiple_of(HUGE_PAGE);
    // SAFETY: within that mapping. Where the system knows no huge pages it refuses, and the region has ordinary ones.
    unsafe { libc::madvise(ptr::with_exposed_provenance_mut(begin), length, libc::MADV_HUGEPAGE) };
    Some((begin, begin + length))
}

/// Only Linux is asked for huge pages.
#[cfg(not(target_os = "linux"))]
fn reserve() -> Option<(usize, usize)> {
    None
}
