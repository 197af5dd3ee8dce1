//! The decoder: spec, linears with adapters, blocks, and their explicit backward passes.
mod options;
mod spec;
pub use options::{DeviceKind, Dtype, ModelOptions};
pub use spec::{BLOCK_LINEARS, ModelSpec, RopeScaling};
