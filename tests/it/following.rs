//! Following a run: log lines and TensorBoard files.

use crate::support::command::{asft, ends, refused, succeeds, train};
use crate::support::files::json_lines;
use crate::support::runs::{interrupt, metrics};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[track_caller]
fn log_lines(stderr: &str) -> Vec<Value> {
    let lines = json_lines(stderr);
    for line in &lines {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["time", "level", "message", "fields"]);
        assert!(line["message"].is_string() && line["fields"].is_object());
    }
    lines
}

#[test]
fn log_lines_are_json_where_asked_for_and_as_many_as_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let short = ["train.max_steps=12"];
    let lines = log_lines(&succeeds(train(&dir, &short, &["--overwrite", "--log-format", "json"])));
    let steps = |lines: &[Value]| lines.iter().filter(|line| line["fields"]["grad_norm"].is_f64()).count();
    assert!((1..12).contains(&steps(&lines)));
    assert!(lines.iter().all(|line| line["level"] == "info"));
    assert_eq!(lines.last().unwrap()["fields"]["result"], json!(dir.join("adapter")));
    let lines = log_lines(&succeeds(train(&dir, &short, &["--overwrite", "--verbose", "--log-format", "json"])));
    assert_eq!(steps(&lines), 12);
    assert!(lines.iter().any(|line| line["level"] == "debug"));
    let text = succeeds(train(&dir, &short, &["--overwrite", "-v"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("step ")).count(), 12);
    assert_eq!(succeeds(train(&dir, &short, &["--overwrite", "-q"])), "");

    // A warning is shown even so, and an error is a line like any other.
    let warned = train(&dir, &["train.max_steps=1", "lora.alpha_pattern.q_proj=8"], &["--overwrite", "-q"]);
    assert!(succeeds(warned).starts_with("warning: the adapter's modules have different ranks or alphas"));
    let lines = log_lines(&ends(train(&dir, &["lora.rank=0"], &["--log-format", "json"]), 2, &[]));
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["level"], &lines[0]["fields"]["exit_code"]), (&json!("error"), &json!(2)));

    // The options work with every command, before or after its name.
    let adapter = dir.join("adapter");
    let merge = |flags: &[&str], out: &str| {
        let mut command = asft(flags);
        command.args(["merge", "--model", "tests/tiny/aligned", "--adapter"]).arg(&adapter);
        command.arg("--out").arg(scratch.path().join(out));
        command
    };
    assert_eq!(log_lines(&succeeds(merge(&["--log-format", "json"], "one")))[0]["fields"]["modules"], 6);
    assert_eq!(succeeds(merge(&["-q"], "two")), "");
    refused(asft(&["-q", "-v", "schema"]), &["cannot be used with"]);
}

/// (step, tag, value) of each scalar in a folder's one event file.
fn scalars(dir: &Path) -> Vec<(usize, String, f32)> {
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut rest, mut found) = (&bytes[..], vec![]);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = message(&rest[12..12 + length]);
        rest = &rest[length + 16..];
        let Some(Field::Bytes(summary)) = event.get(&5).map(|fields| fields[0]) else { continue };
        let Field::Number(step) = event[&2][0] else { panic!("no step") };
        for value in &message(summary)[&1] {
            let Field::Bytes(value) = value else { panic!("no value") };
            let value = message(value);
            let (Field::Bytes(tag), Field::Float(scalar)) = (value[&1][0], value[&2][0]) else { panic!("no scalar") };
            found.push((step as usize, String::from_utf8(tag.to_vec()).unwrap(), scalar));
        }
    }
    found
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Double,
}

/// A protocol buffer message by field number.
fn message(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Field<'_>>> {
    let mut fields: BTreeMap<u64, Vec<Field>> = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => take(&mut bytes, 8, |_| Field::Double),
            2 => {
                let length = varint(&mut bytes) as usize;
                take(&mut bytes, length, Field::Bytes)
            }
            5 => take(&mut bytes, 4, |bytes| Field::Float(f32::from_le_bytes(bytes.try_into().unwrap()))),
            other => panic!("wire type {other}"),
        };
        fields.entry(key >> 3).or_default().push(field);
    }
    fields
}

fn take<'a>(bytes: &mut &'a [u8], length: usize, make: impl Fn(&'a [u8]) -> Field<'a>) -> Field<'a> {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    make(taken)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// The scalars are the numbers of `metrics.jsonl`, in order, each once.
#[track_caller]
fn mirrors_the_metrics(dir: &Path) {
    let mut expected = vec![];
    for row in metrics(dir) {
        for (key, value) in row.as_object().unwrap().iter().filter(|(key, _)| *key != "step") {
            let tag = key.strip_prefix("eval_").map_or(format!("train/{key}"), |name| format!("eval/{name}"));
            expected.extend(value.as_f64().map(|v| (row["step"].as_u64().unwrap() as usize, tag, v as f32)));
        }
    }
    assert_eq!(scalars(&dir.join("tensorboard")), expected);
}

#[test]
fn tensorboard_files_hold_every_row_once_after_a_resume_too() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let sets = ["train.max_steps=12", "output.save_every_steps=5", "output.keep_last=3", "data.validation=0.1"];
    let sets = [&sets[..], &["output.eval_every_steps=3", "logging.tensorboard=true"]].concat();
    succeeds(train(&dir, &sets, &[]));
    mirrors_the_metrics(&dir);
    let steps = |dir: &Path| {
        let all = scalars(&dir.join("tensorboard"));
        all.into_iter().filter(|(_, tag, _)| tag == "train/loss").map(|(step, ..)| step).collect::<Vec<_>>()
    };
    assert_eq!(steps(&dir), (1..=12).collect::<Vec<_>>());
    // As if the run had been killed after step 12, with its newest checkpoint at step 5.
    interrupt(&dir, "adapter", &[10, 12]);
    // Without the option, the old files would show another run's steps.
    let without = [&sets[..sets.len() - 1], &["train.max_steps=7"]].concat();
    let flags = ["--resume", "--allow-change", "train.max_steps"];
    succeeds(train(&dir, &without, &flags));
    assert!(!dir.join("tensorboard").exists());
    // When it is turned on again, they are complete.
    succeeds(train(&dir, &sets, &flags));
    assert_eq!(steps(&dir), (1..=12).collect::<Vec<_>>());
    mirrors_the_metrics(&dir);
}
