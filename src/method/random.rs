//! The random-direction control: V's singular values, with singular vectors that have nothing to do with V.
//!
//! V' = Q diag(σ) Rᵀ with Q [d_out, k] and R [d_in, k] orthonormal and uniformly distributed (the Q of a Gaussian
//! matrix's QR, with the signs that make R's diagonal positive; Mezzadri, arXiv math-ph/0609050). C' = V' V'ᵀ / ‖V‖_F then
//! has C's eigenvalues. If a penalty with C' protects as well as one with C, its effect owes nothing to the alignment
//! direction.

use super::spectral::Direction;
use anyhow::Result;
use candle_core::{Device, Tensor};
use faer::Mat;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// `direction`, that of `module`, with random singular vectors in place of U and, where it holds R, of R.
pub fn random_direction(direction: &Direction, module: &str, seed: u64) -> Result<Direction> {
    let ((d_out, d_in), k) = (direction.shape, direction.rank());
    let right = direction.right.as_ref().map(|_| orthonormal(d_in, k, &format!("{seed} {module} right")));
    let basis = orthonormal(d_out, k, &format!("{seed} {module} left"))?;
    Ok(Direction { basis, right: right.transpose()?, ..direction.clone() })
}

/// k orthonormal columns of length `rows` ≥ k, f32; a function of `stream` only.
pub fn orthonormal(rows: usize, k: usize, stream: &str) -> Result<Tensor> {
    let mut draws = normals(stream);
    let gaussian = Mat::<f64>::from_fn(rows, k, |_, _| draws.next().unwrap_or_default());
    let qr = gaussian.qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    let values: Vec<f32> = (0..rows)
        .flat_map(|i| (0..k).map(move |j| (i, j)))
        .map(|(i, j)| (q[(i, j)] * r[(j, j)].signum()) as f32)
        .collect();
    Ok(Tensor::from_vec(values, (rows, k), &Device::Cpu)?)
}

/// An endless stream of standard normal numbers. They depend only on `stream`, so nothing random has to be stored.
pub(super) fn normals(stream: &str) -> impl Iterator<Item = f64> + use<> {
    ChaCha8Rng::from_seed(*blake3::hash(stream.as_bytes()).as_bytes()).sample_iter(StandardNormal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn direction(d_out: usize, k: usize) -> Direction {
        let basis = Tensor::zeros((d_out, k), DType::F32, &Device::Cpu).unwrap();
        let eigenvalues = (0..k).map(|i| i as f32).collect();
        Direction { shape: (d_out, d_out), right: Some(basis.clone()), basis, eigenvalues, v_norm: 2.0, residual: 0.1 }
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_basis_is_orthonormal_and_follows_from_seed_and_module() {
        let (d_out, k) = (90, 40);
        let plain = direction(d_out, k);
        let random = random_direction(&plain, "m", 7).unwrap();
        assert_eq!((&random.eigenvalues, random.v_norm), (&plain.eigenvalues, 2.0));
        let gram = random.basis.t().unwrap().matmul(&random.basis).unwrap();
        let error = (gram - Tensor::eye(k, DType::F32, &Device::Cpu).unwrap()).unwrap().abs().unwrap();
        assert!(values(&error).iter().all(|&e| e < 1e-6));
        let basis = |module: &str, seed| values(&random_direction(&plain, module, seed).unwrap().basis);
        assert_eq!(basis("m", 7), values(&random.basis));
        assert!(basis("n", 7) != basis("m", 7) && basis("m", 8) != basis("m", 7));
        // On average, half of a uniformly distributed vector's squared norm lies in half of its entries.
        let upper: f64 = basis("m", 7)[..d_out / 2 * k].iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((upper / k as f64 - 0.5).abs() < 0.05, "{upper}");
        let right = random.right().unwrap();
        assert!(right.dims() == [d_out, k] && values(right) != basis("m", 7));
        assert!(random_direction(&plain.without_right(), "m", 7).unwrap().right.is_none());
    }
}
