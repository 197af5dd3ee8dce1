//! The decoder: spec, linears with adapters, blocks, and their explicit backward passes.
mod spec;
pub use spec::{BLOCK_LINEARS, ModelSpec, RopeScaling};
