//! What a setting changes against another: the difference of each evaluation's main value, run by run with the same seed and record by
//! record.
//!
//! Runs differ by their seed and records by their cluster (a person, a behavior), and either may be a lucky one. So the standard error is
//! that of a bootstrap over both at once (Owen's pigeonhole bootstrap, arXiv 0712.1111), and with m, the smaller of the numbers of seeds
//! and of clusters, it is taken times √(m / (m − 1)), and the interval is Student's with m − 1 degrees of freedom: a bootstrap's own
//! percentiles are too narrow for few of either. Where nothing varies at all, the interval is as wide as the rule of three has it for
//! the clusters, 3 / C.

use super::grid::Case;
use super::options::{CompareOptions, Paired};
use super::results::Row;
use super::summary::{FEWEST, Summary, points, student};
use crate::console::Table;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// One setting's differences from the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    #[serde(flatten)]
    pub case: Case,
    pub against: String,
    /// Seeds that both have.
    pub seeds: usize,
    pub differences: Vec<Difference>,
}

/// The difference of one evaluation's main value, this setting's less the reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub evaluation: String,
    pub mean: f64,
    /// Of records.
    pub clusters: usize,
    /// 95 %; `None` for fewer than three seeds or clusters.
    pub interval: Option<(f64, f64)>,
    pub verdict: Verdict,
}

/// What the interval says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Lower,
    Higher,
    /// Nothing in it is larger than the margin.
    Equal,
    /// It holds 0, and differences that count.
    Undecided,
}

/// Which of an evaluation's records belong together: a name for each, by the evaluation's title.
pub type Clusters = BTreeMap<String, Vec<String>>;

const RESAMPLES: usize = 2000;

/// The differences of every reported setting from the reference in the same combination of the sweep.
pub fn paired(options: &CompareOptions, all: &[Summary], rows: &[Row], clusters: &Clusters) -> Vec<Pair> {
    let Some(paired) = &options.paired else { return vec![] };
    let reported = |summary: &&Summary| summary.trained && (summary.selected || options.select.is_none());
    let reported: Vec<&Case> = all.iter().filter(reported).map(|summary| &summary.case).collect();
    let mut pairs = vec![];
    for case in &reported {
        let same = |other: &&&Case| other.method == paired.against && other.sweep == case.sweep;
        if let Some(reference) = reported.iter().find(same).filter(|reference| *reference != case) {
            pairs.push(pair(case, reference, rows, (clusters, paired.margin)));
        }
    }
    pairs
}

fn pair(case: &Case, reference: &Case, rows: &[Row], (clusters, margin): (&Clusters, f64)) -> Pair {
    let of = |case: &Case| -> BTreeMap<Option<u64>, &Row> {
        let rows = rows.iter().filter(|row| row.case == *case && row.error.is_none());
        rows.map(|row| (row.seed, row)).collect()
    };
    let (these, others) = (of(case), of(reference));
    let both: Vec<(&Row, &Row)> = these.iter().filter_map(|(seed, row)| Some((*row, *others.get(seed)?))).collect();
    let difference = |(name, clusters): (&String, &Vec<String>)| {
        let hits = |row: &Row| {
            let hits = row.measured.iter().find(|measured| measured.name == *name)?.hits.clone()?;
            (hits.len() == clusters.len()).then_some(hits)
        };
        let runs: Option<Vec<_>> = both.iter().map(|(this, other)| Some((hits(this)?, hits(other)?))).collect();
        let runs = runs.filter(|runs| !runs.is_empty())?;
        Some(Difference::of(name, &Sums::new(&runs, clusters), margin))
    };
    let differences = clusters.iter().filter_map(difference).collect();
    Pair { case: case.clone(), against: reference.title(), seeds: both.len(), differences }
}

/// Differences of hits, summed by seed and cluster.
struct Sums {
    /// [seeds][clusters]
    differences: Vec<Vec<f64>>,
    /// Records in each cluster.
    records: Vec<f64>,
}

impl Sums {
    /// `runs`: the hits of both for every seed. `clusters`: of every record.
    fn new(runs: &[(String, String)], clusters: &[String]) -> Self {
        let mut places: BTreeMap<&String, usize> = BTreeMap::new();
        let mut records: Vec<f64> = vec![];
        let place_of = |cluster| {
            let place = *places.entry(cluster).or_insert(records.len());
            if place == records.len() {
                records.push(0.0);
            }
            records[place] += 1.0;
            place
        };
        let of_record: Vec<usize> = clusters.iter().map(place_of).collect();
        let sums = |(this, other): &(String, String)| {
            let mut sums = vec![0.0; records.len()];
            for ((this, other), place) in this.bytes().zip(other.bytes()).zip(&of_record) {
                sums[*place] += f64::from(this) - f64::from(other);
            }
            sums
        };
        Self { differences: runs.iter().map(sums).collect(), records }
    }

    /// Whether the mean difference of a record is not the same in all seeds and clusters.
    fn vary(&self) -> bool {
        let mut means = self.differences.iter().flat_map(|sums| sums.iter().zip(&self.records).map(|(sum, n)| sum / n));
        let first = means.next();
        means.any(|mean| Some(mean) != first)
    }

    /// The mean difference of a record, over those seeds and clusters.
    fn mean(&self, seeds: &[usize], clusters: &[usize]) -> f64 {
        let sum: f64 = seeds.iter().flat_map(|&s| clusters.iter().map(move |&c| self.differences[s][c])).sum();
        let records: f64 = clusters.iter().map(|&c| self.records[c]).sum();
        sum / (records * seeds.len() as f64)
    }
}

impl Difference {
    fn of(name: &str, sums: &Sums, margin: f64) -> Self {
        let (seeds, clusters) = (sums.differences.len(), sums.records.len());
        let mean = sums.mean(&(0..seeds).collect::<Vec<_>>(), &(0..clusters).collect::<Vec<_>>());
        let fewer = seeds.min(clusters);
        let interval = (fewer >= FEWEST).then(|| {
            let mut random = ChaCha8Rng::seed_from_u64(0);
            let mut draw = |n: usize| -> Vec<usize> { (0..n).map(|_| random.random_range(0..n)).collect() };
            let means: Vec<f64> = (0..RESAMPLES).map(|_| sums.mean(&draw(seeds), &draw(clusters))).collect();
            let middle = means.iter().sum::<f64>() / RESAMPLES as f64;
            let variance = means.iter().map(|mean| (mean - middle).powi(2)).sum::<f64>() / (RESAMPLES - 1) as f64;
            let few = fewer as f64 / (fewer - 1) as f64;
            let half = if sums.vary() { student(fewer) * (variance * few).sqrt() } else { 3.0 / clusters as f64 };
            ((mean - half).max(-1.0), (mean + half).min(1.0))
        });
        let verdict = match interval {
            Some((low, high)) if low >= -margin && high <= margin => Verdict::Equal,
            Some((low, _)) if low > 0.0 => Verdict::Higher,
            Some((_, high)) if high < 0.0 => Verdict::Lower,
            _ => Verdict::Undecided,
        };
        Self { evaluation: name.to_string(), mean, clusters, interval, verdict }
    }

    fn cell(&self) -> String {
        let points = |share: f64| format!("{:+.1}", share * 100.0);
        let Some((low, high)) = self.interval else { return points(self.mean) };
        let verdict = match self.verdict {
            Verdict::Lower => ", lower",
            Verdict::Higher => ", higher",
            Verdict::Equal => ", equal",
            Verdict::Undecided => "",
        };
        format!("{} ({} to {}){verdict}", points(self.mean), points(low), points(high))
    }
}

/// The table: a line for each pair. `None` if there is nothing to show.
pub fn paired_table(pairs: &[Pair]) -> Option<Table> {
    let names: Vec<&str> =
        pairs.iter().max_by_key(|pair| pair.differences.len())?.differences.iter().map(|d| &*d.evaluation).collect();
    let sweeps = pairs.iter().any(|pair| !pair.case.sweep.is_empty());
    let mut head = vec!["difference, in points"];
    head.extend(sweeps.then_some("sweep"));
    head.extend(["from", "seeds"]);
    head.extend(&names);
    let mut table = Table::new(head);
    for pair in pairs {
        let mut cells = vec![pair.case.title()];
        cells.extend(sweeps.then(|| pair.case.sweep_title()));
        cells.extend([pair.against.clone(), pair.seeds.to_string()]);
        let cell = |name: &&str| {
            pair.differences.iter().find(|d| d.evaluation == **name).map_or("-".to_string(), Difference::cell)
        };
        cells.extend(names.iter().map(cell));
        table.push(cells);
    }
    Some(table)
}

/// What the words in the table mean, or why there is no table.
pub fn paired_notes(paired: &Paired, pairs: &[Pair]) -> String {
    if pairs.iter().all(|pair| pair.differences.is_empty()) {
        let name = &paired.against;
        return format!(
            "no differences from \"{name}\": there is no other reported setting beside one of it, or their runs failed or were measured by a \
             version that did not keep which records it counted\n"
        );
    }
    let cluster = paired.cluster.as_ref().map_or("each record by itself".to_string(), |field| {
        let counts = pairs.iter().flat_map(|pair| pair.differences.iter().map(|difference| difference.clusters));
        let (least, most) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
        format!("{least} to {most} clusters by \"{field}\"")
    });
    format!(
        "(a to b)  95 % over seeds and records ({cluster}), of the same seeds and records\nequal     all of the interval is within {}; \
         lower, higher: 0 is outside it\n",
        points(paired.margin)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hits of this and of the other: `by(seed, record)` says whether they differ.
    fn sums(seeds: usize, clusters: &[&str], by: impl Fn(usize, usize) -> bool) -> Sums {
        let names: Vec<String> = clusters.iter().map(ToString::to_string).collect();
        let run = |s: usize| {
            let this = (0..names.len()).map(|r| if by(s, r) { '1' } else { '0' }).collect();
            (this, "0".repeat(names.len()))
        };
        Sums::new(&(0..seeds).map(run).collect::<Vec<_>>(), &names)
    }

    fn half(difference: &Difference) -> f64 {
        let (low, high) = difference.interval.unwrap();
        (high - low) / 2.0
    }

    #[test]
    fn seeds_alone_give_student_s_interval() {
        // All records of a seed differ, or none: 2 of 5 seeds.
        let difference = Difference::of("a", &sums(5, &["u", "v", "x", "y", "z"], |seed, _| seed < 2), 0.03);
        assert!((difference.mean - 0.4).abs() < 1e-12);
        // scipy.stats.t.interval(0.95, 4, 0.4, scipy.stats.sem([1, 1, 0, 0, 0])): 0.4 ± 0.680
        // (Differences end at 1.)
        let (low, high) = difference.interval.unwrap();
        assert!((low - (0.4 - 0.680)).abs() < 0.03 && high == 1.0, "{difference:?}");
        assert_eq!(difference.verdict, Verdict::Undecided);
    }

    #[test]
    fn records_of_a_cluster_count_as_one() {
        // Half of the clusters differ in every seed; ten records each.
        let names: Vec<String> = (0..200).map(|record| format!("{}", record / 10)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let by_cluster = Difference::of("a", &sums(10, &names, |_, record| record / 10 % 2 == 0), 0.03);
        let each: Vec<String> = (0..200).map(|record| record.to_string()).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        let by_record = Difference::of("a", &sums(10, &each, |_, record| record / 10 % 2 == 0), 0.03);
        // The standard error of a share of 0.5 among 20 and among 200; ten seeds are fewer: 10 / 9 and 2.262.
        let expected = |n: f64| 2.262 * (0.25 / n * 10.0 / 9.0).sqrt();
        assert!((half(&by_cluster) - expected(20.0)).abs() < 0.015, "{by_cluster:?}");
        assert!((half(&by_record) - expected(200.0)).abs() < 0.005, "{by_record:?}");
        assert_eq!((by_cluster.verdict, by_record.verdict), (Verdict::Higher, Verdict::Higher));
    }

    #[test]
    fn equal_is_a_claim_that_can_fail() {
        let names: Vec<String> = (0..400).map(|record| record.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rare = sums(5, &names, |_, record| record % 100 == 0);
        assert_eq!(Difference::of("a", &rare, 0.03).verdict, Verdict::Equal);
        assert_eq!(Difference::of("a", &rare, 0.01).verdict, Verdict::Undecided);
        assert_eq!(Difference::of("a", &sums(2, &names, |_, _| true), 0.03).interval, None);
        // Agreement in all of a few clusters does not show much; two of them show nothing.
        let agree = |clusters: &[&str]| Difference::of("a", &sums(5, clusters, |_, _| false), 0.03);
        assert_eq!((agree(&["x", "y", "z"]).interval, agree(&["x", "y"]).interval), (Some((-1.0, 1.0)), None));
        assert_eq!((agree(&names).verdict, agree(&names[..50]).verdict), (Verdict::Equal, Verdict::Undecided));
    }
}
