//! An OpenAI-compatible server over a base model and its adapters.
//!
//! Two sides. The edge reads requests and writes responses: asynchronous, on one thread, with a few more for templates and
//! tokenizers. The scheduler owns the decoders and their cache, and continues all sequences side by side, on the thread that calls
//! [`Server::run`]. Sequences go one way between them, events the other; whoever reads a response no longer wants one drops its end.

mod answer;
mod body;
mod catalogue;
mod connections;
mod echo;
mod edge;
mod fields;
mod form;
mod limits;
mod prepare;
mod refusal;
mod request;
mod scheduler;
mod senders;
mod sequence;
mod server;

pub use catalogue::Catalogue;
pub use form::Kind;
pub use limits::Limits;
pub use prepare::{Prepared, Preparing};
pub use refusal::Refusal;
pub use server::Server;
