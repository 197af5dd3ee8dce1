//! The maths of AsFT: the direction V = W_aligned − W_unaligned, and the penalty on what leaves it.

mod certify;
mod dense;
pub mod direction;
pub mod direction_file;
pub mod factorize;
mod krylov;
mod options;
mod penalty;

pub use options::{AsftOptions, Penalize, Projector};
pub use penalty::{Factors, FullTerm, Penalty, Term, aligned_share};
