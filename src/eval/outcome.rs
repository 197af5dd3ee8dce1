//! What an evaluation found, and what became of each sample.

use super::options::Metric;
use crate::data::Prompt;
use crate::report::{Evaluated, Rate, Value};
use serde_json::{Map, Value as Json};

/// The values of one model on one evaluation, the main one first.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub title: String,
    pub metric: Metric,
    pub values: Vec<(&'static str, Value)>,
    /// Which samples the main value counts, if it is a rate, in the samples' order.
    pub hits: Vec<bool>,
    /// Each record with the model's `answer` and its verdict.
    pub samples: Vec<Map<String, Json>>,
}

impl Outcome {
    pub fn new(values: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Self { values: values.into_iter().collect(), ..Default::default() }
    }

    /// A main value that is the rate of true values in `hits`, before `others`.
    pub fn rate(name: &'static str, hits: Vec<bool>, others: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        let main = (name, Value::Rate(Rate::of(hits.iter().copied())));
        Self { hits, ..Self::new([main].into_iter().chain(others)) }
    }

    /// As it is recorded: without the samples.
    pub fn evaluated(&self) -> Evaluated {
        let values = self.values.iter().map(|(name, value)| (name.to_string(), value.json())).collect();
        Evaluated { name: self.title.clone(), metric: self.metric.to_string(), values }
    }

    /// As [`Evaluated::readings`].
    pub fn readings(&self) -> Vec<(String, Value)> {
        self.evaluated().readings()
    }

    pub fn sample(&mut self, prompt: &Prompt, answer: String, fields: impl IntoIterator<Item = (&'static str, Json)>) {
        let mut record = prompt.record.clone();
        record.insert("answer".into(), answer.into());
        record.extend(fields.into_iter().map(|(name, value)| (name.to_string(), value)));
        self.samples.push(record);
    }
}
