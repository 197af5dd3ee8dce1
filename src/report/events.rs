//! TensorBoard event files: the rows of `metrics.jsonl` again, as scalars.
//!
//! `metrics.jsonl` is authoritative. When a run starts or resumes, a new event file is written from the rows that it
//! holds by then, and older files are removed: so nothing is missing or duplicated, however the run was stopped, and
//! the option may be turned on later. A running TensorBoard finds the newer file and, because of the session start at
//! its head, forgets what it had read.
//!
//! The format, a sequence of TFRecords that hold `Event` messages (tensorflow/core/util/event.proto):
//!
//! ```text
//! record   length u64 | masked CRC32C of length u32 | data | masked CRC32C of data u32        little-endian
//! masked   rotate_right(crc, 15) + 0xa282ead8
//! Event    1: wall_time double   2: step int64   3: file_version string   5: Summary   7: SessionLog
//! Summary  1: Value { 1: tag string   2: simple_value float }, repeated         SessionLog  1: status, START = 1
//! ```

use super::evaluated::SuiteRow;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// TensorBoard looks for this in a file's name, and reads a folder's files in the order of their names.
const PREFIX: &str = "events.out.tfevents.";
const FILE_VERSION: &str = "brain.Event:2";
const SESSION_START: u64 = 1;

/// The open event file of a run.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `dir` with `rows`; older event files there are removed.
    pub fn begin(dir: &Path, rows: &[Map<String, Value>]) -> Result<Self> {
        let creating = || format!("creating a TensorBoard file in {}", dir.display());
        std::fs::create_dir_all(dir).with_context(creating)?;
        let older = event_files(dir);
        let stamp = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse::<u64>().ok();
        // Later than any that exists, even within the same second.
        let stamp = older.iter().filter_map(stamp).max().map_or(0, |last| last + 1).max(now() as u64);
        let path = dir.join(format!("{PREFIX}{stamp:010}"));
        let file = File::create(&path).with_context(creating)?;
        let mut events = Self { file, path };
        events.write(&history(rows))?;
        for path in older {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(events)
    }

    /// Adds a row of `metrics.jsonl`.
    pub fn row(&mut self, row: &Map<String, Value>) -> Result<()> {
        let bytes = row_record(now(), row);
        self.write(&bytes)
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("syncing {}", self.path.display()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // One unbuffered write: no reader sees half a record for long, and nothing is lost in a buffer.
        self.file.write_all(bytes).with_context(|| format!("writing {}", self.path.display()))
    }
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))).collect()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The head of a file and its first rows, at times given by their `elapsed_seconds`, the last being now.
fn history(rows: &[Map<String, Value>]) -> Vec<u8> {
    let elapsed = |row: &Map<String, Value>| row.get("elapsed_seconds").and_then(Value::as_f64);
    let last = rows.iter().rev().find_map(elapsed).unwrap_or(0.0);
    let began = now() - last;
    let mut bytes = record(&Event::at(began, 0).text(3, FILE_VERSION));
    let first_step = rows.first().map_or(1, step_of);
    let session = Message::default().number(1, SESSION_START);
    bytes.extend(record(&Event::at(began, first_step).message(7, &session)));
    let mut time = 0.0;
    for row in rows {
        time = elapsed(row).unwrap_or(time);
        bytes.extend(row_record(began + time, row));
    }
    bytes
}

fn step_of(row: &Map<String, Value>) -> u64 {
    row.get("step").and_then(Value::as_u64).unwrap_or(0)
}

/// The numbers of a row as scalars: `train/<key>`, those of a validation as `eval/<key>`, those of a suite as
/// `eval/<evaluation>`; nothing if it has none.
fn row_record(time: f64, row: &Map<String, Value>) -> Vec<u8> {
    let mut summary = Message::default();
    for (key, value) in row.iter().filter(|(key, _)| *key != "step") {
        let Some(value) = value.as_f64() else { continue };
        let tag = match key.strip_prefix("eval_") {
            Some(name) => format!("eval/{name}"),
            None => format!("train/{key}"),
        };
        summary = summary.message(1, &Message::default().text(1, &tag).float(2, value as f32));
    }
    let suite: SuiteRow = serde_json::from_value(Value::Object(row.clone())).unwrap_or_default();
    for (name, value) in suite.readings() {
        let scalar = Message::default().text(1, &format!("eval/{name}")).float(2, value.number() as f32);
        summary = summary.message(1, &scalar);
    }
    if summary.0.is_empty() { vec![] } else { record(&Event::at(time, step_of(row)).message(5, &summary)) }
}

fn record(event: &Message) -> Vec<u8> {
    let data = &event.0;
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked_crc(data).to_le_bytes());
    bytes
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer message under construction: its encoded fields.
#[derive(Default)]
struct Message(Vec<u8>);

struct Event;

impl Event {
    fn at(wall_time: f64, step: u64) -> Message {
        Message::default().double(1, wall_time).number(2, step)
    }
}

impl Message {
    const VARINT: u64 = 0;
    const BITS_64: u64 = 1;
    const BYTES: u64 = 2;
    const BITS_32: u64 = 5;

    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.varint(field << 3 | wire_type)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn number(self, field: u64, value: u64) -> Self {
        self.key(field, Self::VARINT).varint(value)
    }

    fn double(self, field: u64, value: f64) -> Self {
        self.key(field, Self::BITS_64).raw(&value.to_le_bytes())
    }

    fn float(self, field: u64, value: f32) -> Self {
        self.key(field, Self::BITS_32).raw(&value.to_le_bytes())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        self.key(field, Self::BYTES).varint(value.len() as u64).raw(value)
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The data of each record; asserts that the checksums are right.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = vec![];
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(length).to_le_bytes());
            let (data, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(data).to_le_bytes());
            records.push(data.to_vec());
            bytes = rest;
        }
        records
    }

    fn row(step: usize) -> Map<String, Value> {
        let row = json!({"step": step, "loss": 0.5, "grad_norm": null, "elapsed_seconds": step as f64});
        row.as_object().unwrap().clone()
    }

    fn only_file(dir: &Path) -> Vec<u8> {
        let files = event_files(dir);
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read(&files[0]).unwrap()
    }

    // The check value of CRC32C, and the same through tensorboard's `masked_crc32c`.
    #[test]
    fn the_checksum_is_the_masked_crc32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn numbers_become_scalars_and_null_does_not() {
        let data = records(&row_record(0.0, &row(300))).remove(0);
        let scalar = |tag: &str, value: f32| Message::default().text(1, tag).float(2, value);
        let summary = Message::default()
            .message(1, &scalar("train/loss", 0.5))
            .message(1, &scalar("train/elapsed_seconds", 300.0));
        assert_eq!(data, Event::at(0.0, 300).message(5, &summary).0);
        // Step 300 as a varint, after wall_time's key and 8 bytes.
        assert_eq!(data[9..12], [0x10, 0xac, 0x02]);
        let eval = json!({"step": 1, "eval_loss": 2.0});
        let data = records(&row_record(0.0, eval.as_object().unwrap())).remove(0);
        assert!(data.windows(9).any(|window| window == b"eval/loss"));
        let suite = json!({"step": 1, "evaluations": [{"name": "harm", "metric": "refusal", "harmful_score": {"count": 1, "total": 4}}]});
        let data = records(&row_record(0.0, suite.as_object().unwrap())).remove(0);
        assert!(data.windows(9).any(|window| window == b"eval/harm"));
        assert!(row_record(0.0, json!({"step": 1, "skipped": "why"}).as_object().unwrap()).is_empty());
    }

    #[test]
    fn a_new_file_replaces_the_old_and_holds_every_row_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::begin(dir.path(), &[]).unwrap();
        for step in 1..=3 {
            events.row(&row(step)).unwrap();
        }
        assert_eq!(records(&only_file(dir.path())).len(), 2 + 3);
        let first = event_files(dir.path())[0].clone();
        // Resumed after step 2.
        let mut events = EventFile::begin(dir.path(), &[row(1), row(2)]).unwrap();
        events.row(&row(3)).unwrap();
        let bytes = only_file(dir.path());
        assert!(event_files(dir.path())[0] > first);
        let records = records(&bytes);
        assert_eq!(records.len(), 2 + 3);
        assert!(records[0].ends_with(FILE_VERSION.as_bytes()));
        assert!(records[1].ends_with(&[7 << 3 | 2, 2, 8, 1]));
        let times: Vec<f64> = records.iter().map(|data| f64::from_le_bytes(data[1..9].try_into().unwrap())).collect();
        assert!(times.is_sorted() && (times[3] - times[2] - 1.0).abs() < 1e-3, "{times:?}");
    }
}
