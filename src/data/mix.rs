//! `data.mix`: samples from other files among the training samples.
//!
//! Serves safety examples in the fine-tuning data (SafeInstr, Bianchi et al., arXiv 2309.07875), the same behind a
//! secret prefix (BEA, Wang et al., arXiv 2402.14968), and harmful samples mixed in to see what they do to a model.

use super::batch::{epoch_order, predicted_labels};
use super::dataset::{Dataset, Mixed};
use super::options::Mix;
use crate::ensure_valid;
use anyhow::Result;

/// Appends samples of `parts`, the files of `mixes`, to `train`, in the numbers asked for. Which of a file's samples
/// are taken depends on `seed`; if there are too few, all are repeated as often as needed.
///
/// # Errors
/// More samples than memory could hold.
pub fn mix(train: &mut Dataset, parts: Vec<Dataset>, mixes: &[Mix], seed: u64) -> Result<()> {
    let numbers = numbers(train.examples.len(), &parts, mixes);
    for (stream, (part, number)) in parts.into_iter().zip(numbers).enumerate() {
        ensure_valid!(number < 1 << 32, "data.mix asks for {number} samples of {}", part.path.display());
        let available = part.examples.len();
        let first_file = train.files.len();
        train.files.extend(part.files.iter().cloned());
        for sample in chosen(available, number, seed, stream) {
            train.take(&part, sample, first_file);
            let Some(example) = train.examples.last() else { continue };
            train.counts.records += 1;
            train.counts.tokens += example.input_ids.len();
            train.counts.label_tokens += predicted_labels(&example.labels);
        }
        train.mixed.push(Mixed { path: part.path, samples: number, available });
    }
    Ok(())
}

/// How many samples of each file. With n training samples and c from files without a share, the whole is N = (n + c) /
/// (1 − Σ share), and a share's number is share · N.
fn numbers(train: usize, parts: &[Dataset], mixes: &[Mix]) -> Vec<usize> {
    let counted = |(mix, part): (&Mix, &Dataset)| mix.count.unwrap_or(part.examples.len());
    let shares: f64 = mixes.iter().filter_map(|mix| mix.share).sum();
    let fixed: usize = mixes.iter().zip(parts).filter(|(mix, _)| mix.share.is_none()).map(counted).sum();
    let whole = (train + fixed) as f64 / (1.0 - shares);
    let number = |pair: (&Mix, &Dataset)| match pair.0.share {
        Some(share) => ((share * whole).round() as usize).max(1),
        None => counted(pair),
    };
    mixes.iter().zip(parts).map(number).collect()
}

/// `number` of `available` samples in file order, each equally often, give or take one.
fn chosen(available: usize, number: usize, seed: u64, stream: usize) -> Vec<usize> {
    let whole = number / available;
    // Streams of the seed that neither an epoch nor the validation samples use.
    let order = epoch_order(available, seed, u64::MAX - 1 - stream as u64, true);
    let mut more: Vec<usize> = order.into_iter().take(number % available).collect();
    more.sort_unstable();
    (0..whole).flat_map(|_| 0..available).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, Example, Origin, Place};
    use super::*;
    use std::path::Path;

    fn dataset(name: &str, count: usize) -> Dataset {
        let example = |i: usize| Example { input_ids: vec![i as u32; 3], labels: vec![-100, 1, 1] };
        let origin = |line| Origin { file: 0, place: Place::Line(line) };
        Dataset {
            examples: (0..count).map(example).collect(),
            origins: (1..=count).map(origin).collect(),
            counts: Counts { records: count, tokens: 3 * count, label_tokens: 2 * count, ..Counts::default() },
            ..Dataset::new(Path::new(name), vec![name.into()])
        }
    }

    fn share(share: f64) -> Mix {
        Mix { file: "a".into(), share: Some(share), ..Mix::default() }
    }

    #[test]
    fn shares_are_of_the_whole() {
        let count = Mix { file: "b".into(), count: Some(5), ..Mix::default() };
        let all = Mix { file: "c".into(), ..Mix::default() };
        let mixes = [share(0.1), count, all, share(0.3)];
        let parts = [dataset("a", 100), dataset("b", 2), dataset("c", 7), dataset("d", 9)];
        let mut train = dataset("train", 48);
        mix(&mut train, parts.to_vec(), &mixes, 1).unwrap();
        let samples: Vec<usize> = train.mixed.iter().map(|mixed| mixed.samples).collect();
        assert_eq!(samples, [10, 5, 7, 30]);
        assert_eq!((train.examples.len(), train.counts.records, train.counts.tokens), (100, 100, 300));
        assert_eq!((train.origin(47), train.origin(58)), ("train:48".to_string(), "b:1".to_string()));
        assert!(train.mixed[3].to_string().contains("d: 30 samples mixed in, of 9, some of them several times"));
    }

    #[test]
    fn samples_are_chosen_by_seed_and_evenly() {
        assert_eq!(chosen(5, 5, 1, 0), [0, 1, 2, 3, 4]);
        let some = chosen(1000, 10, 1, 0);
        assert!(some.is_sorted() && some.len() == 10 && some == chosen(1000, 10, 1, 0));
        assert!(some != chosen(1000, 10, 2, 0) && some != chosen(1000, 10, 1, 1));
        let mut times = [0; 4];
        chosen(4, 11, 3, 0).into_iter().for_each(|sample| times[sample] += 1);
        assert!(times.iter().all(|&times| times == 2 || times == 3), "{times:?}");
    }
}
