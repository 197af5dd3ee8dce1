//! Activations of gates. Those of an MLP are x σ(u(x)): silu has u = x, GELU's tanh form u = 2 √(2/π) (x + 0.044715 x³), since
//! (1 + tanh z) / 2 = σ(2z); their slope is σ(u) + x σ(u) (1 − σ(u)) u'(x). σ(x) itself has the slope σ(x) (1 − σ(x)).

use super::fast_math::sigmoid;
use anyhow::Result;
use candle_core::Tensor;

/// 2 √(2/π)
const GELU_SCALE: f64 = 1.595_769_121_605_731;
const GELU_CUBIC: f64 = 0.044_715;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU's tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// σ, of attention's and a shared expert's gates.
    Sigmoid,
}

impl Activation {
    pub const ALL: [Self; 3] = [Self::Silu, Self::GeluTanh, Self::Sigmoid];

    /// (value, slope) at x, for kernels.
    #[inline(always)]
    pub fn at(self, x: f32) -> (f32, f32) {
        let (u, du) = match self {
            Self::Sigmoid => {
                let sigma = sigmoid(x);
                return (sigma, sigma * (1.0 - sigma));
            }
            Self::Silu => (x, 1.0),
            Self::GeluTanh => {
                let (scale, cubic) = (GELU_SCALE as f32, GELU_CUBIC as f32);
                (scale * (x + cubic * x * x * x), scale * (1.0 + 3.0 * cubic * x * x))
            }
        };
        let sigma = sigmoid(u);
        let value = x * sigma;
        (value, sigma + value * (1.0 - sigma) * du)
    }

    /// x: any shape -> value
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => candle_nn::ops::silu(x)?,
            Self::GeluTanh => x.gelu()?,
            Self::Sigmoid => candle_nn::ops::sigmoid(x)?,
        })
    }

    /// x: any shape -> (value, slope)
    pub fn with_slope(self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (sigma, du) = match self {
            Self::Sigmoid => {
                let sigma = candle_nn::ops::sigmoid(x)?;
                let slope = (&sigma * (1.0 - &sigma)?)?;
                return Ok((sigma, slope));
            }
            Self::Silu => (candle_nn::ops::sigmoid(x)?, None),
            Self::GeluTanh => {
                let square = x.sqr()?;
                let u = ((x * ((&square * GELU_CUBIC)? + 1.0)?)? * GELU_SCALE)?;
                (candle_nn::ops::sigmoid(&u)?, Some(((square * (3.0 * GELU_CUBIC))? + 1.0)?))
            }
        };
        let value = (x * &sigma)?;
        let bend = (&value * (1.0 - &sigma)?)?;
        let bend = match du {
            Some(du) => ((bend * du)? * GELU_SCALE)?,
            None => bend,
        };
        Ok((value, (sigma + bend)?))
    }
}
