//! Two runs with one seed are one run, whatever the machine.

use super::*;

#[test]
fn runs_are_the_same_whatever_the_number_of_threads() {
    for (method, weights) in WEIGHTS {
        let scratch = tempfile::tempdir().unwrap();
        let method = format!("train.method={method}");
        let sets = [&EVERYTHING[..], &[&method, "train.learning_rate=1e-3", "train.max_steps=15"]].concat();
        let run = |name: &str, threads: &str| {
            let dir = path(&scratch, name);
            succeeds(train(&dir, &sets, &[]).env("RAYON_NUM_THREADS", threads));
            let record = read_json(&dir.join("run.json"));
            assert_eq!(record["threads"].to_string(), threads);
            dir
        };
        let one = run("one", "1");
        for (name, threads) in [("again", "1"), ("two", "2"), ("three", "3")] {
            let other = run(name, threads);
            same_run(&one, &other, weights);
            same_file(&one, &other, "direction.safetensors");
        }
        let other_seed = path(&scratch, "seed");
        succeeds(train(&other_seed, &[&sets[..], &["train.seed=7"]].concat(), &[]));
        assert_ne!(timeless(&one), timeless(&other_seed));
    }
}
