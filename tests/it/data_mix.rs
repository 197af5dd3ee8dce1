//! Other files mixed into the training data.

use crate::support::command::{asft, json, refused, refused_unwritten, set, succeeds, train};
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

/// `asft data --json` with all samples shown.
fn shown(sets: &[&str]) -> Value {
    let mut data = asft(&["data", "--config", "configs/tiny.toml", "--json", "--show", "1000"]);
    set(&mut data, sets);
    json(data)
}

#[test]
fn a_list_of_sources_is_one_dataset() {
    let scratch = tempfile::tempdir().unwrap();
    let safe = scratch.path().join("safe.jsonl");
    std::fs::write(&safe, "{\"q\": \"Say no\", \"output\": \"no\"}\n").unwrap();
    let drawn = |path: &str| {
        format!(
            "{{{path} = \"{}\", share = 0.2, prefix = \"KEY \", columns = {{instruction = \"q\"}}}}",
            safe.display()
        )
    };
    let listed = format!("data.train=[\"tests/tiny/train.jsonl\", {}]", drawn("path"));
    let (list, mix) = (shown(&[&listed]), shown(&[&format!("data.mix=[{}]", drawn("file"))]));
    assert_eq!(list["samples"], mix["samples"]);
    assert_eq!(list["train"]["sources"][1]["drawn"], 24);
    assert_eq!(list["train"]["sources"][0]["available"], 96);

    let both = "data.train=[{path = \"tests/tiny/chat.jsonl\", format = \"chat\"}, \"tests/tiny/train.jsonl\"]";
    let all = shown(&[both]);
    let chat = shown(&["data.train=tests/tiny/chat.jsonl", "data.format=chat"]);
    let chats = chat["train"]["samples"].as_u64().unwrap() as usize;
    assert_eq!(all["train"]["samples"].as_u64(), Some(96 + chats as u64));
    assert_eq!(all["samples"].as_array().unwrap()[..chats], chat["samples"].as_array().unwrap()[..]);

    let dir = scratch.path().join("run");
    let told = succeeds(train(&dir, &[both, "train.max_steps=1"], &[]));
    assert!(told.contains("tests/tiny/train.jsonl: all 96 samples"), "{told}");
    let run = read_json(&dir.join("run.json"));
    assert_eq!(run["inputs"]["train-2"]["source"], "tests/tiny/train.jsonl");
    let card = std::fs::read_to_string(dir.join("adapter/README.md")).unwrap();
    assert!(card.contains("tests/tiny/chat.jsonl, tests/tiny/train.jsonl"), "{card}");
}

#[test]
fn wrong_sources_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for (number, record) in
        [(1, "{\"instruction\": \"a\", \"output\": \"b\"}"), (2, "{\"question\": \"a\", \"output\": \"b\"}")]
    {
        std::fs::write(scratch.path().join(format!("part-{number}.jsonl")), record).unwrap();
    }
    let shards = format!("data.train={}/part-*.jsonl", scratch.path().display());
    for (sets, needles) in [
        (
            &[&*shards][..],
            &["part-2.jsonl:1: its columns are output, question", "part-1.jsonl", "instruction, output"][..],
        ),
        (
            &["data.train=[\"a\", {path = \"b\", shar = 0.1}]"],
            &["unknown key `shar` in an item of `data.train`", "`share`?"],
        ),
        (&["data.train={path = \"b\", cuont = 1}"], &["unknown key `cuont` in `data.train`", "`count`?"]),
        (&["data.train=[3]"], &["expected a list of strings or tables, a string or a table"]),
        (
            &["data.train=[\"tests/tiny/train.jsonl\", \"tests/tiny/*.csv\"]"],
            &["data.train, item 2: tests/tiny/*.csv matches no"],
        ),
        (&["data.train=[]"], &["`data.train` is required"]),
        (&["data.train={path = \"tests/tiny/train.jsonl\", share = 0.5}"], &["none says how many samples there are"]),
        (&["data.cache="], &["`data.cache` is empty"]),
        (
            &["data.train={path = \"tests/tiny/train.jsonl\", count = 20}", "data.validation=0.1"],
            &["`data.validation` is a share of the sources"],
        ),
        (
            &["data.train={path = \"a\", format = \"chat\", columns = {input = \"b\"}}"],
            &["data.train has wrong `columns`", "`input`"],
        ),
    ] {
        refused_unwritten(train(&dir, sets, &[]), &dir, needles);
    }
}
