//! Which checkpoints there are, and what a run without them says.

use super::*;

#[test]
fn runs_without_a_checkpoint_and_finished_ones_say_so() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = ["train.max_steps=4"];
    ends(train(&dir, &sets, &["--resume"]), 0, &["nothing to resume: starting from the beginning"]);
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["the run is finished"]);
    ends(train(&dir, &["train.max_steps=6"], &["--resume"]), 2, &["train.max_steps: was 4, is 6"]);
    let grow = ["--resume", "--allow-change", "train.max_steps"];
    ends(train(&dir, &["train.max_steps=6"], &grow), 2, &["finished and kept no checkpoint", "save_every_steps"]);
    ends(train(&dir, &sets, &[]), 2, &["--resume", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
    std::fs::remove_file(dir.join("run.json")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["stopped before its first checkpoint"]);
    // Killed so early that only the direction was there.
    std::fs::remove_file(dir.join("config.toml")).unwrap();
    std::fs::remove_file(dir.join("run.json")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 2, &["no config.toml", "--overwrite"]);
    std::fs::remove_file(dir.join("metrics.jsonl")).unwrap();
    std::fs::remove_dir_all(dir.join("adapter")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["stopped before its first checkpoint"]);

    let dir = path(&scratch, "grown");
    let sets = ["train.max_steps=4", "output.save_every_steps=3", "train.schedule=constant"];
    succeeds(train(&dir, &sets, &[]));
    let adapter = || std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    let short = adapter();
    let longer = ["train.max_steps=9", sets[1], sets[2]];
    ends(train(&dir, &longer, &grow), 0, &["resuming after step 4", "9 steps"]);
    assert!(adapter() != short);
    let whole = path(&scratch, "whole");
    succeeds(train(&whole, &longer, &[]));
    same_run(&whole, &dir, "adapter/adapter_model.safetensors");
    ends(train(&dir, &sets, &grow), 0, &["the run is finished"]);
}

#[test]
fn the_newest_and_the_best_checkpoints_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    // A rate at which the loss first falls and then rises again.
    let sets = [
        "data.validation=0.2",
        "output.eval_every_steps=2",
        "output.save_every_steps=3",
        "output.keep_last=1",
        "output.save_best=true",
        "train.patience=4",
        "train.learning_rate=0.1",
        "train.schedule=constant",
        "train.max_steps=400",
    ];
    let text = succeeds(train(&dir, &sets, &[]));
    let evals: Vec<(u64, f64)> =
        metrics(&dir).iter().filter_map(|row| Some((row["step"].as_u64()?, row["eval_loss"].as_f64()?))).collect();
    let (best, lowest) = evals.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = evals.last().unwrap().0;
    assert_eq!(last, best + 2 * 4, "{evals:?}");
    assert!(last < 400 && text.contains(&format!("the best state, of step {best}")), "{text}");
    assert_eq!(checkpoints(&dir).len(), 2, "{:?}", checkpoints(&dir));
    let file = |name: String| std::fs::read(dir.join(name)).unwrap();
    let of_best = file(format!("checkpoints/step-{best}/adapter_model.safetensors"));
    assert!(of_best == file("adapter/adapter_model.safetensors".into()));
    // A checkpoint is an adapter like any other.
    let mut eval = asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"]);
    succeeds(eval.arg("--adapter").arg(dir.join(format!("checkpoints/step-{best}"))));
    assert!(lowest.is_finite());
}

#[test]
fn steps_that_are_not_finite_are_skipped_reported_and_end_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = ["train.learning_rate=1e30", "train.schedule=constant", "output.save_every_steps=2"];
    let text =
        ends(train(&dir, &sets, &[]), 1, &["step 2 skipped", "tests/tiny/train.jsonl:", "3 steps in a row", "step-1"]);
    assert_eq!(text.matches("skipped").count(), 3, "{text}");
    let rows = metrics(&dir);
    assert_eq!(rows.len(), 4);
    assert!(rows[0]["loss"].is_number() && rows[3]["samples"].as_array().unwrap().len() == 8, "{rows:?}");
    assert!(rows[3]["samples"][0].as_str().unwrap().starts_with("tests/tiny/train.jsonl:"));
    assert_eq!(checkpoints(&dir), ["step-1"]);
    assert!(!dir.join("adapter").exists() && !dir.join("run.json").exists());
    ends(train(&dir, &sets, &["--resume"]), 1, &["resuming after step 1", "step 2 skipped"]);
    let lower = ["train.learning_rate=1e-3", sets[1], sets[2], "train.max_bad_steps=5"];
    let allowed = ["--resume", "--allow-change", "train.learning_rate", "--allow-change", "train.max_bad_steps"];
    ends(train(&dir, &lower, &allowed), 1, &["5 steps in a row"]);
}
