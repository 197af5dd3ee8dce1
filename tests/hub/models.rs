//! What goes well with models: fetched once, only what is needed, with and without a token, shared with Python.

use super::server::{Hub, Repository};
use super::support::command::{succeeds, text};
use super::support::{command, files};
use super::{asft, assert_cache_is_right, eval, fails, file_requests, loss};
use serde_json::{Value, json};
use std::path::Path;

fn tiny(part: &str) -> Repository {
    Repository::of(&files::tiny(part))
}

fn local_loss() -> f64 {
    let home = tempfile::tempdir().unwrap();
    loss(eval(&Hub::start(), home.path(), "tests/tiny/aligned"))
}

#[test]
fn a_model_is_fetched_once_and_works_offline() {
    let home = tempfile::tempdir().unwrap();
    let repository = tiny("aligned");
    let hub = Hub::with("models", "org/tiny", repository.clone());
    assert_eq!(loss(eval(&hub, home.path(), "org/tiny")), local_loss());
    assert_cache_is_right(&home, &repository.files);
    let log = hub.log();
    assert!(file_requests(&log).contains(&"GET model.safetensors".to_string()));
    assert!(log.iter().any(|request| request.storage && request.method == "GET"));

    // A second run asks for the revision, and for no file.
    loss(eval(&hub, home.path(), "org/tiny@main"));
    let log = hub.log();
    assert!(!log.is_empty() && file_requests(&log).is_empty(), "{log:?}");

    // HF_HUB_CACHE names the cache without the home around it.
    let mut command = eval(&hub, Path::new("/nowhere"), "org/tiny");
    command.env("HF_HUB_CACHE", home.path().join("hub"));
    loss(command);
    assert!(file_requests(&hub.log()).is_empty());

    let commit = format!("org/tiny@{}", repository.commit);
    for model in ["org/tiny", "org/tiny@main", &commit] {
        let mut command = eval(&hub, home.path(), model);
        command.env("HF_HUB_OFFLINE", "1");
        assert_eq!(loss(command), local_loss());
    }
    for (model, needles) in [
        ("org/other", &["org/other", "not in the local cache", "HF_HUB_OFFLINE"][..]),
        ("org/tiny@v2", &["v2", "not in the local cache"]),
    ] {
        let mut command = eval(&hub, home.path(), model);
        command.env("HF_HUB_OFFLINE", "1");
        fails(command, 2, needles);
    }
    assert!(hub.log().is_empty());
}

#[test]
fn only_what_is_needed_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let mut repository = tiny("aligned");
    for extra in [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "original/model.safetensors",
        "tiny.Q4_K_M.gguf",
        "README.md",
        "training_args.bin",
    ] {
        repository.add(extra, &[7; 5000]);
    }
    let hub = Hub::with("models", "org/tiny", repository);
    loss(eval(&hub, home.path(), "org/tiny"));
    let mut asked = file_requests(&hub.log());
    asked.retain(|request| request.starts_with("GET"));
    asked.sort();
    let needed = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(asked, needed.map(|name| format!("GET {name}")));
}

#[test]
fn a_gguf_file_is_fetched_alone() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/gguf", Repository::of(&files::fixture("gguf")));
    let evaluated = |model: &str| {
        let mut command = eval(&hub, home.path(), model);
        command.args(["--tokenizer", "tests/tiny/aligned"]);
        command
    };
    assert_eq!(loss(evaluated("org/gguf@main:tiny.gguf")), local_loss());
    let mut asked = file_requests(&hub.log());
    asked.retain(|request| request.starts_with("GET"));
    assert_eq!(asked, ["GET tiny.gguf"]);
    let offline = |model: &str| {
        let mut command = evaluated(model);
        command.env("HF_HUB_OFFLINE", "1");
        command
    };
    assert_eq!(loss(offline("org/gguf:tiny.gguf")), local_loss());
    fails(offline("org/gguf:qwen2.gguf"), 2, &["qwen2.gguf is not in the local cache"]);
    fails(evaluated("org/gguf:tony.gguf"), 2, &["no file tony.gguf", "qwen3.gguf, tiny.gguf"]);
    fails(evaluated("org/gguf"), 2, &["it has GGUF files", "ORG/NAME:"]);
}

#[test]
fn a_gguf_file_keeps_its_name() {
    let home = tempfile::tempdir().unwrap();
    let repository = Repository::of(&files::fixture("gguf"));
    let hub = Hub::with("models", "org/gguf", repository.clone());
    let place = |name: &str| home.path().join(name);
    let (run, direction) = (place("run"), place("direction.safetensors"));
    let name = "org/gguf:tiny.gguf";
    let with_commit = format!("org/gguf@{}:tiny.gguf", repository.commit);
    let mut compute = asft(&hub, home.path());
    compute.args(["direction", "--aligned", name, "--unaligned", "tests/tiny/unaligned", "--out", text(&direction)]);
    succeeds(compute);
    let header: Value = serde_json::from_str(&files::header_metadata(&direction)["aligned"]).unwrap();
    assert_eq!((&header["id"], &header["revision"]), (&json!(name), &json!(repository.commit)));
    let mut train = asft(&hub, home.path());
    let aligned = format!("model.aligned={name}");
    command::train_arguments(
        &mut train,
        &run,
        &[&aligned, "model.tokenizer=tests/tiny/aligned", "train.max_steps=1"],
        &[],
    );
    succeeds(train);
    let record = files::read_json(&run.join("run.json"));
    assert_eq!(record["inputs"]["aligned"]["source"], json!(with_commit));
    let config = files::read_json(&run.join("adapter/adapter_config.json"));
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!(name), &json!(repository.commit)));
    let card = std::fs::read_to_string(run.join("adapter/README.md")).unwrap();
    assert!(card.contains("base_model: \"org/gguf\"\n"), "{card}");
    assert!(card.contains("from_pretrained(\"org/gguf\", gguf_file=\"tiny.gguf\")"), "{card}");
    let mut export = asft(&hub, home.path());
    export.args(["export", "--format", "gguf", "--adapter", text(&run), "--out", text(&place("lora.gguf"))]);
    succeeds(export);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let home = tempfile::tempdir().unwrap();
    let mut repository = tiny("aligned");
    let weights = repository.files.remove("model.safetensors").unwrap();
    repository.add("model-00001-of-00001.safetensors", &weights.bytes);
    repository.add("model-00001-of-00009.safetensors", &weights.bytes);
    let header_length = u64::from_le_bytes(weights.bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights.bytes[8..8 + header_length]).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map = |shard: &str| {
        let map: serde_json::Map<_, _> = names.clone().map(|name| (name.clone(), shard.into())).collect();
        serde_json::json!({ "weight_map": map }).to_string()
    };
    repository.add("model.safetensors.index.json", map("model-00001-of-00001.safetensors").as_bytes());
    let hub = Hub::with("models", "org/tiny", repository.clone());
    assert_eq!(loss(eval(&hub, home.path(), "org/tiny")), local_loss());
    let asked = file_requests(&hub.log());
    assert!(asked.contains(&"GET model-00001-of-00001.safetensors".to_string()));
    assert!(!asked.contains(&"GET model-00001-of-00009.safetensors".to_string()));

    repository.add("model.safetensors.index.json", map("../../secret.safetensors").as_bytes());
    repository.commit = "b".repeat(40);
    hub.put("models", "org/tiny", repository);
    fails(eval(&hub, home.path(), "org/tiny"), 2, &["index.json", "../../secret", "does not have"]);
}

#[test]
fn a_branch_that_moved_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny("aligned"));
    let before = loss(eval(&hub, home.path(), "org/tiny"));
    let mut other = tiny("unaligned");
    other.commit = "d".repeat(40);
    hub.put("models", "org/tiny", other);
    hub.log();
    assert_ne!(loss(eval(&hub, home.path(), "org/tiny")), before);
    // What both have is not fetched again: its blob is there.
    assert!(!file_requests(&hub.log()).contains(&"GET tokenizer.json".to_string()));
}

#[test]
fn a_model_with_a_new_name_is_found() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny("aligned"));
    let mut old = tiny("unaligned");
    old.moved = Some("org/tiny".into());
    hub.put("models", "org/old", old);
    assert_eq!(loss(eval(&hub, home.path(), "org/old")), local_loss());
    assert_cache_is_right(&home, &tiny("aligned").files);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let home = tempfile::tempdir().unwrap();
    let mut repository = tiny("aligned");
    repository.gated = Some("hf_good".into());
    let hub = Hub::with("models", "org/tiny", repository);
    let mut command = eval(&hub, home.path(), "org/tiny");
    command.env("HF_TOKEN", "hf_good");
    loss(command);
    let log = hub.log();
    assert!(log.iter().any(|request| request.storage));
    for request in log {
        let expected = (!request.storage).then(|| "Bearer hf_good".to_string());
        assert_eq!(request.authorization, expected, "{request:?}");
    }

    // The one that `hf auth login` stores does too.
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_good\n").unwrap();
    loss(eval(&hub, home.path(), "org/tiny"));
}

#[test]
fn what_python_cached_is_found() {
    let home = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = home.path().join("hub/models--org--tiny");
    let (snapshot, blobs) = (repo.join("snapshots").join(commit), repo.join("blobs"));
    for dir in [&snapshot, &blobs, &repo.join("refs")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    for (index, entry) in std::fs::read_dir(files::tiny("aligned")).unwrap().enumerate() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, blobs.join(format!("e{index}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/e{index}"), snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let hub = Hub::start();
    let mut command = eval(&hub, home.path(), "org/tiny");
    command.env("HF_HUB_OFFLINE", "1");
    assert_eq!(loss(command), local_loss());
    // Online too: files that are there are not fetched again.
    let mut repository = tiny("aligned");
    repository.commit = commit.into();
    hub.put("models", "org/tiny", repository);
    loss(eval(&hub, home.path(), "org/tiny"));
    assert!(file_requests(&hub.log()).is_empty());
}

#[test]
fn every_command_takes_ids() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/aligned", tiny("aligned"));
    hub.put("models", "org/unaligned", tiny("unaligned"));
    let out = home.path().join("out");
    let run = |args: &[&str]| {
        let mut command = asft(&hub, home.path());
        command::succeeds(command.args(args))
    };
    let path = |name: &str| out.join(name).display().to_string();
    std::fs::create_dir(&out).unwrap();
    let pair = ["--aligned", "org/aligned", "--unaligned", "org/unaligned@main"];
    run(&[&["direction", "--out", &path("d.safetensors")], &pair[..]].concat());
    let (aligned, dir) = ("model.aligned=org/aligned@main", format!("output.dir={}", path("run")));
    let settings = [aligned, "model.unaligned=org/unaligned", "train.max_steps=2", &dir];
    let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let quiet = run(&[&["train", "--quiet", "--config", "configs/tiny.toml"], &sets[..]].concat());
    assert_eq!(quiet, "");
    let config = std::fs::read_to_string(Path::new(&path("run/adapter")).join("adapter_config.json")).unwrap();
    assert!(config.contains("\"org/aligned\"") && config.contains(&tiny("aligned").commit), "{config}");
    let adapter = path("run/adapter");
    run(&["generate", "--model", "org/aligned", "--adapter", &adapter, "--prompt", "Hi", "--max-new-tokens", "2"]);
    run(&["merge", "--model", "org/aligned", "--adapter", &adapter, "--out", &path("merged")]);
}

#[test]
fn without_a_terminal_each_file_is_a_line() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny("aligned"));
    let lines = command::succeeds(eval(&hub, home.path(), "org/tiny"));
    assert!(lines.contains("fetching org/tiny/model.safetensors ("), "{lines}");
    assert!(!lines.contains('\r') && !lines.contains('\u{1b}'), "{lines}");
}
