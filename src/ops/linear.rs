//! y = x Wᵀ (+ bias), x: [N, d_in], W: [d_out, d_in], bias: [d_out], y: [N, d_out].
//!
//! Backward: dx = dy W, dW = dyᵀ x, dbias = Σ_n dy. A frozen weight never gets a gradient computed. Transposes are
//! strides that the GEMM reads; nothing is copied. W and x may be of different types, and W may be quantised: y and dx
//! have the activations' type.

#![allow(unsafe_code, reason = "a matrix product into memory that holds nothing yet")]

use super::gemm::{Stored, few_rows, product_with};
use super::gpu;
use super::matrix::Matrix;
use super::sum::add;
use super::traffic::{self, counted};
use super::weight::Operand;
use super::{cast, fused, widen, with_f32};

pub use super::gemm::FEW_ROWS;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};

/// x: [N, d_in] -> y: [N, d_out]
pub fn forward<'a>(x: &Tensor, weight: impl Into<Operand<'a>>, bias: Option<&Tensor>) -> Result<Tensor> {
    biased(matmul(x, weight.into(), [false, true], x.dtype())?, bias)
}

/// x: [N, d_in] -> y: [N, d_out] for each (weight, bias). A few rows are multiplied by all the weights in one go,
/// rather than waiting at the end of each.
pub fn forward_each<'a, const K: usize, W: Copy + Into<Operand<'a>>>(
    x: &Tensor,
    linears: [(W, Option<&Tensor>); K],
) -> Result<[Tensor; K]> {
    let (m, d_in) = x.dims2()?;
    let weights = linears.map(|(weight, _)| weight.into());
    let alike = |w: &Operand| w.dims().is_ok_and(|(_, cols)| cols == d_in) && w.fused() && !w.is_f16();
    if m > FEW_ROWS || d_in == 0 || !fused(&[x]) || !weights.iter().all(alike) {
        return collect(linears.map(|(weight, bias)| forward(x, weight, bias)));
    }
    let guards = weights.map(Operand::hold);
    let mut parts = Vec::with_capacity(K);
    let mut fresh = Vec::with_capacity(K);
    for (weight, guard) in weights.iter().zip(&guards) {
        let (rows, _) = weight.dims()?;
        let (out, memory) = Matrix::fresh(m, rows);
        parts.push((Stored { values: guard.values()?, rows, cols: d_in, transposed: true }, out));
        fresh.push((memory, rows));
    }
    // SAFETY: whole matrices of the checked sizes, and outputs of our own.
    with_f32([x], |[x]| unsafe { few_rows(m, Matrix::read(x, 0, d_in), &parts) })?;
    let mut outputs = fresh.into_iter().zip(linears);
    collect(std::array::from_fn(|_| {
        let ((memory, rows), (_, bias)) = outputs.next().context("one for each")?;
        // SAFETY: the products wrote all elements.
        let y = widen::tensor(unsafe { memory.filled() }, (m, rows).into(), x.dtype())?;
        biased(y, bias)
    }))
}

/// All of them, or the first error.
fn collect<const K: usize>(results: [Result<Tensor>; K]) -> Result<[Tensor; K]> {
    let tensors: Vec<Tensor> = results.into_iter().collect::<Result<_>>()?;
    tensors.try_into().map_err(|_| anyhow::anyhow!("one for each"))
}

fn biased(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match bias {
        Some(bias) => counted(y.broadcast_add(&cast(bias, y.dtype())?)?, &[&y, bias]),
        None => y,
    })
}

/// x: [N, d_in] -> x Wᵀ: [N, d_out] in f32, whatever x and W are: logits. Where kernels serve neither on a CPU nor on a GPU,
/// half precision is rounded to its own type first.
pub fn forward_f32<'a>(x: &Tensor, weight: impl Into<Operand<'a>>) -> Result<Tensor> {
    let weight = weight.into();
    if !fused(&[x]) || !weight.fused() {
        let weight = weight.dense(x.dtype())?;
        if gpu::CROSS_ENTROPY.serve(&[x, &weight])
            && let Some(product) = gpu::products::wide(x, &weight)?
        {
            traffic::product((x.dim(0)?, weight.dim(0)?, x.dim(1)?));
            return Ok(product);
        }
        return matmul(x, (&weight).into(), [false, true], DType::F32);
    }
    matmul(x, weight, [false, true], DType::F32)
}

/// dy: [N, d_out] -> dx: [N, d_in]
pub fn backward_input<'a>(dy: &Tensor, weight: impl Into<Operand<'a>>) -> Result<Tensor> {
    matmul(dy, weight.into(), [false, false], dy.dtype())
}

/// Σ x Wᵀ + bias over (x, W), in the type of the first x.
pub fn forward_sum<'a, W: Copy + Into<Operand<'a>>>(terms: &[(&Tensor, W)], bias: Option<&Tensor>) -> Result<Tensor> {
    biased(sum_of_products(terms, true)?, bias)
}

/// Σ dy W over (dy, W), in the type of the first dy.
pub fn backward_input_sum<'a, W: Copy + Into<Operand<'a>>>(terms: &[(&Tensor, W)]) -> Result<Tensor> {
    sum_of_products(terms, false)
}

/// Σ a b, or a bᵀ, over one or more (a, b). In f32 on the CPU each product is added to the first in place; other types
/// are rounded after every product, as they are when the parts come from different layers.
fn sum_of_products<'a, W: Copy + Into<Operand<'a>>>(terms: &[(&Tensor, W)], transposed: bool) -> Result<Tensor> {
    let terms: Vec<(&Tensor, Operand)> = terms.iter().map(|(a, b)| (*a, (*b).into())).collect();
    let (first, rest) = terms.split_first().context("a sum of no products")?;
    let product = |&(a, b): &(&Tensor, Operand)| matmul(a, b, [false, transposed], a.dtype());
    if rest.is_empty() || !terms.iter().all(|(a, b)| a.dtype() == DType::F32 && fused(&[a]) && b.fused()) {
        return rest.iter().try_fold(product(first)?, |sum, term| add(&sum, &product(term)?));
    }
    let columns = |b: Operand| b.dims().map(|(rows, columns)| if transposed { rows } else { columns });
    let (m, n) = (first.0.dim(0)?, columns(first.1)?);
    for (a, b) in &terms {
        let ((rows, inner), (b_rows, b_cols)) = (a.dims2()?, b.dims()?);
        let fits = rows == m && columns(*b)? == n && inner == if transposed { b_cols } else { b_rows } && inner > 0;
        anyhow::ensure!(fits, "matrices {:?} and {:?} do not fit a sum of {m} x {n}", a.dims(), b.dims()?);
    }
    let (out, fresh) = Matrix::fresh(m, n);
    for (i, (a, b)) in terms.iter().enumerate() {
        let (inner, (rows, cols)) = (a.dim(1)?, b.dims()?);
        let held = b.hold();
        let weight = Stored { values: held.values()?, rows, cols, transposed };
        // SAFETY: whole matrices of the checked sizes, and an output of our own, written by the first product.
        with_f32([*a], |[a]| unsafe { product_with(m, Matrix::read(a, 0, inner), weight, out, i > 0) })?;
    }
    // SAFETY: the first product wrote all m × n elements.
    widen::tensor(unsafe { fresh.filled() }, (m, n).into(), DType::F32)
}

/// dy: [N, d_out], x: [N, d_in] -> dW: [d_out, d_in] in f32
pub fn backward_weight(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    matmul(dy, x.into(), [true, false], DType::F32)
}

/// a b, either of them transposed first. On the CPU it uses every thread of rayon's pool; candle itself uses one per
/// physical core, which leaves hyperthreads idle.
fn matmul(a: &Tensor, b: Operand, [a_transposed, b_transposed]: [bool; 2], dtype: DType) -> Result<Tensor> {
    if !fused(&[a]) || !b.fused() {
        let turned = |x: &Tensor, transposed| if transposed { x.t() } else { Ok(x.clone()) };
        let b = b.dense(a.dtype())?;
        let (a_turned, b_turned) = (turned(a, a_transposed)?, turned(&b, b_transposed)?);
        let product = a_turned.matmul(&b_turned)?;
        traffic::product((a_turned.dim(0)?, b_turned.dim(1)?, a_turned.dim(1)?));
        return cast(&counted(product, &[a, &b]), dtype);
    }
    let turned = |(rows, cols), transposed| if transposed { (cols, rows) } else { (rows, cols) };
    let ((rows, cols), a_dims) = (b.dims()?, a.dims2()?);
    let ((m, k), (inner, n)) = (turned(a_dims, a_transposed), turned((rows, cols), b_transposed));
    anyhow::ensure!(k == inner, "matrices {a_dims:?} and {:?} do not fit together", (rows, cols));
    // With nothing to sum over, nothing would be written.
    anyhow::ensure!(k > 0, "matrices {a_dims:?} and {:?} have no inner dimension", (rows, cols));
    let (out, fresh) = Matrix::fresh(m, n);
    let held = b.hold();
    let weight = Stored { values: held.values()?, rows, cols, transposed: b_transposed };
    with_f32([a], |[a]| {
        let a = Matrix::read(a, 0, a_dims.1);
        let a = if a_transposed { a.t() } else { a };
        // SAFETY: whole matrices of the checked sizes, and an output of our own.
        unsafe { product_with(m, a, weight, out, false) };
    })?;
    // SAFETY: the product wrote all m × n elements.
    widen::tensor(unsafe { fresh.filled() }, (m, n).into(), dtype)
}

/// dy: [N, d_out] -> dbias: [d_out] in f32
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    Ok(dy.to_dtype(DType::F32)?.sum(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    #[test]
    fn kernel_equals_generic() {
        // A strided view goes down the generic path.
        let strided = |x: &Tensor| x.t().unwrap().contiguous().unwrap().t().unwrap();
        let (x, w, dy) = (random(&[37, 70], 1), random(&[50, 70], 2), random(&[37, 50], 3));
        close(&forward(&x, &w, None).unwrap(), &forward(&strided(&x), &w, None).unwrap(), 1e-6);
        close(&backward_input(&dy, &w).unwrap(), &backward_input(&strided(&dy), &w).unwrap(), 1e-6);
        close(&backward_weight(&dy, &x).unwrap(), &backward_weight(&strided(&dy), &x).unwrap(), 1e-6);
        assert!(forward(&dy, &w, None).is_err());
    }

    /// Half-precision operands: the same as their widened values in f32, rounded once.
    #[test]
    fn half_operands_are_widened() {
        // The body for any device rounds operands of different types to the first's, and products as the device does.
        if !crate::ops::has_cpu_kernels() {
            return;
        }
        let (x, w, dy) = (random(&[37, 70], 1), random(&[50, 70], 2), random(&[37, 50], 3));
        for dtype in [DType::BF16, DType::F16] {
            let half = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let wide = |t: &Tensor| half(t).to_dtype(DType::F32).unwrap();
            let expect = |got: Tensor, exact: Tensor| {
                assert_eq!(got.dtype(), dtype);
                close(&got, &half(&exact), 1e-4);
            };
            expect(forward(&half(&x), &half(&w), None).unwrap(), forward(&wide(&x), &wide(&w), None).unwrap());
            expect(forward(&half(&x), &w, None).unwrap(), forward(&wide(&x), &w, None).unwrap());
            expect(backward_input(&half(&dy), &half(&w)).unwrap(), backward_input(&wide(&dy), &wide(&w)).unwrap());
            let dw = backward_weight(&half(&dy), &half(&x)).unwrap();
            assert_eq!(dw.dtype(), DType::F32);
            close(&dw, &backward_weight(&wide(&dy), &wide(&x)).unwrap(), 1e-6);
        }
    }

    #[test]
    fn each_of_several_is_as_it_would_be_alone() {
        let (w, u, bias) = (random(&[50, 70], 2), random(&[21, 70], 3), random(&[21], 4));
        for (n, dtype) in [(1, DType::F32), (4, DType::BF16), (9, DType::F32)] {
            let x = random(&[n, 70], 1).to_dtype(dtype).unwrap();
            let (w, u) = (w.to_dtype(dtype).unwrap(), u.to_dtype(dtype).unwrap());
            let [y, z] = forward_each(&x, [(&w, None), (&u, Some(&bias))]).unwrap();
            close(&y, &forward(&x, &w, None).unwrap(), 1e-7);
            close(&z, &forward(&x, &u, Some(&bias)).unwrap(), 1e-7);
        }
    }

    #[test]
    fn no_rows_give_no_rows() {
        let (x, w) = (Tensor::zeros((0, 70), DType::F32, &candle_core::Device::Cpu).unwrap(), random(&[50, 70], 2));
        assert_eq!(forward(&x, &w, None).unwrap().dims(), [0, 50]);
        let [y, z] = forward_each(&x, [(&w, None), (&w, None)]).unwrap();
        assert_eq!((y.dims(), z.dims()), ([0, 50].as_slice(), [0, 50].as_slice()));
    }

    #[test]
    fn a_sum_is_that_of_its_products() {
        let (x, w, z, b) = (random(&[9, 70], 1), random(&[50, 70], 2), random(&[9, 8], 3), random(&[50, 8], 4));
        for dtype in [DType::F32, DType::BF16] {
            let (x, w) = (x.to_dtype(dtype).unwrap(), w.to_dtype(dtype).unwrap());
            let expected = add(&forward(&x, &w, None).unwrap(), &forward(&z, &b, None).unwrap()).unwrap();
            close(&forward_sum(&[(&x, &w), (&z, &b)], None).unwrap(), &expected, 1e-6);
        }
        let (dy, a) = (random(&[9, 50], 5), random(&[8, 70], 6));
        let expected = add(&backward_input(&dy, &w).unwrap(), &backward_input(&z, &a).unwrap()).unwrap();
        close(&backward_input_sum(&[(&dy, &w), (&z, &a)]).unwrap(), &expected, 1e-6);
        assert!(forward_sum(&[(&x, &w), (&x, &b)], None).is_err());
    }

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
