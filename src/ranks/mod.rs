//! The processes that work as one (`mpirun -n N asft ...`): which of them this is, and what all of them sum, agree on
//! and wait for. Without the `mpi` feature, or without a launcher, there is only one, and none of this does anything.
//!
//! Two rules keep a rank from waiting for another that has left. Where a single rank may fail, all
//! [agree](Ranks::agree) before the next thing that they do together; and a rank that ends with an error unknown to the
//! others takes the whole job down (`MPI_Abort`).

mod all_reduce;
#[cfg(not(feature = "mpi"))]
mod alone;
mod launcher;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod world;

pub use self::all_reduce::AllReduce;
#[cfg(not(feature = "mpi"))]
use self::alone as engine;
#[cfg(feature = "mpi")]
use self::mpi as engine;

use self::world::World;
use crate::ensure_valid;
use crate::error::{Agreed, exit_code};
use anyhow::Result;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

static RANKS: OnceLock<Ranks> = OnceLock::new();

/// Exit code of a process that panicked, as in Rust.
const PANICKED: u8 = 101;

/// A process's place in its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    rank: usize,
    size: usize,
    /// Rank among the processes on the same machine.
    local_rank: usize,
    local_size: usize,
}

const ALONE: Ranks = Ranks { rank: 0, size: 1, local_rank: 0, local_size: 1 };

/// Membership of the job, to be kept until the process is done communicating with the others.
pub struct Job {
    /// Shuts MPI down once all ranks have come this far.
    _engine: Option<engine::Engine>,
}

/// Joins the job in which a launcher started this process, if one did. Call once, before threads are started.
///
/// # Errors
/// A job of several processes with a build or an MPI library that does not support them.
pub fn join() -> Result<Job> {
    let Some((engine, world)) = engine::join()? else { return Ok(Job { _engine: None }) };
    let World { rank, size, local_rank, local_size } = world;
    // There is no second call.
    let _first_wins = RANKS.set(Ranks { rank, size, local_rank, local_size });
    Ok(Job { _engine: Some(engine) })
}

impl Drop for Job {
    fn drop(&mut self) {
        // Shutting down waits for the others, who may be waiting for what this rank will no longer do.
        if std::thread::panicking() {
            Ranks::here().abort(PANICKED);
        }
    }
}

impl Ranks {
    /// This process's place.
    pub fn here() -> Self {
        RANKS.get().copied().unwrap_or(ALONE)
    }

    /// A rank of an imaginary job, for tests of what each of its ranks would do.
    #[cfg(test)]
    pub fn fake(rank: usize, size: usize) -> Self {
        Self { rank, size, ..ALONE }
    }

    pub fn rank(self) -> usize {
        self.rank
    }

    pub fn size(self) -> usize {
        self.size
    }

    pub fn local_rank(self) -> usize {
        self.local_rank
    }

    pub fn local_size(self) -> usize {
        self.local_size
    }

    /// Whether this is the rank that writes: files, log lines, results.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    pub fn are_many(self) -> bool {
        self.size > 1
    }

    /// Threads for this process, so that the ranks on a machine do not crowd it; 0 if the thread pool is to decide, by
    /// `RAYON_NUM_THREADS` or the number of cores.
    pub fn threads(self) -> usize {
        if self.local_size == 1 || std::env::var_os("RAYON_NUM_THREADS").is_some() {
            return 0;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / self.local_size).max(1)
    }

    /// Which of several items, given by their costs, are this rank's: one stretch per rank, in rank order, of about
    /// equal cost.
    pub fn share(self, costs: &[usize]) -> Range<usize> {
        if !self.are_many() {
            return 0..costs.len();
        }
        let total: usize = costs.iter().sum::<usize>().max(1);
        let mut before = 0;
        // The rank in whose equal part of the total cost the middle of the item lies.
        let owners: Vec<usize> = costs
            .iter()
            .map(|cost| {
                let middle = 2 * before + cost;
                before += cost;
                (middle as u128 * self.size as u128 / (2 * total as u128)) as usize
            })
            .collect();
        let start = |rank: usize| owners.partition_point(|&owner| owner < rank);
        // Items without cost at the end belong to the last rank.
        start(self.rank)..if self.rank + 1 == self.size { costs.len() } else { start(self.rank + 1) }
    }

    /// Sums each value over the ranks; all get the same sums.
    pub fn sum_f32(self, values: &mut [f32]) {
        if self.are_many() {
            engine::sum_f32(values);
        }
    }

    /// As [`Ranks::sum_f32`].
    pub fn sum<const N: usize>(self, mut values: [f64; N]) -> [f64; N] {
        if self.are_many() {
            engine::sum_f64(&mut values);
        }
        values
    }

    /// The largest of the ranks' values.
    pub fn max(self, value: u64) -> u64 {
        if self.are_many() { engine::max(value) } else { value }
    }

    /// The smallest value that any rank has, if one has any.
    pub fn min(self, value: Option<usize>) -> Option<usize> {
        let least = u64::MAX - self.max(value.map_or(0, |value| u64::MAX - value as u64));
        (least < u64::MAX).then_some(least as usize)
    }

    /// The same outcome on every rank: if any has an error, all get that of the lowest such rank.
    pub fn agree<T>(self, result: Result<T>) -> Result<T> {
        // An error agreed on in an inner call is already on all ranks.
        if !self.are_many() || result.as_ref().is_err_and(|error| error.is::<Agreed>()) {
            return result;
        }
        let Some(failed) = self.min(result.as_ref().is_err().then_some(self.rank)) else { return result };
        let mut message = vec![];
        if let (true, Err(error)) = (failed == self.rank, &result) {
            let place = if failed == 0 { String::new() } else { format!("rank {failed}: ") };
            message = serde_json::to_vec(&Agreed { text: format!("{place}{error:#}"), exit_code: exit_code(error) })?;
        }
        let message = engine::broadcast(message, failed);
        Err(serde_json::from_slice::<Agreed>(&message)?.into())
    }

    /// Does on the first rank what only one may do, such as writing a file. The others wait, get `None`, and fail if it
    /// fails.
    pub fn on_first<T>(self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.agree(self.is_first().then(work).transpose())
    }

    /// Runs `work` on one rank of each machine first, so that the others find it done: for downloads.
    pub fn one_first_on_each_machine<T>(self, work: impl FnOnce() -> T) -> T {
        let wait = || {
            if self.are_many() {
                engine::barrier();
            }
        };
        if self.local_rank != 0 {
            wait();
        }
        let done = work();
        if self.local_rank == 0 {
            wait();
        }
        done
    }

    /// The first rank's bytes, whatever the others pass.
    pub fn of_first(self, own: Vec<u8>) -> Vec<u8> {
        if self.are_many() { engine::broadcast(own, 0) } else { own }
    }

    /// Checks that something is the same on all ranks. `what`: its name, in the plural.
    pub fn check_same(self, what: &str, value: &[u8]) -> Result<()> {
        if !self.are_many() {
            return Ok(());
        }
        let own = blake3::hash(value).as_bytes().to_vec();
        let first = self.of_first(own.clone());
        let same = || {
            ensure_valid!(
                own == first,
                "{what} are not those of rank 0; all ranks need the same build, one kind of machine, and the same files at \
                 the same paths"
            );
            Ok(())
        };
        self.agree(same())
    }

    /// What every rank passes, by rank, on the first; nothing on the others.
    pub fn gather(self, own: Vec<u8>) -> Vec<Vec<u8>> {
        if self.is_first() {
            let others = (1..self.size).map(|rank| self.receive(rank));
            return std::iter::once(own).chain(others).collect();
        }
        self.send_to_first(&own);
        vec![]
    }

    /// Sends bytes to the first rank, which has to [receive](Ranks::receive) them.
    pub fn send_to_first(self, bytes: &[u8]) {
        if !self.is_first() {
            engine::send_to_first(bytes);
        }
    }

    /// What `rank` sends to this one, the first.
    pub fn receive(self, rank: usize) -> Vec<u8> {
        engine::receive(rank)
    }

    /// Ends every process of the job, this one included. Does nothing if there is no other.
    pub fn abort(self, exit_code: u8) {
        if self.are_many() {
            engine::abort(exit_code);
        }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(costs: &[usize], size: usize) -> Vec<Range<usize>> {
        (0..size).map(|rank| Ranks::fake(rank, size).share(costs)).collect()
    }

    #[test]
    fn shares_are_stretches_of_about_equal_cost_that_leave_nothing_out() {
        assert_eq!(shares(&[10; 8], 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(shares(&[10; 7], 3), [0..2, 2..5, 5..7]);
        assert_eq!(shares(&[1, 1, 1, 1, 8], 2), [0..4, 4..5]);
        assert_eq!(shares(&[5], 3), [0..0, 0..1, 1..1]);
        assert_eq!(shares(&[], 2), [0..0, 0..0]);
        assert_eq!(shares(&[0, 0], 2), [0..2, 2..2]);
        assert_eq!(Ranks::fake(0, 1).share(&[3, 4]), 0..2);
        for size in 1..9 {
            let costs: Vec<usize> = (0..50).map(|i| i * 37 % 91).collect();
            let shares = shares(&costs, size);
            assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
            let (total, largest) = (costs.iter().sum::<usize>(), 91);
            for share in shares {
                assert!(costs[share].iter().sum::<usize>() <= total / size + largest);
            }
        }
    }

    #[test]
    fn one_process_agrees_with_itself() {
        let ranks = Ranks::here();
        assert_eq!((ranks, ranks.min(Some(3)), ranks.min(None), ranks.sum([1.5])), (ALONE, Some(3), None, [1.5]));
        assert_eq!(ranks.agree(Ok(1)).unwrap(), 1);
        let error = ranks.agree::<()>(Err(crate::invalid!("a slip"))).unwrap_err();
        assert_eq!((exit_code(&error), ranks.gather(vec![7])), (2, vec![vec![7]]));
        let agreed = anyhow::Error::from(Agreed { text: "a slip".into(), exit_code: 2 });
        assert_eq!(exit_code(&agreed.context("training")), 2);
    }
}
