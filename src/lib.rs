//! asft: fine-tunes language models without losing their safety (AsFT, arXiv 2506.08473).
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod hub;
pub mod method;
pub mod names;
