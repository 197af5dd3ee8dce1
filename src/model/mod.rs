//! The decoder: spec, linears with adapters, blocks, and their explicit backward passes.

mod attention;
mod block;
mod decoder;
mod kv_cache;
mod linear;
mod load;
mod mlp;
mod norm;
mod options;
mod parameters;
mod spec;

pub use decoder::{Decoder, Sequences};
pub use kv_cache::{KvCache, LayerCache};
pub use linear::{Linear, Lora};
pub use options::{DeviceKind, Dtype, ModelOptions};
pub use parameters::{Gradients, Parameters};
pub use spec::{BLOCK_LINEARS, ModelSpec, RopeScaling};

use crate::ops::rope::Angles;

/// What all layers share in one pass.
pub struct Pass {
    /// B; rows of activations are B · T.
    pub batch: usize,
    pub angles: Angles,
    /// Set while training; masks follow from it and the module's name.
    pub dropout_key: Option<u64>,
}
