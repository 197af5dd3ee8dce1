//! The files of kernels beside this one: build.rs compiles what is listed here, and the registry knows by it what a device has.

/// Names without `.cu`, and whether a file is written in words that Metal's compiler takes too; the others are CUDA C.
pub const SOURCES: [(&str, bool); 9] = [
    ("attention", false),
    ("causal_conv", true),
    ("cross_entropy", true),
    ("elementwise", true),
    ("ggml", false),
    ("parameters", false),
    ("penalty", false),
    ("quantised", true),
    ("rms_norm", true),
];
