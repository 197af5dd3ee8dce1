//! Addresses reserved for large blocks, made memory from their beginning on, as far as they are needed.

#![allow(unsafe_code, reason = "asks the system for addresses and memory")]

use super::extents::{Extents, Taken, padded};
use std::ptr;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The region of this process.
pub static REGION: Region = Region {
    begin: AtomicUsize::new(0),
    half: AtomicUsize::new(0),
    asked: Mutex::new(false),
    halves: [const { Mutex::new(Half::new()) }; 2],
};

/// A page of the larger kind, in bytes, on x86-64 and on most systems of 64-bit Arm.
const HUGE_PAGE: usize = 2 << 20;

/// Made memory at a time, in bytes. None of it counts as used before it is written to.
const STEP: usize = 32 * HUGE_PAGE;

/// How many times the machine's memory each half has in addresses, as what is free between blocks takes some too.
const ADDRESSES: usize = 2;

/// Bytes from which on a block lies in the second half: one of the first that stays would otherwise cut up the only room for it.
const SECOND: usize = 16 << 20;

pub struct Region {
    /// The first address, and how many each half has; both 0 before the first block, and always if nothing could be reserved.
    begin: AtomicUsize,
    half: AtomicUsize,
    asked: Mutex<bool>,
    halves: [Mutex<Half>; 2],
}

#[derive(Debug)]
struct Half {
    extents: Extents,
    /// Bytes from its beginning that are memory.
    usable: usize,
}

/// A block of the region.
pub struct Block {
    pub data: *mut u8,
    /// Whether it is all zeros, since nobody had it before.
    pub is_fresh: bool,
}

/// Where a half lies.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    begin: usize,
    limit: usize,
}

impl Region {
    /// A block of at least `size` bytes; `None` if there is no region or no room left in it.
    pub fn take(&self, size: usize) -> Option<Block> {
        let place = self.place(self.reserved()?, usize::from(size >= SECOND));
        let length = padded(size)?;
        let mut half = self.half(place);
        let Taken { start, is_fresh } = half.extents.take(length, place.limit)?;
        if !half.make_usable(place) {
            half.extents.give_back(start, length);
            return None;
        }
        Some(Block { data: ptr::with_exposed_provenance_mut(place.begin + start), is_fresh })
    }

    /// Whether a block came from here.
    pub fn has(&self, data: *mut u8) -> bool {
        // Whoever has a block of the region sees its bounds: they were written before it was handed out.
        let (begin, half) = (self.begin.load(Relaxed), self.half.load(Relaxed));
        begin > 0 && data.addr().wrapping_sub(begin) < 2 * half
    }

    /// Takes a block of `size` bytes back.
    pub fn give_back(&self, data: *mut u8, size: usize) {
        let place = self.place_of(data);
        if let Some(length) = padded(size) {
            self.half(place).extents.give_back(data.addr() - place.begin, length);
        }
    }

    /// Makes a block of `old` bytes one of `new` where it is, if that is possible.
    pub fn resize(&self, data: *mut u8, old: usize, new: usize) -> bool {
        let (Some(old), Some(new)) = (padded(old), padded(new)) else { return false };
        let place = self.place_of(data);
        let (start, mut half) = (data.addr() - place.begin, self.half(place));
        if new <= old {
            if new < old {
                half.extents.give_back(start + new, old - new);
            }
            return true;
        }
        if !half.extents.lengthen(start, old, new - old, place.limit) {
            return false;
        }
        if half.make_usable(place) {
            return true;
        }
        half.extents.give_back(start + old, new - old);
        false
    }

    fn half(&self, place: Place) -> MutexGuard<'_, Half> {
        self.halves[place.index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, begin: usize, index: usize) -> Place {
        let limit = self.half.load(Relaxed);
        Place { index, begin: begin + index * limit, limit }
    }

    /// The half that a block of the region lies in.
    fn place_of(&self, data: *mut u8) -> Place {
        let (begin, half) = (self.begin.load(Relaxed), self.half.load(Relaxed));
        self.place(begin, usize::from(data.addr() - begin >= half))
    }

    /// The first address, reserved now if that was not tried before.
    fn reserved(&self) -> Option<usize> {
        let begin = self.begin.load(Acquire);
        if begin > 0 {
            return Some(begin);
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !*asked {
            *asked = true;
            if let Some((begin, half)) = reserve() {
                self.half.store(half, Relaxed);
                self.begin.store(begin, Release);
            }
        }
        Some(self.begin.load(Relaxed)).filter(|begin| *begin > 0)
    }
}

impl Half {
    const fn new() -> Self {
        Self { extents: Extents::new(), usable: 0 }
    }

    /// Makes memory of all that has ever been taken; false if the system refuses.
    fn make_usable(&mut self, place: Place) -> bool {
        let needed = self.extents.end();
        if needed <= self.usable {
            return true;
        }
        let usable = needed.next_multiple_of(STEP).min(place.limit);
        let new = ptr::with_exposed_provenance_mut(place.begin + self.usable);
        // SAFETY: within what was reserved, where nothing else lies.
        let made = unsafe { libc::mprotect(new, usable - self.usable, libc::PROT_READ | libc::PROT_WRITE) } == 0;
        if made {
            self.usable = usable;
        }
        made
    }
}

/// Addresses without memory behind them, for which huge pages are asked: the first, and how many each half has. `None` where the system
/// refuses, as under a limit on addresses (`ulimit -v`).
#[cfg(target_os = "linux")]
fn reserve() -> Option<(usize, usize)> {
    // SAFETY: both only ask for a number.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let memory = usize::try_from(pages).ok()?.checked_mul(usize::try_from(page).ok()?)?;
    let half = memory.checked_mul(ADDRESSES)?.checked_next_multiple_of(HUGE_PAGE)?;
    let length = half.checked_mul(2)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a mapping of its own wherever the system finds room for it; nothing that is mapped changes.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), length + HUGE_PAGE, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let begin = mapped.expose_provenance().next_multiple_of(HUGE_PAGE);
    // SAFETY: within that mapping. Where the system knows no huge pages it refuses, and the region has ordinary ones.
    unsafe { libc::madvise(ptr::with_exposed_provenance_mut(begin), length, libc::MADV_HUGEPAGE) };
    Some((begin, half))
}

/// Only Linux is asked for huge pages.
#[cfg(not(target_os = "linux"))]
fn reserve() -> Option<(usize, usize)> {
    None
}
