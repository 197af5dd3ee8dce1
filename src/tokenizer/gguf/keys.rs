//! Keys of a GGUF file's metadata about its tokenizer, after `tokenizer.ggml.`.

/// Special tokens of tokenizer_config.json, and the keys of their ids.
pub const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
];
/// Keys of ids that end generation: the eos token's, then of others.
pub const ENDS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];
