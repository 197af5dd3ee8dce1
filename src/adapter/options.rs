//! `[lora]` of the config: the adapter's shape and place.

use crate::names::Targets;
use crate::quant::ggml::GgmlType;
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// In what form else an adapter can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// For llama.cpp.
    Gguf,
}

/// How the matrices of a model in one file are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ModelFile {
    #[default]
    F16,
    Bf16,
    /// 8 bits a value, and a scale for each 32.
    Q8_0,
}

impl ModelFile {
    /// The type of a tensor of this shape: vectors stay in f32, and rows that are no whole blocks in f16.
    pub fn of(self, shape: &[usize]) -> GgmlType {
        let (of_matrices, row) = (self.of_matrices(), shape.last().copied().unwrap_or(0));
        match shape.len() {
            1 => GgmlType::F32,
            _ if row.is_multiple_of(of_matrices.block_len()) => of_matrices,
            _ => GgmlType::F16,
        }
    }

    fn of_matrices(self) -> GgmlType {
        match self {
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// Its number in `general.file_type`.
    pub fn code(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
        }
    }
}

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
    /// Only the targets in these layers of the model, counted from 0; without it, in all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Other ranks for some targets: `{ v_proj = 16, "layers.0.self_attn.q_proj" = 4 }`. A key is a regular expression
    /// for a module path or its end from a dot on, as in PEFT.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some targets, in the same way. vLLM and llama.cpp do not read it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, usize>,
    /// Scale by alpha/√rank rather than alpha/rank (rsLoRA).
    pub use_rslora: bool,
    /// The learning rate of B is so many times `train.learning_rate`, that of A (LoRA+). The same for both without it.
    pub loraplus_lr_ratio: Option<f64>,
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
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            loraplus_lr_ratio: None,
            init_adapter: None,
        }
    }
}
