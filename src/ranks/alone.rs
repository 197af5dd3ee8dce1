//! The engine of a build without MPI: it has one process, and refuses to be one of several.

use super::Ranks;
use crate::ensure_valid;
use anyhow::Result;

/// There is none to shut down.
pub enum Engine {}

/// The number of processes in a job, as Open MPI, and MPICH and its kin, tell each of them.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

pub fn join() -> Result<Option<(Engine, Ranks)>> {
    let size = SIZES.iter().filter_map(|name| std::env::var(name).ok()?.parse::<usize>().ok()).max().unwrap_or(1);
    ensure_valid!(
        size <= 1,
        "an MPI launcher has started {size} processes, but this asft was built without MPI, so that each of the {size} \
         would do all the work; build it with --features mpi (docs/distributed.md), or start it without the launcher"
    );
    Ok(None)
}

pub fn sum_f32(_values: &mut [f32]) {}

pub fn sum_f64(_values: &mut [f64]) {}

pub fn max(value: u64) -> u64 {
    value
}

pub fn broadcast(bytes: Vec<u8>, _root: usize) -> Vec<u8> {
    bytes
}

pub fn barrier() {}

pub fn send_to_first(_bytes: &[u8]) {}

pub fn receive(_rank: usize) -> Vec<u8> {
    vec![]
}

pub fn abort(_exit_code: u8) {}
