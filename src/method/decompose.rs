//! Decompositions under the direction: all eigenpairs in place, and columns made orthonormal. The kernels are faer's.

use super::dense::{View, gram_lower, gram_lower_f32, panels};
use super::symmetric::Symmetric;
use anyhow::{Result, anyhow};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as reflect_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as reflect,
};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::linalg::{evd, qr};
use faer::traits::RealField;
use faer::{Accum, Conj, Mat, MatMut, Par, Spec};

/// Departure from orthonormal columns, squared, up to which a correction of first order leaves nothing in f32.
const SLIGHT: f32 = 1e-7;

/// All eigenpairs of a symmetric matrix given by its lower triangle, ascending. Works in the matrix's own memory: the
/// peak is four matrices, its own, the eigenvectors and two of workspace. The reduction to tridiagonal form keeps to one
/// thread: it waits for memory, and faer's would sum in another order on two.
pub fn eigen_in_place<T: RealField>(mut a: Mat<T>, par: Par) -> Result<(Vec<T>, Mat<T>)> {
    let n = a.nrows();
    let block = qr::no_pivoting::factor::recommended_block_size::<T>(n, n);
    let mut reflectors = Mat::<T>::zeros(block, n - 1);
    let scratch = evd::tridiag::tridiag_in_place_scratch::<T>(n, Par::Seq, Spec::default());
    with_stack(scratch, |stack| {
        evd::tridiag::tridiag_in_place(a.as_mut(), reflectors.as_mut(), Par::Seq, stack, Spec::default());
    });
    let (mut diagonal, mut below) = (Diag::<T>::zeros(n), Diag::<T>::zeros(n));
    for i in 0..n {
        diagonal[i] = a[(i, i)].clone();
        if i + 1 < n {
            below[i] = a[(i + 1, i)].clone();
        }
    }
    let (mut values, mut vectors) = (Diag::<T>::zeros(n), Mat::<T>::zeros(n, n));
    let square = StackReq::new::<T>(n * (n + 64)); // columns are padded to a cache line
    with_stack(square.and(square).and(StackReq::new::<[u64; 16]>(2 * n + 64)), |stack| {
        let vectors = Some(vectors.as_mut());
        evd::tridiagonal_self_adjoint_evd(
            diagonal.as_ref(),
            below.as_ref(),
            values.as_mut(),
            vectors,
            par,
            stack,
            Spec::default(),
        )
    })
    .map_err(|e| anyhow!("the eigenvalue iteration did not converge: {e:?}"))?;
    if n > 1 {
        with_stack(reflect_scratch::<T>(n - 1, block, n), |stack| {
            let basis = a.submatrix(1, 0, n - 1, n - 1);
            let rows = vectors.as_mut().subrows_mut(1, n - 1);
            reflect(basis, reflectors.as_ref(), Conj::No, rows, par, stack);
        });
    }
    Ok((values.column_vector().iter().cloned().collect(), vectors))
}

/// Makes the columns of a row-major matrix [rows, k] orthonormal: X ← X L⁻ᵀ, XᵀX = L Lᵀ. They must be nearly so; where
/// they are so but for rounding, L⁻¹ is taken to first order and all in f32.
pub fn orthonormalize(values: &mut [f32], rows: usize, k: usize, par: Par) -> Result<()> {
    if let Some(inverse) = slight_departure(View::new(values, rows, k), par) {
        use BlockStructure::{Rectangular, TriangularUpper};
        for range in panels(rows, k) {
            let block = &mut values[range.start * k..range.end * k];
            let panel = View::new(block, range.len(), k).matrix().to_owned();
            let target = MatMut::from_row_major_slice_mut(block, range.len(), k);
            let inverse = inverse.transpose();
            triangular::matmul(
                target,
                Rectangular,
                Accum::Replace,
                &panel,
                Rectangular,
                inverse,
                TriangularUpper,
                1.0,
                par,
            );
        }
        return Ok(());
    }
    let mut gram = Symmetric::from_lower(gram_lower(View::new(values, rows, k), true, 1.0, par));
    anyhow::ensure!(gram.has_cholesky(1.0, 0.0, par), "the singular vectors found are linearly dependent");
    let l = gram.into_work();
    for range in panels(rows, k) {
        let block = &mut values[range.start * k..range.end * k];
        let mut panel = View::new(block, range.len(), k).block_t(0..range.len(), 0..k);
        solve_lower_triangular_in_place(l.as_ref(), panel.as_mut(), par);
        for (j, row) in block.chunks_mut(k.max(1)).enumerate() {
            for (target, value) in row.iter_mut().zip(panel.col_as_slice(j)) {
                *target = *value as f32;
            }
        }
    }
    Ok(())
}

/// L⁻¹ to first order for XᵀX = I + E = L Lᵀ, if E is small enough: L ≈ I + E's strict lower triangle + half its diagonal.
fn slight_departure(x: View, par: Par) -> Option<Mat<f32>> {
    let k = x.columns;
    let mut gram = gram_lower_f32(x, par);
    let mut columns = vec![0f32; k];
    for j in 0..k {
        let column = &mut gram.col_as_slice_mut(j)[j..];
        column[0] = 0.5 * (column[0] - 1.0);
        for (i, value) in column.iter_mut().enumerate() {
            let square = *value * *value;
            columns[j] += square;
            columns[j + i] += square;
            *value = -*value;
        }
        column[0] += 1.0;
    }
    // Not a number counts as large.
    columns.iter().all(|square| *square <= SLIGHT).then_some(gram)
}

fn with_stack<R>(size: StackReq, work: impl FnOnce(&mut MemStack) -> R) -> R {
    let mut memory = MemBuffer::new(size);
    work(MemStack::new(&mut memory))
}

#[cfg(test)]
mod tests {
    use super::super::dense::multiply_f32;
    use super::super::symmetric::tests::random_symmetric;
    use super::*;

    #[test]
    fn in_place_eigenpairs_reconstruct() {
        for n in [1, 2, 3, 40, 200] {
            let a = random_symmetric(n, 1);
            let (values, vectors) = eigen_in_place(a.clone(), Par::Seq).unwrap();
            let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]);
            let difference = &scaled * vectors.transpose() - &a;
            assert!(difference.norm_l2() < 1e-10 * (1.0 + a.norm_l2()), "{n}");
        }
    }

    /// What is computed must not depend on the number of threads.
    #[test]
    fn parallelism_does_not_change_a_bit() {
        let n = 500;
        let values: Vec<f32> = random_symmetric(n, 4).col_iter().flat_map(|c| c.iter().map(|x| *x as f32)).collect();
        let view = View::new(&values, n, n);
        let run = |par: Par| {
            let gram = gram_lower(view, false, 1.0, par);
            let (values, vectors) = eigen_in_place(gram.clone(), par).unwrap();
            let mut symmetric = Symmetric::from_lower(gram.clone());
            assert!(symmetric.has_cholesky(1.0, 1.0, par));
            let factor = symmetric.into_work();
            let narrow = eigen_in_place(Mat::<f32>::from_fn(n, n, |i, j| gram[(i, j)] as f32), par).unwrap();
            (gram, multiply_f32(view, true, view, par), gram_lower_f32(view, par), factor, values, vectors, narrow)
        };
        assert!(run(Par::Seq) == run(Par::rayon(2)));
    }
}
