//! LoRA adapters.

mod options;

pub use options::LoraOptions;
