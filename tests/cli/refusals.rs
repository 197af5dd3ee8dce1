//! Settings, folders and models that are refused.

use super::*;

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let inside = file.join("sub");
    refused(train(&inside, &[]), &scratch, &["output.dir", "is not a folder"]);
    let adapter = fixture("llama_gqa").join("adapter");
    let mut command = asft();
    command.args(["merge", "--model"]).arg(fixture("llama_gqa").join("model")).arg("--adapter").arg(adapter);
    command.arg("--out").arg(inside.join("merged"));
    refused(command, &scratch, &["is not a folder"]);
    let direction = |out: &Path, unaligned: &str| {
        let mut command = asft();
        command.args(["direction", "--aligned", "tests/tiny/aligned", "--unaligned", unaligned, "--out"]).arg(out);
        command
    };
    refused(direction(&inside, "tests/tiny/unaligned"), &scratch, &["--out", "is not a folder"]);
    refused(direction(scratch.path(), "tests/tiny/unaligned"), &scratch, &["--out", "it is a folder"]);
    // Nor does a pair that is refused late leave folders behind.
    let set = damaged(&scratch, |dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[header..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
    });
    // What the direction comes from is looked for before the weights are read, so theirs is not the first complaint.
    let dir = scratch.path().join("run");
    refused(train(&dir, &[&set, "model.unaligned=./nowhere"]), &scratch, &["model.unaligned", "nowhere"]);
    refused(train(&dir, &[&set, "asft.direction=nowhere.st"]), &scratch, &["asft.direction", "nowhere.st"]);
    let unaligned = set.trim_start_matches("model.aligned=");
    refused(direction(&scratch.path().join("run/deep/d.safetensors"), unaligned), &scratch, &["not finite"]);
    // Where nothing else is wrong, the weights are named by every command that computes with them.
    refused(train(&dir, &[&set, "asft.penalize=none"]), &scratch, &["damaged", "NaN", "model.embed_tokens.weight"]);
    for arguments in [["generate", "--prompt", "hello"], ["eval", "--data", "tests/tiny/train.jsonl"]] {
        let mut command = asft();
        command.args(arguments).args(["--model", unaligned]);
        refused(command, &scratch, &["damaged", "NaN", "model.embed_tokens.weight"]);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_and_no_panic() {
    for args in [
        &["train", "--config", "configs/tiny.toml", "--check"][..],
        &["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("asft"));
        let output = command.current_dir(root()).args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: writing to standard output"), "{stderr}");
    }
}

#[test]
fn bad_settings_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for (set, needles) in [
        ("train.learnig_rate=1e-4", &["learnig_rate", "did you mean", "train.learning_rate"][..]),
        ("lora.rank=0", &["lora.rank"]),
        ("lora.rank=9000000000000000000", &["lora.rank", "largest side"]),
        ("data.train=nowhere.jsonl", &["nowhere.jsonl"]),
        ("model.aligned=./nowhere", &["nowhere"]),
        ("model.unaligned=tests/fixtures/llama3_rope/model", &["differ", "q_proj"]),
        ("lora.target_modules=['q_porj']", &["q_porj", "did you mean", "q_proj", "down_proj"]),
        ("asft.direction=tests/tiny/aligned/model.safetensors", &["not a direction file"]),
        ("lora.init_adapter=tests/fixtures/llama_gqa/adapter", &["does not fit"]),
        ("model.device=cuda", &["cuda", "--features"]),
    ] {
        refused(train(&dir, &[set]), &scratch, needles);
    }
    let mut command = asft();
    command.args(["train", "--config", "nowhere.toml"]);
    refused(command, &scratch, &["nowhere.toml"]);
}

/// A path that is no hub id is looked at whatever else is wrong: nothing is downloaded for it.
#[test]
fn a_missing_file_is_listed_beside_other_problems() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("file"), "").unwrap();
    let dir = scratch.path().join("file").join("run");
    let sets = ["data.train=tests/tiny/nope/train.jsonl", "model.unaligned=tests/tiny/nope"];
    refused(train(&dir, &sets), &scratch, &["output.dir", "nope/train.jsonl does not exist", "model.unaligned"]);
    let evaluation = ["eval", "--model", "tests/tiny/nope", "--data", "tests/tiny/nope.jsonl"];
    let mut command = asft();
    command.args(evaluation);
    refused(command, &scratch, &["nope.jsonl does not exist"]);
}

#[test]
fn damaged_models_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let weights = "model.safetensors";
    let set = damaged(&scratch, |dir| {
        let bytes = std::fs::read(dir.join(weights)).unwrap();
        std::fs::write(dir.join(weights), &bytes[..bytes.len() / 2]).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &[weights, "truncated"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join(weights), [7; 100]).unwrap());
    refused(train(&dir, &[&set]), &scratch, &[weights, "not a usable safetensors file"]);
    let set = damaged(&scratch, |dir| {
        let index = r#"{"weight_map": {"model.norm.weight": "../../etc/model.safetensors"}}"#;
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["outside"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["intermediate_size"] = 7.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["mlp.down_proj", "shape", "7"]);
    let set = damaged(&scratch, |dir| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["head_dim"] = 4_000_000_000u64.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["q_proj", "shape", "config.json"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join("model.safetensors.index.json"), [0xff]).unwrap());
    refused(train(&dir, &[&set]), &scratch, &["model.safetensors.index.json", "UTF-8"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| std::fs::remove_file(dir.join("chat_template.jinja")).unwrap());
    refused(train(&dir, &[&set]), &scratch, &["template", "data.template"]);
    refused(train(&dir, &["asft.direction=nowhere.safetensors"]), &scratch, &["nowhere.safetensors"]);
}

#[test]
fn directions_of_other_weights_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, file) = (scratch.path().join("run"), scratch.path().join("d.safetensors"));
    let mut command = asft();
    // The pair the wrong way round: shapes fit, weights do not.
    command.args(["direction", "--aligned", "tests/tiny/unaligned", "--unaligned", "tests/tiny/aligned", "--out"]);
    command.arg(&file).assert().success();
    let set = format!("asft.direction={}", file.display());
    refused(train(&dir, &[&set]), &scratch, &["other aligned weights", "q_proj"]);
}

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_need_a_build_that_knows_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let mut command = train(&scratch.path().join("run"), &[]);
        command.env(variable, "4");
        refused(command, &scratch, &["has started 4 processes", "--features mpi"]);
        let mut alone = asft();
        alone.args(["train", "--config", "configs/tiny.toml", "--check"]).env(variable, "1").assert().success();
    }
}
