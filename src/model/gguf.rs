//! A model's spec as the metadata of a GGUF file: what [`crate::checkpoint::model_config`] reads, the other way.

use super::rope::{Rope, RopeScaling, yarn_attention_factor};
use super::spec::ModelSpec;
use crate::checkpoint::gguf::{Family, Written};
use crate::{ensure_valid, invalid};
use anyhow::Result;

impl ModelSpec {
    /// The metadata under the family's name, without the tokenizer's.
    ///
    /// # Errors
    /// What llama.cpp has no key for.
    pub fn gguf_metadata(&self) -> Result<Vec<(String, Written)>> {
        let family = Family::of_model_type(&self.model_type)?;
        let whole = |size: usize| Ok::<_, anyhow::Error>(Written::Whole(u32::try_from(size)?));
        let mut metadata = vec![
            ("block_count", whole(self.num_hidden_layers)?),
            ("context_length", whole(self.max_position_embeddings)?),
            ("embedding_length", whole(self.hidden_size)?),
            ("feed_forward_length", whole(self.intermediate_size)?),
            ("attention.head_count", whole(self.num_attention_heads)?),
            ("attention.head_count_kv", whole(self.num_key_value_heads)?),
            ("attention.key_length", whole(self.head_dim)?),
            ("attention.value_length", whole(self.head_dim)?),
            ("attention.layer_norm_rms_epsilon", Written::Float(self.rms_norm_eps as f32)),
            ("rope.dimension_count", whole(self.head_dim)?),
            ("vocab_size", whole(self.vocab_size)?),
        ];
        let window = self.layers.iter().find_map(|layer| layer.window);
        ensure_valid!(
            !family.post_norms && (window.is_none() || self.model_type == "mistral"),
            "a model of the type {} with these windows and norms is not written as GGUF here: merge with asft merge, and \
             convert with llama.cpp's convert_hf_to_gguf.py",
            self.model_type
        );
        if let Some(window) = window {
            metadata.push(("attention.sliding_window", whole(window)?));
        }
        metadata.extend(self.rope_metadata()?);
        Ok(metadata.into_iter().map(|(key, value)| (format!("{}.{key}", family.architecture), value)).collect())
    }

    fn rope_metadata(&self) -> Result<Vec<(&'static str, Written)>> {
        let rope = self.ropes.first().ok_or_else(|| invalid!("the model has no rope"))?;
        let mut metadata = vec![("rope.freq_base", Written::Float(rope.theta as f32))];
        let kind = |kind: &str| ("rope.scaling.type", Written::Text(kind.to_string()));
        let number = |number: f64| Written::Float(number as f32);
        match rope.scaling {
            RopeScaling::Linear { factor } => {
                metadata.extend([kind("linear"), ("rope.scaling.factor", number(factor))]);
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: original,
                truncate,
            } => {
                let usual = yarn_attention_factor(factor, None, None);
                let is_known =
                    (attention_factor / usual - 1.0).abs() < 1e-9 && truncate && (beta_fast, beta_slow) == (32.0, 1.0);
                ensure_valid!(is_known, "llama.cpp has no key for these parameters of YaRN");
                let original = Written::Whole(original as u32);
                let original = ("rope.scaling.original_context_length", original);
                metadata.extend([kind("yarn"), ("rope.scaling.factor", number(factor)), original]);
            }
            RopeScaling::Proportional { .. } => {
                return Err(invalid!("a proportional rope is not written as GGUF here"));
            }
            RopeScaling::Dynamic { .. } => return Err(invalid!("llama.cpp has no dynamic rope scaling")),
            // As factors: see below.
            RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } | RopeScaling::None => {}
        }
        Ok(metadata)
    }

    /// By how much each rotary frequency is divided, [head_dim / 2], where the metadata do not say it.
    ///
    /// # Errors
    /// Factors that depend on the length of the sequence.
    pub fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        let Some(rope) = self.ropes.first() else { return Ok(None) };
        match &rope.scaling {
            RopeScaling::Llama3 { .. } => {}
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => ensure_valid!(
                short_factor == long_factor && *attention_factor == 1.0,
                "LongRoPE's two sets of factors are not written here"
            ),
            _ => return Ok(None),
        }
        let plain = Rope { scaling: RopeScaling::None, ..rope.clone() };
        let frequencies = |rope: &Rope| rope.stretch(self.head_dim, 0, 1).frequencies;
        Ok(Some(frequencies(&plain).iter().zip(frequencies(rope)).map(|(plain, scaled)| plain / scaled).collect()))
    }
}
