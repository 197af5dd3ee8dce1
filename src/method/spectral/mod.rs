//! The linear algebra under the direction: from V to the leading eigenpairs of V Vᵀ, with a certified bound on what is
//! left out.
//!
//! [`factorize`](factorize()) is the entry point; below it are `certify` (the bound), `columns`, `symmetric`
//! (definiteness, norms), `krylov` and `eigen` (some eigenpairs, all eigenpairs) and `dense` (products). Nothing here
//! knows models or files.

mod certify;
mod columns;
mod dense;
mod eigen;
mod factorize;
mod factors;
mod krylov;
mod sketch;
mod symmetric;

pub use columns::column_squares;
pub use factorize::{Keep, Phases, Setting, factorize, useful_bytes};
pub use factors::Direction;
pub use sketch::{Factor, Sketch};
