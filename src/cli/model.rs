//! Arguments that name a model.

use crate::adapter::ADAPTER_CONFIG;
use crate::model::{Compute, DeviceKind, Dtype, Quantize};
use clap::Args;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

/// A model and how to compute with it.
#[derive(Args)]
pub struct BaseArgs {
    /// Model folder, GGUF file, or hub id with an optional @revision and, for a GGUF file, :FILE
    #[arg(long, value_name = "ID|DIR")]
    pub model: String,
    /// Folder or hub id of the tokenizer, if it is not the model's own; some GGUF files need one
    #[arg(long, value_name = "ID|DIR")]
    pub tokenizer: Option<String>,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Quantise the linear layers as they are loaded
    #[arg(long, value_enum)]
    pub quantize: Option<Quantize>,
    /// Quantise embedding and output head too
    #[arg(long, requires = "quantize")]
    pub quantize_head: bool,
}

impl BaseArgs {
    pub fn compute(&self) -> Compute {
        let Self { device, dtype, quantize, quantize_head, .. } = *self;
        Compute { device, dtype, quantize, quantize_head }
    }
}

/// A model and, perhaps, an adapter on it.
#[derive(Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder, or the output folder of a run
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: Option<PathBuf>,
}

/// The folder of an adapter, given as such or as the output folder of the run that made it.
pub(super) fn adapter_folder(text: &str) -> Result<PathBuf, Infallible> {
    let (dir, inside) = (PathBuf::from(text), Path::new(text).join("adapter"));
    let has_config = |dir: &Path| dir.join(ADAPTER_CONFIG).is_file();
    Ok(if !has_config(&dir) && has_config(&inside) { inside } else { dir })
}
