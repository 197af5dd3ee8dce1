//! What an engine tells of the job that it has joined.

/// A process's place among those of the job and among those of its machine.
pub struct World {
    pub rank: usize,
    pub size: usize,
    pub local_rank: usize,
    pub local_size: usize,
}
