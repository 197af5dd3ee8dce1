//! The optimizer and its learning rate.

mod adamw;
mod average;
mod schedule;

pub use adamw::AdamW;
pub use average::Average;
pub use schedule::{Schedule, ScheduleKind};
