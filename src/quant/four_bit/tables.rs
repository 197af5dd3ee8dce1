//! The tables of bitsandbytes' four-bit types, and of the bytes that scales are quantised to.

/// A four-bit type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The quantiles of a normal distribution (QLoRA, arXiv 2305.14314).
    Nf4,
    /// A sign, two bits of exponent and one of mantissa.
    Fp4,
}

impl Kind {
    /// What each code stands for, before its scale.
    pub fn table(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            Self::Fp4 => FP4.map(|value| value / 12.0),
        }
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// In twelfths.
const FP4: [f32; 16] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

/// The 256 numbers of bitsandbytes' signed dynamic type, ascending: a sign, a decimal exponent in unary, and the rest
/// of the byte linear between 0.1 and 1 (Dettmers, arXiv 1511.04561).
pub fn dynamic() -> Vec<f32> {
    const EXPONENTS: i32 = 7;
    let mut values = vec![0.0, 1.0];
    for i in 0..EXPONENTS {
        let steps = (1usize << i) + 1;
        let bounds = linear(0.1, 1.0, steps);
        let scale = 10f64.powi(i - (EXPONENTS - 1)) as f32;
        for pair in bounds.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            values.extend([scale * mean, -scale * mean]);
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

/// `steps` numbers from `start` to `end`, each counted from the nearer end, as PyTorch's `linspace` does.
fn linear(start: f32, end: f32, steps: usize) -> Vec<f32> {
    let step = (end - start) / (steps - 1) as f32;
    let at = |i: usize| if i < steps / 2 { start + step * i as f32 } else { end - step * (steps - 1 - i) as f32 };
    (0..steps).map(at).collect()
}
