//! Tokenised samples kept in files: the same samples, batches and losses as without, and never those of something else.

use crate::support::command::{asft, ends, json, set, succeeds, train};
use crate::support::files::tiny;
use crate::support::runs::metrics;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `asft data --json` with every sample.
fn shown(sets: &[&str]) -> Value {
    let mut data = asft(&["data", "--config", "configs/tiny.toml", "--json", "--show", "1000"]);
    set(&mut data, sets);
    json(data)
}

fn told(sets: &[&str]) -> String {
    let mut data = asft(&["data", "--config", "configs/tiny.toml", "--show", "0"]);
    set(&mut data, sets);
    ends(data, 0, &[])
}

fn kept(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn kept_samples_are_those_of_memory_and_of_the_same_settings() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, data) = (scratch.path().join("cache"), scratch.path().join("train.jsonl"));
    std::fs::copy(tiny("train.jsonl"), &data).unwrap();
    let (cache, data_set) = (format!("data.cache={}", folder.display()), format!("data.train={}", data.display()));
    let sets = [&*cache, &*data_set, "data.validation=0.25"];
    let first = shown(&sets);
    assert_eq!(first, shown(&[&data_set, "data.validation=0.25", "data.cache=false"]));
    assert_eq!(first, shown(&sets));
    let files = kept(&folder);
    assert!(files.len() == 1 && told(&sets).contains("samples tokenised earlier are read from"), "{files:?}");
    // What does not change the samples does not matter, what does makes another file.
    assert!(told(&[&*cache, &*data_set, "data.shuffle=false"]).contains("read from"));
    for (number, other) in
        ["data.max_length=100", "data.train_on=all", "data.train_on_reasoning=false"].iter().enumerate()
    {
        assert!(told(&[&*cache, &*data_set, other]).contains("are kept in"), "{other}");
        assert_eq!(kept(&folder).len(), 2 + number);
    }
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("3 and 19", "3 and 18", 1)).unwrap();
    assert!(told(&sets).contains("are kept in"));
    std::fs::write(&data, text).unwrap();

    let whole = std::fs::read(&files[0]).unwrap();
    let mut damaged = whole.clone();
    damaged[100] ^= 4;
    for (bytes, why) in [(damaged, "it is damaged"), (whole[..whole.len() / 2].to_vec(), "it is cut short")] {
        std::fs::write(&files[0], bytes).unwrap();
        let told = told(&sets);
        assert!(told.contains(why) && told.contains("is made again"), "{told}");
        assert_eq!(std::fs::read(&files[0]).unwrap(), whole);
    }
    let other = kept(&folder).into_iter().find(|path| *path != files[0]).unwrap();
    std::fs::copy(&other, &files[0]).unwrap();
    assert!(told(&sets).contains("it was made with other settings or data: "), "{}", told(&sets));
    assert_eq!(shown(&sets), first);
}

#[test]
fn runs_are_the_same_from_memory_and_from_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = format!("data.cache={}", scratch.path().join("cache").display());
    for more in ["data.packing=false", "data.packing=true"] {
        let run = |name: &str, cache: &str| {
            let dir = scratch.path().join(format!("{name}-{more}"));
            succeeds(train(
                &dir,
                &[more, cache, "data.validation=0.1", "train.max_steps=12", "train.batch_size=3"],
                &[],
            ));
            let losses = |key: &str| metrics(&dir).iter().filter_map(|row| row[key].as_f64()).collect::<Vec<f64>>();
            [losses("loss"), losses("eval_loss")]
        };
        let memory = run("memory", "data.cache=false");
        assert_eq!(memory, run("made", &cache));
        assert_eq!(memory, run("read", &cache));
        assert!(memory[0].len() == 12 && !memory[1].is_empty());
    }
}

#[test]
fn a_template_that_asks_for_the_date_makes_samples_of_its_day() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, template) = (scratch.path().join("cache"), scratch.path().join("t.jinja"));
    let turns =
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}";
    let prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    std::fs::write(&template, format!("{{{{ strftime_now('%d') }}}}{turns}{prompt}")).unwrap();
    // Between these zones are 26 hours: their days always differ, though it is the same time.
    for (number, zone) in ["Etc/GMT-14", "Etc/GMT+12"].into_iter().enumerate() {
        let mut data = asft(&["data", "--config", "configs/tiny.toml", "--show", "0"]);
        let (cache, template) =
            (format!("data.cache={}", folder.display()), format!("data.template={}", template.display()));
        set(&mut data, &[&cache, &template]);
        data.env("TZ", zone);
        assert!(ends(data, 0, &[]).contains("are kept in"), "{zone}");
        assert_eq!(kept(&folder).len(), number + 1);
    }
}

#[test]
fn warnings_name_the_files_as_they_are_called_now() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = format!("data.cache={}", scratch.path().join("cache").display());
    let record = serde_json::json!({"instruction": "a <|im_end|> b", "output": "c"}).to_string();
    for (name, other) in [("one.jsonl", "two.jsonl"), ("two.jsonl", "one.jsonl")] {
        let data = scratch.path().join(name);
        std::fs::write(&data, &record).unwrap();
        let told = told(&[&cache, &format!("data.train={}", data.display())]);
        assert!(told.contains(&format!("{name}: the text of 1 records holds 1 special tokens")), "{told}");
        assert!(!told.contains(other) && kept(&scratch.path().join("cache")).len() == 1, "{told}");
    }
}
