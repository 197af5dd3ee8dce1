//! Which kernels there are, and whether they serve.

use crate::ops::{Bodies, bodies};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

/// The kernels of one operation, which serve or are switched off together.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only CUDA loads kernels"))]
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
    CROSS_ENTROPY = "cross_entropy": "cross_entropy" in "cross_entropy";
    DROPOUT = "dropout": "dropout" in "elementwise";
    GATED_MLP = "gated_mlp": "gated_mlp_forward" in "elementwise";
    PARAMETERS = "parameters": "adamw" in "parameters";
    PENALTY = "penalty": "penalty_sums" in "penalty";
    QUANTISED = "quantised": "four_bit" in "quantised";
    RMS_NORM = "rms_norm": "rms_norm_forward" in "rms_norm";
    ROPE = "rope": "rope" in "elementwise";
    SOFTCAP = "softcap": "softcap_forward" in "elementwise";
    SUM = "sum": "add_narrowed" in "elementwise";
}

impl Kernels {
    /// Whether these kernels may compute with such tensors: contiguous ones of floats, on a GPU for which this build has
    /// kernels.
    pub fn serve(&self, tensors: &[&Tensor]) -> bool {
        let Some(first) = tensors.first() else { return false };
        has_kernels(first.device())
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

/// Whether this build has kernels for a device.
fn has_kernels(device: &Device) -> bool {
    match device {
        Device::Cpu => cfg!(feature = "shim") && bodies() == Bodies::Shim,
        Device::Cuda(_) => cfg!(feature = "cuda"),
        Device::Metal(_) => false,
    }
}

#[cfg(feature = "cuda")]
fn back_end_load(kernels: &Kernels, x: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cuda(device) => super::cuda::load(device, (kernels.source, kernels.entry), x.dtype()),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "cuda"))]
fn back_end_load(_: &Kernels, _: &Tensor) -> Result<()> {
    Ok(())
}
