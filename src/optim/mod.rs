//! The optimizer and its learning rate.

mod adamw;
mod schedule;

pub use adamw::AdamW;
pub use schedule::{Schedule, ScheduleKind};
