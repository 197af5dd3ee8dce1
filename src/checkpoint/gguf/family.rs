//! What the model families are called in GGUF files, and what the converter does to their weights.

use crate::names::{BLOCKS, EMBEDDING, FINAL_NORM, HEAD, split_block};
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// A family as llama.cpp has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `model_type` of its config.json.
    pub model_type: &'static str,
    /// Its class there.
    pub class: &'static str,
    /// Whether rows of q and k are in the order of Meta's rotation, which turns neighbours: within a head, row 2i + j
    /// is row i + j·d/2 of transformers.
    pub permutes: bool,
    /// Whether norms are stored as they are multiplied with, 1 more than in transformers.
    pub norms_plus_one: bool,
    /// Whether there are norms after attention and MLP too.
    pub post_norms: bool,
}

const LLAMA: Family = Family {
    architecture: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    permutes: true,
    norms_plus_one: false,
    post_norms: false,
};

/// All that have a GGUF architecture of their own; Mistral is a Llama there.
pub const FAMILIES: [Family; 5] = [
    LLAMA,
    Family { architecture: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", permutes: false, ..LLAMA },
    Family { architecture: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", permutes: false, ..LLAMA },
    Family {
        architecture: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        permutes: false,
        norms_plus_one: true,
        post_norms: true,
    },
    Family {
        architecture: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        permutes: false,
        norms_plus_one: true,
        post_norms: true,
    },
];

/// Parts of a block: in GGUF files, and in transformers.
const PARTS: [(&str, &str); 12] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
/// The norm before the MLP, whose name depends on whether there is one after attention.
const MLP_NORM: &str = "ffn_norm";

impl Family {
    /// # Errors
    /// An architecture that cannot be read.
    pub fn of_architecture(architecture: &str) -> Result<&'static Self> {
        let family = FAMILIES.iter().find(|family| family.architecture == architecture);
        let known = FAMILIES.each_ref().map(|family| family.architecture).join(", ");
        family.ok_or_else(|| invalid!("the architecture `{architecture}` is not supported; supported: {known}"))
    }

    /// # Errors
    /// A `model_type` that has no GGUF architecture.
    pub fn of_model_type(model_type: &str) -> Result<&'static Self> {
        let name = if model_type == "mistral" { "llama" } else { model_type };
        let family = FAMILIES.iter().find(|family| family.model_type == name);
        family.ok_or_else(|| invalid!("a model of the type `{model_type}` cannot be written as GGUF"))
    }

    fn part(&self, gguf: &str) -> Option<&'static str> {
        if gguf == MLP_NORM {
            return Some(if self.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" });
        }
        PARTS.iter().find(|(name, _)| *name == gguf).map(|(_, part)| *part)
    }

    /// The name in transformers of the tensor `name`.
    ///
    /// # Errors
    /// A tensor that no model of the family has.
    pub fn tensor_name(&self, name: &str) -> Result<String> {
        let found = match name {
            "token_embd.weight" => Some(EMBEDDING.to_string()),
            "output_norm.weight" => Some(format!("{FINAL_NORM}.weight")),
            "output.weight" => Some(HEAD.to_string()),
            _ => self.name_in_block(name),
        };
        found.ok_or_else(|| invalid!("tensor {name} is not part of a model of the architecture {}", self.architecture))
    }

    fn name_in_block(&self, name: &str) -> Option<String> {
        let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, ending) = rest.rsplit_once('.').filter(|(_, ending)| matches!(*ending, "weight" | "bias"))?;
        let canonical = block.parse::<usize>().ok().filter(|number| number.to_string() == block);
        Some(format!("{BLOCKS}{}.{}.{ending}", canonical?, self.part(part)?))
    }

    /// The name in GGUF files of a block's module, such as `blk.3.attn_q` for `self_attn.q_proj` of block 3.
    pub fn module_name(&self, block: usize, part: &str) -> Option<String> {
        let known = PARTS.iter().find(|(_, own)| *own == part).map(|(gguf, _)| *gguf);
        let gguf = if self.part(MLP_NORM) == Some(part) { Some(MLP_NORM) } else { known };
        gguf.map(|gguf| format!("blk.{block}.{gguf}"))
    }

    /// The name in GGUF files of the tensor that transformers calls `name`.
    pub fn name_in_file(&self, name: &str) -> Option<String> {
        match name {
            EMBEDDING => return Some("token_embd.weight".to_string()),
            HEAD => return Some("output.weight".to_string()),
            _ => {}
        }
        let (module, ending) = name.rsplit_once('.')?;
        if module == FINAL_NORM {
            return Some(format!("output_norm.{ending}"));
        }
        let (block, part) = split_block(module)?;
        Some(format!("{}.{ending}", self.module_name(block, part)?))
    }
}

/// Where row `row` of `heads` heads in transformers' order is among `rows` in the order of GGUF files.
///
/// # Errors
/// Rows that are not heads of an even size.
pub fn stored_row(row: usize, rows: usize, heads: usize) -> Result<usize> {
    ensure_valid!(
        heads > 0 && rows.is_multiple_of(2 * heads),
        "{rows} rows are not {heads} heads of an even number of rows each"
    );
    let size = rows / heads;
    let (head, row, half) = (row / size, row % size, size / 2);
    Ok(head * size + 2 * (row % half) + row / half)
}
