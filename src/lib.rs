//! asft: fine-tunes language models without losing their safety (AsFT, arXiv 2506.08473).
pub mod adapter;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod data;
pub mod error;
pub mod hub;
pub mod method;
pub mod model;
pub mod names;
pub mod ops;
pub mod optim;
pub mod report;
pub mod tokenizer;
pub mod train;
