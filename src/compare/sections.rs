//! What a comparison found, and the tables and notes that say so, on screen and on a page.

use super::options::CompareOptions;
use super::paired::{Clusters, Pair, paired, paired_notes, paired_table};
use super::results::Row;
use super::summary::{Summary, notes, summarise, table};
use super::worst::{WorstCase, worst_cases, worst_table};
use crate::console::Table;

/// Everything that is reported.
pub struct Findings {
    pub summaries: Vec<Summary>,
    pub pairs: Vec<Pair>,
    pub worst: Vec<WorstCase>,
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
    pub fn new(options: &CompareOptions, rows: &[Row], clusters: &Clusters) -> Self {
        let summaries = summarise(options, rows);
        let pairs = paired(options, &summaries, rows, clusters);
        let worst = worst_cases(options.worst.as_ref(), &summaries);
        Self { summaries, pairs, worst }
    }

    /// The settings, their worst cases, and the differences.
    pub fn sections(&self, options: &CompareOptions) -> [Section; 3] {
        let main = Section { table: Some(table(&self.summaries)), notes: notes(options, &self.summaries) };
        let worst = Section {
            table: worst_table(options.worst.as_ref(), &self.worst),
            notes: options.worst.as_ref().map_or("", |_| WORST).to_string(),
        };
        let below = options.paired.as_ref().map_or(String::new(), |paired| paired_notes(paired, &self.pairs));
        let differences = Section { table: paired_table(&self.pairs), notes: below };
        [main, worst, differences]
    }
}

const WORST: &str = "of        conditions (attacks, values of the sweep); the worst of them is picked by its mean, which makes it look a little worse than it is\n";
