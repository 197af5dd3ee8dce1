//! The shipped configs load, and those of the AsFT paper's models hold its settings.

use crate::support::files::root;
use asft::compare::{self, CompareOptions};
use asft::config::Settings;
use asft::eval::Suite;
use asft::model::Dtype;
use asft::names::Targets;
use asft::optim::ScheduleKind;
use std::path::{Path, PathBuf};

/// The TOML files of a folder in `configs/`, "" for those in `configs/` itself.
pub fn configs(folder: &str) -> Vec<PathBuf> {
    let dir = root().join("configs").join(folder);
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    found.sort();
    found
}

fn load(path: &Path) -> Settings {
    Settings::load(path, &[]).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()))
}

#[test]
fn every_config_loads_and_writes_where_its_name_says() {
    let models: Vec<PathBuf> = [configs(""), configs("models")].concat();
    assert_eq!(models.len(), 12, "{models:?}");
    for path in models {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(load(&path).output.dir, format!("runs/{stem}"));
    }
    let [sandbox] = configs("sandbox").try_into().unwrap();
    assert_eq!(load(&sandbox).output.dir, "runs/sandbox");
}

/// A comparison's suite has what it selects by, and each of its runs has settings that load.
#[test]
fn every_suite_and_comparison_loads() {
    let root = root();
    let (suites, comparisons) = (configs("sandbox/suites"), configs("sandbox/comparisons"));
    assert_eq!((suites.len(), comparisons.len()), (4, 17));
    for suite in suites {
        for evaluation in Suite::load(&suite).unwrap().eval {
            assert!(root.join(&evaluation.data).is_file(), "{}", evaluation.data);
        }
    }
    for comparison in comparisons {
        let options = CompareOptions::load(&comparison).unwrap();
        let suite = Suite::load(&root.join(&options.suite)).unwrap();
        let titles: Vec<String> = suite.eval.iter().map(|evaluation| evaluation.title()).collect();
        options.check_names(&titles).unwrap();
        let runs = compare::runs(&options);
        assert_eq!(runs.len() % options.seeds.len(), 0);
        for run in runs {
            Settings::load(&root.join(&options.config), &run.overrides).unwrap();
        }
    }
}

#[test]
fn the_paper_s_models_have_the_paper_s_settings() {
    for (name, aligned) in [
        ("llama2-7b", "meta-llama/Llama-2-7b-chat-hf"),
        ("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("qwen2-7b", "Qwen/Qwen2-7B-Instruct"),
        ("gemma2-9b", "google/gemma-2-9b-it"),
    ] {
        let path = root().join(format!("configs/models/{name}.toml"));
        let Settings { model, lora, asft, data, train, .. } = load(&path);
        assert_eq!((model.aligned.as_str(), model.dtype), (aligned, Dtype::Bf16));
        assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 32, 0.05), "{name}");
        assert_eq!(lora.target_modules, Targets::List(vec!["q_proj".into(), "v_proj".into()]));
        assert_eq!((asft.lambda, asft.scaled), (1.0.into(), false), "{name}");
        assert_eq!((train.learning_rate, train.batch_size, train.epochs), (5e-5, 8, 10.0), "{name}");
        assert_eq!((train.schedule, train.gamma, train.max_grad_norm), (ScheduleKind::Step, 0.85, 0.0), "{name}");
        assert_eq!((data.max_length, data.shuffle, data.drop_last), (512, false, true), "{name}");
        assert_eq!((train.gradient_accumulation, train.warmup_steps, train.warmup_ratio), (1, None, None), "{name}");
    }
}
