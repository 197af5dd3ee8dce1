//! Each setting's worst case: of all that it was run under, attacks and combinations of the sweep, where the mean over seeds of a measure of
//! harm is largest. A defender who does not know the attack can count on no more than that.

use super::grid::Case;
use super::options::Worst;
use super::summary::{Mean, Summary, cell};
use crate::console::Table;
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
    /// Of how many conditions it is the worst.
    pub conditions: usize,
    /// Conditions without a result.
    pub missing: usize,
    /// The least value of `worst.task` over the conditions, and where it is.
    pub task: Option<(Mean, String)>,
}

impl WorstCase {
    /// Method and settings, for people.
    pub fn title(&self) -> String {
        Case { method: self.method.clone(), sweep: vec![], settings: self.settings.clone() }.title()
    }
}

/// The worst case of every setting that was trained, in the order of the table. Empty where nothing but the method is varied.
pub fn worst_cases(worst: Option<&Worst>, all: &[Summary]) -> Vec<WorstCase> {
    let Some(worst) = worst else { return vec![] };
    let trained: Vec<&Summary> = all.iter().filter(|summary| summary.trained).collect();
    let mut settings: Vec<&Case> = vec![];
    for summary in &trained {
        if !settings.iter().any(|case| case.is_setting_of(&summary.case)) {
            settings.push(&summary.case);
        }
    }
    let of = |case: &Case| {
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
            missing: own.len() - found.len(),
            task: least,
        })
    };
    settings.into_iter().filter_map(of).collect()
}

/// A line for each setting; `None` without any.
pub fn worst_table(worst: Option<&Worst>, cases: &[WorstCase]) -> Option<Table> {
    let worst = worst.filter(|_| !cases.is_empty())?;
    let mut head = vec!["worst case".to_string(), "of".to_string(), worst.harm.clone(), "under".to_string()];
    head.extend(worst.task.iter().flat_map(|task| [format!("least {task}"), "under".to_string()]));
    let mut table = Table::new(head);
    for case in cases {
        let of = match case.missing {
            0 => case.conditions.to_string(),
            missing => format!("{} ({missing} failed)", case.conditions),
        };
        let mut cells = vec![case.title(), of, cell(&case.harm), case.under.clone()];
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
    use super::super::summary::tests::row;
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
        let found = worst_cases(options.worst.as_ref(), &summarise(&options, &all));
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
        assert_eq!(worst_cases(None, &summarise(&options, &all)), []);
    }
}
