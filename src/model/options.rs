//! `[model]` of the config: the two checkpoints and where the arithmetic happens.

use crate::device::{self, Accelerator};
use crate::names::{BLOCK_LINEARS, EMBEDDING, HEAD, expert_part, split_block};
use crate::quant::ggml::GgmlType;
use crate::quant::{Format, Kind};
use crate::ranks::Ranks;
use anyhow::Result;
use candle_core::{DType, Device};
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of frozen weights and of activations. What is trained, norms, softmax, the loss and the method's maths are
/// f32 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Dtype {
    #[default]
    F32,
    /// Half the memory; the usual choice on a GPU.
    Bf16,
    /// For GPUs without bf16.
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

/// What frozen weights are quantised to as they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Quantize {
    /// 4.13 bits a value, as in QLoRA: the quantiles of a normal distribution, with quantised scales.
    Nf4,
    /// 8.5 bits a value: eight-bit integers with a scale for 32, as llama.cpp's Q8_0. Rows must be multiples of 32.
    Q8_0,
    /// 4.5 bits a value: llama.cpp's Q4_K. Rows must be multiples of 256.
    #[value(name = "q4_k")]
    Q4K,
}

impl From<Quantize> for Format {
    fn from(quantize: Quantize) -> Self {
        match quantize {
            Quantize::Nf4 => Self::FourBit(Kind::Nf4),
            Quantize::Q8_0 => Self::Ggml(GgmlType::Q8_0),
            Quantize::Q4K => Self::Ggml(GgmlType::Q4K),
        }
    }
}

/// Where and in what a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    pub device: DeviceKind,
    pub dtype: Dtype,
    pub quantize: Option<Quantize>,
    pub quantize_head: bool,
}

impl Compute {
    /// What becomes of weights that do not train.
    pub fn frozen(&self) -> Weights {
        match self.quantize {
            Some(quantize) => Weights::Quantised { format: quantize.into(), head: self.quantize_head },
            None => Weights::Frozen,
        }
    }
}

/// What becomes of a model's weights as they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Kept in the compute type.
    Frozen,
    /// The linear layers of blocks are quantised and, with `head`, embedding and head; the rest is kept in the compute
    /// type.
    Quantised { format: Format, head: bool },
    /// Trained, in f32.
    Trained,
}

impl Weights {
    pub fn train(self) -> bool {
        self == Self::Trained
    }

    /// The format that the tensor `name` is quantised to.
    pub fn format(self, name: &str) -> Option<Format> {
        let Self::Quantised { format, head } = self else { return None };
        let is_linear = || {
            let module = name.strip_suffix(".weight").and_then(split_block);
            module.is_some_and(|(_, linear)| BLOCK_LINEARS.contains(&linear) || expert_part(linear).is_some())
        };
        (is_linear() || head && [EMBEDDING, HEAD].contains(&name)).then_some(format)
    }
}

/// The device to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A GPU if this build supports one and the machine has one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
}

impl DeviceKind {
    /// Opens the device.
    ///
    /// # Errors
    /// A kind of device that this build or this machine does not have.
    pub fn open(self) -> Result<Device> {
        // One GPU for each rank of a machine.
        let gpu = Ranks::here().local_rank();
        match self {
            Self::Auto => Ok(device::best(gpu)),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Accelerator::Cuda.open(gpu),
            Self::Metal => Accelerator::Metal.open(0),
        }
    }

    /// Opens the device to compute there in `dtype`.
    ///
    /// # Errors
    /// As [`DeviceKind::open`]; a device without operations in that type.
    pub fn open_for(self, dtype: DType) -> Result<Device> {
        let device = self.open()?;
        device::check_type(&device, dtype)?;
        Ok(device)
    }

    /// What that is, without opening a GPU that is asked for by name; none is the CPU.
    pub fn accelerator(self) -> Option<Accelerator> {
        match self {
            Self::Auto => Accelerator::of(&device::best(Ranks::here().local_rank())),
            Self::Cpu => None,
            Self::Cuda => Some(Accelerator::Cuda),
            Self::Metal => Some(Accelerator::Metal),
        }
    }
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// The safety-aligned model, which is the one fine-tuned: a folder, a GGUF file, or a hub id with an optional
    /// `@revision`, and `:FILE.gguf` after it for a GGUF file.
    pub aligned: String,
    /// A folder or hub id with the model's tokenizer, if it is not its own; some GGUF files need one.
    pub tokenizer: Option<String>,
    /// Its base model, before alignment. The difference of the two is the direction that the penalty anchors to.
    /// Not read when `asft.direction` names a file that holds this difference already.
    pub unaligned: Option<String>,
    /// The type to compute in.
    pub dtype: Dtype,
    /// The device to compute on.
    pub device: DeviceKind,
    /// Quantises the frozen linear layers as they are loaded, tensor by tensor, so that a model takes about a quarter of
    /// its memory in bf16. The adapter trains on what the quantised weights stand for. Not for `train.method = "full"`.
    pub quantize: Option<Quantize>,
    /// Also quantises embedding and output head, which otherwise stay in `dtype`.
    pub quantize_head: bool,
}

impl ModelOptions {
    pub fn compute(&self) -> Compute {
        let Self { device, dtype, quantize, quantize_head, .. } = *self;
        Compute { device, dtype, quantize, quantize_head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_name_or_by_opening_the_best() {
        let known = [DeviceKind::Cpu, DeviceKind::Cuda, DeviceKind::Metal].map(DeviceKind::accelerator);
        assert_eq!(known, [None, Some(Accelerator::Cuda), Some(Accelerator::Metal)]);
        assert_eq!(DeviceKind::Auto.accelerator(), Accelerator::of(&DeviceKind::Auto.open().unwrap()));
    }
}
