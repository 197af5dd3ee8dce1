//! Matrices of zeros, ones and the like that the body for any device multiplies with. They depend on a chunk's length alone, so
//! each is sent to a device once, not in every layer of every step.

use anyhow::Result;
use candle_core::{Device, Tensor};
use std::sync::{Mutex, PoisonError};

/// What is not to be seen, as a logarithm.
const NEVER: f32 = -1e30;

/// Of [size, size] each, f32.
#[derive(Clone)]
pub struct Constants {
    /// 1 in row j and column i where j ≤ i: a row times this has the sums so far.
    pub so_far: Tensor,
    /// 0 where j ≤ i in row i and column j, and −10³⁰ elsewhere.
    pub limit: Tensor,
    /// 1 below the diagonal.
    pub below: Tensor,
    /// 1 on the diagonal.
    pub eye: Tensor,
    /// For s = 1, 2, 4 … below `size`: 1 where the row is in the second and the column in the first half of one diagonal block of
    /// 2 s.
    pub between: Vec<Tensor>,
}

impl Constants {
    /// Those of this size, a power of two or any if `between` does not matter.
    pub fn of(size: usize, device: &Device) -> Result<Self> {
        static MADE: Mutex<Vec<(usize, Device, Constants)>> = Mutex::new(vec![]);
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, found)) = made.iter().find(|(of, on, _)| *of == size && on.same_device(device)) {
            return Ok(found.clone());
        }
        let new = Self::new(size, device)?;
        made.push((size, device.clone(), new.clone()));
        Ok(new)
    }

    fn new(size: usize, device: &Device) -> Result<Self> {
        let matrix = |value: &dyn Fn(usize, usize) -> f32| {
            let values = (0..size * size).map(|place| value(place / size, place % size)).collect::<Vec<f32>>();
            Tensor::from_vec(values, (size, size), device)
        };
        let ones = |is_one: &dyn Fn(usize, usize) -> bool| matrix(&|i, j| f32::from(u8::from(is_one(i, j))));
        let halves = std::iter::successors(Some(1), |half| Some(2 * half)).take_while(|half| *half < size);
        let between = |half: usize| ones(&|i, j| i / (2 * half) == j / (2 * half) && i / half > j / half);
        Ok(Self {
            so_far: ones(&|j, i| j <= i)?,
            limit: matrix(&|i, j| if j <= i { 0.0 } else { NEVER })?,
            below: ones(&|i, j| j < i)?,
            eye: ones(&|i, j| i == j)?,
            between: halves.map(between).collect::<candle_core::Result<_>>()?,
        })
    }
}
