//! Settings, folders and models that are refused.

use crate::support::command::{asft, ends, refused, refused_unwritten, succeeds, train};
use crate::support::files::{copy_files, damaged, fixture, read_json, tiny};
use candle_core::Device;
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let inside = file.join("sub");
    refused(train(&inside, &[], &[]), &["output.dir", "is not a folder"]);
    let adapter = fixture("llama_gqa").join("adapter");
    let mut command = asft(&["merge", "--model"]);
    command.arg(fixture("llama_gqa").join("model")).arg("--adapter").arg(adapter);
    refused(command.arg("--out").arg(inside.join("merged")), &["is not a folder"]);
    let direction = |out: &Path, unaligned: &str| {
        let mut command = asft(&["direction", "--aligned", "tests/tiny/aligned", "--unaligned", unaligned, "--out"]);
        command.arg(out);
        command
    };
    refused(direction(&inside, "tests/tiny/unaligned"), &["--out", "is not a folder"]);
    refused(direction(scratch.path(), "tests/tiny/unaligned"), &["--out", "it is a folder"]);
    // Nor does a pair that is refused late leave folders behind.
    let set = damaged(&scratch, |dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[header..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
    });
    // The direction's sources are looked for before the weights are read, so the first complaint is not about the
    // weights.
    let dir = scratch.path().join("run");
    let refused_run = |sets: &[&str], needles: &[&str]| refused_unwritten(train(&dir, sets, &[]), &dir, needles);
    refused_run(&[&set, "model.unaligned=./nowhere"], &["model.unaligned", "nowhere"]);
    refused_run(&[&set, "asft.direction=nowhere.st"], &["asft.direction", "nowhere.st"]);
    let unaligned = set.trim_start_matches("model.aligned=");
    refused_unwritten(direction(&dir.join("deep/d.safetensors"), unaligned), &dir, &["not finite"]);
    // If nothing else is wrong, every command that computes with the weights names them.
    let needles = ["damaged", "NaN", "model.embed_tokens.weight"];
    refused_run(&[&set, "asft.penalize=none"], &needles);
    for arguments in [["generate", "--prompt", "hello"], ["eval", "--data", "tests/tiny/train.jsonl"]] {
        refused(asft(&arguments).args(["--model", unaligned]), &needles);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_and_no_panic() {
    for args in [
        &["train", "--config", "configs/tiny.toml", "--check"][..],
        &["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"],
        &["data", "--config", "configs/tiny.toml"],
        &["data", "--config", "configs/tiny.toml", "--json"],
        &["generate", "--model", "tests/tiny/aligned", "--prompt", "hi", "--max-new-tokens", "2"],
        &["man", "-"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        ends(asft(args).stdout(full), 1, &["error: writing to standard output"]);
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
        ("model.unaligned=tests/fixtures/llama3_rope/model", &["no targeted matrix in common", "q_proj"]),
        ("lora.target_modules=['q_porj']", &["q_porj", "did you mean", "q_proj", "down_proj"]),
        ("asft.direction=tests/tiny/aligned/model.safetensors", &["not a direction file"]),
        (
            "lora.init_adapter=tests/fixtures/llama_gqa/adapter",
            &["was made for fixtures/llama_gqa, not for this model"],
        ),
        ("model.device=cuda", &["cuda", "--features"]),
    ] {
        refused_unwritten(train(&dir, &[set], &[]), &dir, needles);
    }
    refused(asft(&["train", "--config", "nowhere.toml"]), &["nowhere.toml"]);
}

/// A path that is not a hub id is checked whatever else is wrong: nothing is downloaded for it.
#[test]
fn a_missing_file_is_listed_beside_other_problems() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("file"), "").unwrap();
    let dir = scratch.path().join("file").join("run");
    let sets = ["data.train=tests/tiny/nope/train.jsonl", "model.unaligned=tests/tiny/nope"];
    refused(train(&dir, &sets, &[]), &["output.dir", "nope/train.jsonl does not exist", "model.unaligned"]);
    let evaluation = ["eval", "--model", "tests/tiny/nope", "--data", "tests/tiny/nope.jsonl"];
    refused(asft(&evaluation), &["nope.jsonl does not exist"]);
}

#[test]
fn damaged_models_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let weights = "model.safetensors";
    let refused = |sets: &[&str], needles: &[&str]| refused_unwritten(train(&dir, sets, &[]), &dir, needles);
    let set = damaged(&scratch, |dir| {
        let bytes = std::fs::read(dir.join(weights)).unwrap();
        std::fs::write(dir.join(weights), &bytes[..bytes.len() / 2]).unwrap();
    });
    refused(&[&set], &[weights, "truncated"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join(weights), [7; 100]).unwrap());
    refused(&[&set], &[weights, "not a usable safetensors file"]);
    let set = damaged(&scratch, |dir| {
        let index = r#"{"weight_map": {"model.norm.weight": "../../etc/model.safetensors"}}"#;
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    });
    refused(&[&set], &["outside"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| {
        let mut config = read_json(&dir.join("config.json"));
        config["intermediate_size"] = 7.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(&[&set], &["mlp.down_proj", "shape", "7"]);
    let set = damaged(&scratch, |dir| {
        let mut config = read_json(&dir.join("config.json"));
        config["head_dim"] = 4_000_000_000u64.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(&[&set], &["q_proj", "shape", "config.json"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join("model.safetensors.index.json"), [0xff]).unwrap());
    refused(&[&set], &["model.safetensors.index.json", "UTF-8"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| std::fs::remove_file(dir.join("chat_template.jinja")).unwrap());
    refused(&[&set], &["template", "data.template"]);
    refused(&["asft.direction=nowhere.safetensors"], &["nowhere.safetensors"]);
}

#[test]
fn directions_of_other_weights_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, file) = (scratch.path().join("run"), scratch.path().join("d.safetensors"));
    // The pair the wrong way round: shapes fit, weights do not.
    let pair = ["--aligned", "tests/tiny/unaligned", "--unaligned", "tests/tiny/aligned"];
    succeeds(asft(&["direction"]).args(pair).arg("--out").arg(&file));
    let set = format!("asft.direction={}", file.display());
    refused_unwritten(train(&dir, &[&set], &[]), &dir, &["other aligned weights", "q_proj"]);
}

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_need_a_build_that_knows_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let refuses = |variables: &[(&str, &str)], needles: &[&str]| {
        refused_unwritten(train(&dir, &[], &[]).envs(variables.iter().copied()), &dir, needles);
    };
    let works = |variables: &[(&str, &str)]| {
        let mut command = asft(&["train", "--config", "configs/tiny.toml", "--check"]);
        succeeds(command.envs(variables.iter().copied()));
    };
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        refuses(&[(variable, "4")], &["has started 4 processes", "--features mpi"]);
        works(&[(variable, "1")]);
    }
    // srun --mpi=pmix: PMIx gives the rank, Slurm the size of the step.
    refuses(&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "4")], &["has started 4 processes", "--features mpi"]);
    refuses(&[("PMIX_RANK", "1")], &["this process as rank 1 of several", "--features mpi"]);
    works(&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "1")]);
    // sbatch without srun.
    works(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]);
}

/// A model whose weights are a hole in a file: as large as stated, without taking any disk space.
fn hollow_model(dir: &Path, intermediate_size: usize) {
    let source = tiny("aligned");
    copy_files(&source, dir);
    let mut config = read_json(&source.join("config.json"));
    config["intermediate_size"] = json!(intermediate_size);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, tensor) in tensors {
        let old = 112;
        let shape: Vec<usize> = tensor.dims().iter().map(|&d| if d == old { intermediate_size } else { d }).collect();
        let end = offset + shape.iter().product::<usize>() * 2;
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let path = dir.join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + offset) as u64).unwrap();
}

#[test]
fn a_model_beyond_the_machine_s_memory_is_refused_before_it_is_loaded() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model) = (scratch.path().join("run"), scratch.path().join("model"));
    // 3 layers of 3 matrices, 48 by 2^31: 3.7 TB in f32, 1.9 TB in f16.
    hollow_model(&model, 1 << 31);
    let set = format!("model.aligned={}", model.display());
    let command = train(&dir, &[&set, "asft.penalize=none", "output.dir=/proc/nowhere"], &[]);
    refused(command, &["of memory", "the machine has", "with its swap space", "model.dtype = \"bf16\"", "3 problems"]);
    let command = train(&dir, &[&set, "asft.penalize=none"], &[]);
    refused(command, &["error: the run needs about "]);
    assert!(!dir.exists());
}
