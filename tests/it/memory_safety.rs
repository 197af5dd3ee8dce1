//! Where `unsafe` is allowed: in files of src/ops and in a few others, each with its reason. Clippy checks that every
//! block says why it is sound (Cargo.toml).

use crate::support::files::root;
use std::path::{Path, PathBuf};

/// What needs `unsafe` elsewhere: the GPU driver's functions, found by name, vector instructions for quantised weights, prefetching,
/// a counting allocator, and the environment of its process.
const OTHERS: [&str; 7] = [
    "src/device/driver.rs",
    "src/quant/four_bit/lookup.rs",
    "src/quant/four_bit/lookup/avx2.rs",
    "src/quant/four_bit/lookup/avx512.rs",
    "src/vectors.rs",
    "tests/allocations.rs",
    "tests/support/allocator.rs",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_stands_in_few_places() {
    let root = root();
    let mut files = vec![];
    for dir in ["src", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets"] {
        sources(&root.join(dir), &mut files);
    }
    let others = OTHERS.map(|other| root.join(other));
    files.retain(|path| !path.ends_with("tests/it/memory_safety.rs") && !others.contains(path));
    let mut kernels = 0;
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        // A word in a string is no code; the reasons of attributes are asked for below.
        let is_use = |line: &&&str| line.split('"').step_by(2).any(|outside| outside.contains("unsafe"));
        let mut uses = code.iter().filter(is_use);
        if path.starts_with(root.join("src/ops")) {
            let Some(first) = uses.next() else { continue };
            let allowed = ["#![allow(", "#![cfg_attr(feature = \"cuda\", allow("];
            let said = |start: &&str| first.starts_with(&format!("{start}unsafe_code, reason = \""));
            assert!(allowed.iter().any(said), "{}: {first}", path.display());
            kernels += 1;
        } else {
            let harmless = ["#![deny(unsafe_code)]", "#![forbid(unsafe_code)]"];
            let other = uses.find(|line| !harmless.contains(line));
            assert_eq!(other, None, "unsafe code outside src/ops: {}", path.display());
        }
    }
    assert!(files.len() > 100 && kernels > 0, "{} files, {kernels} kernels", files.len());
    let library = std::fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(library.lines().any(|line| line == "#![deny(unsafe_code)]"));
}

/// On Metal `Tensor::copy` is another handle of the same buffer, so what was to be kept changes with its origin;
/// `ops::owned` copies on every device.
#[test]
fn nothing_is_kept_by_a_copy_that_may_be_an_alias() {
    let mut files = vec![];
    sources(&root().join("src"), &mut files);
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains(".copy()"), "{}: use ops::owned", path.display());
    }
}

/// Metal has no f64: what may come from there is on the host before it is widened.
#[test]
fn nothing_is_widened_to_f64_on_its_way_to_the_host() {
    let mut files = vec![];
    sources(&root().join("src"), &mut files);
    for path in &files {
        let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
        let wrong = text.contains("to_dtype(DType::F64)?.to_device(");
        assert!(!wrong, "{}: to_device first, then to_dtype", path.display());
        // In one expression: what is read out after widening was brought to the host before.
        for statement in text.split([';', '{', '}']) {
            let Some((before, after)) = statement.split_once("to_dtype(DType::F64)?") else { continue };
            let is_read =
                [".flatten_all()?.to_vec", ".to_vec", ".to_scalar"].iter().any(|read| after.starts_with(read));
            assert!(!is_read || before.contains("to_device("), "{}: to_device first: {statement}", path.display());
        }
    }
}
