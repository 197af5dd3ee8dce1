//! What the tests of the primitives share: seeded tensors, comparison, and finite differences in f64.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};

/// Seeded values in (-1, 1), f32 on the CPU.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts ‖a − b‖ ≤ tolerance · ‖b‖ over the whole tensor.
#[track_caller]
pub fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let difference = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
    let norm = b.iter().map(|y| y * y).sum::<f64>().sqrt();
    assert!(difference <= tolerance * norm.max(1e-12), "relative error {}", difference / norm);
}

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// A function of several tensors, evaluated in f64, with an upstream gradient: checked by central differences.
pub struct Case {
    inputs: Vec<Tensor>,
    dy: Tensor,
    function: Function,
}

impl Case {
    pub fn new(inputs: Vec<Tensor>, dy: Tensor, function: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Self {
        let wide = |t: Tensor| t.to_dtype(DType::F64).unwrap();
        Self { inputs: inputs.into_iter().map(wide).collect(), dy: wide(dy), function: Box::new(function) }
    }

    fn objective(&self, inputs: &[Tensor]) -> f64 {
        let y = (self.function)(inputs).unwrap();
        (y * &self.dy).unwrap().sum_all().unwrap().to_scalar().unwrap()
    }

    /// Asserts that `gradients` (one per input) equal central differences of ⟨f(inputs), dy⟩.
    #[track_caller]
    pub fn check(&self, gradients: &[&Tensor], tolerance: f64) {
        let h = 1e-5;
        for (i, gradient) in gradients.iter().enumerate() {
            let base = values(&self.inputs[i]);
            let numeric: Vec<f64> = (0..base.len())
                .map(|j| {
                    let shifted = |delta: f64| {
                        let mut moved = base.clone();
                        moved[j] += delta;
                        let mut inputs = self.inputs.clone();
                        inputs[i] = Tensor::from_vec(moved, self.inputs[i].dims(), &Device::Cpu).unwrap();
                        self.objective(&inputs)
                    };
                    (shifted(h) - shifted(-h)) / (2.0 * h)
                })
                .collect();
            let numeric = Tensor::from_vec(numeric, self.inputs[i].dims(), &Device::Cpu).unwrap();
            close(gradient, &numeric, tolerance);
        }
    }
}
