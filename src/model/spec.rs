//! What a decoder is built from: everything in which the supported families differ, as fields.
//!
//! `config.json` becomes a [`ModelSpec`] in family.rs; nothing after that looks at the family's name.

use super::rope::Rope;
use crate::names::{BLOCK_LINEARS, in_block};
use crate::ops::activation::Activation;

/// The architecture of one checkpoint, in the terms of its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// RMSNorm of each head's query and key before the rotation.
    pub qk_norm: bool,
    /// Norm weights are stored as w − 1.
    pub norm_offset: bool,
    /// Whether there are norms after attention and MLP too, before their residual sums.
    pub post_norms: bool,
    pub activation: Activation,
    /// Factor of the attention scores.
    pub attention_scale: f64,
    /// Soft-cap of the attention scores.
    pub attention_softcap: Option<f64>,
    /// Soft-cap of the logits.
    pub logit_softcap: Option<f64>,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f64>,
    /// The rotary embeddings that layers choose from.
    pub ropes: Vec<Rope>,
    /// One for each layer.
    pub layers: Vec<LayerSpec>,
}

/// In what one layer differs from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Sliding window: how many positions a token sees, itself included.
    pub window: Option<usize>,
    /// Index into [`ModelSpec::ropes`].
    pub rope: usize,
}

impl ModelSpec {
    /// The longest sequence that the model is made for, its rope scaling included.
    pub fn context(&self) -> usize {
        let rope = self.ropes.first();
        rope.map_or(self.max_position_embeddings, |rope| rope.context(self.max_position_embeddings))
    }

    /// Shape [d_out, d_in] of a block linear such as `self_attn.q_proj`.
    pub fn linear_shape(&self, linear: &str) -> Option<(usize, usize)> {
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        Some(match linear {
            "self_attn.q_proj" => (queries, self.hidden_size),
            "self_attn.k_proj" | "self_attn.v_proj" => (keys, self.hidden_size),
            "self_attn.o_proj" => (self.hidden_size, queries),
            "mlp.gate_proj" | "mlp.up_proj" => (self.intermediate_size, self.hidden_size),
            "mlp.down_proj" => (self.hidden_size, self.intermediate_size),
            _ => return None,
        })
    }

    /// Whether a block linear carries a bias.
    pub fn has_bias(&self, linear: &str) -> bool {
        match linear {
            "self_attn.o_proj" => self.o_bias,
            _ if linear.starts_with("mlp.") => self.mlp_bias,
            _ => self.qkv_bias,
        }
    }

    /// Names and sizes of a block's norms.
    pub fn block_norms(&self) -> Vec<(&'static str, usize)> {
        let mut norms = vec![("input_layernorm", self.hidden_size), ("post_attention_layernorm", self.hidden_size)];
        if self.post_norms {
            norms.extend(["pre_feedforward_layernorm", "post_feedforward_layernorm"].map(|n| (n, self.hidden_size)));
        }
        if self.qk_norm {
            norms.extend(["self_attn.q_norm", "self_attn.k_norm"].map(|name| (name, self.head_dim)));
        }
        norms
    }

    /// Hugging Face module paths of all block linears, layer by layer.
    pub fn linear_modules(&self) -> Vec<String> {
        (0..self.num_hidden_layers)
            .flat_map(|layer| BLOCK_LINEARS.iter().map(move |linear| in_block(layer, linear)))
            .collect()
    }
}
