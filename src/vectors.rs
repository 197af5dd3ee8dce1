//! Loops with the widest vectors that this CPU has, in a program that is built for any.
//!
//! Rust neither reorders sums nor contracts to fused multiply-adds, so the result of such a loop does not depend on the
//! vector width: every machine computes the same bits.

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
