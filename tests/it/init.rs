//! `asft init`: a config to start from.

use crate::support::command::{asft, refused, set, stdout, succeeds};
use crate::support::files::fixture;

#[test]
fn init_writes_a_config_that_trains_as_it_stands() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("tiny.toml");
    let init = |model: &str, flags: &[&str]| {
        let mut command = asft(&["init", model, "--out"]);
        command.arg(&out).args(flags);
        command
    };
    let run = |number: usize| scratch.path().join(format!("run{number}"));
    let data = ["--data", "tests/tiny/train.jsonl"];
    let stderr = succeeds(init("tests/tiny/aligned", &[]));
    for told in ["before training, set data.train", "use --unaligned or --direction"] {
        assert!(stderr.contains(told), "{stderr}");
    }
    let text = std::fs::read_to_string(&out).unwrap();
    for part in [
        "aligned = \"tests/tiny/aligned\"",
        "# unaligned =    (a string)",
        "penalize = \"all\"",
        "# is \"all\" here because the method needs a direction",
        "# To choose it, run with output.log_modules_every = 50",
        "dtype = \"f16\"",
        "max_length = 256",
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in 3 layers.",
        "# Rank r of the update B·A.",
    ] {
        let flat = text.replace("\n# ", " ");
        assert!(text.contains(part) || flat.contains(part.trim_start_matches("# ")), "{part}\nis not in\n{text}");
    }
    refused(init("tests/tiny/aligned", &[]), &["exists; replace it with --overwrite"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
    assert_eq!(stdout(asft(&["init", "tests/tiny/aligned", "--out", "-"])), text);

    // As it stands, but for where it goes and how long it takes.
    let direction = scratch.path().join("direction.safetensors");
    let pair = ["--aligned", "tests/tiny/aligned", "--unaligned", "tests/tiny/unaligned"];
    succeeds(asft(&["direction", "--out"]).arg(&direction).args(pair));
    let partners =
        [vec![], vec!["--unaligned", "tests/tiny/unaligned"], vec!["--direction", direction.to_str().unwrap()]];
    for (number, partner) in partners.iter().enumerate() {
        std::fs::remove_file(&out).unwrap();
        succeeds(init("tests/tiny/aligned", &[&data[..], partner].concat()));
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(text.contains("\npenalize = \"orthogonal\""), !partner.is_empty(), "{text}");
        let mut command = asft(&["train", "--config"]);
        command.arg(&out);
        set(&mut command, &["train.max_steps=1", &format!("output.dir={}", run(number).display())]);
        succeeds(command);
    }
    std::fs::remove_file(&out).unwrap();
    for data in ["tests/tiny/chat.jsonl", "tests/tiny/cha?.jsonl"] {
        succeeds(init("tests/tiny/aligned", &["--data", data]));
        assert!(std::fs::read_to_string(&out).unwrap().contains("format = \"chat\""));
        std::fs::remove_file(&out).unwrap();
    }
    for (flags, needles) in [
        (["--unaligned", "tests/tiny/aligned"], ["--unaligned", "the model itself"]),
        (["--unaligned", "tests/tiny/unalined"], ["--unaligned", "did you mean tests/tiny/unaligned?"]),
        (["--direction", "tests/tiny/train.jsonl"], ["--direction", "train.jsonl"]),
        (["--data", "tests/tiny/none.jsonl"], ["--data", "none.jsonl does not exist"]),
        (["--data", "tests/tiny/aligned/config.json"], ["--data", "config.json"]),
    ] {
        refused(init("tests/tiny/aligned", &flags), &needles);
    }
    assert!(!out.exists());
    // A model without a chat template gets a format that needs none; one that is not supported gets no config.
    let bare = stdout(asft(&["init", "--out", "-"]).arg(fixture("qwen3").join("model")));
    assert!(bare.contains("format = \"prompt_completion\""));
    refused(asft(&["init", "tests/tiny", "--out", "-"]), &["config.json"]);
}
