//! Chat templates and tokenization against transformers: replays tests/fixtures/templates (made by
//! tests/fixtures/make/templates.py) with the tokenizer of tests/tiny.

use super::{ids, sample};
use crate::support::files::{fixture, read_json, tiny};
use asft::data::{DataOptions, Format, IGNORE, Template};
use asft::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    fixture("templates")
}

fn golden(name: &str) -> Value {
    read_json(&fixtures().join(name))
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&tiny("aligned")).unwrap()
}

fn template(cases: &Value, name: &str) -> Template {
    let source = std::fs::read_to_string(fixtures().join(format!("{name}.jinja"))).unwrap();
    let tokens: Vec<(String, String)> = ["bos_token", "eos_token"]
        .iter()
        .map(|token| (token.to_string(), cases["templates"][name][token].as_str().unwrap().to_string()))
        .collect();
    Template::new(&source, &tokens).unwrap()
}

#[test]
fn renders_as_transformers_does() {
    let cases = golden("cases.json");
    let mut wrong = vec![];
    for case in cases["renders"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let messages = cases["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let got = template(&cases, name).render(messages, prompt, case["variables"].as_object().unwrap());
        let fits = match (&got, case["expected"].as_str(), case["kind"].as_str()) {
            (Ok(text), Some(expected), _) => text == expected,
            (Err(e), None, Some("raised")) => e.to_string().ends_with(case["error"].as_str().unwrap()),
            (Err(_), None, Some("other")) => true,
            _ => false,
        };
        if !fits {
            wrong.push(format!("{name} {} {prompt}:\n  got {got:?}\n  expected {case}", case["conversation"]));
        }
    }
    assert!(wrong.is_empty(), "{} renderings differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tokenizes_as_transformers_does() {
    let (tokenizer, cases, tokens) = (tokenizer(), golden("cases.json"), golden("tokens.json"));
    for case in tokens["plain"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(
            tokenizer.encode(text, case["add_special_tokens"].as_bool().unwrap()).unwrap(),
            expected,
            "{text:?}"
        );
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.pieces(&expected).unwrap().concat(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), case["decoded_skip_special"].as_str().unwrap());
    }
    let template = Template::load("tokenizer", &Default::default(), &tokenizer).unwrap();
    for case in tokens["chats"].as_array().unwrap() {
        let messages = cases["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(messages, prompt, &Map::new()).unwrap();
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&case["ids"]), "{}", case["conversation"]);
    }
}

/// Labels of `messages` with a template of the fixtures, through a dataset file.
fn encode(messages: &Value, template: &str) -> anyhow::Result<(Vec<u32>, Vec<i64>)> {
    let template = fixtures().join(format!("{template}.jinja")).to_str().unwrap().to_string();
    let options = DataOptions { format: Format::Chat, template, allow_empty_labels: true, ..DataOptions::default() };
    sample(&tokenizer(), &json!({ "messages": messages }), &options)
}

#[test]
fn labels_are_what_generation_marks() {
    // The template marks content and end-of-turn token, which is what is trained on here.
    let (cases, tokens) = (golden("cases.json"), golden("tokens.json"));
    for case in tokens["masks"].as_array().unwrap() {
        let mask = case["assistant_mask"].as_array().unwrap();
        let expected: Vec<bool> = mask.iter().map(|m| m.as_u64() == Some(1)).collect();
        match encode(&cases["conversations"][case["conversation"].as_str().unwrap()], "marked") {
            Ok((input_ids, labels)) => {
                assert_eq!(input_ids, ids(&case["ids"]));
                let got: Vec<bool> = labels.iter().map(|label| *label != IGNORE).collect();
                assert_eq!(got, expected, "{}", case["conversation"]);
            }
            Err(e) => assert!(!expected.contains(&true), "{}: {e:#}", case["conversation"]),
        }
    }
}

#[test]
fn every_family_trains_on_the_answers_only() {
    let cases = golden("cases.json");
    let tokenizer = tokenizer();
    let labelled = |template: &str, conversation: &str| {
        let (_, labels) = encode(&cases["conversations"][conversation], template).unwrap();
        super::labelled(&tokenizer, &labels)
    };
    let chatml = ["Hello! What can I do?<|im_end|>", "5<|im_end|>"];
    assert_eq!(labelled("chatml", "multi"), chatml);
    assert_eq!(labelled("chatml_one_line", "multi"), chatml);
    // </s> and <|eot_id|> are plain text to this tokenizer, so it sees no end of turn and keeps what follows.
    let eos = "<|im_end|>";
    assert_eq!(labelled("llama2", "multi"), [format!(" Hello! What can I do? {eos}"), format!(" 5 {eos}")]);
    assert_eq!(labelled("mistral", "multi"), [format!(" Hello! What can I do?{eos}"), format!(" 5{eos}")]);
    // The system message goes with the last user turn, which a rendering of the beginning cannot know.
    assert_eq!(labelled("mistral", "system_multi"), [format!(" 1{eos}"), format!(" 2{eos}")]);
    assert_eq!(labelled("zephyr", "multi"), [format!("Hello! What can I do?{eos}"), format!("5{eos}")]);
    // Earlier turns lose their thoughts when the conversation goes on.
    assert_eq!(labelled("thinking", "think"), ["4<|im_end|>", "<think>\nadd again\n</think>\n\n6<|im_end|>"]);
    assert_eq!(labelled("chatml", "assistant_first"), ["I begin.<|im_end|>"]);
    assert_eq!(labelled("chatml", "empty"), ["<|im_end|>"]);
    assert_eq!(labelled("chatml_one_line", "assistant_first"), ["I begin.<|im_end|>"]);
}
