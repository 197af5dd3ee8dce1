//! `asft init`: a config to start from.

use crate::support::command::{asft, ends, refused, set, stdout, succeeds};
use crate::support::files::{fixture, root};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// The paths below `folder` of all files there, relative to `dir`.
fn files(dir: &Path, folder: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir.join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let relative = path.strip_prefix(dir).unwrap().to_path_buf();
        if path.is_dir() {
            found.extend(files(dir, relative.to_str().unwrap()));
        } else {
            found.insert(relative);
        }
    }
    found
}

#[test]
fn the_sandbox_is_the_repository_s_and_trains_where_it_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("new/sand box");
    let init = || {
        let mut command = asft(&["init", "--sandbox"]);
        command.arg(&dir);
        command
    };
    let told = succeeds(init());
    let next = format!("cd '{}' && asft train --config configs/sandbox/train.toml", dir.display());
    assert!(told.contains(&next), "{told}");
    let shipped = ["sandbox/aligned", "sandbox/unaligned", "sandbox/data", "configs/sandbox"];
    let expected: BTreeSet<PathBuf> = shipped.iter().flat_map(|folder| files(&root(), folder)).collect();
    assert_eq!(files(&dir, ""), expected);
    for path in &expected {
        assert!(fs::read(dir.join(path)).unwrap() == fs::read(root().join(path)).unwrap(), "{}", path.display());
    }

    let mut run = asft(&["train", "--config", "configs/sandbox/train.toml"]);
    set(run.current_dir(&dir), &["train.max_steps=1"]);
    succeeds(run);
    assert!(dir.join("runs/sandbox/adapter/adapter_config.json").is_file());
    let told = refused(init(), &["--sandbox", "not empty", "--overwrite"]);
    assert!(!told.contains("problems"), "{told}");
    fs::write(dir.join("configs/sandbox/train.toml"), "").unwrap();
    succeeds(init().arg("--overwrite"));
    assert!(
        dir.join("runs/sandbox/adapter").is_dir()
            && fs::read(dir.join("configs/sandbox/train.toml")).unwrap().len() > 9
    );
}

#[test]
fn a_sandbox_needs_nothing_else() {
    ends(asft(&["init", "tests/tiny/aligned", "--sandbox", "x"]), 2, &["cannot be used with"]);
    ends(asft(&["init"]), 2, &["MODEL"]);
}
