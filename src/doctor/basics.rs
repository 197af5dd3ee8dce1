//! candle's own operations, as a training step uses them (the table in docs/gpu.md), and copies.

use super::check::Check;
use super::subject::{Depth, Lie, Subject, Tolerance, Worst, exact};
use crate::ops::scalar::wide;
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};

/// Rows and columns that are no multiple of anything.
const SMALL: (usize, usize) = (67, 131);

pub const CHECKS: &[Check] = &[
    Check::new("copy", "a copy that must not change with its origin", Tolerance::EXACT, copies),
    Check::new("views", "cat, narrow, transpose, contiguous", Tolerance::EXACT, views),
    Check::new("convert", "conversions between types", Tolerance::EXACT, conversions),
    Check::new(
        "elementwise",
        "sums, products, functions, comparisons",
        Tolerance { wide: 64.0, narrow: 2.0 },
        elementwise,
    ),
    Check::new("reduce", "sums and maxima over rows and columns", Tolerance { wide: 256.0, narrow: 2.0 }, reductions),
    Check::new("softmax", "over rows, also masked ones", Tolerance { wide: 128.0, narrow: 2.0 }, softmax),
    Check::new("index", "rows and values chosen and added by index", Tolerance { wide: 4.0, narrow: 4.0 }, indexing),
    Check::new(
        "matmul",
        "products, also of transposed views and batches",
        Tolerance { wide: 256.0, narrow: 2.0 },
        products,
    ),
];

/// The same function on the device and in f64.
fn same(
    worst: &mut Worst,
    at: &str,
    inputs: &[&Tensor],
    function: impl Fn(&[&Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let wide: Vec<Tensor> = inputs.iter().map(|x| exact(x)).collect::<Result<_>>()?;
    let (got, expected) = (function(inputs)?, function(&wide.iter().collect::<Vec<_>>())?);
    worst.note(at, got.dtype(), &got, &expected)
}

fn copies(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let origin = subject.values_of(DType::F32, &[SMALL.0, SMALL.1], 1)?;
    let (var, expected) = (Var::from_tensor(&origin)?, exact(&origin)?);
    let copy = subject.operations.copy;
    let (whole, turned) = (copy(var.as_tensor())?, copy(&var.as_tensor().t()?)?);
    var.set(&var.zeros_like()?)?;
    worst.note("a matrix", DType::F32, &whole, &expected)?;
    worst.note("a transposed view", DType::F32, &turned, &expected.t()?)
}

fn views(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let x = subject.values(&[2, 33, 3, 16], 1)?;
    same(worst, "transpose", &[&x], |x| Ok(x[0].transpose(1, 2)?.contiguous()?.reshape((6, 33, 16))?))?;
    same(worst, "narrow", &[&x], |x| Ok(x[0].narrow(1, 5, 17)?.contiguous()?))?;
    same(worst, "cat", &[&x], |x| Ok(Tensor::cat(&[x[0].narrow(1, 0, 5)?, x[0].narrow(1, 20, 9)?], 1)?))
}

fn conversions(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let x = subject.values_of(DType::F32, &[SMALL.0, SMALL.1], 1)?;
    let there = |x: &Tensor| x.to_dtype(subject.dtype);
    let rounded = there(&x.to_device(&Device::Cpu)?)?;
    worst.note("f32 rounded", subject.dtype, &there(&x)?, &rounded)?;
    worst.note("and widened again", DType::F32, &there(&x)?.to_dtype(DType::F32)?, &rounded)?;
    if wide(&subject.device) == DType::F64 {
        worst.note("f32 widened", DType::F64, &x.to_dtype(DType::F64)?, &x)?;
    }
    let bytes = Tensor::from_vec((0..=255).collect::<Vec<u8>>(), 256, &subject.device)?;
    worst.note("bytes", DType::F32, &bytes.to_dtype(DType::U32)?, &bytes)
}

fn elementwise(subject: &Subject, worst: &mut Worst) -> Result<()> {
    type Function = fn(&Tensor) -> candle_core::Result<Tensor>;
    let functions: [(&str, Function); 12] = [
        ("sqr", Tensor::sqr),
        ("exp", Tensor::exp),
        ("neg", Tensor::neg),
        ("tanh", Tensor::tanh),
        ("silu", Tensor::silu),
        ("gelu", Tensor::gelu),
        ("abs", Tensor::abs),
        ("sigmoid", |x| (x.neg()?.exp()? + 1.0)?.recip()),
        ("affine", |x| x.affine(1.7, -0.3)),
        ("sqrt", |x| x.sqr()?.affine(1.0, 0.5)?.sqrt()),
        ("log", |x| x.sqr()?.affine(1.0, 0.5)?.log()),
        ("minimum", |x| x.minimum(0.25)),
    ];
    let (rows, columns) = SMALL;
    for lie in Lie::ALL {
        let wide = subject.matrix_of(DType::F32, rows, columns, lie, 1)?;
        for (name, function) in functions {
            same(worst, name, &[&wide], |x| Ok(function(x[0])?))?;
        }
        same(worst, "candle_nn's sigmoid", &[&wide], |x| {
            Ok(if x[0].dtype() == DType::F32 {
                candle_nn::ops::sigmoid(x[0])?
            } else {
                (x[0].neg()?.exp()? + 1.0)?.recip()?
            })
        })?;
        let (row, column) = (subject.values(&[columns], 2)?, (subject.values(&[rows, 1], 3)? + 2.0)?);
        let (x, y) = (subject.matrix(rows, columns, lie, 4)?, subject.matrix(rows, columns, Lie::Whole, 5)?);
        let inputs = [&x, &y, &row, &column];
        same(worst, "add", &inputs, |x| Ok((x[0] + x[1])?))?;
        same(worst, "mul", &inputs, |x| Ok((x[0] * x[1])?))?;
        same(worst, "broadcast add", &inputs, |x| Ok(x[0].broadcast_add(x[2])?))?;
        same(worst, "broadcast sub", &inputs, |x| Ok(x[0].broadcast_sub(x[3])?))?;
        same(worst, "broadcast mul", &inputs, |x| Ok(x[0].broadcast_mul(x[3])?))?;
        same(worst, "div", &inputs, |x| Ok(x[0].broadcast_div(x[3])?))?;
        let limit = row.to_dtype(DType::F32)?;
        let choose = |at: &[&Tensor]| {
            let below = at[0].broadcast_le(at[1])?;
            let above = at[0].broadcast_gt(&(at[1] * 2.0)?)?;
            let zeros = at[0].zeros_like()?;
            Ok((below.where_cond(at[0], &zeros)? + above.where_cond(&zeros, at[0])?)?)
        };
        same(worst, "le, gt, where_cond", &[&wide, &limit], choose)?;
    }
    Ok(())
}

fn reductions(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (rows, columns) in subject.sizes(&[SMALL, (3, 1031)], &[(1031, 7), (3, 300_007)]) {
        // All of one sign: a sum near zero would be nothing but rounding.
        let x = (subject.values_of(DType::F32, &[rows, columns], 1)? + 1.5)?;
        for (lie, x) in [("rows", x.clone()), ("columns", x.t()?)] {
            let at = |what: &str| format!("{what} of {rows} x {columns}, {lie}");
            same(worst, &at("sum"), &[&x], |x| Ok(x[0].sum(D::Minus1)?))?;
            same(worst, &at("sum_keepdim"), &[&x], |x| Ok(x[0].sum_keepdim(0)?))?;
            same(worst, &at("max"), &[&x], |x| Ok(x[0].max_keepdim(D::Minus1)?))?;
            let total = |x: &[&Tensor]| Ok(x[0].to_dtype(wide(x[0].device()))?.sum_all()?);
            same(worst, &at("sum of all"), &[&x], total)?;
        }
    }
    Ok(())
}

fn softmax(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (rows, columns) in subject.sizes(&[SMALL, (4, 1031)], &[(1, 1), (2, 65_537), (32_771, 33)]) {
        let x = (subject.values_of(DType::F32, &[rows, columns], 1)? * 4.0)?;
        // A causal mask: the first row sees one value.
        let place = |i: usize| if i % columns > (i / columns) * columns / rows { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..rows * columns).map(place).collect();
        let masked = (&x + Tensor::from_vec(mask, (rows, columns), &subject.device)?)?;
        for (name, x) in [("whole", x), ("masked", masked)] {
            let wide = exact(&x)?;
            let exponentials = wide.broadcast_sub(&wide.max_keepdim(D::Minus1)?)?.exp()?;
            let expected = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
            let got = (subject.operations.softmax)(&x)?;
            worst.note(format!("{name} rows of {rows} x {columns}"), DType::F32, &got, &expected)?;
        }
    }
    Ok(())
}

fn indexing(subject: &Subject, worst: &mut Worst) -> Result<()> {
    // 255 and 65535 are rows here, not marks; some rows come twice.
    let table_rows = if subject.depth == Depth::Full { 65_600u32 } else { 300 };
    let picked = |i: u32| match i % 4 {
        0 => 255,
        1 => table_rows - 1,
        2 => 65_535 % table_rows,
        _ => i,
    };
    let picked: Vec<u32> = (0..67).map(picked).collect();
    let ids = Tensor::new(picked, &subject.device)?;
    for dtype in [subject.dtype, DType::F32] {
        let table = subject.values_of(dtype, &[table_rows as usize, 33], 1)?;
        let rows = subject.values_of(dtype, &[67, 33], 2)?;
        same(worst, "index_select", &[&table, &ids], |x| Ok(x[0].index_select(x[1], 0)?))?;
        let once = Tensor::arange(3u32, 70, &subject.device)?;
        same(worst, "index_add", &[&table, &once, &rows], |x| Ok(x[0].zeros_like()?.index_add(x[1], x[2], 0)?))?;
    }
    let x = subject.values_of(DType::F32, &[67, 300], 3)?;
    let column =
        Tensor::new((0..67).map(|i| (i * 37 + 255) % 300).collect::<Vec<u32>>(), &subject.device)?.unsqueeze(1)?;
    let minus = subject.values_of(DType::F32, &[67, 1], 4)?;
    same(worst, "gather", &[&x, &column], |x| Ok(x[0].gather(x[1], 1)?))?;
    same(worst, "scatter_add", &[&x, &column, &minus], |x| Ok(x[0].scatter_add(x[1], x[2], 1)?))
}

fn products(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let matmul = subject.operations.matmul;
    let types = [DType::F32, wide(&subject.device), subject.dtype];
    for (m, k, n) in subject.sizes(&[(67, 131, 33), (1, 64, 257)], &[(129, 1031, 5), (520, 264, 392)]) {
        for dtype in types {
            let [a, b, a_turned, b_turned] = [(m, k), (k, n), (k, m), (n, k)]
                .map(|(rows, columns)| subject.values_of(dtype, &[rows, columns], (rows * columns) as u64));
            let (a, b, a_turned, b_turned) = (a?, b?, a_turned?, b_turned?);
            let sizes = format!("{m} x {k} x {n}");
            for (name, a, b) in [("a b", &a, &b), ("a bᵀ", &a, &b_turned.t()?), ("aᵀ b", &a_turned.t()?, &b)] {
                product(worst, &format!("{name} of {sizes}"), matmul(a, b)?, (a, b))?;
            }
        }
    }
    let (a, b) = (subject.values(&[6, 17, 40], 1)?, subject.values(&[6, 33, 40], 2)?.t()?);
    product(worst, "a bᵀ of a batch", matmul(&a, &b)?, (&a, &b))?;
    product(worst, "aᵀ a of a batch", matmul(&a.t()?, &a)?, (&a.t()?, &a))
}

fn product(worst: &mut Worst, at: &str, got: Tensor, (a, b): (&Tensor, &Tensor)) -> Result<()> {
    let expected = exact(a)?.contiguous()?.matmul(&exact(b)?.contiguous()?)?;
    worst.note(at, got.dtype(), &got, &expected)
}
