//! Names of tensors: a model's outer ones, those inside a block, and an adapter's matrices.

/// The linear layers that blocks have, in the order of the forward pass: a family has either q, k and v or qkv, and either
/// gate and up or gate_up; a layer has either attention or a gated DeltaNet, and either an MLP or a mixture, perhaps with a shared
/// expert, and perhaps an input of its own.
pub const BLOCK_LINEARS: [&str; 20] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "linear_attn.in_proj_qkv",
    "linear_attn.in_proj_z",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_a",
    "linear_attn.out_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.gate_up_proj",
    DOWN,
    "mlp.shared_expert.gate_proj",
    "mlp.shared_expert.up_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_expert_gate",
    "per_layer_input_gate",
    "per_layer_projection",
];

/// The linear that ends a block's MLP.
pub const DOWN: &str = "mlp.down_proj";
/// The router of a block's mixture of experts.
pub const ROUTER: &str = "mlp.gate";
/// The linears of an expert, under [`in_expert`].
pub const EXPERT_LINEARS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const EXPERTS: &str = "mlp.experts.";

/// A linear of an expert by its path in a block: `mlp.experts.3.up_proj`.
pub fn in_expert(expert: usize, part: &str) -> String {
    format!("{EXPERTS}{expert}.{part}")
}

/// The linear of an expert that a path in a block denotes, such as `up_proj`.
pub fn expert_part(linear: &str) -> Option<&str> {
    let (expert, part) = linear.strip_prefix(EXPERTS)?.split_once('.')?;
    (expert.parse::<usize>().is_ok() && EXPERT_LINEARS.contains(&part)).then_some(part)
}

/// In which linears the blocks of families differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// q, k and v are one linear.
    pub fused_qkv: bool,
    /// Gate and up are one linear.
    pub fused_gate_up: bool,
    /// Some layers have a gated DeltaNet.
    pub delta_net: bool,
    /// Mixtures have an expert that all tokens go to.
    pub shared_expert: bool,
    /// Layers have inputs of their own.
    pub layer_inputs: bool,
}

impl Forms {
    /// The linears of a family's blocks, in the order of the forward pass.
    pub fn linears(self) -> impl Iterator<Item = &'static str> {
        BLOCK_LINEARS.into_iter().filter(move |linear| match *linear {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => !self.fused_qkv,
            "self_attn.qkv_proj" => self.fused_qkv,
            "mlp.gate_proj" | "mlp.up_proj" => !self.fused_gate_up,
            "mlp.gate_up_proj" => self.fused_gate_up,
            linear if is_intake(linear) => self.layer_inputs,
            linear if is_in_delta_net(linear) => self.delta_net,
            linear if is_in_shared_expert(linear) => self.shared_expert,
            _ => true,
        })
    }
}

/// The gated DeltaNet of a block.
pub const DELTA_NET: &str = "linear_attn";
/// The attention of a block.
pub const ATTENTION: &str = "self_attn";

/// Whether a path in a block, or of the whole model, is a part of a mixture's shared expert, or its gate.
pub fn is_in_shared_expert(module: &str) -> bool {
    module.split('.').any(|part| part == "shared_expert" || part == "shared_expert_gate")
}

/// Whether a path in a block, or of the whole model, is a part of a gated DeltaNet.
pub fn is_in_delta_net(module: &str) -> bool {
    module.split('.').any(|part| part == DELTA_NET)
}

/// The factor of what a block returns, [1].
pub const LAYER_SCALE: &str = "layer_scalar";
/// The norm of what a block makes of the layer's own input.
pub const INTAKE_NORM: &str = "post_per_layer_input_norm";

/// Whether a path in a block, or of the whole model, is a linear that takes a layer's own input in.
pub fn is_intake(module: &str) -> bool {
    module.split('.').any(|part| part == "per_layer_input_gate" || part == "per_layer_projection")
}

/// The embedding that the inputs of layers have, [vocab, layers · size].
pub const LAYER_EMBEDDING: &str = "model.embed_tokens_per_layer.weight";
/// The linear from the embedding to the inputs of layers.
pub const LAYER_PROJECTION: &str = "model.per_layer_model_projection";
/// The norm of that linear's outputs.
pub const LAYER_PROJECTION_NORM: &str = "model.per_layer_projection_norm";
/// The token embedding, [vocab, hidden].
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head, [vocab, hidden], if it is not the embedding.
pub const HEAD: &str = "lm_head.weight";
/// The module of the norm before the head.
pub const FINAL_NORM: &str = "model.norm";
/// Prefix of the names of a block's modules; the block's number follows.
pub const BLOCKS: &str = "model.layers.";
/// What PEFT puts before a name from the base.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// A module by its path in a block: `self_attn.q_proj` of block 3 is `model.layers.3.self_attn.q_proj`.
pub fn in_block(block: usize, part: &str) -> String {
    format!("{BLOCKS}{block}.{part}")
}

/// The block's number and the path within it, if `module` is in a block.
pub fn split_block(module: &str) -> Option<(usize, &str)> {
    let (block, part) = module.strip_prefix(BLOCKS)?.split_once('.')?;
    Some((block.parse().ok()?, part))
}

/// One of the two matrices of ΔW = s · B A, A [r, d_in] and B [d_out, r].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraMatrix {
    A,
    B,
}

impl LoraMatrix {
    const fn ending(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
        }
    }

    /// The name of the matrix of `module`, such as `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn name(self, module: &str) -> String {
        format!("{module}{}", self.ending())
    }

    /// Whether the tensor `name` is this matrix of some module.
    pub fn is(self, name: &str) -> bool {
        name.ends_with(self.ending())
    }

    /// The module and the matrix that a tensor's name denotes; `None` if it is not a matrix of an adapter.
    pub fn split(name: &str) -> Option<(&str, Self)> {
        [Self::A, Self::B].into_iter().find_map(|matrix| Some((name.strip_suffix(matrix.ending())?, matrix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_together_and_taken_apart() {
        let module = in_block(3, "self_attn.q_proj");
        assert_eq!(module, "model.layers.3.self_attn.q_proj");
        assert_eq!(split_block(&module), Some((3, "self_attn.q_proj")));
        assert_eq!((split_block("model.norm"), split_block("model.layers.x.mlp")), (None, None));
        for (matrix, name) in [(LoraMatrix::A, "m.lora_A.weight"), (LoraMatrix::B, "m.lora_B.weight")] {
            assert_eq!((matrix.name("m"), LoraMatrix::split(name)), (name.to_string(), Some(("m", matrix))));
            assert!(matrix.is(name) && !matrix.is("m.weight"));
        }
        assert!(!LoraMatrix::A.is("m.lora_B.weight") && LoraMatrix::split("m.weight").is_none());
    }
}
