//! The rotary part of a `config.json`, in the dialects of transformers 4 and 5.

use crate::model::config_json::Config;
use crate::model::rope::{Rope, RopeScaling, yarn_attention_factor};
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).
pub(super) fn single(config: &Config, context: usize) -> Result<Rope> {
    let theta = config.number("rope_theta")?.unwrap_or(10_000.0);
    let parameters = match config.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling")?,
    };
    match parameters {
        // Gemma 3 nests them by layer type, and reads them itself.
        Some(parameters) if parameters.fields.values().all(|v| v.is_object()) && !parameters.fields.is_empty() => {
            ensure_valid!(
                config.string("model_type")? == Some("gemma3_text"),
                "{}: parameters by layer type are not supported for this model_type",
                parameters.origin
            );
            Ok(Rope { theta, scaling: RopeScaling::None })
        }
        Some(parameters) => rope_parameters(&parameters, theta, context),
        None => Ok(Rope { theta, scaling: RopeScaling::None }),
    }
}

/// Full attention's rope, then sliding attention's.
pub(super) fn by_layer_type(config: &Config, context: usize) -> Result<Vec<Rope>> {
    let global = config.number("rope_theta")?.unwrap_or(1_000_000.0);
    let local = config.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    let plain = |theta| Rope { theta, scaling: RopeScaling::None };
    if let Some(nested) = config.object("rope_parameters")? {
        let part = |name: &str, theta: f64| match nested.object(name)? {
            Some(parameters) => rope_parameters(&parameters, theta, context),
            None => Ok(plain(theta)),
        };
        return Ok(vec![part("full_attention", global)?, part("sliding_attention", local)?]);
    }
    let global = match config.object("rope_scaling")? {
        Some(scaling) => rope_parameters(&scaling, global, context)?,
        None => plain(global),
    };
    Ok(vec![global, plain(local)])
}

/// One set of rope parameters; `theta` holds where they have none of their own.
fn rope_parameters(rope: &Config, theta: f64, context: usize) -> Result<Rope> {
    let theta = rope.number("rope_theta")?.unwrap_or(theta);
    if let Some(got) = rope.get("partial_rotary_factor").filter(|got| got.as_f64() != Some(1.0)) {
        return Err(invalid!("{}: `partial_rotary_factor` = {got} is not supported; expected 1", rope.origin));
    }
    let kind = match rope.string("rope_type")? {
        Some(kind) => kind,
        None => rope.string("type")?.unwrap_or("default"),
    };
    let original =
        || Ok::<_, anyhow::Error>(rope.number("original_max_position_embeddings")?.unwrap_or(context as f64));
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.required_number("factor")? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: rope.required_number("factor")?, max_position_embeddings: context as f64 }
        }
        "yarn" => yarn(rope, original()?)?,
        "longrope" => longrope(rope, original()?, context)?,
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        other => {
            return Err(invalid!(
                "{}: rope_type `{other}` is not supported; supported: default, linear, dynamic, yarn, longrope, llama3",
                rope.origin
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

fn yarn(rope: &Config, original: f64) -> Result<RopeScaling> {
    let factor = rope.required_number("factor")?;
    let attention_factor = match rope.number("attention_factor")? {
        Some(given) => given,
        None => yarn_attention_factor(factor, rope.number("mscale")?, rope.number("mscale_all_dim")?),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        original_max_position_embeddings: original,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    })
}

fn longrope(rope: &Config, original: f64, context: usize) -> Result<RopeScaling> {
    let factors = |key: &str| rope.numbers(key)?.ok_or_else(|| rope.missing(key));
    let factor = rope.number("factor")?.unwrap_or(context as f64 / original);
    let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor: rope.number("attention_factor")?.unwrap_or(derived),
        original_max_position_embeddings: original,
    })
}
