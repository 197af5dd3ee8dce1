//! Ten conversations whose text and labels were written out by hand: what is trained on stands between ⟦ and ⟧. The template
//! `chatml` ends a turn with two line breaks: its own, and the one after the expression.

use super::sample;
use crate::support::files::{fixture, tiny};
use asft::data::{DataOptions, Format, IGNORE, TrainOn};
use asft::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// The text of a sample with its labels marked.
fn marked(tokenizer: &Tokenizer, ids: &[u32], labels: &[i64]) -> String {
    let mut text = String::new();
    let tokens: Vec<(u32, bool)> = ids.iter().zip(labels).map(|(id, label)| (*id, *label != IGNORE)).collect();
    for (id, label) in ids.iter().zip(labels) {
        assert!(*label == IGNORE || *label == i64::from(*id), "a label is its token");
    }
    for run in tokens.chunk_by(|a, b| a.1 == b.1) {
        let ids: Vec<u32> = run.iter().map(|(id, _)| *id).collect();
        let decoded = tokenizer.decode(&ids, false).unwrap();
        text += &if run.first().is_some_and(|(_, labelled)| *labelled) { format!("⟦{decoded}⟧") } else { decoded };
    }
    text
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[track_caller]
fn check(template: &str, messages: Value, change: impl FnOnce(&mut DataOptions), expected: &str) {
    let tokenizer = Tokenizer::load(&tiny("aligned")).unwrap();
    let template = fixture("templates").join(format!("{template}.jinja")).display().to_string();
    let mut options = DataOptions { format: Format::Chat, template, ..DataOptions::default() };
    change(&mut options);
    let (ids, labels) = sample(&tokenizer, &json!({ "messages": messages }), &options).unwrap();
    assert_eq!(marked(&tokenizer, &ids, &labels), expected);
}

const DEFAULT_SYSTEM: &str = "<|im_start|>system\nYou answer briefly.<|im_end|>\n\n";

fn as_it_is(_: &mut DataOptions) {}

#[test]
fn one_answer() {
    let expected =
        format!("{DEFAULT_SYSTEM}<|im_start|>user\nhi<|im_end|>\n\n<|im_start|>assistant\n⟦yes<|im_end|>⟧\n\n");
    check("chatml", json!([turn("user", "hi"), turn("assistant", "yes")]), as_it_is, &expected);
}

#[test]
fn every_answer_of_several() {
    check(
        "chatml",
        json!([
            turn("system", "short"),
            turn("user", "one"),
            turn("assistant", "two"),
            turn("user", "three"),
            turn("assistant", "four")
        ]),
        as_it_is,
        "<|im_start|>system\nshort<|im_end|>\n\n<|im_start|>user\none<|im_end|>\n\n<|im_start|>assistant\n⟦two<|im_end|>⟧\n\n\
         <|im_start|>user\nthree<|im_end|>\n\n<|im_start|>assistant\n⟦four<|im_end|>⟧\n\n",
    );
}

#[test]
fn the_last_answer_of_several() {
    check(
        "chatml",
        json!([
            turn("system", "s"),
            turn("user", "a"),
            turn("assistant", "b"),
            turn("user", "c"),
            turn("assistant", "d")
        ]),
        |options| options.train_on = TrainOn::LastResponse,
        "<|im_start|>system\ns<|im_end|>\n\n<|im_start|>user\na<|im_end|>\n\n<|im_start|>assistant\nb<|im_end|>\n\n\
         <|im_start|>user\nc<|im_end|>\n\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n\n",
    );
}

#[test]
fn everything() {
    check(
        "chatml",
        json!([turn("system", "s"), turn("user", "a"), turn("assistant", "b")]),
        |options| options.train_on = TrainOn::All,
        "⟦<|im_start|>system\ns<|im_end|>\n\n<|im_start|>user\na<|im_end|>\n\n<|im_start|>assistant\nb<|im_end|>\n\n⟧",
    );
}

#[test]
fn an_answer_that_is_left_out() {
    check(
        "chatml",
        json!([
            turn("system", "s"),
            turn("user", "a"),
            {"role": "assistant", "content": "wrong", "weight": 0},
            turn("user", "again"),
            {"role": "assistant", "content": "right", "weight": 1}
        ]),
        as_it_is,
        "<|im_start|>system\ns<|im_end|>\n\n<|im_start|>user\na<|im_end|>\n\n<|im_start|>assistant\nwrong<|im_end|>\n\n\
         <|im_start|>user\nagain<|im_end|>\n\n<|im_start|>assistant\n⟦right<|im_end|>⟧\n\n",
    );
}

#[test]
fn an_answer_without_words() {
    let expected = format!("{DEFAULT_SYSTEM}<|im_start|>user\nhi<|im_end|>\n\n<|im_start|>assistant\n⟦<|im_end|>⟧\n\n");
    check(
        "chatml",
        json!([turn("user", "hi"), turn("assistant", "")]),
        |options| options.allow_empty_labels = true,
        &expected,
    );
}

#[test]
fn what_a_template_marks_itself() {
    check(
        "marked",
        json!([turn("user", "é 日"), turn("assistant", "ok"), turn("user", "b"), turn("assistant", "fine")]),
        as_it_is,
        "<|im_start|>user\né 日<|im_end|>\n<|im_start|>assistant\n⟦ok<|im_end|>⟧\n<|im_start|>user\nb<|im_end|>\n\
         <|im_start|>assistant\n⟦fine<|im_end|>⟧\n",
    );
}

/// The empty thoughts are the template's, not the record's.
#[test]
fn a_plain_answer_where_the_template_thinks() {
    check(
        "thinking",
        json!([turn("user", "2 + 2"), turn("assistant", "4")]),
        as_it_is,
        "<|im_start|>user\n2 + 2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦4<|im_end|>⟧\n",
    );
}

/// Thoughts of an earlier round are dropped by the template, those of the last are trained on.
#[test]
fn thoughts_of_the_last_round() {
    check(
        "thinking",
        json!([
            turn("user", "1"),
            turn("assistant", "<think>\nfirst\n</think>\n\none"),
            turn("user", "2"),
            turn("assistant", "<think>\nsecond\n</think>\n\ntwo")
        ]),
        as_it_is,
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n⟦one<|im_end|>⟧\n<|im_start|>user\n2<|im_end|>\n\
         <|im_start|>assistant\n⟦<think>\nsecond\n</think>\n\ntwo<|im_end|>⟧\n",
    );
}

#[test]
fn an_answer_without_its_thoughts() {
    check(
        "thinking",
        json!([turn("user", "2"), turn("assistant", "<think>\nhm\n</think>\n\ntwo")]),
        |options| options.train_on_reasoning = false,
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n⟦two<|im_end|>⟧\n",
    );
}
