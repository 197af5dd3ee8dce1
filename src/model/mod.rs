//! The decoder: spec, linears with adapters, blocks, and their explicit backward passes.

mod across;
mod attention;
mod backward;
mod block;
mod config_json;
mod decoder;
mod delta_net;
mod family;
mod generate;
mod gguf;
mod kv_cache;
mod layer_inputs;
mod linear;
mod load;
mod mixer;
mod mixture;
mod mlp;
mod norm;
mod options;
mod parameters;
mod projection;
mod qkv;
mod rope;
mod sampling;
mod scores;
mod shared_expert;
mod slots;
mod spec;

pub use across::Across;
pub use backward::{Objective, Through};
pub use decoder::{Decoder, Sequences};
pub use kv_cache::{KvCache, LayerCache};
pub use linear::{Linear, Lora, Watch};
pub use mixture::rows_at_once;
pub use options::{Compute, DeviceKind, Dtype, ModelOptions, Quantize, Weights};
pub use parameters::{Gradients, Parameters};
pub use rope::{Growth, Rope, RopeScaling, Rotations};
pub use sampling::{check_temperature, check_top_p};
pub use scores::Score;
pub use slots::{Chosen, End, GenerateOptions, Scored, Slots};
pub use spec::{BlockNorms, DeltaNetSpec, Experts, Heads, LayerInputSpec, LayerSpec, ModelSpec, QkNorm};

use crate::ops::attention::Layout;

/// What all layers share in one pass.
pub struct Pass {
    /// Which rows belong to which sequence.
    pub layout: Layout,
    /// For each of the spec's ropes.
    pub rotations: Vec<Rotations>,
    /// Set while training.
    pub dropout_key: Option<DropoutKey>,
}

/// What dropout masks are a function of, besides the module's name and the element's position in the micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// Of the micro-batch.
    pub seed: u64,
    /// The number of its rows before those of this pass, which may be only a part of it.
    pub first_row: usize,
}
