//! `data.mix`: samples from other files among the training samples.
//!
//! Serves safety examples in the fine-tuning data (SafeInstr, Bianchi et al., arXiv 2309.07875), the same behind a
//! secret prefix (BEA, Wang et al., arXiv 2402.14968), and harmful samples mixed in to see what they do to a model.

use super::{Dataset, epoch_order, predicted_labels};
use crate::ensure_valid;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A file whose samples are mixed in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// A file or hub dataset in the format and with the columns of `data.train`.
    pub file: String,
    /// Its part of all training samples, above 0 and below 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Or its number of samples. Without either, every sample of the file is taken once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Text put before the first user message, or the prompt, of each of its samples, as it stands: end it with a blank
    /// if there is to be one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl Mix {
    /// What is wrong with a list of mixes, if anything.
    pub fn problem(mixes: &[Self]) -> Option<String> {
        for (i, Self { file, share, count, .. }) in mixes.iter().enumerate() {
            let found = match (share, count) {
                _ if file.is_empty() => "needs a `file`".to_string(),
                (Some(_), Some(_)) => "has both `share` and `count`: leave one out".to_string(),
                (Some(share), None) if !(*share > 0.0 && *share < 1.0) => {
                    format!("has the share {share}, expected one above 0 and below 1")
                }
                (None, Some(0)) => "has the count 0, expected at least 1".to_string(),
                _ => continue,
            };
            return Some(format!("item {} {found}", i + 1));
        }
        let sum: f64 = mixes.iter().filter_map(|mix| mix.share).sum();
        (sum >= 1.0).then(|| format!("the shares add up to {sum}, which leaves nothing for `data.train`"))
    }
}

/// What was mixed in for a [`Mix`].
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    pub path: PathBuf,
    /// The first of its samples in the training set; the others follow it.
    pub first: usize,
    pub samples: usize,
    /// Samples of the file.
    pub available: usize,
}

impl fmt::Display for Mixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, available, .. } = self;
        write!(f, "{}: {samples} samples mixed in, of {available}", self.path.display())?;
        if samples > available { write!(f, ", some of them several times") } else { Ok(()) }
    }
}

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
        let (first, path) = (train.examples.len(), part.path.clone());
        for sample in chosen(available, number, seed, stream) {
            let example = part.examples[sample].clone();
            train.counts.records += 1;
            train.counts.tokens += example.input_ids.len();
            train.counts.label_tokens += predicted_labels(&example.labels);
            train.examples.push(example);
            train.places.push(part.places[sample]);
        }
        train.mixed.push(Mixed { path, first, samples: number, available });
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
    use super::super::{Counts, Example, records::Place};
    use super::*;

    fn dataset(name: &str, count: usize) -> Dataset {
        let example = |i: usize| Example { input_ids: vec![i as u32; 3], labels: vec![-100, 1, 1] };
        Dataset {
            path: PathBuf::from(name),
            examples: (0..count).map(example).collect(),
            places: (1..=count).map(Place::Line).collect(),
            mixed: vec![],
            counts: Counts { records: count, tokens: 3 * count, label_tokens: 2 * count, ..Counts::default() },
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

    #[test]
    fn contradictions_are_named() {
        let problem = |mixes: &[Mix]| Mix::problem(mixes).unwrap_or_default();
        assert_eq!(problem(&[share(0.5), share(0.4)]), "");
        assert!(problem(&[share(0.5), share(0.5)]).contains("add up to 1"));
        assert!(problem(&[share(1.5)]).contains("item 1 has the share 1.5"));
        assert!(problem(&[Mix { count: Some(1), ..share(0.5) }]).contains("both"));
        assert!(problem(&[share(0.1), Mix::default()]).contains("item 2 needs a `file`"));
        assert!(problem(&[Mix { file: "a".into(), count: Some(0), ..Mix::default() }]).contains("count 0"));
    }
}
