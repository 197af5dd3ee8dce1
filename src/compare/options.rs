//! What `asft compare` compares: a TOML file that names a base config, a suite of evaluations, and methods.

use crate::{ensure_valid, invalid};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::{Table, Value};

/// A comparison.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompareOptions {
    /// The `asft train` config that every run starts from.
    pub config: String,
    /// The evaluations that every result is measured with.
    pub suite: String,
    /// Folder for the runs, the results and the figure.
    pub dir: String,
    /// Every setting is run with each of these as `train.seed`.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Settings that every method is run with: dotted keys, each with a list of values.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<serde_json::Value>>")]
    pub sweep: Table,
    /// Samples measured at once.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// The methods, in the order of the table.
    pub method: Vec<Contender>,
    /// Which setting of each method is reported.
    pub select: Option<Select>,
    /// What the figure shows.
    pub figure: Option<Figure>,
}

/// One `[[method]]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    pub name: String,
    /// Its settings: dotted keys and values.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub set: Table,
    /// Settings that are run with each value of a list.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<serde_json::Value>>")]
    pub sweep: Table,
    /// Text put before each prompt when the result is measured (the secret of backdoor-enhanced alignment).
    #[serde(default)]
    pub prefix: String,
    /// Safe LoRA: no training, but the adapters of another method, projected.
    pub project: Option<Project>,
    /// LoX: the aligned model is first moved further along its alignment.
    pub extrapolate: Option<Extrapolate>,
}

/// Safe LoRA, as `asft project` does it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// The method whose adapters are projected.
    pub of: String,
    /// Modules whose cosine is at most this are projected; one result for each.
    pub threshold: Vec<f64>,
}

/// W_aligned + alpha U_k diag(σ_k) R_kᵀ in every linear layer (LoX, arXiv 2506.15606).
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Extrapolate {
    /// Leading singular directions of V that are used.
    pub rank: usize,
    pub alpha: f64,
}

/// In every combination of `sweep`, the setting of each method with the lowest `harm` whose `task` is at most `within`
/// below the baseline's. Meant for evaluations on held-out data that the reported ones do not use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// Name of an evaluation: more is better.
    pub task: String,
    /// Name of an evaluation: less is better.
    pub harm: String,
    /// Name of the method that the others must keep up with.
    pub baseline: String,
    /// In the unit of `task`: 0.01 is a point of accuracy.
    #[serde(default = "default_within")]
    pub within: f64,
}

/// A point for every setting of every method.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Name of the evaluation along the axis to the right.
    pub x: String,
    /// Name of the evaluation along the axis upwards.
    pub y: String,
}

fn default_seeds() -> Vec<u64> {
    vec![42]
}

fn default_batch_size() -> usize {
    64
}

fn default_within() -> f64 {
    0.01
}

impl CompareOptions {
    /// Reads and checks a comparison.
    ///
    /// # Errors
    /// A file that cannot be read or is not such a TOML; methods that share a name, project what there is not, or sweep
    /// over something else than lists.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
        let options: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            invalid!("{}: line {line}: {}", path.display(), e.message().replace('\n', " "))
        })?;
        options.validate().map_err(|e| invalid!("{}: {e:#}", path.display()))?;
        Ok(options)
    }

    fn validate(&self) -> Result<()> {
        ensure_valid!(!self.method.is_empty(), "there is no [[method]]");
        ensure_valid!(!self.seeds.is_empty(), "`seeds` is empty");
        ensure_valid!(self.batch_size > 0, "`batch_size` should be at least 1");
        check_sweep(&self.sweep, "sweep")?;
        for (i, method) in self.method.iter().enumerate() {
            let name = &method.name;
            ensure_valid!(!name.trim().is_empty(), "[[method]] {} has an empty `name`", i + 1);
            let known = |other: &str| self.method.iter().any(|m| m.name == other && m.project.is_none());
            ensure_valid!(
                self.method.iter().take(i).all(|other| other.name != *name),
                "two methods are called \"{name}\"; give each a name of its own"
            );
            check_sweep(&method.sweep, &format!("method \"{name}\": sweep"))?;
            let Some(project) = &method.project else { continue };
            ensure_valid!(
                known(&project.of),
                "method \"{name}\" projects \"{}\", which is no method that trains",
                project.of
            );
            ensure_valid!(!project.threshold.is_empty(), "method \"{name}\": `threshold` is an empty list");
            let trains = !method.set.is_empty() || !method.sweep.is_empty() || method.extrapolate.is_some();
            ensure_valid!(!trains, "method \"{name}\" only projects: `set`, `sweep` and `extrapolate` have no effect");
        }
        if let Some(select) = &self.select {
            let baseline = &select.baseline;
            let known = self.method.iter().any(|method| method.name == *baseline);
            ensure_valid!(known, "select.baseline is \"{baseline}\", which is no method");
        }
        Ok(())
    }

    /// Checks that what `select` and `figure` name is among the evaluations.
    ///
    /// # Errors
    /// The first name that is not.
    pub fn check_names(&self, evaluations: &[String]) -> Result<()> {
        let select = self.select.iter().flat_map(|s| [("select.task", &s.task), ("select.harm", &s.harm)]);
        let figure = self.figure.iter().flat_map(|f| [("figure.x", &f.x), ("figure.y", &f.y)]);
        for (key, name) in select.chain(figure) {
            ensure_valid!(
                evaluations.contains(name),
                "{key} is \"{name}\", which is no evaluation of {}; there are: {}",
                self.suite,
                evaluations.join(", ")
            );
        }
        Ok(())
    }
}

fn check_sweep(sweep: &Table, what: &str) -> Result<()> {
    for (key, values) in flatten(sweep) {
        let listed = values.as_array().is_some_and(|values| !values.is_empty());
        ensure_valid!(listed, "{what}: `{key}` should be a list of values, got {values}");
    }
    Ok(())
}

/// Dotted keys and values; tables inside are keys too, so that `a.b = 1` and `"a.b" = 1` are the same.
pub fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut entries = vec![];
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                entries.extend(flatten(inner).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => entries.push((key.clone(), value.clone())),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<CompareOptions> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("compare.toml");
        std::fs::write(&path, format!("config = 'c'\nsuite = 's'\ndir = 'd'\n{text}")).unwrap();
        CompareOptions::load(&path)
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("", "missing field `method`"),
            ("method = []", "no [[method]]"),
            ("[[method]]\nname = 'a'\n[[method]]\nname = 'a'", "two methods are called"),
            ("[[method]]\nname = 'a'\nsweep = { 'asft.lambda' = 3 }", "`asft.lambda` should be a list"),
            ("[[method]]\nname = 'a'\nproject = { of = 'b', threshold = [0.5] }", "no method that trains"),
            ("seeds = []\n[[method]]\nname = 'a'", "`seeds` is empty"),
            ("[[method]]\nname = 'a'\nsett = {}", "unknown field `sett`"),
            ("[[method]]\nname = 'a'\n[select]\ntask = 't'\nharm = 'h'\nbaseline = 'x'", "select.baseline is \"x\""),
        ] {
            let error = format!("{:#}", options(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn evaluations_have_to_be_there() {
        let text = "[[method]]\nname = 'a'\n[figure]\nx = 'task'\ny = 'harm'";
        let options = options(text).unwrap();
        options.check_names(&["harm".into(), "task".into()]).unwrap();
        assert!(options.check_names(&["harm".into()]).unwrap_err().to_string().contains("figure.x"));
    }

    #[test]
    fn dotted_keys_may_be_quoted_or_not() {
        let table: Table = toml::from_str("\"a.b\" = 1\n[c]\nd.e = [2]").unwrap();
        let keys: Vec<String> = flatten(&table).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a.b", "c.d.e"]);
    }
}
