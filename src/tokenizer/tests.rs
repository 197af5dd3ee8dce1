use super::*;
use serde_json::json;
use std::fs::write;

/// A word-level tokenizer of a few words that puts <s> before a text, with `config` as tokenizer_config.json.
fn folder(config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let added = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "normalizer": null, "decoder": null, "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [added(1, "<s>"), added(2, "</s>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5}}
    });
    write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn both_dialects_of_special_tokens() {
    let dir = folder(
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true}),
    );
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<s>"), Some("</s>")));
    // Neither cut to 2 nor padded to 9; bos is added only on request, and whatever tokenizer_config.json says of it.
    assert_eq!(tokenizer.encode("a b c", false).unwrap(), [3, 4, 5]);
    assert_eq!(tokenizer.encode("a b c", true).unwrap(), [1, 3, 4, 5]);
    let encoded = tokenizer.encode_with_offsets("a b", true).unwrap();
    assert_eq!(encoded.added, [true, false, false]);
    assert_eq!(encoded.offsets[2], (2, 3));
    assert_eq!((tokenizer.eos_ids(), tokenizer.vocab_size()), (&[2][..], 6));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3));
}

#[test]
fn other_files_fill_in() {
    let dir = folder(json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
        "added_tokens_decoder": {"6": {"content": "<pad>", "special": true}}, "pad_token": "<pad>"}));
    write(dir.path().join("special_tokens_map.json"), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
    write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [5, 2]}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_ids(), tokenizer.vocab_size()), (&[2, 5][..], 7));
    assert_eq!(tokenizer.chat_template(), Some("d"));
    write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().chat_template(), Some("file"));
}

#[test]
fn a_field_that_is_null_says_nothing() {
    let dir = folder(json!({"eos_token": "</s>"}));
    let eos_ids = || Tokenizer::load(dir.path()).unwrap().eos_ids().to_vec();
    write(dir.path().join("config.json"), r#"{"eos_token_id": null, "text_config": {"eos_token_id": [2, 4]}}"#)
        .unwrap();
    assert_eq!(eos_ids(), [2, 4]);
    write(dir.path().join("generation_config.json"), r#"{"eos_token_id": null}"#).unwrap();
    assert_eq!(eos_ids(), [2, 4]);
}

#[test]
fn bad_folders_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(empty.path()).err().unwrap();
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
    let dir = folder(json!({"added_tokens_decoder": {"9": {"content": "<pad>"}}}));
    let error = Tokenizer::load(dir.path()).err().unwrap();
    assert!(error.to_string().contains("\"<pad>\" the id 9"), "{error}");
    write(dir.path().join("tokenizer.json"), "{\"model\": ").unwrap();
    let error = Tokenizer::load(dir.path()).err().unwrap();
    assert!(error.to_string().contains("not a JSON object"), "{error}");
    assert_eq!(crate::error::exit_code(&error), 2);
}
