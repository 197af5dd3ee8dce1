//! Keeping a pool of two threads awake through work that is made of many short operations, and telling candle how many threads there are.
//!
//! A thread of the pool that finds nothing to do goes to sleep after some microseconds. Between two operations of a decoded token there are
//! often more, and waking a thread takes as long as a small operation does, on a virtual machine longer: until it is awake, the one
//! that woke it has done half of its work.

#![allow(unsafe_code, reason = "writes to the environment, while no other thread could read it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it may sleep after all. What lies between two operations of a token takes some 50 µs; a thread
/// that waits longer than this waits for one that has lost its processor to somebody else, who may need this one, too.
const PATIENCE: Duration = Duration::from_micros(200);
/// Threads of a pool that is kept awake. In a larger one, which was not measured, a thread could take the search for work in the midst of
/// work that others wait for. (A broadcast, which prevents that, gained nothing.)
const THREADS: usize = 2;
/// Pauses between two looks.
const PAUSES: usize = 16;

/// Sets its flag when it goes, however that happens.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `body`, while the other thread of this thread's pool looks for its work without sleeping, as long as it finds some within [`PATIENCE`].
/// Outside a pool, and in one of more or fewer than [`THREADS`], it just runs.
pub fn awake<R>(body: impl FnOnce() -> R) -> R {
    let Some(own) = rayon::current_thread_index().filter(|_| rayon::current_num_threads() == THREADS) else {
        return body();
    };
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| {
            // Taken by the thread that waits for `body`'s own work, this would keep it from going on.
            if rayon::current_thread_index() != Some(own) {
                look_for_work(&done);
            }
        });
        let _done = Done(&done);
        body()
    })
}

fn look_for_work(done: &AtomicBool) {
    let mut since = Instant::now();
    while !done.load(Ordering::Acquire) && since.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => since = Instant::now(),
            _ => (0..PAUSES).for_each(|_| std::hint::spin_loop()),
        }
    }
}

/// The variable in which rayon and candle look for the number of threads.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Says in the environment that there are so many threads, or one for each core for 0, unless it is said there already. Candle looks there
/// before every product of its own, and counts the cores anew where it finds nothing: it reads /proc/cpuinfo, which takes 40 µs a core.
/// Does nothing once there are other threads, as those of MPI, and elsewhere than on Linux, where candle counts in another way.
pub fn announce(threads: usize) {
    if std::env::var_os(VARIABLE).is_some() || !is_only_thread() {
        return;
    }
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    // SAFETY: there is no other thread that could read or write the environment.
    unsafe { std::env::set_var(VARIABLE, threads.to_string()) };
}

/// Whether this process is known to have one thread.
fn is_only_thread() -> bool {
    cfg!(target_os = "linux") && std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn the_environment_is_left_alone_beside_other_threads() {
        let before = std::env::var_os(VARIABLE);
        std::thread::scope(|scope| scope.spawn(|| announce(7)).join().unwrap());
        assert!(!is_only_thread() && std::env::var_os(VARIABLE) == before);
    }

    #[test]
    fn results_and_panics_come_through() {
        for threads in [1, THREADS, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum = || (0..1000u64).into_par_iter().map(|i| i * i).sum::<u64>();
            let nested = pool.install(|| awake(|| (0..50).map(|_| awake(sum)).sum::<u64>()));
            assert_eq!(nested, 50 * sum());
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.install(|| awake(|| -> u64 { panic!("on purpose") }))
            }));
            assert!(panicked.is_err());
            // Nobody is left behind who still waits.
            assert_eq!(pool.install(sum), sum());
        }
        assert_eq!(awake(|| 7), 7);
    }
}
