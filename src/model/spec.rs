//! `config.json` of a checkpoint -> [`ModelSpec`]: every switch by which the supported families differ.
//!
//! Reads the dialects of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`,
//! `dtype`). A field that would change the maths and is not supported is refused by name; nothing is guessed.

use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::path::Path;

/// How rotary frequencies are stretched for contexts longer than the pre-training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp in between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
}

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
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
}

/// More layers than any model has: a config.json that asks for more is damaged.
const MAX_LAYERS: usize = 10_000;

/// The linears of one block, in the order in which the forward pass meets them.
pub const BLOCK_LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl ModelSpec {
    /// Reads `config.json` in a checkpoint folder.
    ///
    /// # Errors
    /// A missing or malformed file, an unsupported `model_type`, or an unsupported field, named.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| invalid!("{} is not valid JSON: {e}", path.display()))?;
        let fields = value.as_object().ok_or_else(|| invalid!("{} is not a JSON object", path.display()))?;
        Self::parse(&Config { fields, origin: &path.display().to_string() })
    }

    fn parse(config: &Config) -> Result<Self> {
        let model_type = config.string("model_type")?.unwrap_or_default();
        ensure_valid!(
            model_type == "llama",
            "{}: model_type `{model_type}` is not supported; supported: llama (Llama 2, Llama 3, SmolLM2)",
            config.origin
        );
        config.refuse_unsupported()?;
        let hidden_size = config.required_size("hidden_size")?;
        let num_attention_heads = config.required_size("num_attention_heads")?;
        let (rope_theta, rope_scaling) = config.rope()?;
        let spec = Self {
            model_type,
            vocab_size: config.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: config.required_size("intermediate_size")?,
            num_hidden_layers: config.required_size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: config.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: config.size("head_dim")?.unwrap_or(hidden_size / num_attention_heads),
            max_position_embeddings: config.size("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
        };
        ensure_valid!(
            spec.num_attention_heads.is_multiple_of(spec.num_key_value_heads),
            "{}: num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
            config.origin,
            spec.num_attention_heads,
            spec.num_key_value_heads
        );
        // Module names are listed before any weight is looked at.
        ensure_valid!(
            spec.num_hidden_layers <= MAX_LAYERS,
            "{}: num_hidden_layers is {}, expected at most {MAX_LAYERS}",
            config.origin,
            spec.num_hidden_layers
        );
        ensure_valid!(spec.head_dim.is_multiple_of(2), "{}: head_dim {} is odd", config.origin, spec.head_dim);
        Ok(spec)
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
        if linear.starts_with("mlp.") { self.mlp_bias } else { self.attention_bias }
    }

    /// Hugging Face module paths of every block linear, layer by layer.
    pub fn linear_modules(&self) -> Vec<String> {
        (0..self.num_hidden_layers)
            .flat_map(|layer| BLOCK_LINEARS.iter().map(move |linear| format!("model.layers.{layer}.{linear}")))
            .collect()
    }
}

/// A `config.json` with the path that its errors name.
struct Config<'a> {
    fields: &'a Map<String, Value>,
    origin: &'a str,
}

impl Config<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> anyhow::Error {
        invalid!("{}: `{key}` should be {expected}, got {got}", self.origin)
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| match value.as_u64() {
                Some(n) if n > 0 && n < 1 << 32 => Ok(n as usize),
                _ => Err(self.wrong(key, "a positive integer", value)),
            })
            .transpose()
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| invalid!("{}: `{key}` is missing", self.origin))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => Err(self.wrong(key, "a positive number", value)),
            })
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false", v))).transpose()
    }

    fn string(&self, key: &str) -> Result<Option<String>> {
        self.get(key).map(|v| v.as_str().map(String::from).ok_or_else(|| self.wrong(key, "a string", v))).transpose()
    }

    /// Fields that other families or fine-tunes set, and that this decoder does not honour.
    fn refuse_unsupported(&self) -> Result<()> {
        let act = self.string("hidden_act")?.unwrap_or_else(|| "silu".into());
        ensure_valid!(
            act == "silu" || act == "swish",
            "{}: hidden_act `{act}` is not supported; expected silu",
            self.origin
        );
        let neutral = [
            ("attention_dropout", 0.0),
            ("partial_rotary_factor", 1.0),
            ("logits_scaling", 1.0),
            ("residual_multiplier", 1.0),
            ("embedding_multiplier", 1.0),
        ];
        for (key, value) in neutral {
            if let Some(got) = self.get(key).filter(|got| got.as_f64() != Some(value)) {
                return Err(invalid!("{}: `{key}` = {got} is not supported; expected {value}", self.origin));
            }
        }
        for key in ["sliding_window", "quantization_config", "attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(got) = self.get(key) {
                return Err(invalid!("{}: `{key}` = {got} is not supported for this family", self.origin));
            }
        }
        if self.flag("rope_interleaved")? == Some(true) {
            return Err(invalid!("{}: `rope_interleaved` = true is not supported", self.origin));
        }
        Ok(())
    }

    /// (theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let theta = self.number("rope_theta")?.unwrap_or(10_000.0);
        let (key, value) = match (self.get("rope_parameters"), self.get("rope_scaling")) {
            (Some(value), _) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => return Ok((theta, RopeScaling::None)),
        };
        let fields = value.as_object().ok_or_else(|| self.wrong(key, "an object", value))?;
        let origin = format!("{}: {key}", self.origin);
        let rope = Config { fields, origin: &origin };
        let theta = rope.number("rope_theta")?.unwrap_or(theta);
        if let Some(got) = rope.get("partial_rotary_factor").filter(|got| got.as_f64() != Some(1.0)) {
            return Err(invalid!("{origin}: `partial_rotary_factor` = {got} is not supported; expected 1"));
        }
        let required = |name: &str| rope.number(name)?.ok_or_else(|| invalid!("{origin}: `{name}` is missing"));
        let kind = match rope.string("rope_type")? {
            Some(kind) => kind,
            None => rope.string("type")?.unwrap_or_else(|| "default".into()),
        };
        let scaling = match kind.as_str() {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: required("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_position_embeddings: required("original_max_position_embeddings")?,
            },
            other => {
                return Err(invalid!(
                    "{origin}: rope_type `{other}` is not supported; supported: default, linear, llama3"
                ));
            }
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(overrides: Value) -> Result<ModelSpec> {
        let mut value = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        });
        for (key, field) in overrides.as_object().unwrap() {
            value[key] = field.clone();
        }
        ModelSpec::parse(&Config { fields: value.as_object().unwrap(), origin: "config.json" })
    }

    #[test]
    fn both_dialects_mean_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 16});
        let mut five = scaling.clone();
        five["rope_theta"] = json!(5000.0);
        let four = parse(json!({"rope_theta": 5000.0, "rope_scaling": scaling})).unwrap();
        assert_eq!(four, parse(json!({"rope_parameters": five})).unwrap());
        assert_eq!(four.rope_theta, 5000.0);
        assert!(matches!(four.rope_scaling, RopeScaling::Llama3 { .. }));
    }

    #[test]
    fn legacy_type_key_and_nulls() {
        let spec = parse(json!({"rope_scaling": {"type": "linear", "factor": 2.5}, "head_dim": null})).unwrap();
        assert_eq!(spec.rope_scaling, RopeScaling::Linear { factor: 2.5 });
        assert_eq!(spec.head_dim, 12);
    }

    #[test]
    fn what_changes_the_maths_is_refused_by_name() {
        for (overrides, needle) in [
            (json!({"model_type": "mamba"}), "mamba"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}), "longrope"),
            (json!({"attention_dropout": 0.1}), "attention_dropout"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"hidden_size": "48"}), "hidden_size"),
            (json!({"num_hidden_layers": 4_000_000_000u64}), "num_hidden_layers"),
        ] {
            let error = parse(overrides).unwrap_err();
            assert!(error.to_string().contains(needle), "{error:#}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
    }
}
