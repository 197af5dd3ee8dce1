//! The maths of AsFT: the direction V = W_aligned − W_unaligned, and the penalty on what leaves it; what a finished update
//! has to do with V, Safe LoRA's projection, and moves along V and across it.

pub mod direction;
pub mod direction_file;
mod dual;
pub mod inspect;
mod options;
mod origin;
mod penalty;
pub mod perturb;
pub mod project;
mod random;
pub mod shares;
mod sign;
pub mod spectral;
mod term;

pub use dual::Dual;
pub use options::{AsftOptions, DEFAULT_TOLERANCE, Found, Lambda, Penalize, Projector};
pub use penalty::{Factors, Penalty, UpdateShares, lora_square};
pub use random::{random_direction, random_right_basis};
pub use term::{FullTerm, Term};
