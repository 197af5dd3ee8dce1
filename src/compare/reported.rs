//! Which results are reported: those of the planned runs, and the models of the pair. Rows of earlier plans stay in `results.jsonl`, in case they
//! are planned again; shown, they would be averaged with others that have the same names.

use super::grid::{Case, Run};
use super::results::Row;
use std::collections::{BTreeMap, BTreeSet};

/// The results of a plan.
pub struct Reported {
    /// The models of the pair, then the runs that have a row, in the plan's order.
    pub rows: Vec<Row>,
    /// What each run belongs to, whether it has a row or not.
    pub planned: Vec<Case>,
    /// Rows that belong to no run of the plan.
    pub left_out: usize,
}

impl Reported {
    pub fn new<'a>(rows: &[Row], runs: impl Iterator<Item = &'a Run>) -> Self {
        let (trained, references): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.seed.is_some());
        let mut trained: BTreeMap<&str, &Row> = trained.into_iter().map(|row| (row.key.as_str(), row)).collect();
        let mut reported: Vec<Row> = references.into_iter().cloned().collect();
        let (mut planned, mut keys) = (vec![], BTreeSet::new());
        for run in runs {
            let key = run.key();
            // A key that has moved from one table of the comparison to another leaves a row with its former case.
            let row = trained.remove(key.as_str()).map(|row| Row { case: run.case.clone(), ..row.clone() });
            // A seed that is listed twice is one run.
            if keys.insert(key) {
                planned.push(run.case.clone());
                reported.extend(row);
            }
        }
        Self { rows: reported, planned, left_out: trained.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::runs;
    use super::super::options::CompareOptions;
    use super::*;

    fn planned(methods: &str) -> Vec<Run> {
        let options: CompareOptions =
            toml::from_str(&format!("config = 'c'\nsuite = 's'\ndir = 'd'\nseeds = [1, 2, 2]\n{methods}")).unwrap();
        runs(&options)
    }

    fn rows(runs: &[Run]) -> Vec<Row> {
        let reference = Row::reference("aligned model", &[], BTreeMap::new());
        runs.iter().map(|run| Row::failed(run, String::new())).chain([reference]).collect()
    }

    #[test]
    fn rows_of_earlier_plans_are_left_out() {
        let attack = |epochs: usize| {
            planned(&format!(
                "[[attack]]\nname = 'long'\nset = {{ train.epochs = {epochs} }}\n[[method]]\nname = 'one'"
            ))
        };
        let (old, new) = (attack(5), attack(10));
        assert_eq!(old[0].case, new[0].case);
        let all = [rows(&old), rows(&new[..1])].concat();
        let found = Reported::new(&all, new.iter());
        let keys: Vec<&str> = found.rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, ["aligned model", "aligned model", &new[0].key()]);
        assert_eq!((found.planned.len(), found.left_out), (2, 2));
    }

    #[test]
    fn parts_of_another_energy_are_other_results() {
        let cut = |energy: f64| {
            let cut = format!("cut = {{ of = 'one', to = ['rows'], energy = {energy} }}");
            planned(&format!("[[method]]\nname = 'one'\n[[method]]\nname = 'part'\n{cut}"))
        };
        let found = Reported::new(&rows(&cut(0.5)), cut(0.9).iter());
        assert_eq!((found.rows.len(), found.planned.len(), found.left_out), (1 + 2, 4, 2));
    }

    #[test]
    fn a_setting_that_moved_to_another_table_keeps_its_results() {
        let swept = planned("sweep = { train.epochs = [3] }\n[[method]]\nname = 'one'");
        let set = planned("[[method]]\nname = 'one'\nset = { train.epochs = 3 }");
        let found = Reported::new(&rows(&swept), set.iter());
        assert_eq!((found.left_out, &found.rows[1].case), (0, &set[0].case));
        assert_ne!(swept[0].case, set[0].case);
    }
}
