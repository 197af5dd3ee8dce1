//! Which kernels there are, and whether they serve.

use super::call::Language;
use super::sources::SOURCES;
use crate::device::Accelerator;
use crate::ops::{Bodies, bodies};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

/// The kernels of one operation, which serve or are switched off together.
#[cfg_attr(not(any(feature = "cuda", feature = "metal")), expect(dead_code, reason = "only a GPU loads kernels"))]
pub struct Kernels {
    /// The operation's name, which warnings and `asft doctor` use.
    pub name: &'static str,
    /// The file that they are in, without `.cu`.
    pub(super) source: &'static str,
    /// One of them, which is looked for when they are loaded.
    pub(super) entry: &'static str,
    pub(super) is_off: AtomicBool,
}

macro_rules! kernels {
    ($($name:ident = $operation:literal: $entry:literal in $source:literal;)*) => {
        $(pub static $name: Kernels =
            Kernels { name: $operation, source: $source, entry: $entry, is_off: AtomicBool::new(false) };)*
        /// All of them.
        pub static ALL: &[&Kernels] = &[$(&$name),*];
    };
}

kernels! {
    ATTENTION = "attention": "attention_forward_64" in "attention";
    CAUSAL_CONV = "causal_conv": "causal_conv_forward" in "causal_conv";
    CROSS_ENTROPY = "cross_entropy": "cross_entropy" in "cross_entropy";
    DROPOUT = "dropout": "dropout" in "elementwise";
    GATED_MLP = "gated_mlp": "gated_mlp_forward" in "elementwise";
    GGML = "ggml": "q4_k" in "ggml";
    PARAMETERS = "parameters": "adamw" in "parameters";
    PENALTY = "penalty": "penalty_sums" in "penalty";
    QUANTISED = "quantised": "four_bit" in "quantised";
    RMS_NORM = "rms_norm": "rms_norm_forward" in "rms_norm";
    ROPE = "rope": "rope" in "elementwise";
    SOFTCAP = "softcap": "softcap_forward" in "elementwise";
    SUM = "sum": "add_narrowed" in "elementwise";
}

/// Which of the kernels that save memory compute on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    pub attention: bool,
    pub gated_mlp: bool,
    pub cross_entropy: bool,
    /// Of quantised weights, in the formats that `model.quantize` has.
    pub four_bit: bool,
    pub ggml: bool,
}

impl Serving {
    /// As in a build for such GPUs, whatever this one is for.
    pub fn of(accelerator: Accelerator) -> Self {
        let language = match accelerator {
            Accelerator::Cuda => Language::Cuda,
            Accelerator::Metal => Language::Metal,
        };
        Self::those(|kernels| kernels.are_in(language))
    }

    /// Those of this build, as far as they are not switched off.
    pub fn on(device: &Device) -> Self {
        Self::those(|kernels| kernels.is_for(device) && !kernels.is_off.load(Ordering::Relaxed))
    }

    fn those(serves: impl Fn(&Kernels) -> bool) -> Self {
        let [attention, gated_mlp, cross_entropy, four_bit, ggml] =
            [&ATTENTION, &GATED_MLP, &CROSS_ENTROPY, &QUANTISED, &GGML].map(serves);
        Self { attention, gated_mlp, cross_entropy, four_bit, ggml }
    }
}

impl Kernels {
    /// Whether this build has these kernels for a device.
    fn is_for(&self, device: &Device) -> bool {
        language(device).is_some_and(|language| self.are_in(language))
    }

    /// Whether they are written in that language.
    fn are_in(&self, language: Language) -> bool {
        match language {
            Language::Cuda => true,
            Language::Metal => SOURCES.contains(&(self.source, true)),
        }
    }

    /// Whether these kernels may compute with such tensors: contiguous ones of floats, on a GPU for which this build has
    /// them.
    pub fn serve(&self, tensors: &[&Tensor]) -> bool {
        let Some(first) = tensors.first() else { return false };
        self.is_for(first.device())
            && tensors
                .iter()
                .all(|t| is_float(t.dtype()) && t.is_contiguous() && t.device().same_device(first.device()))
            && !self.is_off.load(Ordering::Relaxed)
            && self.load(first)
    }

    /// As [`Kernels::serve`], for kernels of f32 only, and tensors that are not empty.
    pub fn serve_f32(&self, tensors: &[&Tensor]) -> bool {
        tensors.iter().all(|x| x.dtype() == DType::F32 && x.elem_count() > 0) && self.serve(tensors)
    }

    /// Leaves the operation to its generic body from now on.
    pub fn switch_off(&self) {
        self.is_off.store(true, Ordering::Relaxed);
    }

    /// Whether the kernels for tensors like `x` can be loaded; if not, they are switched off and a warning says so.
    fn load(&self, x: &Tensor) -> bool {
        match back_end_load(self, x) {
            Ok(()) => true,
            Err(error) => {
                self.switch_off();
                let name = self.name;
                crate::console::log::warn(
                    &format!("the GPU kernels of {name} cannot be used, so it is computed in more steps: {error:#}"),
                    serde_json::json!({"kernels": name, "error": format!("{error:#}")}),
                );
                false
            }
        }
    }
}

/// Types that kernels come in.
fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// What this build's kernels for a device are written in, if it has some.
pub(super) fn language(device: &Device) -> Option<Language> {
    match device {
        Device::Cpu if cfg!(feature = "shim") => match bodies() {
            Bodies::Shim => Some(Language::Cuda),
            Bodies::MetalShim => Some(Language::Metal),
            _ => None,
        },
        Device::Cpu => None,
        Device::Cuda(_) => cfg!(feature = "cuda").then_some(Language::Cuda),
        Device::Metal(_) => cfg!(feature = "metal").then_some(Language::Metal),
    }
}

#[cfg_attr(
    not(any(feature = "cuda", feature = "metal")),
    expect(unused_variables, reason = "only a GPU loads kernels")
)]
fn back_end_load(kernels: &Kernels, x: &Tensor) -> Result<()> {
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::load(device, (kernels.source, kernels.entry), x.dtype()),
        #[cfg(feature = "metal")]
        Device::Metal(device) => super::metal::load(device, (kernels.source, kernels.entry), x.dtype()),
        _ => Ok(()),
    }
}
