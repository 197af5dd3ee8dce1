//! The penalty of one module: its value and its gradients.

use crate::ops::scalar::Scalar;
use candle_core::Tensor;

/// A LoRA module's penalty: λ included in the value and in both gradients (f32).
pub struct Term {
    pub value: Scalar,
    pub grad_a: Tensor,
    pub grad_b: Tensor,
}

/// A full-tuning module's penalty: λ included in the value and in the gradient with respect to ΔW (f32).
pub struct FullTerm {
    pub value: Scalar,
    pub grad: Tensor,
}
