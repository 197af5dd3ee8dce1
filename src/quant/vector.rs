//! What rows of blocks are multiplied with: a vector, and what is made of it once for all rows.

use std::sync::OnceLock;

/// A vector of activations.
pub struct Vector<'a> {
    values: &'a [f32],
    sums_of_16: OnceLock<Vec<f32>>,
    sums_of_32: OnceLock<Vec<f32>>,
    paired: OnceLock<Vec<f32>>,
    by_lanes: OnceLock<Vec<[[f32; 16]; 8]>>,
}

impl<'a> Vector<'a> {
    pub fn new(values: &'a [f32]) -> Self {
        Self {
            values,
            sums_of_16: OnceLock::new(),
            sums_of_32: OnceLock::new(),
            paired: OnceLock::new(),
            by_lanes: OnceLock::new(),
        }
    }

    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The sums of each 16 values, as many as are whole.
    pub fn sums_of_16(&self) -> &[f32] {
        self.sums_of_16.get_or_init(|| sums::<16>(self.values))
    }

    /// The sums of each 32 values, as many as are whole.
    pub fn sums_of_32(&self) -> &[f32] {
        self.sums_of_32.get_or_init(|| sums::<32>(self.values))
    }

    /// For each 64 values, as many as are whole: those at even places, then those at odd ones, each in the order 0, 2, 4, 6,
    /// 32, 34, 36, 38, 8, 10 and so on: in which codes of four bits come out of two halves of a vector register.
    pub fn paired(&self) -> &[f32] {
        self.paired.get_or_init(|| {
            let mut paired = Vec::with_capacity(self.values.len());
            for part in self.values.as_chunks::<64>().0 {
                for odd in [0, 1] {
                    paired.extend((0..32).map(|i| part[32 * (i / 4 % 2) + 8 * (i / 8) + 2 * (i % 4) + odd]));
                }
            }
            paired
        })
    }

    /// For each 128 values, the last ones filled up with zeros: the second of each eight, then their first, fourth, third and so
    /// on: in which codes of four bits come out of 16 lanes with eight each, the first of each byte in its high half.
    pub fn by_lanes(&self) -> &[[[f32; 16]; 8]] {
        self.by_lanes.get_or_init(|| {
            let mut all = vec![[[0f32; 16]; 8]; self.values.len().div_ceil(128)];
            for (i, x) in self.values.iter().enumerate() {
                all[i / 128][(i % 8) ^ 1][i % 128 / 8] = *x;
            }
            all
        })
    }
}

fn sums<const WIDTH: usize>(values: &[f32]) -> Vec<f32> {
    values.as_chunks::<WIDTH>().0.iter().map(|group| group.iter().sum()).collect()
}
