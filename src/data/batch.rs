//! Padded batches, and the order in which an epoch visits the samples.

use super::{Example, IGNORE};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Samples padded on the right to the longest of them. Row-major `[batch_size, length]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub input_ids: Vec<u32>,
    /// [`IGNORE`] where padded.
    pub labels: Vec<i64>,
    pub batch_size: usize,
    pub length: usize,
    /// Tokens of each row before padding.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// Tokens without padding.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Positions that the loss counts: a row's label at position 0 is never predicted.
    pub fn label_tokens(&self) -> usize {
        self.labels.chunks(self.length.max(1)).map(predicted_labels).sum()
    }
}

/// Labels of one sample that the loss counts after the shift by one.
pub fn predicted_labels(labels: &[i64]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != IGNORE).count()
}

/// Pads `examples` to the longest of them with `pad_id`; no examples give an empty batch.
pub fn collate(examples: &[&Example], pad_id: u32) -> Batch {
    let lengths: Vec<usize> = examples.iter().map(|example| example.input_ids.len()).collect();
    let length = lengths.iter().copied().max().unwrap_or(0);
    let mut input_ids = Vec::with_capacity(examples.len() * length);
    let mut labels = Vec::with_capacity(examples.len() * length);
    for (row, example) in examples.iter().enumerate() {
        input_ids.extend_from_slice(&example.input_ids);
        input_ids.resize((row + 1) * length, pad_id);
        labels.extend_from_slice(&example.labels);
        labels.resize((row + 1) * length, IGNORE);
    }
    Batch { input_ids, labels, batch_size: examples.len(), length, lengths }
}

/// The order of `count` samples in `epoch` (0, 1, ...): a permutation that depends on `seed` and `epoch` alone, on
/// every platform; file order without `shuffle`.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // One stream per epoch: epoch 7 can be had without going through the six before it.
        rng.set_stream(epoch);
        for last in (1..count).rev() {
            order.swap(last, below(&mut rng, last as u64 + 1) as usize);
        }
    }
    order
}

/// A number in `0..bound`. The bias is at most bound / 2⁶⁴, and the result the same whatever usize is.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_on_the_right_and_counts() {
        let a = Example { input_ids: vec![1, 2, 3], labels: vec![1, IGNORE, 3] };
        let b = Example { input_ids: vec![4], labels: vec![4] };
        let batch = collate(&[&a, &b], 9);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 9, 9]);
        assert_eq!(batch.labels, [1, IGNORE, 3, 4, IGNORE, IGNORE]);
        assert_eq!((batch.batch_size, batch.length, batch.tokens(), batch.label_tokens()), (2, 3, 4, 1));
        assert_eq!(collate(&[], 0).label_tokens(), 0);
    }

    #[test]
    fn order_is_a_fixed_permutation() {
        let order = epoch_order(100, 42, 0, true);
        assert_eq!(order, epoch_order(100, 42, 0, true));
        assert_ne!(order, epoch_order(100, 42, 1, true));
        assert_ne!(order, epoch_order(100, 43, 0, true));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, epoch_order(100, 42, 0, false));
        assert_eq!(epoch_order(0, 1, 0, true), Vec::<usize>::new());
    }

    #[test]
    fn order_never_changes_between_releases() {
        assert_eq!(epoch_order(8, 42, 0, true), [4, 7, 0, 1, 3, 2, 6, 5]);
    }
}
