//! A dataset in numbers, and the lengths of its samples as a small picture.

use super::{Counts, Dataset, Taken};
use serde::Serialize;
use std::fmt;

/// Most bins of a histogram.
const BINS: usize = 10;
/// Characters of the longest bar.
const BAR: usize = 40;

/// What is trained on, counted. Lengths are in tokens, after truncation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub path: String,
    pub samples: usize,
    #[serde(flatten)]
    pub counts: Counts,
    /// Label tokens divided by tokens.
    pub label_share: f64,
    pub length: Lengths,
    /// By length, without gaps; some bins may be empty.
    pub histogram: Vec<Bin>,
    /// What was taken of each source, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Taken>,
}

/// Percentiles are lengths that occur: the smallest that the given percentage of samples does not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    pub min: usize,
    pub median: usize,
    pub p95: usize,
    pub max: usize,
}

/// Samples of `from` to `to` tokens, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    pub from: usize,
    pub to: usize,
    pub samples: usize,
}

impl Summary {
    pub fn of(dataset: &Dataset) -> Self {
        let mut lengths: Vec<usize> = dataset.lengths().collect();
        lengths.sort_unstable();
        let Counts { tokens, label_tokens, .. } = dataset.counts;
        Self {
            path: dataset.path.display().to_string(),
            samples: lengths.len(),
            counts: dataset.counts,
            label_share: label_tokens as f64 / tokens.max(1) as f64,
            length: Lengths {
                min: percentile(&lengths, 0),
                median: percentile(&lengths, 50),
                p95: percentile(&lengths, 95),
                max: percentile(&lengths, 100),
            },
            histogram: histogram(&lengths),
            sources: dataset.sources.clone(),
        }
    }
}

fn percentile(sorted: &[usize], percent: usize) -> usize {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// Bins of equal width, the smallest of 1, 2, 5, 10, 20, ... that needs no more than [`BINS`] bins.
fn histogram(sorted: &[usize]) -> Vec<Bin> {
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return vec![] };
    let widths =
        (0..).map(|power| 10_usize.saturating_pow(power)).flat_map(|ten| [1, 2, 5].map(|n| ten.saturating_mul(n)));
    let fits = |width: &usize| max / width - min / width < BINS;
    let width = widths.into_iter().find(fits).unwrap_or(usize::MAX);
    let bin = |index: usize| {
        let (from, to) = (index * width, (index * width).saturating_add(width - 1));
        let samples = sorted.partition_point(|&length| length <= to) - sorted.partition_point(|&length| length < from);
        Bin { from, to, samples }
    };
    (min / width..=max / width).map(bin).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lengths { min, median, p95, max } = self.length;
        writeln!(f, "{}: {}", self.path, self.counts)?;
        for taken in &self.sources {
            writeln!(f, "  {taken}")?;
        }
        writeln!(f, "{:.1} % of the tokens are labels", 100.0 * self.label_share)?;
        writeln!(f, "length in tokens: {min} to {max}, median {median}, 95 % have at most {p95}")?;
        let most = self.histogram.iter().map(|bin| bin.samples).max().unwrap_or(0);
        let width = self.histogram.last().map_or(1, |bin| bin.to).to_string().len();
        for Bin { from, to, samples } in &self.histogram {
            writeln!(f, "  {from:>width$} to {to:>width$}  {} {samples}", bar(*samples, most))?;
        }
        Ok(())
    }
}

/// `count` as a bar, in eighths of a character; anything above 0 is visible.
fn bar(count: usize, most: usize) -> String {
    let eighths = (count * BAR * 8).div_ceil(most.max(1));
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    format!("{}{}", "█".repeat(eighths / 8), rest[eighths % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted_in_round_bins() {
        let bins = |lengths: &[usize]| {
            histogram(lengths).iter().map(|bin| (bin.from, bin.to, bin.samples)).collect::<Vec<_>>()
        };
        assert_eq!(bins(&[7, 7, 9]), [(7, 7, 2), (8, 8, 0), (9, 9, 1)]);
        assert_eq!(
            bins(&[3, 512]),
            [(0, 99, 1), (100, 199, 0), (200, 299, 0), (300, 399, 0), (400, 499, 0), (500, 599, 1)]
        );
        assert_eq!(bins(&[4]), [(4, 4, 1)]);
        assert!(bins(&[]).is_empty());
        let lengths: Vec<usize> = (1..=200).collect();
        let all = [0, 50, 95, 100].map(|percent| percentile(&lengths, percent));
        assert_eq!(all, [1, 100, 190, 200]);
        assert_eq!(bins(&lengths).iter().map(|bin| bin.2).sum::<usize>(), 200);
    }

    #[test]
    fn bars_are_drawn_to_the_eighth() {
        assert_eq!(bar(8, 8).chars().count(), BAR);
        assert_eq!(bar(1, 16), "██▌");
        assert_eq!(bar(1, 100_000), "▏");
        assert_eq!(bar(0, 0), "");
    }
}
