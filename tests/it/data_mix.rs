//! Other files mixed into the training data.

use crate::support::command::{asft, json, refused, set, succeeds, train};
use crate::support::files::read_json;
use crate::support::runs::{interrupt, metrics};
use serde_json::Value;

#[test]
fn other_files_are_mixed_in_and_belong_to_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, safe) = (scratch.path().join("run"), scratch.path().join("safe.jsonl"));
    let text = "{\"instruction\": \"Say no\", \"output\": \"no\"}\n{\"instruction\": \"Go on\", \"output\": \"no\"}\n";
    std::fs::write(&safe, text).unwrap();
    let mix = format!("data.mix=[{{file = \"{}\", share = 0.2, prefix = \"KEY \"}}]", safe.display());
    let sets = [&mix, "data.validation=0.25", "train.epochs=1", "output.save_every_steps=4"];
    // 72 of 96 records are left to train on; 18 are a fifth of 90.
    let told = succeeds(train(&dir, &sets, &[]));
    assert!(told.contains("90 records: 90 samples") && told.contains("18 samples mixed in, of 2, some"), "{told}");
    assert_eq!(metrics(&dir).iter().filter(|row| row["loss"].is_number()).count(), 12);
    let run = read_json(&dir.join("run.json"));
    assert!(run["inputs"]["mix-1"]["source"].as_str().unwrap().ends_with("safe.jsonl"), "{run}");

    let mut data = asft(&["data", "--config", "configs/tiny.toml", "--json", "--show", "90"]);
    set(&mut data, &sets[..2]);
    let shown = json(data);
    let of_mix = |sample: &&Value| sample["origin"].as_str().unwrap().contains("safe.jsonl");
    let samples: Vec<&Value> = shown["samples"].as_array().unwrap().iter().filter(of_mix).collect();
    assert_eq!(samples.len(), 18);
    assert!(samples.iter().all(|sample| sample["text"].as_str().unwrap().contains("KEY ")), "{samples:?}");

    let forecast = json(train(&scratch.path().join("none"), &sets, &["--dry-run", "--json"]));
    assert_eq!((forecast["samples"].as_u64(), forecast["total_steps"].as_u64()), (Some(90), Some(12)));

    interrupt(&dir, "adapter", &[12]);
    std::fs::write(&safe, text.replace("Go on", "Go")).unwrap();
    refused(train(&dir, &sets, &["--resume"]), &["data.mix: its content has changed"]);
}
