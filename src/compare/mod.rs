//! Several defences side by side: the same base, data and evaluations, each method in each of its settings with each
//! seed, one table and one figure.

mod direction;
mod extrapolate;
mod grid;
mod inputs;
mod list;
mod options;
mod paired;
mod results;
mod run;
mod summary;

pub use grid::{Case, Run, runs, sweep_values};
pub use options::{CompareOptions, Figure};
pub use paired::{paired, paired_notes, paired_table};
pub use results::{PICTURES, Results, Row, TABLE};
pub use run::{Comparison, Finished};
pub use summary::{Mean, Summary, notes, summarise, table};
