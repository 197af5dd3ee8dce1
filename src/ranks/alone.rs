//! The engine of a build without MPI: it has one process, and refuses to be one of several.

use super::launcher::{self, Place};
use super::world::World;
use crate::invalid;
use anyhow::Result;

/// Never created: there is nothing to shut down.
pub enum Engine {}

pub fn join() -> Result<Option<(Engine, World)>> {
    launcher::place().map_or(Ok(()), refuse_company)?;
    Ok(None)
}

/// Refuses to be one of several processes: each would do all the work, and write the same files.
fn refuse_company(place: Place) -> Result<()> {
    let (started, each) = match place {
        Place { size: Some(size), .. } if size > 1 => (format!("{size} processes"), format!("the {size}")),
        Place { rank: Some(rank), .. } if rank > 0 => {
            (format!("this process as rank {rank} of several"), "them".to_string())
        }
        _ => return Ok(()),
    };
    Err(invalid!(
        "an MPI launcher has started {started}, but this asft was built without MPI, so that each of {each} would do all \
         the work; build it with --features mpi (docs/distributed.md), or start it without the launcher"
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_works_without_mpi() {
        let refusal = |rank, size| refuse_company(Place { rank, size }).err().map(|error| error.to_string());
        for alone in [(None, None), (Some(0), None), (None, Some(1)), (Some(0), Some(1))] {
            assert_eq!(refusal(alone.0, alone.1), None, "{alone:?}");
        }
        for many in [(None, Some(4)), (Some(0), Some(4)), (Some(3), Some(4))] {
            let text = refusal(many.0, many.1).unwrap();
            assert!(text.contains("has started 4 processes") && text.contains("each of the 4 would"), "{text}");
        }
        // Whatever the stated size.
        for second in [(Some(1), None), (Some(1), Some(1))] {
            let text = refusal(second.0, second.1).unwrap();
            assert!(text.contains("rank 1 of several") && text.contains("--features mpi"), "{text}");
        }
    }
}
