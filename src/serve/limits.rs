//! What a server allows.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Tokens of a prompt and its answer together.
    pub context: usize,
    /// Sequences that are continued at once.
    pub batch_size: usize,
    /// Sequences that may wait for their turn.
    pub queue: usize,
    /// From a request's arrival to its last token.
    pub request: Duration,
    /// How long running answers may take to finish after a signal to stop.
    pub grace: Duration,
}

impl Limits {
    /// Sequences that run or wait.
    pub fn sequences(&self) -> usize {
        self.batch_size + self.queue
    }
}
