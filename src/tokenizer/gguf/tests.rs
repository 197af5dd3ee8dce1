use super::splitting::Splitting;
use crate::checkpoint::gguf::{Written, write};
use crate::error::exit_code;
use crate::tokenizer::{Tokenizer, unpack};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEXTS: [&str; 9] = [
    "",
    "I'll say: it's 12345 + 67,\n\n  and  more\t\r\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "Ünïcödé 日本語 🦀\u{301} \u{a0}",
    "nai\u{308}ve cafe\u{301}",
    "hello <|endoftext|>there",
    " x",
    "the\nthe the",
    "½ ²³ ٣٤",
];

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned")
}

/// The tiny model's tokenizer with another tokenizer.json.
fn folder(change: impl Fn(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        std::fs::copy(tiny().join(name), dir.path().join(name)).unwrap();
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    dir
}

/// A file with these metadata and no tensor.
fn file(metadata: &[(String, Written)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(&path, metadata, &[], |_| unreachable!("no tensors")).unwrap();
    (dir, path)
}

#[track_caller]
fn same(one: &Tokenizer, other: &Tokenizer) {
    for text in TEXTS {
        for special in [true, false] {
            let ids = one.encode(text, special).unwrap();
            assert_eq!(
                other.encode_with_offsets(text, special).unwrap(),
                one.encode_with_offsets(text, special).unwrap()
            );
            assert_eq!(other.decode(&ids, false).unwrap(), one.decode(&ids, false).unwrap());
            assert_eq!(other.decode(&ids, true).unwrap(), one.decode(&ids, true).unwrap());
        }
    }
    assert_eq!((other.eos_ids(), other.chat_template()), (one.eos_ids(), one.chat_template()));
    assert_eq!((other.bos_token(), other.eos_token()), (one.bos_token(), one.eos_token()));
    assert_eq!(other.vocab_size(), one.vocab_size());
    for id in 0..u32::try_from(one.vocab_size()).unwrap() {
        assert_eq!((other.is_special(id), other.is_added(id)), (one.is_special(id), one.is_added(id)), "{id}");
    }
}

/// The special tokens of [`tiny`].
const BOS: (&str, u32) = ("<|im_start|>", 1);
const EOS: (&str, u32) = ("<|im_end|>", 2);

/// A post_processor with tokens before and after a text.
fn around(before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Value {
    let special =
        |token: Option<(&str, u32)>| token.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": 0}}));
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let single: Vec<Value> = special(before).into_iter().chain([text("A")]).chain(special(after)).collect();
    let named = |(token, id): (&str, u32)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}));
    let tokens: serde_json::Map<String, Value> = before.into_iter().chain(after).map(named).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")], "special_tokens": tokens})
}

#[test]
fn what_else_stands_around_a_text_is_not_written() {
    for post_processor in [around(Some(EOS), None), around(None, Some(BOS))] {
        let dir = folder(|json| json["post_processor"] = post_processor.clone());
        let own = Tokenizer::load(dir.path()).unwrap();
        let error = own.gguf(own.vocab_size()).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("which GGUF cannot say"), "{error}");
    }
}

#[test]
fn more_ends_than_keys_are_not_written() {
    let dir = folder(|_| ());
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [2, 5, 6, 7]}"#).unwrap();
    let own = Tokenizer::load(dir.path()).unwrap();
    let error = own.gguf(own.vocab_size()).unwrap_err();
    assert!(error.to_string().contains("3 tokens end the model's answers besides"), "{error}");
}

#[test]
fn a_tokenizer_is_the_same_from_a_file() {
    for splitting in Splitting::all() {
        for (begins, ends) in [(true, false), (false, false), (true, true), (false, true)] {
            let dir = folder(|json| {
                json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": splitting.steps});
                json["normalizer"] = splitting.normalizer.clone();
                json["model"]["ignore_merges"] = json!(splitting.ignore_merges);
                if begins || ends {
                    json["post_processor"] = around(begins.then_some(BOS), ends.then_some(EOS));
                }
            });
            let own = Tokenizer::load(dir.path()).unwrap();
            // An embedding may have more rows.
            let metadata = own.gguf(own.vocab_size() + 3).unwrap();
            assert!(metadata.contains(&("tokenizer.ggml.pre".to_string(), Written::Text(splitting.name.to_string()))));
            let (scratch, path) = file(&metadata);
            let read = Tokenizer::load(&path).unwrap();
            same(&own, &read);
            unpack(&path, scratch.path()).unwrap();
            let unpacked = Tokenizer::load(scratch.path()).unwrap();
            same(&own, &unpacked);
            assert_ne!(read.fingerprint().unwrap(), unpacked.fingerprint().unwrap());
        }
    }
}

#[test]
fn what_has_no_name_is_not_written() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 5] = [
        ("another step", |json| json["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = json!(false)),
        ("a normalizer", |json| json["normalizer"] = json!({"type": "NFC"})),
        ("words that are not merged", |json| json["model"]["ignore_merges"] = json!(true)),
        ("bytes for what is unknown", |json| json["model"]["byte_fallback"] = json!(true)),
        ("ends of words", |json| json["model"]["end_of_word_suffix"] = json!("</w>")),
    ];
    for (what, change) in changes {
        let own = Tokenizer::load(folder(change).path()).unwrap();
        let error = own.gguf(own.vocab_size()).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("in a way that has no name"), "{what}: {error}");
    }
}

#[test]
fn files_that_do_not_say_all_are_refused() {
    let own = Tokenizer::load(&tiny()).unwrap();
    let whole = own.gguf(own.vocab_size()).unwrap();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let without = |name: &str| whole.iter().filter(|(other, _)| *other != key(name)).cloned().collect::<Vec<_>>();
    let with = |name: &str, value: Written| [without(name), vec![(key(name), value)]].concat();
    let text = |value: &str| Written::Text(value.to_string());
    let Some((_, Written::Texts(tokens))) = whole.iter().find(|(name, _)| *name == key("tokens")) else { panic!() };
    let mut twice = tokens.clone();
    twice[9].clone_from(&tokens[8]);
    let cases = [
        (without("model"), "no tokenizer.ggml.model"),
        (with("model", text("llama")), "`llama`, expected `gpt2`"),
        (without("pre"), "no tokenizer.ggml.pre"),
        (
            with("pre", text("tekken")),
            "`tekken` (tokenizer.ggml.pre) splits text is not known here; known: llama-bpe, qwen2",
        ),
        (without("tokens"), "a token_type for each"),
        (without("token_type"), "a token_type for each"),
        (with("token_type", Written::Signed(vec![1; 3])), "a token_type for each"),
        (with("tokens", Written::Texts(twice)), "tokens 8 and 9 are both"),
        (without("merges"), "no tokenizer.ggml.merges"),
        (with("merges", Written::Texts(vec!["nosuch token".to_string()])), "not a tokenizer this program can read"),
        (with("eos_token_id", Written::Whole(1 << 20)), "expected one of 448 tokens"),
        (with("bos_token_id", text("x")), "bos_token_id is Text"),
        (with("add_bos_token", text("x")), "expected true or false"),
    ];
    for (metadata, expected) in cases {
        let (_scratch, path) = file(&metadata);
        let error = Tokenizer::load(&path).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        let text = format!("{error:#}");
        assert!(text.contains(expected) && text.contains("model.gguf"), "{text}");
    }
}
