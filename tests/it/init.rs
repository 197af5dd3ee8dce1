//! `asft init`: a config to start from.

use crate::support::command::{asft, refused, set, stdout, succeeds};
use crate::support::files::fixture;

#[test]
fn init_writes_a_config_that_trains_once_it_is_filled_in() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("tiny.toml");
    let init = |model: &str| {
        let mut command = asft(&["init", model, "--out"]);
        command.arg(&out);
        command
    };
    let stderr = succeeds(init("tests/tiny/aligned"));
    assert!(stderr.contains("before training, set data.train and model.unaligned"), "{stderr}");
    let text = std::fs::read_to_string(&out).unwrap();
    for part in [
        "aligned = \"tests/tiny/aligned\"",
        "# unaligned =    (a string)",
        "dtype = \"f16\"",
        "max_length = 256",
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in 3 layers.",
        "# Rank r of the update B·A.",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    refused(init("tests/tiny/aligned"), &["exists and is left as it is"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
    let filled = |sets: &[&str]| {
        let mut command = asft(&["train", "--config"]);
        command.arg(&out).args(["--set", "data.train=tests/tiny/train.jsonl", "--set", "train.max_steps=1", "--set"]);
        command.arg(format!("output.dir={}", scratch.path().join("run").display()));
        set(&mut command, sets);
        command
    };
    refused(filled(&[]), &["model.unaligned"]);
    succeeds(filled(&["model.unaligned=tests/tiny/unaligned"]));
    assert_eq!(stdout(asft(&["init", "tests/tiny/aligned", "--out", "-"])), text);
    // A model without a chat template gets a format that needs none; one that is not supported gets no config.
    let bare = stdout(asft(&["init", "--out", "-"]).arg(fixture("qwen3").join("model")));
    assert!(bare.contains("format = \"prompt_completion\""));
    refused(asft(&["init", "tests/tiny", "--out", "-"]), &["config.json"]);
}
