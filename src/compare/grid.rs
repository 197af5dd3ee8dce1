//! The runs of a comparison: every method in every combination of its settings, with every seed.

use super::options::{CompareOptions, Contender, Extrapolate, flatten};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::path::Path;
use toml::Value;

/// A key and a value, as the table shows them.
pub type Setting = (String, Json);

/// What a result belongs to, apart from the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub method: String,
    /// Values of the comparison's own sweep.
    pub sweep: Vec<Setting>,
    /// Values of the method's sweep.
    pub settings: Vec<Setting>,
}

/// One result to obtain.
#[derive(Clone, Debug)]
pub struct Run {
    pub case: Case,
    pub seed: u64,
    /// `key=value` for the config, `train.seed` included.
    pub overrides: Vec<String>,
    pub prefix: String,
    pub extrapolate: Option<Extrapolate>,
    /// Safe LoRA's threshold; the run is then that of the projected method.
    pub threshold: Option<f64>,
}

/// All runs, method by method.
pub fn runs(options: &CompareOptions) -> Vec<Run> {
    let combinations = combinations(&flatten(&options.sweep));
    let mut runs = vec![];
    for method in &options.method {
        for sweep in &combinations {
            for &seed in &options.seeds {
                runs.extend(method_runs(options, method, sweep, seed));
            }
        }
    }
    runs
}

fn method_runs(options: &CompareOptions, method: &Contender, sweep: &[(String, Value)], seed: u64) -> Vec<Run> {
    let named = |settings: &[(String, Value)]| -> Vec<Setting> {
        settings.iter().map(|(key, value)| (key.clone(), json(value))).collect()
    };
    let Some(project) = &method.project else {
        let run = |settings: Vec<(String, Value)>| {
            let all = flatten(&method.set).into_iter().chain(sweep.iter().cloned()).chain(settings.iter().cloned());
            let overrides = all.map(|(key, value)| format!("{key}={value}"));
            Run {
                case: Case { method: method.name.clone(), sweep: named(sweep), settings: named(&settings) },
                seed,
                overrides: overrides.chain([format!("train.seed={seed}")]).collect(),
                prefix: method.prefix.clone(),
                extrapolate: method.extrapolate,
                threshold: None,
            }
        };
        return combinations(&flatten(&method.sweep)).into_iter().map(run).collect();
    };
    let of = options.method.iter().find(|other| other.name == project.of);
    let trained = of.map_or(vec![], |of| method_runs(options, of, sweep, seed));
    let projected = |run: &Run, threshold: f64| {
        let mut run = run.clone();
        run.case.method.clone_from(&method.name);
        run.case.settings.push(("threshold".to_string(), threshold.into()));
        (run.threshold, run.prefix) = (Some(threshold), method.prefix.clone());
        run
    };
    trained.iter().flat_map(|run| project.threshold.iter().map(|&threshold| projected(run, threshold))).collect()
}

/// Every combination of one value per key; one empty combination if there are no keys.
fn combinations(sweep: &[(String, Value)]) -> Vec<Vec<(String, Value)>> {
    let mut all = vec![vec![]];
    for (key, values) in sweep {
        let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
        let with = |combination: &Vec<(String, Value)>| -> Vec<Vec<(String, Value)>> {
            values.iter().map(|value| [&combination[..], &[(key.clone(), value.clone())]].concat()).collect()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

/// The values of a key in the comparison's own sweep, for people, as [`Case::swept`] has them.
pub fn sweep_values(options: &CompareOptions, key: &str) -> Vec<String> {
    let swept = flatten(&options.sweep).into_iter().find(|(other, _)| other == key);
    let values = swept.and_then(|(_, values)| values.as_array().cloned()).unwrap_or_default();
    values.iter().map(|value| text(&json(value))).collect()
}

fn json(value: &Value) -> Json {
    serde_json::to_value(value).unwrap_or(Json::Null)
}

impl Case {
    /// Method and settings, for people.
    pub fn title(&self) -> String {
        let settings: Vec<String> =
            self.settings.iter().map(|(key, value)| format!("{} {}", last(key), text(value))).collect();
        [&[self.method.clone()][..], &settings].concat().join(", ")
    }

    /// The values of the comparison's own sweep, for people; empty without one.
    pub fn sweep_title(&self) -> String {
        let values: Vec<String> =
            self.sweep.iter().map(|(key, value)| format!("{} {}", last(key), text(value))).collect();
        values.join(", ")
    }

    /// The value of a key in the comparison's own sweep, for people.
    pub fn swept(&self, key: &str) -> Option<String> {
        self.sweep.iter().find(|(other, _)| other == key).map(|(_, value)| text(value))
    }
}

/// The last part of a dotted key.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A file is shown by its name.
fn text(value: &Json) -> String {
    match value.as_str() {
        Some(text) => Path::new(text).file_stem().map_or(text.into(), |name| name.to_string_lossy()).into_owned(),
        None => value.to_string(),
    }
}

impl Run {
    /// A name for the folder of the training run, unique to what the run depends on.
    pub fn folder(&self) -> String {
        let words: String = self.overrides.join("\n") + &format!("\n{:?}", self.extrapolate);
        let hash = blake3::hash(words.as_bytes()).to_hex();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        // A projection has no training of its own; its folder is that of the run it projects.
        format!("{}-{}", self.seed, &hash[..16]).chars().map(plain).collect()
    }

    /// What distinguishes this result from all others of the comparison.
    pub fn key(&self) -> String {
        let words = format!("{}\n{}\n{:?}\n{}", self.folder(), self.case.method, self.threshold, self.prefix);
        blake3::hash(words.as_bytes()).to_hex()[..16].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> CompareOptions {
        toml::from_str(&format!("config = 'c'\nsuite = 's'\ndir = 'd'\n{text}")).unwrap()
    }

    #[test]
    fn every_combination_with_every_seed() {
        let options = options(
            "seeds = [1, 2]\nsweep = { 'data.train' = ['a', 'b'] }\n[[method]]\nname = 'plain'\nset = { asft.penalize = \
             'none' }\n[[method]]\nname = 'asft'\nsweep = { 'asft.lambda' = [1, 0.1], 'lora.rank' = [4] }\n[[method]]\nname \
             = 'safe'\nproject = { of = 'plain', threshold = [0.3, 0.5] }",
        );
        let runs = runs(&options);
        let count = |name: &str| runs.iter().filter(|run| run.case.method == name).count();
        assert_eq!((count("plain"), count("asft"), count("safe")), (4, 8, 8));
        let asft = runs.iter().find(|run| run.case.method == "asft").unwrap();
        assert_eq!(asft.overrides, ["data.train=\"a\"", "asft.lambda=1", "lora.rank=4", "train.seed=1"]);
        assert_eq!(asft.case.title(), "asft, lambda 1, rank 4");
        assert_eq!(asft.case.sweep_title(), "train a");
        let safe = runs.iter().find(|run| run.case.method == "safe").unwrap();
        assert_eq!(safe.overrides, runs[0].overrides);
        assert_eq!((safe.folder(), safe.threshold), (runs[0].folder(), Some(0.3)));
        let mut keys: Vec<String> = runs.iter().map(Run::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), runs.len());
    }
}
