//! Two runs with one seed are one run, whatever the machine.

use super::*;

#[test]
fn runs_are_the_same_whatever_the_number_of_threads() {
    for (method, weights) in [("lora", "adapter/adapter_model.safetensors"), ("full", "model/model.safetensors")] {
        let scratch = tempfile::tempdir().unwrap();
        let method = format!("train.method={method}");
        let sets = [&EVERYTHING[..], &[&method, "train.learning_rate=1e-3", "train.max_steps=15"]].concat();
        let run = |name: &str, threads: &str| {
            let dir = path(&scratch, name);
            let mut command = train(&dir, &sets, &[]);
            command.env("RAYON_NUM_THREADS", threads);
            ends(command, 0, &[]);
            let record: Value = serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap();
            assert_eq!(record["threads"].to_string(), threads);
            dir
        };
        let one = run("one", "1");
        for (name, threads) in [("again", "1"), ("two", "2"), ("three", "3")] {
            let other = run(name, threads);
            same_run(&one, &other, weights);
            let direction = |dir: &Path| std::fs::read(dir.join("direction.safetensors")).unwrap();
            assert!(direction(&one) == direction(&other), "{name}");
        }
        let other_seed = path(&scratch, "seed");
        ends(train(&other_seed, &[&sets[..], &["train.seed=7"]].concat(), &[]), 0, &[]);
        assert_ne!(timeless(&one), timeless(&other_seed));
    }
}
