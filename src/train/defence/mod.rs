//! Defences other than a penalty on the update: what `[defence]` changes in a run.
//!
//! A defence is one value behind [`Defence`], made by [`of`] from the options. Before the run it says what it needs,
//! then it is given its samples and shown the model; in each step it picks what is trained on, may replace the cross-entropy with another
//! objective and add a term of its own; it may change what was trained after a step, and have something else measured and exported in its
//! place; a checkpoint holds what it must remember. Whatever a defence does not override
//! is as in plain training.
//!
//! To add one, write a file here that implements [`Defence`], and add its kind and options to `options.rs` and a line
//! to [`of`].

mod activations;
mod anchor;
mod constrained;
mod contract;
mod copies;
mod ema;
mod kl;
mod lisa;
mod null_space;
mod options;
mod own_batches;
mod prompt_inputs;
mod safe_grad;

pub use activations::Activations;
pub use anchor::Anchor;
pub use constrained::ConstrainedSft;
pub use contract::{Defence, Needs, OwnSamples, Records, TokenObjective, Undefended};
pub use ema::Ema;
pub use kl::Kl;
pub use null_space::NullSpace;
pub use options::{DefenceKind, DefenceOptions};
pub use safe_grad::SafeGrad;

use lisa::Lisa;

/// The defence that the options ask for; all defences are listed here.
pub fn of(options: &DefenceOptions) -> Box<dyn Defence> {
    match options.kind {
        DefenceKind::None => Box::new(Undefended),
        DefenceKind::ConstrainedSft => Box::new(ConstrainedSft::new(&options.betas)),
        DefenceKind::Lisa => Box::new(Lisa::new(options)),
        DefenceKind::Activations => Box::new(Activations::new(options)),
        DefenceKind::Anchor => Box::new(Anchor::new(options)),
        DefenceKind::Kl => Box::new(Kl::new(options)),
        DefenceKind::SafeGrad => Box::new(SafeGrad::new(options)),
        DefenceKind::Ema => Box::new(Ema::new(options)),
        DefenceKind::NullSpace => Box::new(NullSpace::new(options)),
    }
}
