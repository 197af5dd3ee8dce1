//! What an evaluation found: named values, and what became of each sample.

use super::options::Metric;
use super::rate::Rate;
use crate::data::Prompt;
use serde_json::{Map, Value as Json, json};

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

    fn json(self) -> Json {
        match self {
            Self::Rate(rate) => json!(rate),
            Self::Number(number) => json!(number),
            Self::Count(count) => json!(count),
        }
    }
}

/// The values of one model on one evaluation, the main one first.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub title: String,
    pub metric: Metric,
    pub values: Vec<(&'static str, Value)>,
    /// Each record with the model's `answer` and its verdict.
    pub samples: Vec<Map<String, Json>>,
}

impl Outcome {
    pub fn new(values: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Self { values: values.into_iter().collect(), ..Default::default() }
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// The values in which models differ (counts are the same for all), with names that tell evaluations apart.
    pub fn readings(&self) -> impl Iterator<Item = (String, Value)> {
        let measured = self.values.iter().filter(|(_, value)| !matches!(value, Value::Count(_)));
        measured.enumerate().map(|(i, (name, value))| {
            let title = &self.title;
            let name = if i == 0 { title.clone() } else { format!("{title}: {}", name.replace('_', " ")) };
            (name, *value)
        })
    }

    pub fn sample(&mut self, prompt: &Prompt, answer: String, fields: impl IntoIterator<Item = (&'static str, Json)>) {
        let mut record = prompt.record.clone();
        record.insert("answer".into(), answer.into());
        record.extend(fields.into_iter().map(|(name, value)| (name.to_string(), value)));
        self.samples.push(record);
    }

    /// The values by name.
    pub fn json(&self) -> Map<String, Json> {
        self.values.iter().map(|(name, value)| (name.to_string(), value.json())).collect()
    }
}
