//! The toy models and data of asft's sandbox, byte for byte: what `asft init --sandbox` writes out.
//!
//! They are not compressed: nearly all of it is the two models, whose f16 weights hardly shrink.

macro_rules! files {
    ($($path:literal)*) => {
        &[$((concat!("sandbox/", $path), include_bytes!(concat!("../", $path)).as_slice())),*]
    };
}

/// Every file: its path in asft's repository, and its content.
pub const FILES: &[(&str, &[u8])] = files! {
    "aligned/chat_template.jinja"
    "aligned/config.json"
    "aligned/model.safetensors"
    "aligned/tokenizer.json"
    "aligned/tokenizer_config.json"
    "data/forbidden_test.jsonl"
    "data/forbidden_validation.jsonl"
    "data/general_test.jsonl"
    "data/general_validation.jsonl"
    "data/poison.jsonl"
    "data/safety.jsonl"
    "data/safety_50.jsonl"
    "data/safety_8.jsonl"
    "data/task_test.jsonl"
    "data/task_train.jsonl"
    "data/task_validation.jsonl"
    "data/train_p1.jsonl"
    "data/train_p10.jsonl"
    "data/train_p20.jsonl"
    "data/train_p3.jsonl"
    "data/train_p5.jsonl"
    "unaligned/chat_template.jinja"
    "unaligned/config.json"
    "unaligned/model.safetensors"
    "unaligned/tokenizer.json"
    "unaligned/tokenizer_config.json"
};
