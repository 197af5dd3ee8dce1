//! What fuzzing has found and starts from: every input in fuzz/corpus, unchanged and mutated at random.
//!
//! The same targets run under cargo-fuzz; see docs/fuzzing.md. ASFT_FUZZ_SECONDS sets how long each target is given
//! mutated inputs, ASFT_FUZZ_SEED which ones, ASFT_FUZZ_TARGET selects one target.
//!
//! A separate binary: it measures the memory of the whole process, in which abandoned work keeps running.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest that one input may take, on a busy machine.
const SLOW: Duration = Duration::from_secs(30);
/// Memory that all inputs together may take, in bytes. A single template may not take half of it.
const MEMORY: u64 = 4 << 30;
/// Inputs grow to this, in bytes.
const LONGEST: usize = 16 << 10;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder().join("corpus").join(target)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// The words of the dictionary that helps with a target, as libFuzzer writes them: "word", with \", \\ and \xNN.
fn words(target: &str) -> Vec<Vec<u8>> {
    let name = match target {
        "config" => "toml",
        "template" | "conversation" => "jinja",
        "model" | "adapter" => "model",
        "gguf" => "gguf",
        "tokenizer" => "tokenizer",
        _ => "json",
    };
    let text = std::fs::read_to_string(folder().join("dict").join(format!("{name}.dict"))).unwrap();
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| word.replace("\\x00", "\0").replace("\\x0a", "\n").replace("\\\"", "\"").into_bytes()).collect()
}

/// Runs one input; keeps it beside the build if it is a finding.
fn check(target: &str, run: fn(&[u8]), input: &[u8]) {
    let began = Instant::now();
    let fine = catch_unwind(AssertUnwindSafe(|| run(input))).is_ok();
    if !fine || began.elapsed() > SLOW {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{}", blake3::hash(input).to_hex()));
        std::fs::write(&path, input).unwrap();
        panic!("{target} took {:?} on {}", began.elapsed(), path.display());
    }
}

fn chosen() -> impl Iterator<Item = (&'static str, fn(&[u8]))> {
    let only = std::env::var("ASFT_FUZZ_TARGET").ok();
    targets::TARGETS.into_iter().filter(move |(name, _)| only.as_ref().is_none_or(|only| only == name))
}

#[test]
fn every_kept_input_is_read_or_refused() {
    for (target, run) in chosen() {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{target}");
        inputs.iter().for_each(|input| check(target, run, input));
    }
    let peak = asft::memory::peak_bytes();
    assert!(peak < MEMORY, "{peak} bytes");
}

#[test]
fn changed_inputs_are_read_or_refused() {
    let number = |name: &str, default: f64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let time = Duration::from_secs_f64(number("ASFT_FUZZ_SECONDS", 0.15));
    let mut random = SmallRng::seed_from_u64(number("ASFT_FUZZ_SEED", 1.0) as u64);
    for (target, run) in chosen() {
        let (inputs, words) = (corpus(target), words(target));
        let (began, mut runs) = (Instant::now(), 0u64);
        while began.elapsed() < time {
            let input = changed(&inputs, &words, &mut random);
            check(target, run, &input);
            runs += 1;
        }
        println!("{target}: {runs} executions");
    }
    // Only logged: an abandoned thread keeps running here, whereas the program would end.
    println!("{} MiB at most", asft::memory::peak_bytes() >> 20);
}

/// An input of the corpus after one or a few mutations.
fn changed(inputs: &[Vec<u8>], words: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let mut input = inputs.choose(random).cloned().unwrap_or_default();
    for _ in 0..1 << random.random_range(0..5) {
        let at = random.random_range(0..=input.len());
        let end = (at + random.random_range(0..=32)).min(input.len());
        match random.random_range(0..10) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => drop(input.drain(at..end)),
            3 => {
                // Repeats a part, perhaps many times.
                let part = input[at..end].repeat(1 << random.random_range(0..7));
                input.splice(at..at, part);
            }
            4 => {
                let other = inputs.choose(random).map_or(&[][..], Vec::as_slice);
                let from = random.random_range(0..=other.len());
                let to = (from + random.random_range(0..=256)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => input.truncate(at),
            6 => {
                // Replaces a number, if there is one, by another.
                let length = input[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let numbers: [&[u8]; 8] =
                    [b"0", b"-1", b"1e308", b"18446744073709551616", b"4294967296", b"0.5", b"null", b"65537"];
                input.splice(at..at + length, numbers[random.random_range(0..8)].iter().copied());
            }
            _ => {
                let word = words.choose(random).map_or(&[][..], Vec::as_slice);
                let end = if random.random() { at } else { end };
                input.splice(at..end, word.iter().copied());
            }
        }
        input.truncate(LONGEST);
    }
    input
}
