//! What evaluations found: named values, as `asft eval --json` prints them, and what training changed in them, as
//! `run.json` keeps it.

use super::rate::Rate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

/// Shares of answers that are none. Where there are no such answers, a line for people leaves them out.
pub const INCOHERENT: [&str; 3] = ["empty", "repeated", "off_script"];

/// Whether a reading says no more than that no answer was one of [`INCOHERENT`].
pub fn says_nothing(name: &str, number: f64) -> bool {
    let is_of = |kind: &str| name.strip_suffix(&kind.replace('_', " ")).is_some_and(|rest| rest.ends_with(": "));
    number == 0.0 && INCOHERENT.iter().any(|kind| is_of(kind))
}

/// A measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Rate(Rate),
    Number(f64),
    Count(usize),
}

impl Value {
    /// The number that represents it in a picture: a share, a loss.
    pub fn number(self) -> f64 {
        match self {
            Self::Rate(rate) => rate.share(),
            Self::Number(number) => number,
            Self::Count(count) => count as f64,
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::Rate(rate) => rate.to_string(),
            Self::Number(number) => format!("{number:.4}"),
            Self::Count(count) => count.to_string(),
        }
    }

    pub fn json(self) -> Json {
        match self {
            Self::Rate(rate) => json!(rate),
            Self::Number(number) => json!(number),
            Self::Count(count) => json!(count),
        }
    }

    /// What [`Value::json`] was made of; `None` for anything else.
    fn of_json(json: &Json) -> Option<Self> {
        let count = |json: &Json| json.as_u64().and_then(|count| usize::try_from(count).ok());
        match json {
            Json::Object(rate) => {
                let field = |name: &str| count(rate.get(name)?);
                Some(Self::Rate(Rate { count: field("count")?, total: field("total")? }))
            }
            number => count(number).map(Self::Count).or(number.as_f64().map(Self::Number)),
        }
    }
}

/// The values of one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    pub name: String,
    /// As written in a suite.
    pub metric: String,
    /// The main one first, each as [`Value::json`].
    #[serde(flatten)]
    pub values: Map<String, Json>,
}

impl Evaluated {
    /// The values in which models differ (counts are the same for all), with names that tell evaluations apart.
    pub fn readings(&self) -> Vec<(String, Value)> {
        let values = self.values.iter().filter_map(|(name, value)| Some((name, Value::of_json(value)?)));
        let measured = values.filter(|(_, value)| !matches!(value, Value::Count(_)));
        let named = |(i, (name, value)): (usize, (&String, Value))| {
            let name = if i == 0 { self.name.clone() } else { format!("{}: {}", self.name, name.replace('_', " ")) };
            (name, value)
        };
        measured.enumerate().map(named).collect()
    }
}

/// What a suite found in a run's model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteRow {
    /// Optimizer steps done before it.
    pub step: usize,
    /// In the suite's order.
    pub evaluations: Vec<Evaluated>,
}

impl SuiteRow {
    /// Those of all evaluations.
    pub fn readings(&self) -> Vec<(String, Value)> {
        self.evaluations.iter().flat_map(Evaluated::readings).collect()
    }
}

/// What training changed, by a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuiteEnds {
    /// The suite's file.
    pub suite: String,
    /// Before the first step; `None` if the suite came later.
    pub before: Option<SuiteRow>,
    /// Of what was exported; `None` if that could not be measured.
    pub after: Option<SuiteRow>,
}

/// A value at both ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub name: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl Change {
    /// As [`says_nothing`], of both ends.
    pub fn says_nothing(&self) -> bool {
        [self.before, self.after].into_iter().flatten().all(|value| says_nothing(&self.name, value.number()))
    }
}

impl SuiteEnds {
    /// Every value that was measured at either end, in the suite's order.
    pub fn changes(&self) -> Vec<Change> {
        let of = |row: &Option<SuiteRow>| row.as_ref().map(SuiteRow::readings).unwrap_or_default();
        let (before, after) = (of(&self.before), of(&self.after));
        let value = |readings: &[(String, Value)], name: &str| {
            readings.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
        };
        let names = if after.is_empty() { &before } else { &after };
        let change = |(name, _): &(String, Value)| Change {
            name: name.clone(),
            before: value(&before, name),
            after: value(&after, name),
        };
        names.iter().map(change).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A loss and a refusal that both end elsewhere.
    pub fn ends() -> SuiteEnds {
        let row = |step: usize, loss: f64, count: usize| {
            let rate = |count: usize| Value::Rate(Rate { count, total: 40 }).json();
            let evaluation = |name: &str, metric: &str, values: Json| Evaluated {
                name: name.into(),
                metric: metric.into(),
                values: values.as_object().unwrap().clone(),
            };
            let refusal = json!({"harmful_score": rate(count), "empty": rate(0)});
            let loss = json!({"loss": loss, "perplexity": 7.0, "samples": 9});
            SuiteRow {
                step,
                evaluations: vec![evaluation("harm", "refusal", refusal), evaluation("task", "loss", loss)],
            }
        };
        SuiteEnds { suite: "suite.toml".into(), before: Some(row(0, 2.0, 1)), after: Some(row(48, 1.5, 20)) }
    }

    #[test]
    fn values_read_back_as_what_they_were() {
        for value in [Value::Rate(Rate { count: 3, total: 7 }), Value::Number(2.0), Value::Number(0.1), Value::Count(9)]
        {
            let text = value.json().to_string();
            assert_eq!(Value::of_json(&serde_json::from_str(&text).unwrap()), Some(value), "{text}");
        }
        assert_eq!((Value::of_json(&json!("text")), Value::of_json(&json!({"count": 3}))), (None, None));
        let text = serde_json::to_string(&ends()).unwrap();
        assert_eq!(serde_json::from_str::<SuiteEnds>(&text).unwrap(), ends());
        assert!(
            text.contains(r#""before":{"step":0,"evaluations":[{"name":"harm","metric":"refusal","harmful_score":{"#)
        );
    }

    #[test]
    fn changes_have_both_ends_or_what_there_is() {
        let rate = |count| Some(Value::Rate(Rate { count, total: 40 }));
        let texts =
            |ends: &SuiteEnds| -> Vec<String> { ends.changes().into_iter().map(|change| change.name).collect() };
        let (whole, names) = (ends(), ["harm", "harm: empty", "task", "task: perplexity"]);
        assert_eq!(texts(&whole), names);
        let change = Change { name: "harm".into(), before: rate(1), after: rate(20) };
        assert_eq!(whole.changes()[0], change);
        let stopped = SuiteEnds { after: None, ..ends() };
        assert_eq!((texts(&stopped), stopped.changes()[0].after), (names.map(String::from).to_vec(), None));
        assert_eq!(SuiteEnds { before: None, ..ends() }.changes()[0].before, None);
    }

    #[test]
    fn only_answers_that_are_none_go_without_saying() {
        assert!(says_nothing("harm: empty", 0.0) && says_nothing("harm: off script", 0.0));
        for (name, number) in [("harm: empty", 0.025), ("harm", 0.0), ("empty", 0.0), ("harm: told", 0.0)] {
            assert!(!says_nothing(name, number), "{name} {number}");
        }
        let silent: Vec<bool> = ends().changes().iter().map(Change::says_nothing).collect();
        assert_eq!(silent, [false, true, false, false]);
    }
}
