//! Defences other than a penalty on the update: what `[defence]` changes in a run.
//!
//! A defence is one value behind [`Defence`], made by [`of`] from the options. Before the run it says what it needs, then
//! it is given its samples; in each step it picks what is trained on, may put an objective in the place of the
//! cross-entropy and add a term of its own; a checkpoint holds what it has to remember. Whatever a defence does not
//! mention is as in plain training.
//!
//! A further one takes a file here that implements [`Defence`], its kind and options in `options.rs`, and a line in [`of`].

mod constrained;
mod contract;
mod lisa;
mod options;

pub use constrained::ConstrainedSft;
pub use contract::{Defence, Needs, OwnSamples, TokenObjective, Undefended};
pub use options::{DefenceKind, DefenceOptions};

use lisa::Lisa;

/// The defence that the options ask for. All there are stand here.
pub fn of(options: &DefenceOptions) -> Box<dyn Defence> {
    match options.kind {
        DefenceKind::None => Box::new(Undefended),
        DefenceKind::ConstrainedSft => Box::new(ConstrainedSft::new(&options.betas)),
        DefenceKind::Lisa => Box::new(Lisa::new(options)),
    }
}
