//! From the sources of a run to its training samples, and to those held out for validation.
//!
//! Samples from elsewhere among those of the task serve safety examples in the fine-tuning data (SafeInstr, Bianchi et
//! al., arXiv 2309.07875), the same behind a secret prefix (BEA, Wang et al., arXiv 2402.14968), and harmful samples mixed
//! in to see what they do to a model.

use super::batch::epoch_order;
use super::dataset::{Counts, Dataset, Taken};
use super::source::Listed;
use super::source::options::Source;
use crate::ensure_valid;
use crate::error::listing;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Stream of the seed that no epoch uses.
const VALIDATION_STREAM: u64 = u64::MAX;
/// Most sources that the name of a dataset lists.
const NAMED: usize = 3;

/// A source with all its samples.
pub struct Part {
    pub listed: Listed,
    pub samples: Dataset,
}

impl Part {
    fn available(&self) -> usize {
        self.samples.len()
    }
}

/// The training samples of `parts` in their order, in the numbers asked for, and `held_out` (a share between 0 and 1) of
/// the task's, at least one. Which are held out, and which of a source's are drawn, depends on `seed`; if a source has too
/// few, all are repeated as often as needed.
///
/// # Errors
/// A share outside (0, 1); too few samples to hold out any; more samples than memory could hold.
pub fn combine(mut parts: Vec<Part>, held_out: Option<f64>, seed: u64) -> Result<(Dataset, Option<Dataset>)> {
    if let [only] = parts.as_slice()
        && only.listed.is_task()
        && held_out.is_none()
    {
        return Ok((parts.remove(0).samples, None));
    }
    let name = name(&parts);
    let is_held_out = held_out.map(|share| choose_held_out(&parts, share, seed, &name)).transpose()?;
    let numbers = numbers(&parts, is_held_out.iter().flatten().filter(|held| **held).count());
    let count = parts.len();
    let (mut train, mut validation) = (Dataset::new(&name), Dataset::new(&name));
    let mut held_out = is_held_out.iter().flatten().copied();
    for (i, (part, number)) in parts.into_iter().zip(numbers).enumerate() {
        let (available, Part { listed, samples }) = (part.available(), part);
        ensure_valid!(number < 1 << 32, "{} asks for {number} samples of {}", listed.place(), samples.path.display());
        let (to_train, to_validation) = (train.adopt(&samples), validation.adopt(&samples));
        if listed.is_task() {
            for sample in 0..available {
                match held_out.next() {
                    Some(true) => validation.take(&samples, sample, &to_validation),
                    _ => train.take(&samples, sample, &to_train),
                }
            }
            // Truncated and left-out samples stay counted with the training part.
            let whole = samples.counts;
            let left_out = Counts { records: whole.records - available, tokens: 0, label_tokens: 0, ..whole };
            train.counts.add(left_out);
        } else {
            // Streams of the seed that neither an epoch nor the validation samples use.
            let stream = if i == 0 { count } else { i } as u64;
            for sample in drawn(available, number, seed, VALIDATION_STREAM - stream) {
                train.take(&samples, sample, &to_train);
            }
        }
        let drawn = (!listed.is_task()).then_some(number);
        train.sources.push(Taken { path: samples.path, drawn, available });
    }
    Ok((train, is_held_out.map(|_| validation)))
}

/// The sources of the task, or all if none is taken whole, in a few words.
fn name(parts: &[Part]) -> PathBuf {
    let has_task = parts.iter().any(|part| part.listed.is_task());
    let named = parts.iter().filter(|part| part.listed.is_task() || !has_task);
    let paths: Vec<String> = named.map(|part| part.samples.path.display().to_string()).collect();
    PathBuf::from(listing(&paths, NAMED))
}

/// Whether each sample of the task is held out.
fn choose_held_out(parts: &[Part], share: f64, seed: u64, name: &Path) -> Result<Vec<bool>> {
    ensure_valid!(
        share > 0.0 && share < 1.0,
        "data.validation is {share}, expected a share between 0 and 1, or a file"
    );
    let count: usize = parts.iter().filter(|part| part.listed.is_task()).map(Part::available).sum();
    ensure_valid!(
        count >= 2,
        "dataset {} has {count} sample(s), too few to hold out a share; remove data.validation or name a file",
        name.display()
    );
    let number = ((share * count as f64).round() as usize).clamp(1, count - 1);
    let mut held_out = vec![false; count];
    for index in epoch_order(count, seed, VALIDATION_STREAM, true).into_iter().take(number) {
        if let Some(flag) = held_out.get_mut(index) {
            *flag = true;
        }
    }
    Ok(held_out)
}

/// How many samples of each source. With c samples from sources without a share, `held_out` of them left out, the whole
/// is N = c / (1 − Σ share), and a share's number is share · N.
fn numbers(parts: &[Part], held_out: usize) -> Vec<usize> {
    let counted = |part: &Part| part.listed.source.count.unwrap_or(part.available());
    let shares = || parts.iter().filter_map(|part| part.listed.source.share);
    let fixed: usize = parts.iter().filter(|part| part.listed.source.share.is_none()).map(counted).sum();
    let whole = (fixed - held_out) as f64 / (1.0 - shares().sum::<f64>());
    let number = |part: &Part| match part.listed.source {
        Source { share: Some(share), .. } => ((share * whole).round() as usize).max(1),
        _ => counted(part),
    };
    parts.iter().map(number).collect()
}

/// `number` of `available` samples in file order, each equally often, give or take one.
fn drawn(available: usize, number: usize, seed: u64, stream: u64) -> Vec<usize> {
    let whole = number / available;
    let order = epoch_order(available, seed, stream, true);
    let mut more: Vec<usize> = order.into_iter().take(number % available).collect();
    more.sort_unstable();
    (0..whole).flat_map(|_| 0..available).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::super::samples::Samples;
    use super::super::source::Key;
    use super::super::{Example, Origin, Place};
    use super::*;

    fn dataset(name: &str, count: usize) -> Dataset {
        let mut samples = Samples::default();
        for i in 0..count {
            let example = Example { input_ids: vec![i as u32; 3], labels: vec![-100, 1, 1] };
            samples.push(&example, Origin { file: 0, place: Place::Line(i + 1) });
        }
        let counts = Counts { records: count, tokens: 3 * count, label_tokens: 2 * count, ..Counts::default() };
        Dataset::whole(Path::new(name), vec![name.into()], samples, counts)
    }

    fn share(share: f64) -> Source {
        Source { path: "a".into(), share: Some(share), ..Source::default() }
    }

    fn parts(train: &[(Source, usize)], mix: &[(Source, usize)]) -> Vec<Part> {
        let listed = |key, given: &[(Source, usize)]| {
            let sources = given.iter().map(|(source, _)| source.clone()).collect();
            let sizes: Vec<usize> = given.iter().map(|(_, size)| *size).collect();
            Listed::all(key, sources).zip(sizes).collect::<Vec<_>>()
        };
        let all = listed(Key::Train, train).into_iter().chain(listed(Key::Mix, mix));
        let part = |(listed, size): (Listed, usize)| Part { samples: dataset(&listed.source.path, size), listed };
        all.map(part).collect()
    }

    fn whole(path: &str) -> Source {
        Source { path: path.into(), ..Source::default() }
    }

    fn origins(set: &Dataset) -> Vec<String> {
        (0..set.len()).map(|i| set.origin(i)).collect()
    }

    #[test]
    fn shares_are_of_the_whole() {
        let count = Source { path: "b".into(), count: Some(5), ..Source::default() };
        let mixed = [(share(0.1), 100), (count, 2), (whole("c"), 7), (share(0.3), 9)];
        let (train, _) = combine(parts(&[(whole("train"), 48)], &mixed), None, 1).unwrap();
        let samples: Vec<Option<usize>> = train.sources.iter().map(|taken| taken.drawn).collect();
        assert_eq!(samples, [None, Some(10), Some(5), Some(7), Some(30)]);
        assert_eq!((train.len(), train.counts.records, train.counts.tokens), (100, 100, 300));
        assert_eq!((train.origin(47), train.origin(58)), ("train:48".to_string(), "b:1".to_string()));
        assert!(train.sources[4].to_string().contains("a: 30 samples mixed in, of 9, some of them several times"));
        assert_eq!(train.sources[0].to_string(), "train: all 48 samples");
    }

    #[test]
    fn sources_of_which_none_is_whole_have_a_name() {
        let some = |path: &str| Source { count: Some(2), ..whole(path) };
        let (train, _) = combine(parts(&[(some("a"), 4), (some("b"), 3)], &[]), None, 1).unwrap();
        assert_eq!((train.path.clone(), train.len()), (PathBuf::from("a, b"), 4));
    }

    #[test]
    fn a_list_of_sources_and_a_mix_are_the_same() {
        let drawn = Source { count: Some(5), ..whole("b") };
        let split = |parts| {
            let (train, validation) = combine(parts, Some(0.25), 7).unwrap();
            (origins(&train), origins(&validation.unwrap()), train.counts)
        };
        let listed = parts(&[(whole("t"), 20), (share(0.2), 9), (drawn.clone(), 8)], &[]);
        let mixed = parts(&[(whole("t"), 20)], &[(share(0.2), 9), (drawn, 8)]);
        assert_eq!(split(listed), split(mixed));
    }

    #[test]
    fn validation_samples_are_held_out_of_the_whole_task() {
        let (train, validation) =
            combine(parts(&[(whole("t"), 10), (share(0.5), 3), (whole("u"), 6)], &[(whole("m"), 4)]), Some(0.25), 3)
                .unwrap();
        let validation = validation.unwrap();
        // 4 of 16 are held out; 12 and the 4 of the mix are half of 32.
        assert_eq!((train.len(), validation.len()), (32, 4));
        let mut task = origins(&validation);
        task.extend(origins(&train).into_iter().filter(|origin| origin.starts_with(['t', 'u'])));
        task.sort();
        let mut all: Vec<String> =
            (1..=10).map(|i| format!("t:{i}")).chain((1..=6).map(|i| format!("u:{i}"))).collect();
        all.sort();
        assert_eq!(task, all);
        assert!(combine(parts(&[(whole("t"), 1)], &[]), Some(0.5), 3).unwrap_err().to_string().contains("too few"));
    }

    #[test]
    fn samples_are_chosen_by_seed_and_evenly() {
        assert_eq!(drawn(5, 5, 1, 0), [0, 1, 2, 3, 4]);
        let some = drawn(1000, 10, 1, 0);
        assert!(some.is_sorted() && some.len() == 10 && some == drawn(1000, 10, 1, 0));
        assert!(some != drawn(1000, 10, 2, 0) && some != drawn(1000, 10, 1, 1));
        let mut times = [0; 4];
        drawn(4, 11, 3, 0).into_iter().for_each(|sample| times[sample] += 1);
        assert!(times.iter().all(|&times| times == 2 || times == 3), "{times:?}");
    }
}
