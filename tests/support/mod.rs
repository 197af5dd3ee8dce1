//! What the test binaries share; each takes the part that it needs.

#![allow(dead_code, reason = "every test binary uses a part")]

pub mod command;
pub mod direction;
pub mod files;
pub mod goldens;
pub mod runs;
pub mod tensors;
