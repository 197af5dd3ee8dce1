//! The engine of a build with the `mpi` feature: MPI through rsmpi. All processes of the world are ranks.
//!
//! Calls come from one thread at a time, not always the main one (commands run in the thread pool), which is MPI's
//! level `MPI_THREAD_SERIALIZED`. MPI's own failures, such as a lost connection, end the job: MPI's default, which
//! rsmpi keeps.

use super::launcher;
use super::world::World;
use anyhow::{Context, Result, ensure};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

/// MPI counts elements in a C int. Large messages are sent in pieces, which also bounds the second buffer that a sum
/// needs.
const PIECE: usize = 1 << 24;

pub type Engine = Universe;

pub fn join() -> Result<Option<(Engine, World)>> {
    // Alone, starting MPI would only take time.
    if launcher::place().is_none() {
        return Ok(None);
    }
    let joined = mpi::initialize_with_threading(Threading::Serialized);
    let (universe, threading) = joined.context("MPI has been started already")?;
    let all = universe.world();
    let local = all.split_shared(all.rank());
    let world = World {
        rank: all.rank() as usize,
        size: all.size() as usize,
        local_rank: local.rank() as usize,
        local_size: local.size() as usize,
    };
    ensure!(
        world.size == 1 || threading >= Threading::Serialized,
        "this MPI library provides {threading:?} threads, asft needs MPI_THREAD_SERIALIZED"
    );
    Ok(Some((universe, world)))
}

/// To be called only between [`join`] and the engine's end.
fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

pub fn sum_f32(values: &mut [f32]) {
    let mut sums = vec![0f32; values.len().min(PIECE)];
    for piece in values.chunks_mut(PIECE) {
        let sums = &mut sums[..piece.len()];
        world().all_reduce_into(&*piece, sums, SystemOperation::sum());
        piece.copy_from_slice(sums);
    }
}

pub fn sum_f64(values: &mut [f64]) {
    let mut sums = vec![0f64; values.len()];
    world().all_reduce_into(&*values, &mut sums[..], SystemOperation::sum());
    values.copy_from_slice(&sums);
}

pub fn max(value: u64) -> u64 {
    let mut largest = 0u64;
    world().all_reduce_into(&value, &mut largest, SystemOperation::max());
    largest
}

/// The `bytes` of `root`, whatever the others have.
pub fn broadcast(mut bytes: Vec<u8>, root: usize) -> Vec<u8> {
    let (world, mut length) = (world(), bytes.len() as u64);
    let root = world.process_at_rank(root as i32);
    root.broadcast_into(&mut length);
    bytes.resize(length as usize, 0);
    bytes.chunks_mut(PIECE).for_each(|piece| root.broadcast_into(piece));
    bytes
}

pub fn barrier() {
    world().barrier();
}

pub fn send_to_first(bytes: &[u8]) {
    let world = world();
    let first = world.process_at_rank(0);
    first.send(&(bytes.len() as u64));
    bytes.chunks(PIECE).for_each(|piece| first.send(piece));
}

pub fn receive(rank: usize) -> Vec<u8> {
    let world = world();
    let sender = world.process_at_rank(rank as i32);
    let (length, _) = sender.receive::<u64>();
    let mut bytes = vec![0; length as usize];
    for piece in bytes.chunks_mut(PIECE) {
        sender.receive_into(piece);
    }
    bytes
}

pub fn abort(exit_code: u8) {
    world().abort(exit_code.into());
}
