//! What the edge asks the scheduler for, and what it is told.

use super::answer::{Answer, Fragment};
use super::echo::{Echo, Echoed};
use super::refusal::Refusal;
use crate::model::{End, GenerateOptions, Scored};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

/// One choice of one prompt before it has a place.
pub struct Draft {
    pub prompt: Vec<u32>,
    pub options: GenerateOptions,
    pub scored: Option<Scored>,
    pub answer: Answer,
    /// The prompt, until it is told, if it is part of the text.
    pub echo: Option<Arc<Echo>>,
}

/// A sequence to continue.
pub struct Sequence {
    pub draft: Draft,
    /// The decoder's number.
    pub model: usize,
    /// Its number among the choices of the request.
    pub choice: usize,
    /// Closed once nobody wants to know.
    pub events: UnboundedSender<(usize, Event)>,
    /// When it is too late for an answer.
    pub deadline: Instant,
    /// Its place among those that run or wait, free again once it is dropped.
    pub _place: OwnedSemaphorePermit,
}

/// What happens to a sequence; of several choices, each event comes with its number.
#[derive(Debug)]
pub enum Event {
    /// The prompt was read.
    Echo(Echoed),
    Text(Fragment),
    /// Why it ended, and how many tokens were chosen.
    End(End, usize),
    Failed(Refusal),
}

impl Sequence {
    /// Whether somebody still waits for it.
    pub fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    pub fn tell(&self, event: Event) {
        // Whoever has gone away wants to know nothing.
        let _gone = self.events.send((self.choice, event));
    }
}
