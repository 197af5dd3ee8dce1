//! What a comparison is going to run, for people: a paragraph for each setting, with its seeds.

use super::grid::Run;
use crate::console::wrapped;

/// Longer lines are broken.
const COLUMNS: usize = 120;

/// The runs in order, each with whether there is a result.
pub fn list<'a>(runs: impl Iterator<Item = (&'a Run, bool)>) -> String {
    let mut cases: Vec<Vec<(&Run, bool)>> = vec![];
    for (run, done) in runs {
        match cases.iter_mut().find(|case| case[0].0.case == run.case) {
            Some(case) => case.push((run, done)),
            None => cases.push(vec![(run, done)]),
        }
    }
    let lines = cases.iter().flat_map(|case| {
        let first = case[0].0;
        let title = [first.case.title(), first.case.sweep_title()].join(", ");
        let seeds = |wanted: bool| -> String {
            let seeds = case.iter().filter(|(_, done)| *done || wanted).map(|(run, _)| run.seed.to_string());
            seeds.collect::<Vec<_>>().join(", ")
        };
        let done =
            Some(seeds(false)).filter(|done| !done.is_empty()).map_or(String::new(), |done| format!("; done: {done}"));
        let head = format!("{}: seeds {}{done}", title.trim_end_matches(", "), seeds(true));
        // The seed is the last, and said above.
        let overrides = first.overrides.split_last().map_or(String::new(), |(_, others)| others.join(" "));
        let mut lines = wrapped(&head, COLUMNS, 2);
        if !overrides.is_empty() {
            let settings = wrapped(&overrides, COLUMNS - 4, 0);
            lines.extend(settings.into_iter().map(|line| format!("    {line}")));
        }
        lines
    });
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::super::grid::runs;
    use super::*;

    #[test]
    fn lines_are_short_and_name_each_setting_once() {
        let text = "config = 'c'\nsuite = 's'\ndir = 'd'\nseeds = [1, 2, 3]\nsweep = { data.train = ['sandbox/data/train_p1.jsonl', \
                    'sandbox/data/train_p3.jsonl'] }\n[[method]]\nname = 'Lisa'\nset = { asft.penalize = 'none', defence.kind = \
                    'lisa', defence.alignment_data = 'sandbox/data/safety.jsonl', defence.alignment_steps = 10, \
                    defence.finetune_steps = 90 }\nsweep = { asft.lambda = [1, 2] }";
        let options = toml::from_str(text).unwrap();
        let all = runs(&options);
        let listed = list(all.iter().map(|run| (run, run.seed == 2)));
        assert!(listed.lines().all(|line| line.chars().count() <= COLUMNS), "{listed}");
        assert!(
            listed.contains("Lisa, lambda 1, train train_p1: seeds 1, 2, 3; done: 2\n    asft.penalize="),
            "{listed}"
        );
        assert_eq!(listed.matches("Lisa").count(), 4);
        assert!(listed.contains("asft.lambda=2") && !listed.contains("train.seed"), "{listed}");
    }
}
