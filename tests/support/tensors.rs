//! Tensors as numbers, and how far apart they are.

use candle_core::{DType, Device, Tensor};

pub fn to_vec(tensor: &Tensor) -> Vec<f64> {
    tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖x‖ over all elements, in f64.
pub fn norm(x: &Tensor) -> f64 {
    to_vec(x).iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Largest |a − b|
pub fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// ‖a − b‖ / ‖b‖
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = b.iter().map(|y| y * y).sum::<f64>().sqrt();
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt() / norm.max(1e-30)
}
