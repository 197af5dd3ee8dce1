//! Several defences side by side: the same base, data and evaluations, each method in each of its settings with each
//! seed, one table and one figure.

mod direction;
mod extrapolate;
mod figures;
mod grid;
mod inputs;
mod list;
mod options;
mod page;
mod paired;
mod reported;
mod results;
mod run;
mod sections;
mod summary;
mod worst;

pub use figures::pictures;
pub use grid::{Case, Run, runs};
pub use options::CompareOptions;
pub use page::html;
pub use reported::Reported;
pub use results::{Results, Row, TABLE};
pub use run::{Comparison, Files, Finished};
pub use sections::Findings;
