//! Results aggregated over seeds, and which setting of each method to report.

use super::grid::Case;
use super::options::{CompareOptions, Select};
use super::results::{Row, show};
use crate::console::Table;
use serde::Serialize;

/// A number over seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub name: String,
    pub mean: f64,
    /// Student's 95 % interval of the mean over seeds, for a share within 0 and 1; `None` for fewer than three seeds, of
    /// which it would say nothing.
    pub interval: Option<(f64, f64)>,
    /// The least and the greatest over seeds; `None` for a single seed.
    pub range: Option<(f64, f64)>,
    /// Whether it is a share.
    pub share: bool,
}

impl Mean {
    fn of(name: &str, values: &[f64], share: bool) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let bounded = |end: f64| if share { end.clamp(0.0, 1.0) } else { end };
        let interval = (values.len() >= FEWEST).then(|| {
            let half = student(values.len()) * (variance / n).sqrt();
            (bounded(mean - half), bounded(mean + half))
        });
        let ends = values.iter().fold((mean, mean), |(low, high), x| (low.min(*x), high.max(*x)));
        Self { name: name.to_string(), mean, interval, range: (values.len() > 1).then_some(ends), share }
    }

    /// What a bar shows: the interval or, of too few seeds for one, the range.
    pub fn bar(&self) -> Option<(f64, f64)> {
        self.interval.or(self.range)
    }
}

/// One case with all its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub case: Case,
    pub seeds: usize,
    /// Seeds without a result.
    pub failed: usize,
    pub measured: Vec<Mean>,
    /// Whether it belongs to a method rather than to a model of the pair.
    pub trained: bool,
    /// Whether `select` chooses it.
    pub selected: bool,
}

impl Summary {
    pub fn get(&self, name: &str) -> Option<&Mean> {
        self.measured.iter().find(|mean| mean.name == name)
    }
}

/// Seeds from which an interval is given: with two, t is 12.7.
pub(super) const FEWEST: usize = 3;
/// Two-sided 95 % points of Student's t by degrees of freedom, from 1 on.
const T: [f64; 15] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];
/// The same of the normal distribution, for more degrees of freedom.
const Z: f64 = 1.96;

/// Student's 95 % point for the mean of `n` values, two or more.
pub(super) fn student(n: usize) -> f64 {
    n.checked_sub(2).and_then(|i| T.get(i).copied()).unwrap_or(Z)
}

/// The rows by case, in the order of the methods and of their cases, the models of the pair first.
pub fn summarise(options: &CompareOptions, rows: &[Row]) -> Vec<Summary> {
    let mut cases: Vec<&Case> = vec![];
    for row in rows {
        if !cases.contains(&&row.case) {
            cases.push(&row.case);
        }
    }
    let place = |case: &Case| options.method.iter().position(|method| method.name == case.method);
    cases.sort_by_key(|case| place(case).map_or(0, |place| place + 1));
    let mut all: Vec<Summary> = cases.into_iter().map(|case| of_case(case, rows)).collect();
    if let Some(select) = &options.select {
        choose(&mut all, select);
    }
    all
}

fn of_case(case: &Case, rows: &[Row]) -> Summary {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.case == *case).collect();
    let good: Vec<&&Row> = rows.iter().filter(|row| row.error.is_none()).collect();
    let mean = |i: usize| {
        let first = good.first()?.measured.get(i)?;
        let values: Vec<f64> = good.iter().filter_map(|row| Some(row.measured.get(i)?.value)).collect();
        Some(Mean::of(&first.name, &values, first.total.is_some()))
    };
    let count = good.first().map_or(0, |row| row.measured.len());
    let measured = (0..count).filter_map(mean).collect();
    let trained = rows.iter().any(|row| row.seed.is_some());
    let (seeds, failed) = (rows.len(), rows.len() - good.len());
    Summary { case: case.clone(), seeds, failed, measured, trained, selected: false }
}

/// Marks, for each method within each combination of the sweep, the setting with the least harm among those that keep
/// up with the baseline's best in the task.
fn choose(all: &mut [Summary], select: &Select) {
    let value = |summary: &Summary, name: &str| summary.get(name).map(|mean| mean.mean);
    let groups: Vec<(String, Vec<super::grid::Setting>)> =
        all.iter().map(|s| (s.case.method.clone(), s.case.sweep.clone())).collect();
    for (method, sweep) in &groups {
        let baseline = all.iter().filter(|s| s.case.method == select.baseline && s.case.sweep == *sweep);
        let best = baseline.filter_map(|s| value(s, &select.task)).fold(f64::NEG_INFINITY, f64::max);
        let baseline = all.iter().filter(|s| s.case.method == select.baseline && s.case.sweep == *sweep);
        let general = select.general.as_ref().map(|name| {
            (name, baseline.filter_map(|s| value(s, name)).fold(f64::NEG_INFINITY, f64::max) - select.general_within)
        });
        // Rounding must not exclude a setting.
        let keeps = |s: &Summary, name: &str, least: f64| value(s, name).is_some_and(|found| found >= least - 1e-9);
        let fits = |s: &Summary| {
            s.case.method == *method
                && s.case.sweep == *sweep
                && keeps(s, &select.task, best - select.within)
                && general.is_none_or(|(name, least)| keeps(s, name, least))
        };
        let harm = |i: &usize| value(&all[*i], &select.harm).unwrap_or(f64::INFINITY);
        let chosen = (0..all.len()).filter(|&i| fits(&all[i])).min_by(|a, b| harm(a).total_cmp(&harm(b)));
        if let Some(chosen) = chosen.filter(|_| best.is_finite()) {
            all[chosen].selected = true;
        }
    }
}

/// The table: a line for each case, a `*` before those that `select` chooses.
pub fn table(all: &[Summary]) -> Table {
    // What is 0 everywhere (usually empty answers) appears only in the JSON.
    let shown = |name: &&str| !name.contains(": ") || all.iter().any(|s| s.get(name).is_some_and(|m| m.mean != 0.0));
    let names: Vec<&str> = all
        .iter()
        .max_by_key(|s| s.measured.len())
        .map_or(vec![], |s| s.measured.iter().map(|m| m.name.as_str()).collect());
    let names: Vec<&str> = names.into_iter().filter(shown).collect();
    let sweeps = all.iter().any(|s| !s.case.sweep.is_empty());
    let mut head = vec!["method"];
    head.extend(sweeps.then_some("sweep"));
    head.push("seeds");
    head.extend(&names);
    let mut table = Table::new(head);
    for summary in all {
        let mark = if summary.selected { "* " } else { "  " };
        let mut cells = vec![format!("{mark}{}", summary.case.title())];
        cells.extend(sweeps.then(|| summary.case.sweep_title()));
        cells.push(match summary.failed {
            0 => summary.seeds.to_string(),
            failed => format!("{} ({failed} failed)", summary.seeds),
        });
        cells.extend(names.iter().map(|name| summary.get(name).map_or_else(|| "-".to_string(), cell)));
        table.push(cells);
    }
    table
}

pub(super) fn cell(mean: &Mean) -> String {
    let value = show(mean.mean, mean.share);
    let end = |end: f64| if mean.share { format!("{:.1}", end * 100.0) } else { format!("{end:.4}") };
    match (mean.interval, mean.range) {
        (Some((low, high)), _) => format!("{value} ({} to {})", end(low), end(high)),
        (None, Some((low, high))) => format!("{value} ({}..{})", end(low), end(high)),
        (None, None) => value,
    }
}

/// What the marks in the table mean, a line for each that is there.
pub fn notes(options: &CompareOptions, all: &[Summary]) -> String {
    let mut notes = String::new();
    if let Some(select) = options.select.as_ref().filter(|_| all.iter().any(|summary| summary.selected)) {
        let Select { task, harm, baseline, within, general, general_within } = select;
        let points = |name: &str, within: f64| {
            let share = all.iter().filter_map(|summary| summary.get(name)).any(|mean| mean.share);
            if share { points(within) } else { within.to_string() }
        };
        let also = general.as_ref().map_or(String::new(), |name| {
            format!(",\n          and whose \"{name}\" at most {}", points(name, *general_within))
        });
        let within = points(task, *within);
        notes += &format!(
            "*         the selected setting of its method: least \"{harm}\" of those whose \"{task}\"\n          is at most {within} \
             below the best of \"{baseline}\"{also}\n"
        );
        notes += &tried(options, all);
    }
    let means = || all.iter().flat_map(|summary| &summary.measured);
    if means().any(|mean| mean.interval.is_some()) {
        notes += "(a to b)  Student's 95 % interval of the mean over seeds\n";
    }
    if means().any(|mean| mean.interval.is_none() && mean.range.is_some()) {
        notes += "(a..b)    least and greatest: two seeds are too few for an interval\n";
    }
    notes
}

/// A difference of shares, in words.
pub fn points(share: f64) -> String {
    // Not the digits that a binary fraction adds.
    match (share * 1e5).round() / 1e3 {
        1.0 => "1 point".to_string(),
        points => format!("{points} points"),
    }
}

/// How many settings of each method were chosen from, if not as many of all: the more, the likelier a lucky one.
fn tried(options: &CompareOptions, all: &[Summary]) -> String {
    let settings = |method: &str| {
        let mut found: Vec<&[super::grid::Setting]> = vec![];
        for summary in all.iter().filter(|summary| summary.case.method == method) {
            if !found.contains(&summary.case.settings.as_slice()) {
                found.push(&summary.case.settings);
            }
        }
        found.len()
    };
    let counts: Vec<(usize, &str)> =
        options.method.iter().map(|method| (settings(&method.name), &*method.name)).collect();
    let (least, most) = (counts.iter().min(), counts.iter().max());
    match (least, most) {
        (Some(least), Some(most)) if least.0 != most.0 => format!(
            "          chosen from {} settings of \"{}\", but {} of \"{}\": the more are tried, the better the best looks\n",
            most.0, most.1, least.0, least.1
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::results::Measured;
    use serde_json::json;

    pub(in crate::compare) fn row(method: &str, lambda: f64, seed: u64, task: f64, harm: f64) -> Row {
        let measured = |name: &str, value| Measured { name: name.to_string(), value, total: Some(100), hits: None };
        Row {
            key: format!("{method}{lambda}{seed}"),
            case: Case { method: method.into(), sweep: vec![], settings: vec![("asft.lambda".into(), json!(lambda))] },
            seed: Some(seed),
            measured: vec![measured("task", task), measured("harm", harm)],
            dir: None,
            data: Default::default(),
            error: None,
        }
    }

    /// A plan of which nothing is missing.
    pub(in crate::compare) fn planned(rows: &[Row]) -> Vec<Case> {
        rows.iter().map(|row| row.case.clone()).collect()
    }

    fn options() -> CompareOptions {
        toml::from_str(
            "config = 'c'\nsuite = 's'\ndir = 'd'\n[[method]]\nname = 'plain'\n[[method]]\nname = 'asft'\n[select]\ntask = \
             'task'\nharm = 'harm'\nbaseline = 'plain'",
        )
        .unwrap()
    }

    #[test]
    fn means_over_seeds_have_student_s_interval() {
        let seeds = [(0, 0.8), (1, 0.5), (2, 0.2), (3, 0.5)];
        let rows: Vec<Row> = seeds.iter().map(|&(seed, harm)| row("asft", 1.0, seed, 0.9, harm)).collect();
        let all = summarise(&options(), &[&rows[..], &[row("plain", 0.0, 0, 1.0, 0.9)]].concat());
        assert_eq!(all.iter().map(|s| s.case.method.as_str()).collect::<Vec<_>>(), ["plain", "asft"]);
        let mean = all[1].get("harm").unwrap();
        // scipy.stats.t.interval(0.95, 3, 0.5, scipy.stats.sem([0.8, 0.5, 0.2, 0.5]))
        let (low, high) = mean.interval.unwrap();
        assert!(
            (mean.mean - 0.5).abs() < 1e-12 && (low - 0.1102).abs() < 1e-3 && (high - 0.8898).abs() < 1e-3,
            "{mean:?}"
        );
        assert_eq!((all[0].get("task").unwrap().interval, all[0].get("task").unwrap().range), (None, None));
    }

    #[test]
    fn shares_keep_within_0_and_100_percent_and_two_seeds_have_no_interval() {
        let harms = |harms: &[f64]| -> Vec<Row> {
            harms.iter().enumerate().map(|(seed, harm)| row("asft", 1.0, seed as u64, 0.9, *harm)).collect()
        };
        let three = summarise(&options(), &harms(&[0.0, 0.1, 1.0]));
        let mean = three[0].get("harm").unwrap();
        assert_eq!((mean.bar(), mean.range), (Some((0.0, 1.0)), Some((0.0, 1.0))));
        assert!(cell(mean).ends_with("(0.0 to 100.0)"), "{}", cell(mean));
        let two = summarise(&options(), &harms(&[0.1, 0.6]));
        let mean = two[0].get("harm").unwrap();
        assert_eq!((mean.interval, mean.bar()), (None, Some((0.1, 0.6))));
        assert_eq!(cell(mean), "35.0 % (10.0..60.0)");
        assert_eq!(notes(&options(), &two), "(a..b)    least and greatest: two seeds are too few for an interval\n");
        assert!(notes(&options(), &three).starts_with("(a to b)"));
    }

    #[test]
    fn the_least_harm_that_keeps_up_is_chosen() {
        let rows = [
            row("plain", 0.0, 0, 0.95, 0.9),
            row("asft", 1.0, 0, 0.95, 0.5),
            row("asft", 2.0, 0, 0.94, 0.3),
            row("asft", 9.0, 0, 0.80, 0.0),
        ];
        let all = summarise(&options(), &rows);
        let selected: Vec<bool> = all.iter().map(|s| s.selected).collect();
        assert_eq!(selected, [true, false, true, false]);
        let text = table(&all).to_string();
        assert!(text.contains("* asft, lambda 2.0       1  94.0 %  30.0 %"), "{text}");
        let notes = notes(&options(), &all);
        assert!(notes.starts_with("*") && notes.contains("\"harm\"") && notes.contains("1 point below"), "{notes}");
        assert!(notes.lines().all(|line| line.chars().count() <= 120), "{notes}");
    }
}
