//! Loops with the widest vectors that this CPU has, in a program that is built for any.
//!
//! Rust neither reorders sums nor contracts to fused multiply-adds, so the result of such a loop does not depend on the
//! vector width: every machine computes the same bits.

#![allow(unsafe_code, reason = "prefetching, which takes any address")]

/// The value of a block compiled for the widest vector unit of this CPU. A macro, since a closure that is not marked
/// for inlining may become a separate function, which is then compiled for any CPU.
macro_rules! vectorised {
    ($body:expr) => {
        $crate::vectors::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorised;

/// Runs `body` where it may use all of this CPU's instructions; for [`vectorised`].
#[inline(always)]
pub fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Body<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(body))
}

/// The vectors that this CPU has, and none: for tests of each.
#[cfg(test)]
pub fn of_this_cpu() -> Vec<pulp::Arch> {
    let mut all = vec![pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        #[cfg(feature = "avx512")]
        all.extend(pulp::x86::V4::try_new().map(pulp::Arch::V4));
    }
    #[cfg(not(target_arch = "x86_64"))]
    all.push(pulp::Arch::new());
    all
}

/// Prefetches the cache line at an address that will be read soon. Nothing is accessed here: any address will do.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, and SSE is always available.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Distance in bytes between what is read and what is prefetched. The processor's own prefetching stops at each page of
/// 4 KiB: two threads read 41 to 46 GB/s without this and 52 to 54 with it, the best of 512 to 4096 bytes.
const AHEAD: usize = 2048;

/// Prefetches what lies [`AHEAD`] of `chunk`.
#[inline(always)]
pub fn prefetch_after<T>(chunk: &[T]) {
    for line in (0..size_of_val(chunk)).step_by(64) {
        prefetch(chunk.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
    }
}
