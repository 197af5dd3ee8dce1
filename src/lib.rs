//! asft: fine-tunes language models without losing their safety (AsFT, arXiv 2506.08473).
//!
//! The map of the house. Dependencies point downwards; data flow one way, from the command line to the adapter folder.
//!
//! | room | what happens there |
//! | --- | --- |
//! | [`cli`] | arguments as typed |
//! | [`commands`] | one file per command: load, call, write |
//! | [`config`] | TOML and `--set` overrides to validated settings |
//! | [`compare`] | defences side by side: runs, results, their summary |
//! | [`train`] | preflight, prepare, plan, step, run, checkpoint, resume, export |
//! | [`eval`] | what a model is worth, and what its neighbours in weight space are |
//! | [`method`] | AsFT itself: the direction V, the factors of C, the penalty; Safe LoRA, shares of an update, moves along V |
//! | [`data`] | records to token ids and labels, batches |
//! | [`adapter`] | LoRA adapters: in memory, as PEFT folders, merged |
//! | [`optim`] | AdamW and its schedule |
//! | [`model`] | `config.json` to decoder; forward, and backward without a tape |
//! | [`ops`] | primitives: forward and backward, a generic body and CPU kernels |
//! | [`device`] | what this build can compute on |
//! | [`checkpoint`], [`hub`], [`tokenizer`], [`toml_reader`], [`report`], [`plot`], [`console`], [`names`], [`error`], [`memory`], [`ranks`], [`untrusted`], [`version`] | files, downloads, text, what users write, what a run leaves, pictures, lines and bars, module names, exit codes, memory in use, processes that work as one, work that can be given up, what this build is |

// Allowed again in files of ops/ only, for a reason each (tests/it/memory_safety.rs).
#![deny(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod config;
pub mod console;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod hub;
pub mod memory;
pub mod method;
pub mod model;
pub mod names;
pub mod ops;
pub mod optim;
pub mod plot;
pub mod ranks;
pub mod report;
pub mod stop;
pub mod tokenizer;
pub mod toml_reader;
pub mod train;
pub mod untrusted;
pub mod version;
