//! The maths of AsFT: the direction V = W_aligned − W_unaligned, and the penalty on what leaves it; what a finished update
//! has to do with V, Safe LoRA's projection, and moves along V and across it.

mod certify;
mod columns;
mod decompose;
mod dense;
pub mod direction;
pub mod direction_file;
mod dual;
pub mod factorize;
pub mod inspect;
mod krylov;
mod options;
mod penalty;
pub mod perturb;
pub mod project;
mod random;
pub mod shares;
mod sign;
mod symmetric;

pub use dual::Dual;
pub use options::{AsftOptions, Found, Lambda, Penalize, Projector};
pub use penalty::{Factors, FullTerm, Penalty, Term, UpdateShares, lora_square};
pub use random::{random_direction, random_right_basis};
