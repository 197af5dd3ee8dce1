//! What `quantization_config` of a config.json may say.

use crate::ensure_valid;
use crate::invalid;
use crate::model::config_json::Config;
use anyhow::Result;
use serde_json::Value;

/// Whether weights are stored in a way that can be read: as they are, or in bitsandbytes' four bits.
///
/// # Errors
/// Any other way, by its name, with what to use in its place.
pub fn check(config: &Config) -> Result<()> {
    let Some(stored) = config.get("quantization_config") else { return Ok(()) };
    let fields =
        stored.as_object().ok_or_else(|| invalid!("{}: `quantization_config` is not an object", config.origin))?;
    let is_set = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
    let method = fields.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
    let four_bit = method == "bitsandbytes" && (is_set("load_in_4bit") || is_set("_load_in_4bit"));
    let bits = if method == "bitsandbytes" { " in eight bits" } else { "" };
    ensure_valid!(
        four_bit,
        "{}: the weights are quantised by {method}{bits} (`quantization_config`), which cannot be read here; use the model \
         that it was made from (with model.quantize = \"nf4\" or --quantize nf4 if memory is short), a bitsandbytes folder in \
         four bits, or a GGUF file",
        config.origin
    );
    Ok(())
}
