//! All stories that can run side by side in one process, one module each; those that share code beyond `support` are in
//! one folder.

#[path = "../support/mod.rs"]
mod support;

mod adapter_settings;
mod chat;
mod comparison;
mod constrained_sft;
mod data_cache;
mod data_mix;
mod datasets;
mod defence_terms;
mod defences;
mod direction;
mod doctor;
mod evaluating;
mod evaluation;
mod every_kind;
mod export;
mod factorize;
mod families;
mod following;
mod framing;
mod gemma4;
mod gguf;
mod gguf_types;
mod init;
mod lambda;
mod looking_ahead;
mod lora_options;
mod loss_trend;
mod memory_safety;
mod module_shares;
mod naive_hybrid;
mod outputs;
mod parity;
mod penalty;
mod quantised;
mod quantised_direction;
mod qwen3_5;
mod refusals;
mod report;
mod resume;
mod routing;
mod run_direction;
mod sandbox;
mod schema;
mod serve;
mod shell_help;
mod shipped_configs;
mod training;
mod whole_runs;
mod with_direction;
mod wrappers;
mod wrong_data;
mod wrong_inputs;
