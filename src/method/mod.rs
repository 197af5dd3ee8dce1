//! AsFT as the paper writes it (arXiv 2506.08473), a file for each of its objects.
//!
//! ```text
//! V = W_aligned − W_unaligned              one per targeted module                  direction, direction_file, origin, likeness
//! V ≈ U diag(σ) Rᵀ                         its factors, with a certified residual   spectral
//! C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ          C or its stand-in, applied to an update  penalty (Operator), random
//! λ Σ ‖(I − C) ΔW‖_F²                      the penalty and its gradients            penalty, term
//!   + λ Σ min(0, ⟨ΔW, V⟩ / ‖V‖_F)²         the same with V's sign                   sign
//! λ Σ (d_in / ‖V‖²) ‖ΔW Vᵀ‖² + ε ‖ΔW‖²    the same on V's rows                     input
//! Σ ‖(I − C) ΔW‖² ≤ ε² Σ ‖W‖²              λ found from a bound                     dual
//! ‖C ΔW‖ / ‖ΔW‖, ⟨ΔW, V⟩ / (‖ΔW‖ ‖V‖)      shares of an update                      shares, inspect
//! ΔW ← C ΔW                                Safe LoRA                                project
//! ΔW ← P ΔW, ΔW − P ΔW                     an update's part in V's subspace         part
//! W + α V, W + α X with ⟨X, V⟩ = 0         moves along V and across it              perturb
//! ```
//!
//! [`AsftOptions`] is `[asft]` of the config. As a library: [`Direction::of`] a matrix V, an [`Operator`] of it, and
//! [`Penalty::lora`] (`examples/penalty.rs`).

pub mod direction;
pub mod direction_file;
mod dual;
pub mod input;
pub mod inspect;
pub mod likeness;
mod options;
mod origin;
pub mod part;
mod penalty;
pub mod perturb;
pub mod project;
mod random;
pub mod shares;
mod sign;
pub mod spectral;
pub mod summary;
mod term;

pub use dual::Dual;
pub use options::{AsftOptions, DEFAULT_TOLERANCE, Found, Lambda, Penalize, Projector};
pub use penalty::{Operator, Penalty, Together};
pub use random::{orthonormal, random_direction};
pub use spectral::{Direction, Keep};
pub use term::{FullTerm, Term};
