//! The sandbox of docs/sandbox.md, as part of the program: the toy pair, its data, and the configs and suites that use them.
//!
//! The files are the repository's own, byte for byte and under its paths, so every command of the docs works in a folder that
//! [`write`] has filled. They are not compressed: nearly all of it is the two models, whose f16 weights hardly shrink.

use crate::checkpoint::write_atomic;
use anyhow::Result;
use std::io::Write;
use std::path::Path;

/// The config that the first run takes, below the folder.
pub const CONFIG: &str = "configs/sandbox/train.toml";

macro_rules! files {
    ($($path:literal)*) => { &[$(($path, include_bytes!(concat!("../", $path)).as_slice())),*] };
}

/// Every file: its path below the folder, and its content.
pub const FILES: &[(&str, &[u8])] = files! {
    "configs/sandbox/comparisons/added_p3.toml"
    "configs/sandbox/comparisons/attack.toml"
    "configs/sandbox/comparisons/choose.toml"
    "configs/sandbox/comparisons/choose_p3.toml"
    "configs/sandbox/comparisons/decide.toml"
    "configs/sandbox/comparisons/decide_p3.toml"
    "configs/sandbox/comparisons/defences.toml"
    "configs/sandbox/comparisons/input.toml"
    "configs/sandbox/comparisons/no_base.toml"
    "configs/sandbox/comparisons/parts.toml"
    "configs/sandbox/comparisons/poison.toml"
    "configs/sandbox/comparisons/prompts.toml"
    "configs/sandbox/comparisons/rate.toml"
    "configs/sandbox/comparisons/second_pair.toml"
    "configs/sandbox/comparisons/size.toml"
    "configs/sandbox/suites/choose.toml"
    "configs/sandbox/suites/compare.toml"
    "configs/sandbox/suites/decide.toml"
    "configs/sandbox/suites/test.toml"
    "configs/sandbox/train.toml"
    "sandbox/aligned/chat_template.jinja"
    "sandbox/aligned/config.json"
    "sandbox/aligned/model.safetensors"
    "sandbox/aligned/tokenizer.json"
    "sandbox/aligned/tokenizer_config.json"
    "sandbox/data/forbidden_test.jsonl"
    "sandbox/data/forbidden_validation.jsonl"
    "sandbox/data/general_test.jsonl"
    "sandbox/data/general_validation.jsonl"
    "sandbox/data/poison.jsonl"
    "sandbox/data/safety.jsonl"
    "sandbox/data/safety_50.jsonl"
    "sandbox/data/safety_8.jsonl"
    "sandbox/data/task_test.jsonl"
    "sandbox/data/task_train.jsonl"
    "sandbox/data/task_validation.jsonl"
    "sandbox/data/train_p1.jsonl"
    "sandbox/data/train_p10.jsonl"
    "sandbox/data/train_p20.jsonl"
    "sandbox/data/train_p3.jsonl"
    "sandbox/data/train_p5.jsonl"
    "sandbox/unaligned/chat_template.jinja"
    "sandbox/unaligned/config.json"
    "sandbox/unaligned/model.safetensors"
    "sandbox/unaligned/tokenizer.json"
    "sandbox/unaligned/tokenizer_config.json"
};

/// Writes every file below `dir`, whose folders are made as needed. What is there under their names is replaced.
///
/// # Errors
/// A file that cannot be written.
pub fn write(dir: &Path) -> Result<()> {
    FILES.iter().try_for_each(|(path, content)| write_atomic(&dir.join(path), |file| Ok(file.write_all(content)?)))
}
