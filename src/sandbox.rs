//! The sandbox of docs/sandbox.md, as part of the program: the toy pair, its data, and the configs and suites that use them.
//!
//! The files are the repository's own, byte for byte and under its paths, so every command of the docs works in a folder that
//! [`write`] has filled. Models and data have a crate of their own, `sandbox/`, as they are larger than the program's sources.

use crate::checkpoint::write_atomic;
use anyhow::Result;
use std::io::Write;
use std::path::Path;

/// The config that the first run takes, below the folder.
pub const CONFIG: &str = "configs/sandbox/train.toml";

macro_rules! files {
    ($($path:literal)*) => { &[$(($path, include_bytes!(concat!("../", $path)).as_slice())),*] };
}

const CONFIGS: &[(&str, &[u8])] = files! {
    "configs/sandbox/comparisons/added_defences.toml"
    "configs/sandbox/comparisons/added_p3.toml"
    "configs/sandbox/comparisons/attack.toml"
    "configs/sandbox/comparisons/choose.toml"
    "configs/sandbox/comparisons/choose_p3.toml"
    "configs/sandbox/comparisons/decide.toml"
    "configs/sandbox/comparisons/decide_added.toml"
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
};

/// Writes every file below `dir`, whose folders are made as needed. What is there under their names is replaced. Returns their number.
///
/// # Errors
/// A file that cannot be written.
pub fn write(dir: &Path) -> Result<usize> {
    let files = CONFIGS.iter().chain(asft_sandbox::FILES);
    for (path, content) in files.clone() {
        write_atomic(&dir.join(path), |file| Ok(file.write_all(content)?))?;
    }
    Ok(files.count())
}
