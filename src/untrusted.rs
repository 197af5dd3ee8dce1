//! Work on files from elsewhere that could end the process or never end.
//!
//! Libraries assert some things that a damaged file can violate: [`without_panic`]. A chat template is a program: its
//! fuel pays for what it can be seen to do, but not for comparing values that share parts (2ⁿ comparisons of n lists),
//! and a long enough expression overflows an ordinary stack. [`run`] does such work on a thread with a large stack,
//! which is abandoned if it takes too long or too much memory. Such a thread cannot be ended: it runs until its work or the
//! process ends. A command ends soon after its error; a server, which does not, looks at how many are [`abandoned`].

use crate::error::Unfinished;
use crate::invalid;
use crate::memory::resident_bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
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
/// How much the process may grow in the meantime, be it by this work or by other work beside it.
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

impl GivenUp {
    /// As an error; `what` was worked on.
    pub fn error(self, what: &str) -> anyhow::Error {
        let text = format!("{what} cannot be used: {self}");
        if self == Self::Panicked { invalid!("{text}") } else { anyhow::Error::new(Unfinished(text)) }
    }
}

/// Work that was given up; what it holds is gone once it has ended.
static ABANDONED: Mutex<Vec<Weak<()>>> = Mutex::new(vec![]);

/// How many threads are still at work that was given up.
pub fn abandoned() -> usize {
    let mut all = lock(&ABANDONED);
    all.retain(|work| work.strong_count() > 0);
    all.len()
}

/// The result of `work`, or `None` if it panics; nothing is printed then.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                usual(info);
            }
        }));
    });
    // Such work may hold more of it.
    let before = SILENT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    SILENT.set(before);
    result.ok()
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// Whether a panic of this thread is caught, and not printed.
    static SILENT: Cell<bool> = const { Cell::new(false) };
    /// This thread's worker, while it is idle.
    static WORKER: RefCell<Option<Sender<Job>>> = const { RefCell::new(None) };
    /// Whether this thread is such a worker.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread that can be abandoned; on this one if it is such a thread.
///
/// # Errors
/// It panicked, or took too long or too much memory.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, GivenUp> {
    if IS_WORKER.get() {
        return without_panic(work).ok_or(GivenUp::Panicked);
    }
    if cfg!(fuzzing) {
        // libFuzzer has its own limits, and an abandoned thread would keep running beside all later inputs.
        return without_panic(work).ok_or(GivenUp::Panicked);
    }
    run_within(TICKS, GROWTH_BYTES, work)
}

/// The results of `work` for all of `items`, in their order, from a thread that is abandoned at the item that takes too
/// long or too much memory; the next then goes on, after `given_up`. Handing items over one by one would take longer than
/// many of them do.
pub fn run_each<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    work: &Arc<impl Fn(I) -> T + Send + Sync + 'static>,
    given_up: impl Fn(),
) -> Vec<Result<T, GivenUp>> {
    if IS_WORKER.get() || cfg!(fuzzing) {
        return items.into_iter().map(|item| without_panic(|| work(item)).ok_or(GivenUp::Panicked)).collect();
    }
    each_within(TICKS, spawn, items, work, given_up)
}

fn each_within<I: Send + 'static, T: Send + 'static>(
    ticks: usize,
    spawn: impl Fn() -> Option<Sender<Job>>,
    items: Vec<I>,
    work: &Arc<impl Fn(I) -> T + Send + Sync + 'static>,
    given_up: impl Fn(),
) -> Vec<Result<T, GivenUp>> {
    let (mut results, mut left) = (vec![], VecDeque::from(items));
    while !left.is_empty() {
        let queue = Arc::new(Mutex::new(Queue::new(left)));
        let job = {
            let (queue, work) = (queue.clone(), work.clone());
            move || {
                let mut next = lock(&queue).begin();
                while let Some(item) = next {
                    let result = without_panic(|| work(item)).ok_or(GivenUp::Panicked);
                    next = lock(&queue).after(result);
                }
            }
        };
        let ended = run_watched(ticks, GROWTH_BYTES, &spawn, job, || lock(&queue).done.len());
        let (mut done, unfinished, rest) = lock(&queue).close();
        let goes_on = unfinished || !done.is_empty();
        results.append(&mut done);
        left = rest;
        let Err(why) = ended else { continue };
        let lost = after_giving_up(why, unfinished, goes_on, &mut left);
        // The worker may have ended just before it was given up: then nothing is lost, and nobody need be told.
        if lost > 0 {
            given_up();
        }
        results.extend((0..lost).map(|_| Err(why)));
    }
    results
}

/// How many items have no result once a worker was given up, taken from `left` where trying once more would not help: the one that
/// it was `unfinished` with, or all, if it did not begin any.
fn after_giving_up<I>(why: GivenUp, unfinished: bool, goes_on: bool, left: &mut VecDeque<I>) -> usize {
    let given = if why == GivenUp::NoThread || !goes_on { left.drain(..).count() } else { 0 };
    usize::from(unfinished) + given
}

/// Items for a worker, and what became of them. Once closed, nothing that a late worker does counts.
struct Queue<I, T> {
    left: VecDeque<I>,
    done: Vec<Result<T, GivenUp>>,
    /// Whether an item is being worked on.
    at_work: bool,
    is_closed: bool,
}

impl<I, T> Queue<I, T> {
    fn new(left: VecDeque<I>) -> Self {
        Self { left, done: vec![], at_work: false, is_closed: false }
    }

    fn begin(&mut self) -> Option<I> {
        let next = self.left.pop_front();
        self.at_work = next.is_some();
        next
    }

    /// Takes the result of an item, and gives the next.
    fn after(&mut self, result: Result<T, GivenUp>) -> Option<I> {
        if self.is_closed {
            return None;
        }
        self.done.push(result);
        self.begin()
    }

    /// The results, whether another item was begun, and those that were not.
    fn close(&mut self) -> (Vec<Result<T, GivenUp>>, bool, VecDeque<I>) {
        self.is_closed = true;
        (std::mem::take(&mut self.done), std::mem::take(&mut self.at_work), std::mem::take(&mut self.left))
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_within<T: Send + 'static>(
    ticks: usize,
    growth_bytes: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GivenUp> {
    run_watched(ticks, growth_bytes, spawn, work, || 0)
}

/// `progress`: a number whose growth shows that the work goes on.
fn run_watched<T: Send + 'static>(
    ticks: usize,
    growth_bytes: u64,
    spawn: impl Fn() -> Option<Sender<Job>>,
    work: impl FnOnce() -> T + Send + 'static,
    progress: impl Fn() -> usize,
) -> Result<T, GivenUp> {
    let (reply, answer) = channel();
    let held = Arc::new(());
    let at_work = Arc::downgrade(&held);
    let job: Job = Box::new(move || {
        let result = work();
        drop(held);
        drop(reply.send(result));
    });
    let worker = WORKER.take().or_else(spawn).ok_or(GivenUp::NoThread)?;
    // If the worker is gone, the job is dropped, and with it the other end of `answer`.
    let gone = worker.send(job).is_err();
    let result = wait(&answer, ticks, growth_bytes, progress);
    if !gone && matches!(result, Ok(_) | Err(GivenUp::Panicked)) {
        WORKER.set(Some(worker));
    } else {
        lock(&ABANDONED).push(at_work);
    }
    result
}

/// A worker; it ends when its sender is dropped.
fn spawn() -> Option<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let work = move || {
        IS_WORKER.set(true);
        jobs.into_iter().for_each(|job| without_panic(job).unwrap_or_default());
    };
    Builder::new().stack_size(STACK_BYTES).spawn(work).ok().map(|_| sender)
}

fn wait<T>(answer: &Receiver<T>, ticks: usize, growth_bytes: u64, progress: impl Fn() -> usize) -> Result<T, GivenUp> {
    let (mut first, mut reached, mut left) = (None, 0, ticks);
    while left > 0 {
        match answer.recv_timeout(TICK) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(GivenUp::Panicked),
            Err(RecvTimeoutError::Timeout) => {
                let now = resident_bytes();
                (left, first) = match progress() {
                    same if same == reached => (left - 1, first),
                    further => {
                        reached = further;
                        (ticks, None)
                    }
                };
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
        assert!(abandoned() > 0, "it is still at work");
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

    #[test]
    fn guarded_work_may_hold_more() {
        let after = without_panic(|| {
            assert_eq!(without_panic(|| panic!("on purpose")), None::<()>);
            SILENT.get()
        });
        assert_eq!((after, SILENT.get()), (Some(true), false), "whether a panic is kept from being printed");
    }

    #[test]
    fn without_a_thread_all_items_are_given_up() {
        let results = each_within(2, || None, vec![1, 2, 3], &Arc::new(|item: i32| item), || ());
        assert_eq!(results, [Err(GivenUp::NoThread); 3]);
    }

    #[test]
    fn a_worker_that_ended_just_in_time_loses_nothing() {
        let lost = |why, unfinished, goes_on, left: &[i32]| {
            let mut left = VecDeque::from(left.to_vec());
            (after_giving_up(why, unfinished, goes_on, &mut left), left.len())
        };
        assert_eq!(lost(GivenUp::TooLong, false, true, &[]), (0, 0));
        assert_eq!(lost(GivenUp::TooLong, true, true, &[1, 2]), (1, 2));
        assert_eq!(lost(GivenUp::TooLong, false, false, &[1, 2]), (2, 0));
        assert_eq!(lost(GivenUp::NoThread, false, false, &[1]), (1, 0));
    }

    #[test]
    fn what_an_abandoned_worker_does_late_does_not_count() {
        let mut queue = Queue::new(VecDeque::from([1, 2, 3]));
        assert_eq!((queue.begin(), queue.after(Ok("one"))), (Some(1), Some(2)));
        assert_eq!(queue.close(), (vec![Ok("one")], true, VecDeque::from([3])));
        assert_eq!(queue.after(Ok("two")), None);
        assert_eq!(queue.close(), (vec![], false, VecDeque::new()));
        // A worker that begins late finds nothing to do.
        assert_eq!(queue.begin(), None);
    }

    #[test]
    fn one_item_that_is_given_up_does_not_cost_the_others() {
        let work = Arc::new(|item: i32| {
            // What is guarded already runs where it is.
            let twice = run(move || 2 * item).unwrap();
            match item {
                3 => panic!("on purpose"),
                5 => loop {
                    std::thread::sleep(Duration::from_millis(50));
                },
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
            twice
        });
        let results = run_each((0..8).collect(), &work, || ());
        let expected = |item: i32| match item {
            3 => Err(GivenUp::Panicked),
            5 => Err(GivenUp::TooLong),
            _ => Ok(2 * item),
        };
        assert_eq!(results, (0..8).map(expected).collect::<Vec<_>>());
    }
}
