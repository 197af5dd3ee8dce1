//! `[lora]` of the config: the adapter's shape and place.

use crate::names::Targets;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraOptions {
    /// Rank r of the update B·A.
    pub rank: usize,
    /// The update counts alpha/rank-fold in the forward pass. A whole number, as every reader of PEFT adapters expects.
    pub alpha: usize,
    /// Share of an adapter's inputs that is zeroed in training.
    pub dropout: f64,
    /// The linear layers that get an adapter and a penalty: a list of names, "all-linear", or a regex on whole module
    /// paths. With `train.method = "full"` these are the layers that get the penalty.
    pub target_modules: Targets,
    /// Scale by alpha/√rank rather than alpha/rank (rsLoRA).
    pub use_rslora: bool,
    /// Continue from this PEFT adapter folder rather than from a fresh adapter.
    pub init_adapter: Option<String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 32,
            dropout: 0.05,
            target_modules: Targets::List(vec!["q_proj".to_string(), "v_proj".to_string()]),
            use_rslora: false,
            init_adapter: None,
        }
    }
}
