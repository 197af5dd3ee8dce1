//! What `asft compare` compares: a TOML file that names a base config, a suite of evaluations, and methods.

use crate::method::part::Part;
use crate::toml_reader::{self, Mistakes, Schema, flatten};
use anyhow::Result;
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;
use toml::Table;

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
    #[schemars(with = "std::collections::BTreeMap<String, Swept>")]
    pub sweep: Table,
    /// What attackers do: every method is run under each of them, in each combination of `sweep`.
    #[serde(default)]
    pub attack: Vec<Attack>,
    /// Samples measured at once.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// The methods, in the order of the table.
    pub method: Vec<Contender>,
    /// Which setting of each method is reported.
    pub select: Option<Select>,
    /// What the others differ from, and by how much.
    pub paired: Option<Paired>,
    /// The measure whose worst case over the attacks and the sweep is reported.
    pub worst: Option<Worst>,
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
    #[schemars(with = "std::collections::BTreeMap<String, Swept>")]
    pub sweep: Table,
    /// Text put before each prompt when the result is measured (the secret of backdoor-enhanced alignment).
    #[serde(default)]
    pub prefix: String,
    /// The system message with which the result is measured, in place of the records' own (that secret in the system turn).
    #[serde(default)]
    pub system: String,
    /// Safe LoRA: no training, but the adapters of another method, projected.
    pub project: Option<Project>,
    /// No training, but a part of the updates of another method.
    pub cut: Option<Cut>,
    /// LoX: the aligned model is first moved further along its alignment.
    pub extrapolate: Option<Extrapolate>,
}

/// One `[[attack]]`: what the attacker chooses in the training, and how the prompts are put.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    pub name: String,
    /// Settings of the runs, which count before those of a method: more poison, another learning rate, more epochs.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub set: Table,
    /// What every answer begins with where harm is measured (`refusal`, `judge`), unless the evaluation has a `prefill` of its own.
    #[serde(default)]
    pub prefill: String,
    /// Text put after each prompt where harm is measured.
    #[serde(default)]
    pub suffix: String,
}

/// What is reported of every setting over all attacks and combinations of the sweep.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Worst {
    /// Name of an evaluation, or one of its values as the table has it ("harmful score: told"): the largest mean counts.
    pub harm: String,
    /// Name of an evaluation whose least mean stands beside it.
    pub task: Option<String>,
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

/// What another method's updates do without a part of them, and with nothing else.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The method whose adapters are cut down.
    pub of: String,
    /// To which parts; one result for each.
    pub to: Vec<Part>,
    /// The subspaces are those of V's leading singular vectors that hold this share of ‖V‖².
    #[serde(default = "default_energy")]
    pub energy: f64,
    /// The control: subspaces of the same size, drawn at random from this seed.
    pub random: Option<u64>,
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
    /// Name of an evaluation that must be kept, too: more is better.
    pub general: Option<String>,
    /// How far below the baseline's it may be.
    #[serde(default = "three_points")]
    pub general_within: f64,
}

/// Differences of every reported setting from those of one method, run by run with the same seed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Paired {
    /// Name of the method that the others are compared with.
    pub against: String,
    /// The records' field that says which of them belong together (a person, a behavior). Default: each stands for itself.
    pub cluster: Option<String>,
    /// A regular expression: what its first group, or all of it, matches in the field is the cluster.
    pub cluster_pattern: Option<String>,
    /// Differences of at most this count as none: 0.03 is three points.
    #[serde(default = "three_points")]
    pub margin: f64,
}

/// A point for every setting.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Name of the evaluation along the axis to the right.
    pub x: String,
    /// Name of the evaluation along the axis upwards.
    pub y: String,
    /// What the sweep varies, written at the axis of `sweep.svg` in place of its key.
    pub along: Option<String>,
    /// The values that it takes there, in the sweep's order, in place of the values themselves.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// What stands behind a key of a sweep: its values or, where the key is part of a dotted one, a table.
enum Swept {}

impl JsonSchema for Swept {
    fn schema_name() -> Cow<'static, str> {
        "Swept".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> schemars::Schema {
        let inner = generator.subschema_for::<Self>();
        json_schema!({
            "anyOf": [
                { "type": "array", "items": true, "minItems": 1 },
                { "type": "object", "additionalProperties": inner },
            ],
        })
    }
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

fn default_energy() -> f64 {
    0.9
}

fn three_points() -> f64 {
    0.03
}

/// Before several mistakes.
const UNUSABLE: &str = "the comparison cannot be used";

impl CompareOptions {
    /// Reads and checks a comparison.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML; unknown keys and wrong types, or methods that share a name, project
    /// what there is not, or sweep over something else than lists, all of a kind in one message.
    pub fn load(path: &Path) -> Result<Self> {
        let options: Self = toml_reader::load(path, "comparison")?;
        let mut mistakes = Mistakes::default();
        mistakes.add_all(&path.display().to_string(), options.mistakes());
        mistakes.refuse(UNUSABLE)?;
        Ok(options)
    }

    /// The JSON schema of a comparison (draft 2020-12), for editors and other tools.
    pub fn json_schema() -> serde_json::Value {
        Schema::of::<Self>().into_json("Comparison of asft training runs")
    }

    fn mistakes(&self) -> Mistakes {
        let mut found = Mistakes::default();
        found.unless(!self.method.is_empty(), "there is no [[method]]");
        found.unless(!self.seeds.is_empty(), "`seeds` is empty");
        found.unless(self.batch_size > 0, "`batch_size` should be at least 1");
        let named = self.select.iter().map(|select| ("select.baseline", &select.baseline));
        for (key, name) in named.chain(self.paired.iter().map(|paired| ("paired.against", &paired.against))) {
            let known = self.method.iter().any(|method| method.name == *name);
            found.unless(known, format!("{key} is \"{name}\", which is no method"));
        }
        if let Some(Paired { against, cluster, cluster_pattern, margin }) = &self.paired {
            let reference = self.method.iter().find(|method| method.name == *against);
            let several = reference.is_some_and(|method| {
                let thresholds = method.project.as_ref().map_or(0, |project| project.threshold.len());
                let parts = method.cut.as_ref().map_or(0, |cut| cut.to.len());
                thresholds.max(parts) > 1
                    || flatten(&method.sweep).iter().any(|(_, v)| v.as_array().is_some_and(|v| v.len() > 1))
            });
            found.unless(
                self.select.is_some() || !several,
                format!("paired.against: \"{against}\" has several settings, of which `[select]` has to choose one"),
            );
            found.unless(*margin > 0.0 && margin.is_finite(), format!("paired.margin should be above 0, got {margin}"));
            found.unless(
                cluster.is_some() || cluster_pattern.is_none(),
                "`paired.cluster_pattern` has no effect without `paired.cluster`",
            );
        }
        check_sweep(&self.sweep, "sweep", &mut found);
        check_attacks(&self.attack, &mut found);
        if let Some(labels) = self.figure.as_ref().map(|figure| figure.labels.len()).filter(|count| *count > 0) {
            let swept = flatten(&self.sweep);
            let counts: Vec<usize> =
                swept.iter().filter_map(|(_, v)| Some(v.as_array()?.len())).filter(|n| *n > 1).collect();
            found.unless(
                counts == [labels] && self.attack.is_empty(),
                format!(
                    "figure.labels should have a label for each value of the one key that `sweep` varies, got {labels}"
                ),
            );
        }
        (0..self.method.len()).for_each(|i| self.check_method(i, &mut found));
        found
    }

    /// What is wrong with `self.method[i]`.
    fn check_method(&self, i: usize, found: &mut Mistakes) {
        let method = &self.method[i];
        let name = &method.name;
        found.unless(!name.trim().is_empty(), format!("[[method]] {} has an empty `name`", i + 1));
        found.unless(
            self.method.iter().take(i).all(|other| other.name != *name),
            format!("two methods are called \"{name}\"; give each a name of its own"),
        );
        if let Some(project) = &method.project {
            let known = self.method.iter().any(|other| other.name == project.of && other.trains());
            found.unless(
                known,
                format!("method \"{name}\" projects \"{}\", which is no method that trains", project.of),
            );
            found.unless(!project.threshold.is_empty(), format!("method \"{name}\": `threshold` is an empty list"));
            let trains = !method.set.is_empty() || !method.sweep.is_empty() || method.extrapolate.is_some();
            found.unless(
                !trains,
                format!("method \"{name}\" only projects: `set`, `sweep` and `extrapolate` have no effect"),
            );
        }
        if let Some(Extrapolate { rank, alpha }) = &method.extrapolate {
            found.unless(*rank > 0, format!("method \"{name}\": `extrapolate.rank` should be at least 1, got 0"));
            let what = format!("method \"{name}\": `extrapolate.alpha` should be a finite number, got {alpha}");
            found.unless(alpha.is_finite(), what);
        }
        self.check_cut(method, found);
        check_sweep(&method.sweep, &format!("method \"{name}\": sweep"), found);
    }

    fn check_cut(&self, method: &Contender, found: &mut Mistakes) {
        let (name, Some(Cut { of, to, energy, .. })) = (&method.name, &method.cut) else { return };
        let known = self.method.iter().any(|other| other.name == *of && other.trains());
        found.unless(known, format!("method \"{name}\" cuts down \"{of}\", which is no method that trains"));
        found.unless(!to.is_empty(), format!("method \"{name}\": `cut.to` is an empty list"));
        let energy_fits = *energy > 0.0 && *energy <= 1.0;
        found.unless(energy_fits, format!("method \"{name}\": `cut.energy` should be in (0, 1], got {energy}"));
        let alone = method.set.is_empty() && method.sweep.is_empty() && method.extrapolate.is_none();
        found.unless(
            alone && method.project.is_none(),
            format!("method \"{name}\" only cuts down: `set`, `sweep`, `project` and `extrapolate` have no effect"),
        );
    }

    /// Checks that `select` and `figure` name existing evaluations.
    ///
    /// # Errors
    /// Every name that is not.
    pub fn check_names(&self, evaluations: &[String]) -> Result<()> {
        let select = self.select.iter().flat_map(|s| {
            let general = s.general.iter().map(|general| ("select.general", general.as_str()));
            [("select.task", s.task.as_str()), ("select.harm", s.harm.as_str())].into_iter().chain(general)
        });
        let figure = self.figure.iter().flat_map(|f| [("figure.x", f.x.as_str()), ("figure.y", f.y.as_str())]);
        let worst = self.worst.iter().flat_map(|worst| worst.names(evaluations));
        let mut found = Mistakes::default();
        for (key, name) in select.chain(figure).chain(worst) {
            let there = evaluations.join(", ");
            found.unless(
                evaluations.iter().any(|title| title == name),
                format!("{key} is \"{name}\", which is no evaluation of {}; there are: {there}", self.suite),
            );
        }
        found.refuse(UNUSABLE)
    }
}

impl Contender {
    /// Whether it has training runs of its own.
    fn trains(&self) -> bool {
        self.project.is_none() && self.cut.is_none()
    }
}

impl Worst {
    /// The evaluations that it names, each with its key. Whether `harm` names a value of one is known with the first result.
    fn names<'a>(&'a self, evaluations: &'a [String]) -> impl Iterator<Item = (&'static str, &'a str)> {
        let value_of = |title: &str| self.harm.strip_prefix(title).is_some_and(|value| value.starts_with(": "));
        let known = evaluations.iter().find(|title| **title == self.harm || value_of(title));
        let harm = known.map_or(self.harm.as_str(), String::as_str);
        let task = self.task.iter().map(|task| ("worst.task", task.as_str()));
        [("worst.harm", harm)].into_iter().chain(task)
    }
}

/// What is wrong with the attacks.
fn check_attacks(attacks: &[Attack], found: &mut Mistakes) {
    for (i, attack) in attacks.iter().enumerate() {
        found.unless(!attack.name.trim().is_empty(), format!("[[attack]] {} has an empty `name`", i + 1));
        found.unless(
            attacks.iter().take(i).all(|other| other.name != attack.name),
            format!("two attacks are called \"{}\"; give each a name of its own", attack.name),
        );
    }
}

fn check_sweep(sweep: &Table, what: &str, found: &mut Mistakes) {
    for (key, values) in flatten(sweep) {
        let listed = values.as_array().is_some_and(|values| !values.is_empty());
        found.unless(listed, format!("{what}: `{key}` should be a list of values, got {values}"));
    }
}

#[cfg(test)]
mod tests;
