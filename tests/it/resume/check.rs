//! What is refused before anything is written.

use super::*;

#[test]
fn all_that_is_wrong_is_said_at_once_and_before_anything_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let bad = path(&scratch, "bad.jsonl");
    std::fs::write(&bad, "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\"").unwrap();
    let held_out = path(&scratch, "held_out.jsonl");
    std::fs::write(&held_out, "{}\n").unwrap();
    let files =
        [("train", &bad), ("validation", &held_out)].map(|(key, file)| format!("data.{key}={}", file.display()));
    let sets = [&*files[0], &*files[1], "asft.direction=./nowhere.safetensors"];
    let needles =
        ["4 problems", "/dev/full", "is not a folder", "bad.jsonl:2", "held_out.jsonl:1", "nowhere.safetensors"];
    ends(train(Path::new("/dev/full/run"), &sets, &[]), 2, &needles);
    let dir = path(&scratch, "run");
    let sets = ["output.save_every_steps=1", "output.keep_last=100000000000"];
    ends(train(&dir, &sets, &[]), 2, &["more for its result and checkpoints", "left", "output.keep_last"]);
    assert!(!dir.exists());
}

#[test]
fn a_folder_has_one_writer() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    std::fs::create_dir(&dir).unwrap();
    let lock = std::fs::File::open(&dir).unwrap();
    lock.try_lock().unwrap();
    ends(train(&dir, &["train.max_steps=2"], &[]), 2, &["another asft process"]);
    drop(lock);
    succeeds(train(&dir, &["train.max_steps=2"], &["--resume"]));
}
