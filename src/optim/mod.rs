//! The optimizer and its learning rate.

mod schedule;

pub use schedule::{Schedule, ScheduleKind};
