//! Settings and inputs that have changed since.

use super::*;

#[test]
fn what_has_changed_is_refused_until_it_is_allowed() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data) = (path(&scratch, "run"), path(&scratch, "train.jsonl"));
    let text = std::fs::read_to_string(tiny("train.jsonl")).unwrap();
    std::fs::write(&data, &text).unwrap();
    let sets = interrupted(&dir, &[&format!("data.train={}", data.display())]);
    let before = timeless(&dir);
    let with = |more: &[&str], flags: &[&str]| train(&dir, &[&borrowed(&sets), more].concat(), flags);

    let text_of = ends(
        with(&["train.learning_rate=0.5", "train.seed=1"], &["--resume"]),
        2,
        &[
            "train.learning_rate: was 0.01, is 0.5",
            "train.seed: was 42, is 1",
            "--allow-change train.learning_rate --allow-change train.seed",
        ],
    );
    assert!(!text_of.contains("output.dir"), "{text_of}");
    let allowed = ["--resume", "--allow-change", "train.learning_rate"];
    ends(with(&["train.learning_rate=0.5", "train.seed=1"], &allowed), 2, &["train.seed: was 42"]);
    ends(with(&[], &["--resume", "--allow-change", "train.learning_rat"]), 2, &["did you mean `train.learning_rate`"]);
    ends(with(&["lora.rank=4"], &["--resume", "--allow-change", "lora.rank"]), 2, &["start another run"]);
    ends(with(&["model.unaligned=tests/tiny/other"], &["--resume"]), 2, &["model.unaligned: was"]);
    std::fs::write(&data, text.replacen("22", "23", 1)).unwrap();
    ends(with(&[], &["--resume"]), 2, &["data.train: its content has changed"]);
    std::fs::remove_file(&data).unwrap();
    ends(with(&[], &["--resume"]), 2, &["data.train", "train.jsonl"]);
    std::fs::write(&data, text.replacen("22", "23", 1)).unwrap();
    assert_eq!(timeless(&dir), before);
    assert_eq!(checkpoints(&dir), ["step-10", "step-5"]);

    ends(with(&["train.learning_rate=0.5"], &[&allowed[..], &["--allow-change", "data.train"]].concat()), 0, &[]);
    let rows = metrics(&dir);
    let rate = |step: u64| {
        rows.iter().find(|row| row["step"] == step && row["loss"].is_number()).unwrap()["learning_rate"].as_f64()
    };
    assert!(rate(10) < Some(0.01) && rate(11) > Some(0.01), "{:?} {:?}", rate(10), rate(11));
    // The run now is what it was resumed as.
    ends(with(&["train.learning_rate=0.5"], &["--resume"]), 0, &["finished"]);
}

#[test]
fn other_weights_and_directions_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model, direction) = (path(&scratch, "run"), path(&scratch, "model"), path(&scratch, "d.safetensors"));
    copy_files(&tiny("aligned"), &model);
    let compute = |rank: &str| {
        let mut command = asft(&["direction", "--overwrite", "--rank", rank, "--aligned"]);
        command.arg(&model).arg("--unaligned").arg(tiny("unaligned")).arg("--out").arg(&direction);
        succeeds(command);
    };
    compute("4");
    let sets = interrupted(
        &dir,
        &[&format!("model.aligned={}", model.display()), &format!("asft.direction={}", direction.display())],
    );
    let resume = |flags: &[&str]| train(&dir, &borrowed(&sets), &[&["--resume"], flags].concat());
    compute("3");
    ends(resume(&[]), 2, &["asft.direction: its content has changed"]);
    compute("4");
    // A byte of the final norm, which no direction and no adapter depends on.
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config.clone() + "\n").unwrap();
    ends(resume(&[]), 2, &["model.aligned: its content has changed"]);
    ends(resume(&["--allow-change", "model.aligned"]), 0, &["resuming after step 10"]);
}

#[test]
fn the_direction_that_a_run_computed_is_used_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = interrupted(&dir, &[]);
    let file = dir.join("direction.safetensors");
    let written = || std::fs::metadata(&file).unwrap().modified().unwrap();
    let first = written();
    succeeds(train(&dir, &borrowed(&sets), &["--resume"]));
    assert_eq!(written(), first);
    let other = path(&scratch, "other");
    let sets = interrupted(&other, &[]);
    std::fs::remove_file(other.join("direction.safetensors")).unwrap();
    ends(train(&other, &borrowed(&sets), &["--resume"]), 0, &["resuming after step 10"]);
    same_run(&dir, &other, "adapter/adapter_model.safetensors");
}
