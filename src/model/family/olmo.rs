//! OLMo 2 and 3: norms after attention and MLP instead of before, and of all queries and all keys together.

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults, Sliding};
use super::windows::{set_windows, sliding_window};
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, ModelSpec, QkNorm};
use anyhow::Result;

const OLMO: Defaults = Defaults { rms_norm_eps: 1e-5, ..LLAMA };

pub fn olmo2(config: &Config) -> Result<ModelSpec> {
    refuse_unsupported(config, &["attention_bias"])?;
    with_norms(config, &OLMO)
}

/// Three layers of four have a window. In the dialect of transformers 4, `rope_theta` and `rope_scaling` are full attention's.
pub fn olmo3(config: &Config) -> Result<ModelSpec> {
    const THETA: f64 = 500_000.0;
    let sliding = Some(Sliding { key: None, theta: THETA });
    let defaults = Defaults { rope: RopeDefaults { theta: THETA, sliding, ..PLAIN }, ..OLMO };
    refuse_unsupported(config, &["attention_bias", "sliding_window", "layer_types"])?;
    let mut spec = with_norms(config, &defaults)?;
    set_windows(config, &mut spec, sliding_window(config)?, |layer| !(layer + 1).is_multiple_of(4))?;
    Ok(spec)
}

fn with_norms(config: &Config, defaults: &Defaults) -> Result<ModelSpec> {
    let mut spec = common(config, defaults)?;
    read_attention_bias(config, &mut spec)?;
    (spec.qk_norm, spec.norms) = (Some(QkNorm::Whole), BlockNorms::AFTER);
    Ok(spec)
}
