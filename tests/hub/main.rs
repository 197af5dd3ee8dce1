//! Models and datasets from a hub: the real binary against a hub on the loopback interface.

mod datasets;
mod faults;
mod models;
mod server;
#[path = "../support/mod.rs"]
mod support;

use server::{Hub, RepoFile, Request, etag};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use support::command::evaluation;
use tempfile::TempDir;

/// The binary with a hub and a cache, and nothing from the user's environment.
fn asft(hub: &Hub, home: &Path) -> Command {
    let mut command = support::command::asft(&[]);
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", &hub.endpoint).env("NO_PROXY", "127.0.0.1");
    // Far more than a busy machine needs; tests of silence have less.
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "20");
    command
}

/// `asft eval` of a model of the hub on a local file.
fn eval(hub: &Hub, home: &Path, model: &str) -> Command {
    let mut command = asft(hub, home);
    command.args(["eval", "--json", "--data", "tests/tiny/chat.jsonl", "--format", "chat", "--model", model]);
    command
}

/// The loss that `asft eval --json` prints.
#[track_caller]
fn loss(command: Command) -> f64 {
    evaluation(command)["loss"].as_f64().unwrap()
}

/// Asserts the exit code, and one `error` line with all of `needles`.
#[track_caller]
fn fails(command: Command, code: i32, needles: &[&str]) {
    let told = support::command::fails(command, code, &[]);
    let error = told.lines().find(|line| line.starts_with("error")).unwrap();
    for needle in needles {
        assert!(error.contains(needle), "no `{needle}` in: {told}");
    }
}

/// Every file below a folder with its content, links followed.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                    found.insert(name, std::fs::read(&path).unwrap_or_default());
                }
            }
        }
    }
    found
}

/// Asserts that every blob and every file of a snapshot has the content that the hub has under its name; parts of
/// broken downloads are no blobs.
#[track_caller]
fn assert_cache_is_right(home: &TempDir, files: &BTreeMap<String, RepoFile>) {
    for (name, bytes) in contents(&home.path().join("hub")) {
        if let Some((_, blob)) = name.split_once("/blobs/") {
            if !blob.ends_with(".incomplete") {
                assert!(files.values().any(|file| etag(file) == blob && file.bytes == bytes), "wrong content: {name}");
            }
        } else if let Some((_, snapshot)) = name.split_once("/snapshots/") {
            let path = snapshot.split_once('/').unwrap().1;
            assert!(files.get(path).is_some_and(|file| file.bytes == bytes), "wrong content: {name}");
        }
    }
}

/// Method and file of every request for a file that reached the hub itself.
fn file_requests(log: &[Request]) -> Vec<String> {
    let file = |request: &Request| {
        let path = request.target.split_once("/resolve/")?.1.split_once('/')?.1.to_string();
        (!request.storage).then(|| format!("{} {path}", request.method))
    };
    log.iter().filter_map(file).collect()
}

/// Everything below `home` but locks.
fn names(home: &TempDir) -> Vec<String> {
    contents(home.path()).into_keys().filter(|name| !name.contains(".locks/")).collect()
}
