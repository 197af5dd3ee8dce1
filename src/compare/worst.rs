//! Each setting's worst case: of all that it was run under, attacks and combinations of the sweep, where the mean over seeds of a measure of
//! harm is largest. A defender who does not know the attack can count on no more than that.

use super::grid::Case;
use super::options::Worst;
use super::results::{Row, show};
use super::summary::{Mean, Summary, cell};
use crate::console::Table;
use crate::ensure_valid;
use anyhow::Result;
use serde::Serialize;

/// The worst case of one setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstCase {
    pub method: String,
    pub settings: Vec<super::grid::Setting>,
    /// What it was run under there: the sweep's values and the attack.
    pub under: String,
    /// The harm there.
    pub harm: Mean,
    /// Of how many conditions it is the worst: those with a result.
    pub conditions: usize,
    /// Conditions that are planned.
    pub planned_conditions: usize,
    /// Runs with a result, over all conditions and seeds.
    pub runs: usize,
    pub planned_runs: usize,
    /// The least value of `worst.task` over the conditions, and where it is.
    pub task: Option<(Mean, String)>,
}

impl WorstCase {
    /// Method and settings, for people.
    pub fn title(&self) -> String {
        Case { method: self.method.clone(), sweep: vec![], settings: self.settings.clone() }.title()
    }

    /// Whether every run that is planned has a result. A setting that fails where it is hit hardest is not compared by what is left.
    pub fn is_complete(&self) -> bool {
        self.runs == self.planned_runs
    }

    /// Its conditions and, if any run is missing, how many, for people.
    fn of(&self) -> String {
        let Self { conditions, planned_conditions, runs, planned_runs, .. } = self;
        if self.is_complete() {
            return conditions.to_string();
        }
        format!("{conditions} of {planned_conditions} ({runs} of {planned_runs} runs)")
    }
}

/// Checks that results have the measure of harm, which may be any value of an evaluation.
///
/// # Errors
/// A measure that none has, with those that there are.
pub fn check_harm(worst: Option<&Worst>, rows: &[Row]) -> Result<()> {
    let Some(worst) = worst else { return Ok(()) };
    let fullest = rows.iter().map(|row| &row.measured).max_by_key(|measured| measured.len());
    let names: Vec<&str> = fullest.into_iter().flatten().map(|measured| measured.name.as_str()).collect();
    let known = names.is_empty() || rows.iter().flat_map(|row| &row.measured).any(|m| m.name == worst.harm);
    ensure_valid!(known, "worst.harm is \"{}\", which no result has; there are: {}", worst.harm, names.join(", "));
    Ok(())
}

/// Each setting once, in the plan's order.
pub fn settings(planned: &[Case]) -> Vec<&Case> {
    let mut settings: Vec<&Case> = vec![];
    for case in planned {
        if !settings.iter().any(|other| other.is_setting_of(case)) {
            settings.push(case);
        }
    }
    settings
}

/// The worst case of every setting that has a result. `planned`: what each run belongs to.
pub fn worst_cases(worst: Option<&Worst>, all: &[Summary], planned: &[Case]) -> Vec<WorstCase> {
    let Some(worst) = worst else { return vec![] };
    let trained: Vec<&Summary> = all.iter().filter(|summary| summary.trained).collect();
    let of = |case: &Case| {
        let plan: Vec<&Case> = planned.iter().filter(|other| other.is_setting_of(case)).collect();
        let first = |(i, case): &(usize, &&Case)| !plan.iter().take(*i).any(|earlier| earlier.sweep == case.sweep);
        let own: Vec<&Summary> = trained.iter().copied().filter(|s| s.case.is_setting_of(case)).collect();
        let value = |name: &str, summary: &Summary| summary.get(name).map(|mean| mean.mean);
        let with = |name: &str| own.iter().copied().filter(|s| value(name, s).is_some()).collect::<Vec<_>>();
        let order = |name: &str, a: &Summary, b: &Summary| value(name, a).partial_cmp(&value(name, b));
        let equal = std::cmp::Ordering::Equal;
        let found = with(&worst.harm);
        // Of equals the first: it is the milder in a list that goes from mild to severe.
        let most = found.iter().rev().max_by(|a, b| order(&worst.harm, a, b).unwrap_or(equal))?;
        let least = worst.task.as_deref().and_then(|task| {
            let found = with(task);
            let least = found.iter().min_by(|a, b| order(task, a, b).unwrap_or(equal))?;
            Some((least.get(task)?.clone(), least.case.sweep_title()))
        });
        Some(WorstCase {
            method: case.method.clone(),
            settings: case.settings.clone(),
            under: most.case.sweep_title(),
            harm: most.get(&worst.harm)?.clone(),
            conditions: found.len(),
            planned_conditions: plan.iter().enumerate().filter(first).count(),
            runs: found.iter().map(|summary| summary.seeds - summary.failed).sum(),
            planned_runs: plan.len(),
            task: least,
        })
    };
    settings(planned).into_iter().filter_map(of).collect()
}

/// The setting with the least harm in its worst case, for people, among those that lack no result; `None` without any.
pub fn least_harmful(cases: &[WorstCase], settings: usize) -> Option<String> {
    let complete = || cases.iter().filter(|case| case.is_complete());
    let least = complete().min_by(|a, b| a.harm.mean.total_cmp(&b.harm.mean))?;
    let count = complete().count();
    let of = if count < settings {
        format!(", of the {count} of {settings} settings with all results")
    } else {
        String::new()
    };
    Some(format!("{}: {}{of}", least.title(), show(least.harm.mean, least.harm.share)))
}

/// A line for each setting; `None` without any.
pub fn worst_table(worst: Option<&Worst>, cases: &[WorstCase]) -> Option<Table> {
    let worst = worst.filter(|_| !cases.is_empty())?;
    let mut head = vec!["worst case".to_string(), "of".to_string(), worst.harm.clone(), "under".to_string()];
    head.extend(worst.task.iter().flat_map(|task| [format!("least {task}"), "under".to_string()]));
    let mut table = Table::new(head);
    for case in cases {
        let mut cells = vec![case.title(), case.of(), cell(&case.harm), case.under.clone()];
        let none = || ("-".to_string(), "-".to_string());
        let task = case.task.as_ref().map_or_else(none, |(mean, under)| (cell(mean), under.clone()));
        cells.extend(worst.task.iter().flat_map(|_| [task.0.clone(), task.1.clone()]));
        table.push(cells);
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::super::summary::summarise;
    use super::super::summary::tests::{planned, row};
    use super::*;
    use serde_json::json;

    #[test]
    fn the_worst_condition_of_each_setting_is_found() {
        let rows = |method: &str, lambda: f64, attack: &str, values: [(f64, f64); 2]| -> Vec<_> {
            let row = |(seed, (task, harm)): (usize, (f64, f64))| {
                let mut row = row(method, lambda, seed as u64, task, harm);
                row.case.sweep = vec![("attack".to_string(), json!(attack))];
                row.key += attack;
                row
            };
            values.into_iter().enumerate().map(row).collect()
        };
        let all = [
            rows("plain", 0.0, "mild", [(0.9, 0.5), (0.9, 0.7)]),
            rows("plain", 0.0, "severe", [(0.8, 0.9), (0.8, 1.0)]),
            rows("asft", 1.0, "mild", [(0.9, 0.1), (0.9, 0.3)]),
            rows("asft", 1.0, "severe", [(0.7, 0.2), (0.9, 0.2)]),
            rows("asft", 2.0, "mild", [(0.5, 0.0), (0.5, 0.0)]),
        ]
        .concat();
        let options = toml::from_str(
            "config = 'c'\nsuite = 's'\ndir = 'd'\n[[method]]\nname = 'plain'\n[[method]]\nname = 'asft'\n[worst]\nharm = \
             'harm'\ntask = 'task'",
        );
        let options: super::super::CompareOptions = options.unwrap();
        let found = worst_cases(options.worst.as_ref(), &summarise(&options, &all), &planned(&all));
        let told: Vec<_> =
            found.iter().map(|case| (case.title(), &*case.under, case.conditions, case.harm.mean)).collect();
        let near = |(title, under, count, mean): &(String, &str, usize, f64), expected: (&str, &str, usize, f64)| {
            (title.as_str(), *under, *count) == (expected.0, expected.1, expected.2)
                && (mean - expected.3).abs() < 1e-12
        };
        assert_eq!(told.len(), 3);
        assert!(near(&told[0], ("plain, lambda 0.0", "attack severe", 2, 0.95)), "{told:?}");
        // Equally bad under both: the first.
        assert!(near(&told[1], ("asft, lambda 1.0", "attack mild", 2, 0.2)), "{told:?}");
        assert!(near(&told[2], ("asft, lambda 2.0", "attack mild", 1, 0.0)), "{told:?}");
        assert_eq!(
            found[1].task.as_ref().map(|(mean, under)| (mean.mean, under.as_str())),
            Some((0.8, "attack severe"))
        );
        let text = worst_table(options.worst.as_ref(), &found).unwrap().to_string();
        assert!(text.contains("asft, lambda 1.0") && text.contains("least task"), "{text}");
        assert_eq!(worst_cases(None, &summarise(&options, &all), &planned(&all)), []);
    }

    #[test]
    fn a_setting_that_lacks_results_is_not_the_least_harmful() {
        let under = |attack: &str, mut row: super::super::results::Row| {
            row.case.sweep = vec![("attack".to_string(), json!(attack))];
            row
        };
        let both = |lambda: f64, harm: f64| {
            [0, 1]
                .map(|seed| ["mild", "severe"].map(|attack| under(attack, row("asft", lambda, seed, 0.9, harm))))
                .concat()
        };
        // The second diverges under the severe attack, the third with one seed, the fourth was not run there yet; the fifth everywhere.
        let mut all = [0.4, 0.0, 0.1, 0.2, 0.3].map(|harm| both(harm, harm)).concat();
        let plan = planned(&all);
        for failed in [5, 7, 11, 16, 17, 18, 19] {
            all[failed].error = Some("diverged".to_string());
        }
        let all: Vec<_> =
            all.into_iter().enumerate().filter(|(i, _)| ![13, 15].contains(i)).map(|(_, row)| row).collect();
        let options: super::super::CompareOptions =
            toml::from_str("config = 'c'\nsuite = 's'\ndir = 'd'\n[[method]]\nname = 'asft'\n[worst]\nharm = 'harm'")
                .unwrap();
        let found = worst_cases(options.worst.as_ref(), &summarise(&options, &all), &plan);
        let of: Vec<String> = found.iter().map(WorstCase::of).collect();
        assert_eq!(of, ["2", "1 of 2 (2 of 4 runs)", "2 of 2 (3 of 4 runs)", "1 of 2 (2 of 4 runs)"]);
        let least = least_harmful(&found, settings(&plan).len());
        assert_eq!(least.as_deref(), Some("asft, lambda 0.4: 40.0 %, of the 1 of 5 settings with all results"));
        assert_eq!(least_harmful(&found[1..], 5), None);
        assert_eq!(least_harmful(&found[..1], 1).as_deref(), Some("asft, lambda 0.4: 40.0 %"));
    }
}
