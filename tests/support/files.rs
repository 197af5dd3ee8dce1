//! Where the inputs of the tests are, and files read and copied.

use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The repository's folder.
pub fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A folder of goldens.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A part of the tiny pair and its data.
pub fn tiny(part: &str) -> PathBuf {
    root().join("tests/tiny").join(part)
}

#[track_caller]
pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The records of a file with one per line.
#[track_caller]
pub fn read_json_lines(path: &Path) -> Vec<Value> {
    json_lines(&std::fs::read_to_string(path).unwrap())
}

#[track_caller]
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

pub fn write_json_lines(path: &Path, records: &[Value]) {
    std::fs::write(path, records.iter().map(|record| format!("{record}\n")).collect::<String>()).unwrap();
}

/// Copies the files of a folder into another, which is created if necessary.
pub fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A changed copy of the tiny model in `scratch`, as a setting. A second one overwrites the first.
pub fn damaged(scratch: &TempDir, change: impl Fn(&Path)) -> String {
    let dir = scratch.path().join("model");
    copy_files(&tiny("aligned"), &dir);
    change(&dir);
    format!("model.aligned={}", dir.display())
}

/// Metadata of a safetensors file's header.
pub fn header_metadata(path: &Path) -> HashMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap_or_default()
}
