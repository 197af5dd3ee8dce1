//! The runs of a comparison: every method in every combination of its settings, with every seed.

use super::options::{CompareOptions, Contender, Extrapolate};
use crate::eval::Framing;
use crate::method::part::Part;
use crate::toml_reader::flatten;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::path::Path;
use toml::Value;

/// The key by which a result names its attack, among those of the sweep.
const ATTACK: &str = "attack";

/// A key and a value, as the table shows them.
pub type Setting = (String, Json);

/// What a result belongs to, apart from the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub method: String,
    /// Values of the comparison's own sweep, and the attack if there are any.
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
    /// What is put around the prompts that measure it: by the method, and by the attack.
    pub framing: Framing,
    pub extrapolate: Option<Extrapolate>,
    /// Safe LoRA's threshold; the run is then that of the projected method.
    pub threshold: Option<f64>,
    /// What is left of the updates of the method that is cut down.
    pub cut: Option<PartOf>,
}

/// Under what every method is run: a combination of the comparison's sweep, and an attack.
struct Conditions {
    /// As the table has them.
    named: Vec<Setting>,
    sweep: Vec<(String, Value)>,
    /// The attack's settings.
    attack: Vec<(String, Value)>,
    /// The attack's part of it.
    framing: Framing,
}

/// A part of an update in subspaces of V that hold the share `energy` of ‖V‖², or in random ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartOf {
    pub part: Part,
    pub energy: f64,
    pub random: Option<u64>,
}

/// All runs, method by method.
pub fn runs(options: &CompareOptions) -> Vec<Run> {
    let conditions = conditions(options);
    let mut runs = vec![];
    for method in &options.method {
        for conditions in &conditions {
            for &seed in &options.seeds {
                runs.extend(method_runs(options, method, conditions, seed));
            }
        }
    }
    runs
}

fn conditions(options: &CompareOptions) -> Vec<Conditions> {
    let mut all = vec![];
    for sweep in combinations(&flatten(&options.sweep)) {
        let swept = named(&sweep);
        let attacked = options.attack.iter().map(|attack| Conditions {
            named: [&swept[..], &[(ATTACK.to_string(), attack.name.clone().into())]].concat(),
            sweep: sweep.clone(),
            attack: flatten(&attack.set),
            framing: Framing { prefill: attack.prefill.clone(), suffix: attack.suffix.clone(), ..Framing::default() },
        });
        all.extend(attacked);
        if options.attack.is_empty() {
            all.push(Conditions { named: swept, sweep, attack: vec![], framing: Framing::default() });
        }
    }
    all
}

fn named(settings: &[(String, Value)]) -> Vec<Setting> {
    settings.iter().map(|(key, value)| (key.clone(), json(value))).collect()
}

fn method_runs(options: &CompareOptions, method: &Contender, conditions: &Conditions, seed: u64) -> Vec<Run> {
    let framing =
        || Framing { prefix: method.prefix.clone(), system: method.system.clone(), ..conditions.framing.clone() };
    if let Some(cut) = &method.cut {
        let part = |run: &Run, part: Part| {
            let mut run = run.clone();
            run.case.method.clone_from(&method.name);
            run.case.settings.push(("to".to_string(), serde_json::to_value(part).unwrap_or(Json::Null)));
            run.framing = framing();
            run.cut = Some(PartOf { part, energy: cut.energy, random: cut.random });
            run
        };
        let trained = runs_of(options, &cut.of, conditions, seed);
        return trained.iter().flat_map(|run| cut.to.iter().map(|&to| part(run, to))).collect();
    }
    let Some(project) = &method.project else {
        let run = |settings: Vec<(String, Value)>| {
            // Of a key that is set twice, the last counts.
            let all = [&flatten(&method.set)[..], &conditions.sweep, &settings, &conditions.attack].concat();
            let overrides = all.into_iter().map(|(key, value)| format!("{key}={value}"));
            Run {
                case: Case { method: method.name.clone(), sweep: conditions.named.clone(), settings: named(&settings) },
                seed,
                overrides: overrides.chain([format!("train.seed={seed}")]).collect(),
                framing: framing(),
                extrapolate: method.extrapolate,
                threshold: None,
                cut: None,
            }
        };
        return combinations(&flatten(&method.sweep)).into_iter().map(run).collect();
    };
    let trained = runs_of(options, &project.of, conditions, seed);
    let projected = |run: &Run, threshold: f64| {
        let mut run = run.clone();
        run.case.method.clone_from(&method.name);
        run.case.settings.push(("threshold".to_string(), threshold.into()));
        (run.threshold, run.framing) = (Some(threshold), framing());
        run
    };
    trained.iter().flat_map(|run| project.threshold.iter().map(|&threshold| projected(run, threshold))).collect()
}

/// The runs of the method of that name.
fn runs_of(options: &CompareOptions, name: &str, conditions: &Conditions, seed: u64) -> Vec<Run> {
    let of = options.method.iter().find(|other| other.name == name);
    of.map_or(vec![], |of| method_runs(options, of, conditions, seed))
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
            self.sweep.iter().map(|(key, value)| format!("{} {}", last(key), shown(key, value))).collect();
        values.join(", ")
    }

    /// Method and settings are the same, whatever it was run under.
    pub fn is_setting_of(&self, other: &Self) -> bool {
        self.method == other.method && self.settings == other.settings
    }

    /// The value of a key in the comparison's own sweep, for people.
    pub fn swept(&self, key: &str) -> Option<String> {
        self.sweep.iter().find(|(other, _)| other == key).map(|(_, value)| shown(key, value))
    }
}

/// A value of the sweep. An attack's name is no file's.
fn shown(key: &str, value: &Json) -> String {
    if key == ATTACK { value.as_str().unwrap_or_default().to_string() } else { text(value) }
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
        let Framing { prefix, system, suffix, prefill } = &self.framing;
        let mut words = format!("{}\n{}\n{:?}\n{prefix}", self.folder(), self.case.method, self.threshold);
        // Results of versions that knew only the prefix keep their keys.
        let attack =
            self.case.sweep.iter().filter(|(key, _)| key == ATTACK).map(|(key, value)| (&**key, shown(key, value)));
        let own = [("system", system), ("suffix", suffix), ("prefill", prefill)].map(|(key, text)| (key, text.clone()));
        if let Some(cut) = &self.cut {
            words += &format!("\n{cut:?}");
        }
        for (key, text) in own.into_iter().chain(attack).filter(|(_, text)| !text.is_empty()) {
            words += &format!("\n{key}={text:?}");
        }
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

    #[test]
    fn every_method_is_run_under_every_attack() {
        let text = "seeds = [1]\nsweep = { 'data.train' = ['a', 'b'] }\n[[attack]]\nname = '3.5 epochs'\nset = { train.epochs = 3.5 \
                    }\n[[attack]]\nname = 'begun'\nprefill = 'It'\n[[attack]]\nname = 'none'\n[[method]]\nname = \
                    'one'\nsystem = 's'\nset = { train.epochs = 1 }";
        let runs = runs(&options(text));
        let titles: Vec<String> = runs.iter().map(|run| run.case.sweep_title()).collect();
        assert_eq!(titles[..3], ["train a, attack 3.5 epochs", "train a, attack begun", "train a, attack none"]);
        assert_eq!((runs.len(), runs[0].case.swept(ATTACK).as_deref()), (6, Some("3.5 epochs")));
        // What the attacker sets counts last, and the same training is done once.
        assert_eq!(runs[0].overrides, ["train.epochs=1", "data.train=\"a\"", "train.epochs=3.5", "train.seed=1"]);
        assert_eq!(runs[1].framing, Framing { prefill: "It".into(), system: "s".into(), ..Framing::default() });
        assert_eq!(runs[1].folder(), runs[2].folder());
        assert!(runs[1].key() != runs[2].key() && runs[0].folder() != runs[2].folder());
    }

    #[test]
    fn results_of_older_versions_keep_their_keys() {
        let runs = runs(&options("[[method]]\nname = 'BEA'\nprefix = 'x '\nset = { asft.penalize = 'none' }"));
        // What version 0.1 called it.
        let words = format!("{}\nBEA\nNone\nx ", runs[0].folder());
        assert_eq!(runs[0].key(), blake3::hash(words.as_bytes()).to_hex()[..16].to_string());
    }
}
