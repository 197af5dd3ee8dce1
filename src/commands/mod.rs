//! One file per command: load, call, write; no maths.

pub mod direction;
