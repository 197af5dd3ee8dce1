//! Batches without padding, samples packed into rows, and the order in which an epoch visits them.

use super::{Example, IGNORE};
use crate::model::Sequences;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Range;

/// Samples one after another. Nothing is padded: each sample is a separate sequence, whose positions start at 0 and
/// which sees none of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
    /// Number of tokens of each sample.
    pub lengths: Vec<usize>,
}

impl Batch {
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Positions that the loss counts: a sample's label at position 0 is never predicted.
    pub fn label_tokens(&self) -> usize {
        let mut labels = &self.labels[..];
        let mut count = 0;
        for &length in &self.lengths {
            let (sample, rest) = labels.split_at(length.min(labels.len()));
            (count, labels) = (count + predicted_labels(sample), rest);
        }
        count
    }
}

impl Batch {
    /// Some of the samples, and how many tokens come before them.
    pub fn part(&self, samples: Range<usize>) -> (usize, Self) {
        let lengths = self.lengths[samples.clone()].to_vec();
        let start: usize = self.lengths[..samples.start].iter().sum();
        let tokens = start..start + lengths.iter().sum::<usize>();
        (
            start,
            Self { input_ids: self.input_ids[tokens.clone()].to_vec(), labels: self.labels[tokens].to_vec(), lengths },
        )
    }
}

impl<'a> From<&'a Batch> for Sequences<'a> {
    fn from(batch: &'a Batch) -> Self {
        Self { input_ids: &batch.input_ids, labels: &batch.labels, lengths: &batch.lengths }
    }
}

/// Labels of one sample that the loss counts after the shift by one.
pub fn predicted_labels(labels: &[i64]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != IGNORE).count()
}

/// Puts `examples` one after another.
pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Batch {
    let mut batch = Batch::default();
    for example in examples {
        batch.input_ids.extend_from_slice(&example.input_ids);
        batch.labels.extend_from_slice(&example.labels);
        batch.lengths.push(example.input_ids.len());
    }
    batch
}

/// Packs samples of these lengths into rows of at most `capacity` tokens, the longest first, each into the row that it
/// fills best. Rows hold sample numbers; a sample longer than `capacity` gets its own row.
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut rows: Vec<Vec<usize>> = vec![];
    // Rows by remaining room.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for sample in by_length {
        let length = lengths[sample];
        let best = open.range(length..).next().map(|(&room, _)| room);
        let (row, room) = match best.and_then(|room| Some((open.get_mut(&room)?.pop()?, room))) {
            Some(found) => found,
            None => {
                rows.push(vec![]);
                (rows.len() - 1, capacity.max(length))
            }
        };
        if open.get(&room).is_some_and(Vec::is_empty) {
            open.remove(&room);
        }
        rows[row].push(sample);
        open.entry(room - length).or_default().push(row);
    }
    rows
}

/// The order of `count` samples in `epoch` (0, 1, ...): a permutation that depends on `seed` and `epoch` alone, on
/// every platform; file order without `shuffle`.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // One stream per epoch: epoch 7 does not need the earlier ones drawn first.
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
    fn samples_stand_side_by_side_and_count() {
        let a = Example { input_ids: vec![1, 2, 3], labels: vec![1, IGNORE, 3] };
        let b = Example { input_ids: vec![4, 5], labels: vec![4, 5] };
        let batch = collate([&a, &b]);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5]);
        assert_eq!(batch.labels, [1, IGNORE, 3, 4, 5]);
        assert_eq!((batch.lengths.as_slice(), batch.tokens(), batch.label_tokens()), (&[3, 2][..], 5, 2));
        assert_eq!(batch.part(1..2), (3, collate([&b])));
        assert_eq!((batch.part(0..2), batch.part(2..2)), ((0, batch.clone()), (5, Batch::default())));
        assert_eq!(collate([]).label_tokens(), 0);
    }

    #[test]
    fn packing_fills_rows_and_loses_nothing() {
        assert_eq!(pack(&[3, 9, 5, 2, 4, 12], 10), [vec![5], vec![1], vec![2, 4], vec![0, 3]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        let lengths: Vec<usize> = (0..500).map(|i| 1 + i * 37 % 90).collect();
        let rows = pack(&lengths, 128);
        let mut seen: Vec<usize> = rows.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row.iter().map(|&i| lengths[i]).sum::<usize>() <= 128));
        let tokens: usize = lengths.iter().sum();
        assert!(rows.len() <= tokens.div_ceil(128) + 1, "{} rows for {tokens} tokens", rows.len());
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
