//! `[model]` of the config: the two checkpoints and where the arithmetic happens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type that activations are computed in. What is trained is f32 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    #[default]
    F32,
}

/// The device to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A GPU if this build supports one and the machine has one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// The safety-aligned model, which is the one fine-tuned: a folder, or a hub id with an optional `@revision`.
    pub aligned: String,
    /// Its base model, before alignment. The difference of the two is the direction that the penalty anchors to.
    /// Not read when `asft.direction` names a file that holds this difference already.
    pub unaligned: Option<String>,
    /// The type to compute in.
    pub dtype: Dtype,
    /// The device to compute on.
    pub device: DeviceKind,
}
