//! What a comparison found, and the tables and notes that say so, on screen and on a page.

use super::options::CompareOptions;
use super::paired::{Clusters, Pair, paired, paired_notes, paired_table};
use super::reported::Reported;
use super::summary::{Summary, notes, summarise, table};
use super::worst::{WorstCase, settings, worst_cases, worst_table};
use crate::console::Table;

/// Everything that is reported.
pub struct Findings {
    pub summaries: Vec<Summary>,
    pub pairs: Vec<Pair>,
    pub worst: Vec<WorstCase>,
    /// How many settings are planned, of all methods.
    pub settings: usize,
    /// Results of earlier plans, which are not reported.
    pub left_out: usize,
}

/// A table, if there is something to show, and what its words and marks mean.
pub struct Section {
    pub table: Option<Table>,
    pub notes: String,
}

impl Section {
    /// The table by `shown`, then the notes.
    pub fn text(&self, shown: fn(&Table) -> String) -> String {
        self.table.as_ref().map_or(String::new(), shown) + &self.notes
    }
}

impl Findings {
    pub fn new(options: &CompareOptions, reported: &Reported, clusters: &Clusters) -> Self {
        let Reported { rows, planned, left_out } = reported;
        let summaries = summarise(options, rows);
        let pairs = paired(options, &summaries, rows, clusters);
        let worst = worst_cases(options.worst.as_ref(), &summaries, planned);
        Self { summaries, pairs, worst, settings: settings(planned).len(), left_out: *left_out }
    }

    /// The settings, their worst cases, and the differences.
    pub fn sections(&self, options: &CompareOptions) -> [Section; 3] {
        let main = Section {
            table: Some(table(&self.summaries)),
            notes: notes(options, &self.summaries) + &not_shown(self.left_out),
        };
        let worst =
            Section { table: worst_table(options.worst.as_ref(), &self.worst), notes: worst_notes(&self.worst) };
        let below = options.paired.as_ref().map_or(String::new(), |paired| paired_notes(paired, &self.pairs));
        let differences = Section { table: paired_table(&self.pairs), notes: below };
        [main, worst, differences]
    }
}

/// What the words in the table of worst cases mean; nothing without a table.
fn worst_notes(worst: &[WorstCase]) -> String {
    let lacking = worst.iter().any(|case| !case.is_complete());
    let lacking = if lacking { "n of m    the other runs have no result: the worst may be among them\n" } else { "" };
    if worst.is_empty() { String::new() } else { format!("{WORST}{lacking}") }
}

/// How many results are not reported, if any.
fn not_shown(left_out: usize) -> String {
    match left_out {
        0 => String::new(),
        1 => "1 result in results.jsonl belongs to no run that is planned now and is not shown\n".to_string(),
        count => format!("{count} results in results.jsonl belong to no run that is planned now and are not shown\n"),
    }
}

const WORST: &str = "of        conditions (attacks, values of the sweep); the worst of them is picked by its mean, which makes it look a little worse than it is\n";
