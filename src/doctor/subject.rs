//! What is checked, made-up inputs for it, and how an error is measured.

use super::operations::Operations;
use crate::ops::dropout::mix;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use std::fmt::{self, Display};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// One small size of each.
    Short,
    /// Large sizes and long sequences too.
    Full,
}

/// Operations on a device, in a compute type.
pub struct Subject {
    pub device: Device,
    pub dtype: DType,
    pub depth: Depth,
    pub operations: Operations,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Row by row, from the start of its memory.
    Whole,
    /// Row by row, after another row.
    Part,
    /// Column by column: a transposed view.
    Turned,
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "whole",
            Self::Part => "part",
            Self::Turned => "transposed",
        })
    }
}

impl Lie {
    pub const ALL: [Self; 3] = [Self::Whole, Self::Part, Self::Turned];
}

impl Subject {
    pub fn new(device: &Device, dtype: DType, depth: Depth) -> Self {
        Self { device: device.clone(), dtype, depth, operations: Operations::default() }
    }

    /// `few`, and in a full examination `more`.
    pub fn sizes<T: Clone>(&self, few: &[T], more: &[T]) -> Vec<T> {
        let more = if self.depth == Depth::Full { more } else { &[] };
        [few, more].concat()
    }

    /// Values in (−1, 1) of the compute type.
    pub fn values(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        self.values_of(self.dtype, shape, seed)
    }

    /// Values in (−1, 1); rounded on the CPU, which the device's own conversion has no part in.
    pub fn values_of(&self, dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor> {
        let value = |i: u64| (mix(mix(seed).wrapping_add(i)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(value).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(&self.device)?)
    }

    /// [rows, columns] of the compute type.
    pub fn matrix(&self, rows: usize, columns: usize, lie: Lie, seed: u64) -> Result<Tensor> {
        self.matrix_of(self.dtype, rows, columns, lie, seed)
    }

    pub fn matrix_of(&self, dtype: DType, rows: usize, columns: usize, lie: Lie, seed: u64) -> Result<Tensor> {
        Ok(match lie {
            Lie::Whole => self.values_of(dtype, &[rows, columns], seed)?,
            Lie::Part => self.values_of(dtype, &[rows + 1, columns], seed)?.narrow(0, 1, rows)?,
            Lie::Turned => self.values_of(dtype, &[columns, rows], seed)?.t()?,
        })
    }
}

/// On the CPU, and f64 unless these are integers.
pub fn exact(x: &Tensor) -> Result<Tensor> {
    let x = x.detach().to_device(&Device::Cpu)?;
    Ok(if x.dtype().is_int() { x } else { x.to_dtype(DType::F64)? })
}

/// A function's value at `inputs` and its gradients for `dy`, in f64 on the CPU.
pub fn oracle(
    inputs: &[&Tensor],
    dy: &Tensor,
    function: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars: Vec<Var> = inputs.iter().map(|x| Ok(Var::from_tensor(&exact(x)?)?)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = function(&tensors)?;
    let gradients = (&y * &exact(dy)?)?.sum_all()?.backward()?;
    let of = |x: &Tensor| gradients.get(x).cloned().context("an input without a gradient");
    Ok((y.detach(), tensors.iter().map(of).collect::<Result<_>>()?))
}

/// Errors that are rounding, in units of a type's epsilon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// What is computed in f32 or f64: mostly the rounding of long sums.
    pub wide: f64,
    /// What is computed in bf16, or f16: sums are wider than that, results are rounded a few times.
    pub narrow: f64,
}

/// f16's epsilon is an eighth of bf16's, but its small values have fewer digits, and some sums are no wider.
const OF_F16: f64 = 4.0;

impl Tolerance {
    pub const EXACT: Self = Self { wide: 0.0, narrow: 0.0 };

    fn of(self, dtype: DType) -> f64 {
        match dtype {
            DType::BF16 => self.narrow,
            DType::F16 => OF_F16 * self.narrow,
            _ => self.wide,
        }
    }
}

/// The difference of 1 and the next larger value.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    }
}

/// The error that comes nearest to what is allowed, or exceeds it most.
#[derive(Clone, Debug)]
pub struct Worst {
    tolerance: Tolerance,
    /// In units of its type's epsilon; infinite if a value is not what it should be at all.
    pub epsilons: f64,
    pub allowed: f64,
    pub at: String,
}

impl Worst {
    pub fn new(tolerance: Tolerance) -> Self {
        Self { tolerance, epsilons: 0.0, allowed: tolerance.wide, at: String::new() }
    }

    pub fn is_allowed(&self) -> bool {
        self.epsilons <= self.allowed
    }

    /// Takes in what was computed in `dtype`: the largest |got − exact| / (|exact| + rms(exact)), so that a value near
    /// zero, which is mostly the rounding of larger ones, counts as what it is.
    pub fn note(&mut self, at: impl Display, dtype: DType, got: &Tensor, exact: &Tensor) -> Result<()> {
        let (was, expected) = (got.dims(), exact.dims());
        ensure!(was == expected, "{at}: the shape is {was:?}, expected {expected:?}");
        let flat =
            |x: &Tensor| x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (got, exact) = (flat(got)?, flat(exact)?);
        let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len().max(1) as f64).sqrt();
        let error = got.iter().zip(&exact).map(|(got, exact)| {
            let difference = (got - exact).abs();
            // A difference that is not a number must not be lost in the maximum.
            if got == exact {
                0.0
            } else if difference.is_nan() {
                f64::INFINITY
            } else {
                difference / (exact.abs() + rms)
            }
        });
        self.take(at, dtype, error.fold(0.0, f64::max));
        Ok(())
    }

    /// Takes in one number.
    pub fn number(&mut self, at: impl Display, dtype: DType, got: f64, exact: f64) {
        let error = (got - exact).abs() / exact.abs();
        self.take(
            at,
            dtype,
            if got == exact {
                0.0
            } else if error.is_nan() {
                f64::INFINITY
            } else {
                error
            },
        );
    }

    fn take(&mut self, at: impl Display, dtype: DType, error: f64) {
        let (epsilons, allowed) = (error / epsilon(dtype), self.tolerance.of(dtype));
        // Compared as epsilons / allowed, either of which may be 0.
        if self.at.is_empty()
            || epsilons * self.allowed > self.epsilons * allowed
            || epsilons > allowed && self.is_allowed()
        {
            (self.epsilons, self.allowed, self.at) = (epsilons, allowed, format!("{at} in {}", dtype.as_str()));
        }
    }
}
