//! `[logging]` of the config: what a run writes besides its metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[logging]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingOptions {
    /// Write the metrics as TensorBoard event files too, under `tensorboard/` in the output folder.
    pub tensorboard: bool,
}
