//! Datasets on the hub: the file that is meant, or the list of candidates.

use super::server::{Fault, Hub, Repository};
use super::support::command::{stdout, succeeds, train_arguments};
use super::support::files::{read_json, tiny};
use super::{asft, assert_cache_is_right, fails, file_requests, names};
use std::path::Path;
use std::process::Command;

fn samples() -> Vec<u8> {
    std::fs::read(tiny("train.jsonl")).unwrap()
}

fn repository() -> Repository {
    let text = samples();
    let few: Vec<u8> = text.split_inclusive(|byte| *byte == b'\n').take(8).flatten().copied().collect();
    Repository::new(&[
        ("README.md", b"# samples"),
        ("dataset_infos.json", b"{}"),
        ("data/train.jsonl", &text),
        ("data/validation.jsonl", &few),
        ("data/test.jsonl", &few),
    ])
}

fn train(hub: &Hub, home: &Path, overrides: &[&str]) -> Command {
    let mut command = asft(hub, home);
    train_arguments(&mut command, &home.join("run"), &[&["train.max_steps=2"], overrides].concat(), &[]);
    command
}

fn eval(hub: &Hub, home: &Path, data: &str) -> Command {
    let mut command = asft(hub, home);
    command.args(["eval", "--json", "--model", "tests/tiny/aligned", "--data", data]);
    command
}

#[test]
fn a_run_trains_and_validates_on_a_dataset() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("datasets", "org/samples", repository());
    let sets = ["data.train=org/samples", "data.validation=org/samples@main"];
    succeeds(train(&hub, home.path(), &sets));
    let record = read_json(&home.path().join("run/run.json"));
    let commit = repository().commit;
    for (input, file) in [("train", "data/train.jsonl"), ("validation", "data/validation.jsonl")] {
        assert_eq!(record["inputs"][input]["source"], format!("org/samples@{commit}:{file}"));
        assert_eq!(record["inputs"][input]["hash"].as_str().unwrap().len(), 64);
    }
    let mut asked = file_requests(&hub.log());
    asked.retain(|request| request.starts_with("GET"));
    assert_eq!(asked, ["GET data/train.jsonl", "GET data/validation.jsonl"]);
    assert_cache_is_right(&home, &repository().files);

    // Again, from the cache.
    succeeds(train(&hub, home.path(), &sets).arg("--overwrite").env("HF_HUB_OFFLINE", "1"));
    assert!(hub.log().is_empty());
    // What the record says is itself a name.
    let source = record["inputs"]["validation"]["source"].as_str().unwrap();
    succeeds(eval(&hub, home.path(), source).env("HF_HUB_OFFLINE", "1"));
}

#[test]
fn the_shards_of_a_split_are_all_fetched() {
    let home = tempfile::tempdir().unwrap();
    let (text, mut shards) = (samples(), Repository::new(&[("data/test.jsonl", b"{}")]));
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, part) in lines.chunks(40).enumerate() {
        shards.add(&format!("data/train-{number:05}-of-00003.jsonl"), &part.concat());
    }
    let hub = Hub::with("datasets", "org/shards", shards);
    succeeds(train(&hub, home.path(), &["data.train=org/shards"]));
    let record = read_json(&home.path().join("run/run.json"));
    assert_eq!(record["samples"]["train"], lines.len());
    assert!(record["inputs"]["train"]["source"].as_str().unwrap().ends_with(":data/train-00000-of-00003.jsonl"));
}

#[test]
fn a_file_of_a_dataset_can_be_named() {
    let home = tempfile::tempdir().unwrap();
    let mut moved = repository();
    moved.revisions.push("refs/convert/jsonl".into());
    let hub = Hub::with("datasets", "org/samples", moved);
    for data in ["org/samples:data/test.jsonl", "org/samples@refs/convert/jsonl:data/test.jsonl"] {
        succeeds(eval(&hub, home.path(), data));
    }
    assert_eq!(file_requests(&hub.log()), ["HEAD data/test.jsonl", "GET data/test.jsonl"]);
    let mut command = asft(&hub, home.path());
    command.args(["generate", "--model", "tests/tiny/aligned", "--max-new-tokens", "1"]);
    let answers = stdout(command.args(["--data", "org/samples:data/test.jsonl"]));
    assert_eq!(answers.lines().count(), 8, "{answers}");
}

#[test]
fn what_is_unclear_or_missing_is_refused_with_a_list() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("datasets", "org/samples", repository());
    fails(
        eval(&hub, home.path(), "org/samples"),
        2,
        &["evaluation", "not clear which", "`org/samples:data/test.jsonl`"],
    );
    let typo = ["no file `data/trian.jsonl`", "did you mean `data/train.jsonl`"];
    fails(eval(&hub, home.path(), "org/samples:data/trian.jsonl"), 2, &typo);
    fails(eval(&hub, home.path(), "org/samples:README.md"), 2, &["README.md", "cannot be read"]);
    fails(eval(&hub, home.path(), "org/nothing"), 2, &["no such file", "org/nothing", "not on http"]);
    fails(eval(&hub, home.path(), "org/samples@v9"), 2, &["not this revision"]);
    fails(eval(&hub, home.path(), "data/nowhere.jsonl"), 2, &["data/nowhere.jsonl", "does not exist"]);
    let mut two = Repository::new(&[]);
    for file in ["train-easy.parquet", "train-hard.parquet"] {
        two.add(file, b"PAR1");
    }
    hub.put("datasets", "org/two", two);
    let needles = ["data.train", "train-easy.parquet", "train-hard.parquet"];
    fails(train(&hub, home.path(), &["data.train=org/two"]), 2, &needles);
    assert!(!home.path().join("run").exists());
    assert_eq!(names(&home), [""; 0]);
    assert!(file_requests(&hub.log()).is_empty());
}

#[test]
fn failures_leave_nothing_wrong() {
    let home = tempfile::tempdir().unwrap();
    let mut gated = repository();
    gated.gated = Some("hf_good".into());
    let hub = Hub::with("datasets", "org/samples", gated);
    let page = format!("{}/datasets/org/samples", hub.endpoint);
    fails(train(&hub, home.path(), &["data.train=org/samples"]), 2, &["data.train", "HTTP 401", &page]);
    hub.change(|repository| {
        repository.gated = None;
        repository.file("data/train.jsonl").fault = Some(Fault::EndsAt(100));
    });
    fails(train(&hub, home.path(), &["data.train=org/samples"]), 1, &["data/train.jsonl", "broke off after 100 of"]);
    assert_cache_is_right(&home, &repository().files);
    assert!(!home.path().join("run").exists());
    hub.change(|repository| repository.file("data/train.jsonl").fault = None);
    succeeds(train(&hub, home.path(), &["data.train=org/samples"]));
    assert_cache_is_right(&home, &repository().files);

    let mut hostile = repository();
    hostile.add("../../../train.jsonl", b"{}");
    hub.put("datasets", "org/zz-hostile", hostile);
    fails(eval(&hub, home.path(), "org/zz-hostile:data/train.jsonl"), 2, &["leads out of it"]);
}
