//! An update cut down to what lies in V's leading subspace, or to what lies outside of it: ΔW ← P ΔW, ΔW − P ΔW, ΔW Q or ΔW − ΔW Q.
//!
//! ```text
//! columns   P = U_k U_kᵀ  [d_out, d_out]    folded into B
//! rows      Q = R_k R_kᵀ  [d_in, d_in]      folded into A
//! ```
//!
//! with k the fewest leading singular vectors that hold a share of ‖V‖². What an update does without a part of it, and with nothing
//! else, says whether that part brings its effect about. The control takes subspaces of the same size at random.

use super::direction_file::Directions;
use super::random::orthonormal;
use super::spectral::Direction;
use crate::adapter::Adapter;
use crate::invalid;
use anyhow::{Context, Result};
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is left of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What lies in the span of V's leading columns.
    Columns,
    /// What lies outside of it.
    WithoutColumns,
    /// What lies in the span of V's leading rows.
    Rows,
    /// What lies outside of it.
    WithoutRows,
}

impl Part {
    fn is_on_rows(self) -> bool {
        matches!(self, Self::Rows | Self::WithoutRows)
    }

    fn is_outside(self) -> bool {
        matches!(self, Self::WithoutColumns | Self::WithoutRows)
    }
}

/// The adapter with only that part of every update. `energy`: the share of ‖V‖² that the subspaces hold. `random`: a seed, for subspaces of the
/// same size that have nothing to do with V. Where V = 0 the subspace is empty.
///
/// # Errors
/// A direction file that lacks a module of the adapter, or keeps too little of V.
pub fn part_of(
    adapter: &Adapter,
    directions: &Directions,
    part: Part,
    (energy, random): (f64, Option<u64>),
) -> Result<Adapter> {
    let mut out = adapter.clone();
    for (name, module) in &mut out.modules {
        let direction = directions.read(name)?;
        let cut = cut_module((name, &direction), (&module.a, &module.b), part, (energy, random));
        (module.a, module.b) = cut.with_context(|| format!("module {name}"))?;
    }
    Ok(out)
}

/// A and B of a module whose product is the part.
fn cut_module(
    (name, direction): (&str, &Direction),
    (a, b): (&Tensor, &Tensor),
    part: Part,
    (energy, random): (f64, Option<u64>),
) -> Result<(Tensor, Tensor)> {
    let rows = part.is_on_rows();
    // Of A [r, d_in] the rows are cut down, of B [d_out, r] the columns.
    let columns = if rows { a.t()?.contiguous()? } else { b.clone() };
    let inside = match basis(direction, name, part, (energy, random))? {
        Some(basis) => basis.matmul(&basis.t()?.matmul(&columns)?)?,
        None => columns.zeros_like()?,
    };
    let left = if part.is_outside() { (&columns - inside)? } else { inside };
    Ok(if rows { (left.t()?.contiguous()?, b.clone()) } else { (a.clone(), left) })
}

/// The orthonormal columns of the subspace; `None` where V = 0.
fn basis(
    direction: &Direction,
    module: &str,
    part: Part,
    (energy, random): (f64, Option<u64>),
) -> Result<Option<Tensor>> {
    if direction.rank() == 0 {
        return Ok(None);
    }
    let k = direction.leading(energy).ok_or_else(|| {
        let held = direction.energy();
        invalid!("the direction file holds only {held:.3} of ‖V‖², not {energy}; compute it with a smaller --tolerance")
    })?;
    let (d_out, d_in) = direction.shape;
    let rows = if part.is_on_rows() { d_in } else { d_out };
    if let Some(seed) = random {
        return Ok(Some(orthonormal(rows, k, &format!("{seed} {module} part"))?));
    }
    let basis = if part.is_on_rows() { direction.right()? } else { &direction.basis };
    Ok(Some(basis.narrow(1, 0, k)?.contiguous()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Keep;
    use crate::ops::testing::random;
    use candle_core::{DType, Device};

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn near(found: &Tensor, expected: &Tensor) -> bool {
        values(found).iter().zip(values(expected)).all(|(found, expected)| (found - expected).abs() < 1e-4)
    }

    /// ΔW's part against P = U_k U_kᵀ and Q = R_k R_kᵀ formed from an SVD's factors, and the other part as the rest.
    #[test]
    fn parts_are_projections_of_the_update_and_add_up_to_it() {
        let (d_out, d_in, r) = (12, 10, 3);
        let direction = Direction::of(&random(&[d_out, d_in], 1), Keep::Tolerance(0.0)).unwrap();
        let (a, b) = (random(&[r, d_in], 2), random(&[d_out, r], 3));
        let whole = b.matmul(&a).unwrap();
        let k = direction.leading(0.6).unwrap();
        assert!(k > 0 && k < d_in, "{k}");
        for (inside, outside) in [(Part::Columns, Part::WithoutColumns), (Part::Rows, Part::WithoutRows)] {
            let of = |part: Part, seed: Option<u64>| {
                let module = cut_module(("m", &direction), (&a, &b), part, (0.6, seed)).unwrap();
                module.1.matmul(&module.0).unwrap()
            };
            let rows = inside == Part::Rows;
            let basis = if rows { direction.right().unwrap() } else { &direction.basis };
            let basis = basis.narrow(1, 0, k).unwrap().contiguous().unwrap();
            let projector = basis.matmul(&basis.t().unwrap()).unwrap();
            let expected = if rows { whole.matmul(&projector) } else { projector.matmul(&whole) }.unwrap();
            assert!(near(&of(inside, None), &expected), "{inside:?}");
            for seed in [None, Some(7)] {
                let both = (of(inside, seed) + of(outside, seed)).unwrap();
                assert!(near(&both, &whole), "{inside:?} {seed:?}");
            }
            // Elsewhere at random, of the same size: cut twice it stays.
            let at_random = of(inside, Some(7));
            assert!(!near(&at_random, &expected) && !near(&at_random, &of(inside, Some(8))));
            let again = cut_module(("m", &direction), (&a, &b), inside, (0.6, Some(7))).unwrap();
            let again = cut_module(("m", &direction), (&again.0, &again.1), inside, (0.6, Some(7))).unwrap();
            assert!(near(&again.1.matmul(&again.0).unwrap(), &at_random));
        }
    }

    #[test]
    fn where_v_is_zero_nothing_lies_inside() {
        let direction =
            Direction::of(&Tensor::zeros((4, 5), DType::F32, &Device::Cpu).unwrap(), Keep::Tolerance(0.0)).unwrap();
        let (a, b) = (random(&[2, 5], 2), random(&[4, 2], 3));
        let (_, inside) = cut_module(("m", &direction), (&a, &b), Part::Columns, (0.9, None)).unwrap();
        let (outside, _) = cut_module(("m", &direction), (&a, &b), Part::WithoutRows, (0.9, None)).unwrap();
        assert!(values(&inside).iter().all(|value| *value == 0.0) && near(&outside, &a));
    }
}
