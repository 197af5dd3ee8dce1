//! Work on files from elsewhere that could end the process or never end.
//!
//! Libraries assert some things that a damaged file can violate: [`without_panic`]. A chat template is a program: its
//! fuel pays for what it can be seen to do, but not for comparing values that share parts (2ⁿ comparisons of n lists),
//! and a long enough expression overflows an ordinary stack. [`run`] does such work on a thread with a large stack,
//! which is abandoned if it takes too long or too much memory. Such a thread runs until the process ends, which the
//! caller's error soon causes.

use crate::memory::resident_bytes;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

/// Address space for the stack; memory is taken only as it is used.
const STACK_BYTES: usize = 256 << 20;
/// How long work may take; less in tests.
const LIMIT: Duration = Duration::from_secs(if cfg!(test) { 4 } else { 10 });
/// How often a thread that has not answered is checked.
const TICK: Duration = Duration::from_millis(50);
/// How many checks may find it at work. A stopped process does not tick.
const TICKS: usize = (LIMIT.as_millis() / TICK.as_millis()) as usize;
/// How much the process may grow in the meantime.
const GROWTH_BYTES: u64 = 2 << 30;

/// Why work was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    TooLong,
    TooMuchMemory,
    Panicked,
    NoThread,
}

impl std::fmt::Display for GivenUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "it takes longer than {} seconds", LIMIT.as_secs()),
            Self::TooMuchMemory => write!(f, "it takes more than {} GiB of memory", GROWTH_BYTES >> 30),
            Self::Panicked => f.write_str("it breaks the library that reads it"),
            Self::NoThread => f.write_str("no thread can be started for it"),
        }
    }
}

/// The result of `work`, or `None` if it panics; nothing is printed then.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static SILENT: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                usual(info);
            }
        }));
    });
    SILENT.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    SILENT.set(false);
    result.ok()
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// This thread's worker, while it is idle.
    static WORKER: RefCell<Option<Sender<Job>>> = const { RefCell::new(None) };
}

/// Runs `work` on a thread that can be abandoned.
///
/// # Errors
/// It panicked, or took too long or too much memory.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, GivenUp> {
    if cfg!(fuzzing) {
        // libFuzzer has its own limits, and an abandoned thread would keep running beside all later inputs.
        return without_panic(work).ok_or(GivenUp::Panicked);
    }
    run_within(TICKS, GROWTH_BYTES, work)
}

fn run_within<T: Send + 'static>(
    ticks: usize,
    growth_bytes: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GivenUp> {
    let (reply, answer) = channel();
    let job: Job = Box::new(move || drop(reply.send(work())));
    let worker = WORKER.take().or_else(spawn).ok_or(GivenUp::NoThread)?;
    // If the worker is gone, the job is dropped, and with it the other end of `answer`.
    let gone = worker.send(job).is_err();
    let result = wait(&answer, ticks, growth_bytes);
    if !gone && matches!(result, Ok(_) | Err(GivenUp::Panicked)) {
        WORKER.set(Some(worker));
    }
    result
}

/// A worker; it ends when its sender is dropped.
fn spawn() -> Option<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let work = move || jobs.into_iter().for_each(|job| without_panic(job).unwrap_or_default());
    Builder::new().stack_size(STACK_BYTES).spawn(work).ok().map(|_| sender)
}

fn wait<T>(answer: &Receiver<T>, ticks: usize, growth_bytes: u64) -> Result<T, GivenUp> {
    let mut first = None;
    for _ in 0..ticks {
        match answer.recv_timeout(TICK) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(GivenUp::Panicked),
            Err(RecvTimeoutError::Timeout) => {
                let now = resident_bytes();
                if now.saturating_sub(*first.get_or_insert(now)) > growth_bytes {
                    return Err(GivenUp::TooMuchMemory);
                }
            }
        }
    }
    Err(GivenUp::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_or_given_up() {
        assert_eq!(run(|| 7), Ok(7));
        assert_eq!(run(|| -> i32 { panic!("on purpose") }), Err(GivenUp::Panicked));
        assert_eq!(run(|| "again"), Ok("again"));
        fn deep(n: usize) -> usize {
            if n == 0 { 0 } else { std::hint::black_box(deep(std::hint::black_box(n) - 1)) + 1 }
        }
        assert_eq!(run(|| deep(500_000)), Ok(500_000));
        let sleep = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        assert_eq!(run_within(2, u64::MAX, move || sleep(2000)), Err(GivenUp::TooLong));
        // Much more than the limit: other tests of this process may free memory at the same time.
        let greedy = move || {
            let mut held = vec![];
            while held.len() < 90 {
                held.push(vec![1u8; 8 << 20]);
                sleep(10);
            }
            held.len()
        };
        assert_eq!(run_within(TICKS, 16 << 20, greedy), Err(GivenUp::TooMuchMemory));
    }
}
