//! All eigenpairs of a symmetric matrix, computed in its own memory. The kernels are faer's.

use anyhow::{Result, anyhow};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as reflect_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as reflect,
};
use faer::linalg::{evd, qr};
use faer::traits::RealField;
use faer::{Conj, Mat, Par, Spec};

/// All eigenpairs of a symmetric matrix given by its lower triangle, ascending. Works in the matrix's own memory: the
/// peak is four matrices, its own, the eigenvectors and two of workspace. The reduction to tridiagonal form uses one
/// thread: it is bound by memory, and on two threads faer would sum in another order.
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

fn with_stack<R>(size: StackReq, work: impl FnOnce(&mut MemStack) -> R) -> R {
    let mut memory = MemBuffer::new(size);
    work(MemStack::new(&mut memory))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    pub fn random_symmetric(n: usize, seed: u64) -> Mat<f64> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let x = Mat::<f64>::from_fn(n, n, |_, _| random.random_range(-1.0..1.0));
        &x + x.transpose()
    }

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
}
