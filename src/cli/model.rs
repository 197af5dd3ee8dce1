//! Arguments that name a model.

use crate::model::{DeviceKind, Dtype};
use clap::Args;
use std::path::PathBuf;

/// A model and how to compute with it.
#[derive(Args)]
pub struct BaseArgs {
    /// Model folder, or hub id with an optional @revision
    #[arg(long, value_name = "ID|DIR")]
    pub model: String,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
}

/// A model and, perhaps, an adapter on it.
#[derive(Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}
