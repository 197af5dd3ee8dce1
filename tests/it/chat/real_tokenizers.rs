//! Real tokenizers against transformers: chats, plain texts and the AsFT paper's samples, from the goldens that
//! tests/fixtures/make/real_tokenizers.py made. The tokenizers are not part of the repository:
//!
//!     scripts/get_tokenizers.sh target/tokenizers
//!     ASFT_TOKENIZERS=target/tokenizers cargo test --release --test it real_tokenizers
//!
//! Without the variable the tests are skipped, and say so.

use super::{ids, labelled, sample};
use crate::support::files::{fixture, read_json, root};
use asft::checkpoint::gguf::write;
use asft::data::{DataOptions, Format, Template};
use asft::tokenizer::{Pieces, Tokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> Value {
    read_json(&fixture("tokenizers").join(name))
}

/// The template of Llama 2, whose tokenizer comes without one.
fn llama2_template() -> String {
    fixture("templates/llama2.jinja").to_str().unwrap().to_string()
}

/// The folder of a tokenizer, if there are any.
fn folder(name: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("ASFT_TOKENIZERS") else {
        println!("skipped: ASFT_TOKENIZERS names no folder made by scripts/get_tokenizers.sh");
        return None;
    };
    Some(root().join(dir).join(name))
}

/// Everything in the golden file of `name` that `dir`'s tokenizer does differently.
#[track_caller]
fn compare(name: &str, dir: &Path, template: &str) {
    let (tokenizer, golden, conversations) =
        (Tokenizer::load(dir).unwrap(), golden(&format!("{name}.json")), golden("conversations.json"));
    let template = Template::load(template, &Default::default(), &tokenizer).unwrap();
    let mut wrong = vec![];
    for case in golden["chats"].as_array().unwrap() {
        let messages = conversations[case["conversation"].as_str().unwrap()].as_array().unwrap();
        let prompt = case["prompt"].as_bool().unwrap();
        match (template.render(messages, prompt, case["variables"].as_object().unwrap()), case["error"].as_str()) {
            (Err(e), Some(message)) if e.to_string().ends_with(message) => {}
            (Ok(text), None) => {
                let got = tokenizer.encode(&text, false).unwrap();
                if text != case["text"] || got != ids(&case["ids"]) {
                    wrong.push(format!("got {text:?} {got:?}\n  expected {case}"));
                }
            }
            (got, _) => wrong.push(format!("got {got:?}\n  expected {case}")),
        }
    }
    for case in golden["plain"].as_array().unwrap() {
        let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        let got = (tokenizer.encode(text, true).unwrap(), tokenizer.encode(text, false).unwrap());
        let decoded = tokenizer.decode(&expected, false).unwrap();
        let pieces = tokenizer.pieces(&expected).unwrap();
        for half in [expected.len() / 2, expected.len().saturating_sub(1)] {
            let (before, after) = expected.split_at(half);
            let mut rest = Pieces::after(&tokenizer, before, false).unwrap();
            let mut text = tokenizer.decode(before, false).unwrap();
            // A text that ends inside a character goes on with the character.
            text.truncate(text.trim_end_matches('\u{fffd}').len());
            after.iter().for_each(|&id| text.push_str(&rest.push(id).unwrap()));
            text.push_str(&rest.rest().unwrap());
            if text != decoded {
                wrong.push(format!("got {text:?} from {half} on\n  expected {case}"));
            }
        }
        if got != (expected, ids(&case["bare"])) || decoded != case["decoded"] || pieces.concat() != decoded {
            wrong.push(format!("got {got:?} {decoded:?} {pieces:?}\n  expected {case}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn llama3_is_transformers() {
    if let Some(dir) = folder("llama3") {
        compare("llama3", &dir, "tokenizer");
    }
}

#[test]
fn qwen3_is_transformers() {
    if let Some(dir) = folder("qwen3") {
        compare("qwen3", &dir, "tokenizer");
    }
}

#[test]
fn gemma3_is_transformers() {
    if let Some(dir) = folder("gemma3") {
        compare("gemma3", &dir, "tokenizer");
    }
}

#[test]
fn llama2_is_transformers() {
    if let Some(dir) = folder("llama2") {
        compare("llama2", &dir, &llama2_template());
    }
}

#[test]
fn a_template_may_stand_in_a_file_of_its_own() {
    // As transformers 5 saves a tokenizer.
    let Some(dir) = folder("qwen3") else { return };
    let copy = tempfile::tempdir().unwrap();
    let mut config = read_json(&dir.join("tokenizer_config.json"));
    let template = config.as_object_mut().unwrap().remove("chat_template").unwrap();
    std::fs::write(copy.path().join("chat_template.jinja"), template.as_str().unwrap()).unwrap();
    std::fs::write(copy.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::copy(dir.join("tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
    compare("qwen3", copy.path(), "tokenizer");
}

#[test]
fn a_tokenizer_may_come_from_a_gguf_file() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama3", "qwen3"] {
        let Some(dir) = folder(name) else { return };
        let own = Tokenizer::load(&dir).unwrap();
        let path = scratch.path().join(format!("{name}.gguf"));
        write(&path, &own.gguf(own.vocab_size()).unwrap(), &[], |_| unreachable!("no tensors")).unwrap();
        compare(name, &path, "tokenizer");
    }
}

#[test]
fn the_papers_samples_are_the_references() {
    let Some(dir) = folder("llama2") else { return };
    let tokenizer = Tokenizer::load(&dir).unwrap();
    for case in golden("asft.json")["samples"].as_array().unwrap() {
        let template = format!("asft-{}", case["task"].as_str().unwrap());
        let (input_ids, labels) =
            sample(&tokenizer, &case["record"], &DataOptions { template, ..DataOptions::default() }).unwrap();
        let expected: Vec<i64> = case["labels"].as_array().unwrap().iter().map(|l| l.as_i64().unwrap()).collect();
        assert_eq!(input_ids, ids(&case["ids"]), "{case}");
        assert_eq!(labels, expected, "{case}");
    }
}

#[test]
fn tool_calls_are_labels() {
    let Some(dir) = folder("qwen3") else { return };
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let options = DataOptions { format: Format::Chat, ..DataOptions::default() };
    let (_, labels) = sample(&tokenizer, &json!({"messages": golden("conversations.json")["tool"]}), &options).unwrap();
    let call =
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"note\": \"é<&>'\\\"\"}}\n</tool_call><|im_end|>";
    // The template writes empty thoughts before the answer, which are not the record's.
    assert_eq!(labelled(&tokenizer, &labels), [call, "2.<|im_end|>"]);
}

#[test]
fn answers_are_labels_with_every_tokenizer() {
    let conversations = golden("conversations.json");
    let expected = [
        ("llama3", ["Hello!<|eot_id|>", "3468<|eot_id|>"]),
        ("qwen3", ["Hello!<|im_end|>", "3468<|im_end|>"]),
        ("gemma3", ["Hello!<end_of_turn>", "3468<end_of_turn>"]),
        ("llama2", ["Hello! </s>", "3468 </s>"]),
    ];
    for (name, expected) in expected {
        let Some(dir) = folder(name) else { return };
        let template = match name {
            "llama2" => llama2_template(),
            _ => "tokenizer".to_string(),
        };
        let options = DataOptions { format: Format::Chat, template, ..DataOptions::default() };
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let (_, labels) = sample(&tokenizer, &json!({"messages": conversations["multi"]}), &options).unwrap();
        assert_eq!(labelled(&tokenizer, &labels), expected, "{name}");
    }
}
