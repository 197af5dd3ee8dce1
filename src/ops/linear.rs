//! y = x Wᵀ (+ bias), x: [N, d_in], W: [d_out, d_in], bias: [d_out], y: [N, d_out].
//!
//! Backward: dx = dy W, dW = dyᵀ x, dbias = Σ_n dy. A frozen weight never gets a gradient computed. Transposes are
//! strides that the GEMM reads; nothing is copied.

use anyhow::Result;
use candle_core::Tensor;

/// x: [N, d_in] -> y: [N, d_out]
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

/// dy: [N, d_out] -> dx: [N, d_in]
pub fn backward_input(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(dy.matmul(weight)?)
}

/// dy: [N, d_out], x: [N, d_in] -> dW: [d_out, d_in]
pub fn backward_weight(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(dy.t()?.matmul(x)?)
}

/// dy: [N, d_out] -> dbias: [d_out]
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    Ok(dy.sum(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    #[test]
    fn matches_autograd_and_finite_differences() {
        let (n, d_in, d_out) = (5, 7, 3);
        let (x, w, b) = (random(&[n, d_in], 1), random(&[d_out, d_in], 2), random(&[d_out], 3));
        let dy = random(&[n, d_out], 4);
        let (dx, dw, db) =
            (backward_input(&dy, &w).unwrap(), backward_weight(&dy, &x).unwrap(), backward_bias(&dy).unwrap());

        let vars = [&x, &w, &b].map(|t| Var::from_tensor(t).unwrap());
        let y = vars[0].matmul(&vars[1].t().unwrap()).unwrap().broadcast_add(&vars[2]).unwrap();
        let grads = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, got) in vars.iter().zip([&dx, &dw, &db]) {
            close(got, grads.get(var).unwrap(), 1e-5);
        }

        let case = Case::new(vec![x, w, b], dy, |v| {
            let (x, w, b) = (&v[0], &v[1], &v[2]);
            x.matmul(&w.t()?)?.broadcast_add(b)
        });
        case.check(&[&dx, &dw, &db], 1e-5);
    }
}
