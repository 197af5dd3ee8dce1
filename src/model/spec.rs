//! What a decoder is built from: everything in which the supported families differ, as fields.
//!
//! `config.json` becomes a [`ModelSpec`] in family.rs; nothing after that looks at the family's name.

use super::rope::Rope;
use crate::names::{
    ATTENTION, DOWN, EXPERT_LINEARS, Forms, INTAKE_NORM, LAYER_SCALE, ROUTER, expert_part, in_block, in_expert,
    is_in_delta_net, is_in_shared_expert, is_intake,
};
use crate::ops::activation::Activation;
use crate::ops::delta_rule;

/// The architecture of one checkpoint, in the terms of its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Whether this is the text model of a multimodal class, whose names its adapters have.
    pub wrapped: bool,
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Of layers that have no heads of their own, as is `head_dim`.
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
    /// Whether q, k and v are one linear, `qkv_proj`.
    pub fused_qkv: bool,
    /// Whether gate and up are one linear, `gate_up_proj`.
    pub fused_gate_up: bool,
    /// Whether q's linear also gives a gate for each of attention's outputs, head by head after its queries.
    pub gated_attention: bool,
    /// The gated DeltaNet of layers that have one.
    pub delta_net: Option<DeltaNetSpec>,
    /// RMSNorm of queries and keys before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// RMSNorm of each head's values, without a weight.
    pub value_norm: bool,
    /// Norm weights are stored as w − 1.
    pub norm_offset: bool,
    /// The norms around attention and MLP.
    pub norms: BlockNorms,
    pub activation: Activation,
    /// Factor of the attention scores.
    pub attention_scale: f64,
    /// Soft-cap of the attention scores.
    pub attention_softcap: Option<f64>,
    /// Soft-cap of the logits.
    pub logit_softcap: Option<f64>,
    /// Factor of the logits, before the soft-cap.
    pub logit_scale: Option<f64>,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f64>,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_scale: Option<f64>,
    /// Whether what a layer returns has a factor, `layer_scalar`, which does not train.
    pub layer_scale: bool,
    /// What layers have as inputs besides the hidden states.
    pub layer_inputs: Option<LayerInputSpec>,
    /// The experts of layers with a mixture.
    pub experts: Option<Experts>,
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
    /// Index into [`ModelSpec::ropes`]; `None` where q and k are not rotated.
    pub rope: Option<usize>,
    /// Whether a gated DeltaNet is in attention's place.
    pub delta_net: bool,
    /// Whether the MLP is a mixture of experts.
    pub mixture: bool,
    /// Heads other than most layers'.
    pub heads: Option<Heads>,
    /// Whether attention's values are its keys, before norms and rotation.
    pub values_are_keys: bool,
    /// The earlier layer whose keys and values attention sees in place of its own.
    pub keys_of: Option<usize>,
    /// Whether the MLP is twice as wide as `intermediate_size` says.
    pub wide: bool,
}

/// Inputs of layers besides the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInputSpec {
    /// Tokens of their embedding.
    pub vocab_size: usize,
    /// Values that a token has for each layer.
    pub size: usize,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of keys, and of values.
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// A gated DeltaNet, alike in all layers that have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetSpec {
    pub heads: delta_rule::Shape,
    /// Positions that the convolution sees.
    pub window: usize,
}

/// A mixture of experts, alike in all layers that have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    /// How many experts a token goes to.
    pub per_token: usize,
    pub intermediate_size: usize,
    /// Whether a token's weights add up to 1.
    pub normalised: bool,
    /// The inner size of the expert that all tokens go to, if there is one.
    pub shared: Option<usize>,
}

/// What a norm of queries and keys is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself.
    Heads,
    /// All heads together.
    Whole,
}

/// The names of a block's norms on the way to the residual sums; `None` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNorms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    /// Before attention and MLP.
    pub const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
    /// Before and after both, as in Gemma.
    pub const AROUND: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// Only after both, as in OLMo 2.
    pub const AFTER: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// Before and after both, under GLM-4's names.
    pub const GLM: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_self_attn_layernorm"),
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
    };

    /// The names that there are.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [self.before_attention, self.after_attention, self.before_mlp, self.after_mlp].into_iter().flatten()
    }

    /// How many of them are after attention or MLP.
    pub fn after(self) -> usize {
        usize::from(self.after_attention.is_some()) + usize::from(self.after_mlp.is_some())
    }
}

impl ModelSpec {
    /// The longest sequence that the model is made for, its rope scaling included.
    pub fn context(&self) -> usize {
        let rope = self.ropes.first();
        rope.map_or(self.max_position_embeddings, |rope| rope.context(self.max_position_embeddings))
    }

    /// Shape [d_out, d_in] of a layer's block linear such as `self_attn.q_proj`.
    pub fn linear_shape(&self, layer: usize, linear: &str) -> Option<(usize, usize)> {
        let (queries, keys) = self.head_widths(layer);
        if let Some(part) = expert_part(linear) {
            let inner = self.experts?.intermediate_size;
            return Some(if part == "down_proj" { (self.hidden_size, inner) } else { (inner, self.hidden_size) });
        }
        if is_in_delta_net(linear) {
            return self.delta_net_shape(linear);
        }
        Some(match linear {
            ROUTER => (self.experts?.count, self.hidden_size),
            "self_attn.q_proj" if self.gated_attention => (2 * queries, self.hidden_size),
            "self_attn.q_proj" => (queries, self.hidden_size),
            "self_attn.k_proj" | "self_attn.v_proj" => (keys, self.hidden_size),
            "self_attn.qkv_proj" => (queries + 2 * keys, self.hidden_size),
            "self_attn.o_proj" => (self.hidden_size, queries),
            "mlp.shared_expert_gate" => (1, self.hidden_size),
            "mlp.shared_expert.gate_proj" | "mlp.shared_expert.up_proj" => (self.shared_size()?, self.hidden_size),
            "mlp.shared_expert.down_proj" => (self.hidden_size, self.shared_size()?),
            "mlp.gate_proj" | "mlp.up_proj" => (self.mlp_size(layer), self.hidden_size),
            "mlp.gate_up_proj" => (2 * self.mlp_size(layer), self.hidden_size),
            DOWN => (self.hidden_size, self.mlp_size(layer)),
            "per_layer_input_gate" => (self.layer_inputs?.size, self.hidden_size),
            "per_layer_projection" => (self.hidden_size, self.layer_inputs?.size),
            _ => return None,
        })
    }

    fn delta_net_shape(&self, linear: &str) -> Option<(usize, usize)> {
        let heads = self.delta_net?.heads;
        Some(match linear {
            "linear_attn.in_proj_qkv" => (heads.mixed_width(), self.hidden_size),
            "linear_attn.in_proj_z" => (heads.value_width(), self.hidden_size),
            "linear_attn.in_proj_b" | "linear_attn.in_proj_a" => (heads.value_heads, self.hidden_size),
            "linear_attn.out_proj" => (self.hidden_size, heads.value_width()),
            _ => return None,
        })
    }

    /// Whether a block linear carries a bias.
    pub fn has_bias(&self, linear: &str) -> bool {
        match linear {
            _ if is_in_delta_net(linear) || is_intake(linear) => false,
            "self_attn.o_proj" => self.o_bias,
            _ if linear.starts_with("mlp.") => self.mlp_bias,
            _ => self.qkv_bias,
        }
    }

    /// The heads of a layer's keys and values.
    pub fn heads(&self, layer: usize) -> Heads {
        let most = Heads { kv_heads: self.num_key_value_heads, head_dim: self.head_dim };
        self.layers.get(layer).and_then(|layer| layer.heads).unwrap_or(most)
    }

    /// Widths of all queries, and of all keys (or values), in a layer.
    pub fn head_widths(&self, layer: usize) -> (usize, usize) {
        let Heads { kv_heads, head_dim } = self.heads(layer);
        (self.num_attention_heads * head_dim, kv_heads * head_dim)
    }

    /// The size of the heads that a rope turns.
    pub fn turned_head_dim(&self, rope: usize) -> usize {
        let turned = self.layers.iter().position(|layer| layer.rope == Some(rope));
        turned.map_or(self.head_dim, |layer| self.heads(layer).head_dim)
    }

    /// Names and shapes of a block's tensors that are neither linears nor experts.
    pub fn other_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors: Vec<(String, Vec<usize>)> =
            self.block_norms(layer).into_iter().map(|(norm, size)| (format!("{norm}.weight"), vec![size])).collect();
        if let Some(DeltaNetSpec { heads, window }) = self.delta_net_of(layer) {
            tensors.extend([
                ("linear_attn.conv1d.weight".to_string(), vec![heads.mixed_width(), 1, window]),
                ("linear_attn.A_log".to_string(), vec![heads.value_heads]),
                ("linear_attn.dt_bias".to_string(), vec![heads.value_heads]),
            ]);
        }
        if self.layer_scale {
            tensors.push((LAYER_SCALE.to_string(), vec![1]));
        }
        tensors
    }

    /// Names and sizes of a block's norms.
    fn block_norms(&self, layer: usize) -> Vec<(&'static str, usize)> {
        let own = self.layer_inputs.map(|_| INTAKE_NORM);
        let mut norms: Vec<_> = self.norms.names().chain(own).map(|name| (name, self.hidden_size)).collect();
        if let Some(delta_net) = self.delta_net_of(layer) {
            norms.push(("linear_attn.norm", delta_net.heads.value_dim));
            return norms;
        }
        let widths = match self.qk_norm {
            None => None,
            Some(QkNorm::Heads) => Some((self.heads(layer).head_dim, self.heads(layer).head_dim)),
            Some(QkNorm::Whole) => Some(self.head_widths(layer)),
        };
        if let Some((queries, keys)) = widths {
            norms.push(("self_attn.q_norm", queries));
            if self.has_keys(layer) {
                norms.push(("self_attn.k_norm", keys));
            }
        }
        norms
    }

    /// The linears of a block that adapters may be attached to, in the order of the forward pass.
    pub fn block_linears(&self, layer: usize) -> impl Iterator<Item = &'static str> {
        let (mixture, delta_net) = (self.has_mixture(layer), self.delta_net_of(layer).is_some());
        let values_are_keys = self.layers.get(layer).is_some_and(|layer| layer.values_are_keys);
        let forms = Forms {
            fused_qkv: self.fused_qkv,
            fused_gate_up: self.fused_gate_up,
            delta_net: self.delta_net.is_some(),
            shared_expert: self.shared_size().is_some(),
            layer_inputs: self.layer_inputs.is_some(),
        };
        let own_keys = self.has_keys(layer);
        forms.linears().filter(move |linear| match linear.split_once('.') {
            Some((ATTENTION, "v_proj")) => !delta_net && own_keys && !values_are_keys,
            Some((ATTENTION, "k_proj")) => !delta_net && own_keys,
            Some((ATTENTION, _)) => !delta_net,
            Some(("mlp", _)) => mixture == is_in_shared_expert(linear),
            Some(_) => delta_net,
            // An input of the layer's own is taken in after whatever it has.
            None => true,
        })
    }

    /// The gated DeltaNet of a layer.
    pub fn delta_net_of(&self, layer: usize) -> Option<DeltaNetSpec> {
        self.delta_net.filter(|_| self.layers.get(layer).is_some_and(|layer| layer.delta_net))
    }

    fn shared_size(&self) -> Option<usize> {
        self.experts?.shared
    }

    /// How many values a token has between gate and down, in all experts that it goes to.
    pub fn inner_size(&self, layer: usize) -> usize {
        match self.experts.filter(|_| self.has_mixture(layer)) {
            Some(experts) => experts.per_token * experts.intermediate_size,
            None => self.mlp_size(layer),
        }
    }

    /// How many values a token has between gate and down of a layer's MLP.
    pub fn mlp_size(&self, layer: usize) -> usize {
        let wide = self.layers.get(layer).is_some_and(|layer| layer.wide);
        self.intermediate_size * if wide { 2 } else { 1 }
    }

    /// Whether nothing but a block's output takes what its MLP returns, so that a backward pass does without it.
    pub fn ends_with_mlp(&self, layer: usize) -> bool {
        self.norms.after_mlp.is_none() && self.layer_inputs.is_none() && !self.has_mixture(layer)
    }

    /// Whether later layers see a layer's keys and values.
    pub fn shares_keys(&self, layer: usize) -> bool {
        self.layers.iter().any(|later| later.keys_of == Some(layer))
    }

    /// Whether a layer's attention has keys and values of its own.
    pub fn has_keys(&self, layer: usize) -> bool {
        self.layers.get(layer).is_none_or(|layer| layer.keys_of.is_none())
    }

    /// The largest of [`ModelSpec::inner_size`].
    pub fn largest_inner_size(&self) -> usize {
        (0..self.num_hidden_layers).map(|layer| self.inner_size(layer)).max().unwrap_or(self.intermediate_size)
    }

    pub fn has_mixture(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|layer| layer.mixture)
    }

    /// The matrices of a layer's mixture: its router and its experts' linears.
    pub fn mixture_matrices(&self, layer: usize) -> Vec<String> {
        let Some(experts) = self.experts.filter(|_| self.has_mixture(layer)) else { return vec![] };
        let of_expert = |expert| EXPERT_LINEARS.map(|part| in_expert(expert, part));
        std::iter::once(ROUTER.to_string()).chain((0..experts.count).flat_map(of_expert)).collect()
    }

    /// Hugging Face module paths of all block linears, layer by layer.
    pub fn linear_modules(&self) -> Vec<String> {
        (0..self.num_hidden_layers)
            .flat_map(|layer| self.block_linears(layer).map(move |linear| in_block(layer, linear)))
            .collect()
    }
}
