//! What describes a run beforehand (`asft train --dry-run`, `asft data`) refuses what the run would refuse.

use crate::support::command::{asft, refused, refused_unwritten, train};
use crate::support::files::{damaged, read_json};
use serde_json::Value;

#[test]
fn a_tokenizer_that_is_not_the_model_s_is_refused_by_all_that_look_ahead() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let model = damaged(&scratch, |dir| {
        let change = |name: &str, change: &dyn Fn(&mut Value)| {
            let path = dir.join(name);
            let mut value = read_json(&path);
            change(&mut value);
            std::fs::write(&path, value.to_string()).unwrap();
        };
        change("tokenizer.json", &|tokenizer| {
            let mut token = tokenizer["added_tokens"][0].clone();
            (token["id"], token["content"]) = (448.into(), "<|end|>".into());
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
        });
        change("tokenizer_config.json", &|config| config["eos_token"] = "<|end|>".into());
    });
    let message = ["error: the tokenizer's eos token has id 448, beyond the model's vocab_size of 448; "];
    refused_unwritten(train(&dir, &[&model], &[]), &dir, &message);
    refused_unwritten(train(&dir, &[&model], &["--dry-run"]), &dir, &message);
    refused(asft(&["data", "--config", "configs/tiny.toml", "--set", &model]), &message);
}

#[test]
fn a_dry_run_says_all_that_is_wrong_with_a_run_in_its_words() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for sets in [
        &["lora.rank=9000000000000000000"][..],
        &["data.train=nowhere.jsonl", "data.validation=none.jsonl"],
        &["model.unaligned=tests/tiny/unalined"],
        &["asft.direction=none.safetensors"],
        &["asft.direction=none.safetensors", "data.train=nowhere.jsonl"],
        &["defence.kind=lisa", "defence.alignment_data=none.jsonl"],
        &["defence.kind=lisa", "defence.alignment_data=tests/tiny/train.jsonl", "train.max_steps=3"],
    ] {
        let of_run = refused_unwritten(train(&dir, sets, &[]), &dir, &[]);
        let ahead = refused_unwritten(train(&dir, sets, &["--dry-run"]), &dir, &[]);
        let error = |text: &str| text.split_once("error:").unwrap().1.to_string();
        assert_eq!(error(&of_run), error(&ahead));
    }
}
