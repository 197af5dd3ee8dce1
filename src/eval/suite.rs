//! A TOML file of evaluations.

use super::options::Evaluation;
use crate::toml_reader::{self, Mistakes, Schema};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;

/// A file of evaluations.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// In the order of the table's columns.
    pub eval: Vec<Evaluation>,
}

impl Suite {
    /// Reads and checks a suite.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML; unknown keys and wrong types, or evaluations that contradict themselves
    /// or share a name, all of a kind in one message.
    pub fn load(path: &Path) -> Result<Self> {
        let suite: Self = toml_reader::load(path, "suite")?;
        let eval: Vec<Evaluation> = suite.eval.into_iter().map(Evaluation::resolved).collect();
        let (mut mistakes, file) = (Mistakes::default(), path.display().to_string());
        mistakes.unless(!eval.is_empty(), format!("{file} has no [[eval]]"));
        for (i, evaluation) in eval.iter().enumerate() {
            let title = evaluation.title();
            mistakes.add_all(&format!("{file}: [[eval]] {} ({title})", i + 1), evaluation.mistakes());
            mistakes.unless(
                eval.iter().take(i).all(|other| other.title() != title),
                format!("{file}: two evaluations are called \"{title}\"; give each a `name` of its own"),
            );
        }
        mistakes.refuse("the suite cannot be used")?;
        Ok(Self { eval })
    }

    /// The JSON schema of a suite (draft 2020-12), for editors and other tools.
    pub fn json_schema() -> serde_json::Value {
        Schema::of::<Self>().into_json("Suite of asft evaluations")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Match, Metric};

    fn suite(text: &str) -> Result<Suite> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite.toml");
        std::fs::write(&path, text).unwrap();
        Suite::load(&path)
    }

    #[test]
    fn presets_give_way_to_what_is_said() {
        let text =
            "[[eval]]\ndata = 'a'\npreset = 'agnews'\nmax_new_tokens = 5\n[[eval]]\ndata = 'b'\npreset = 'harmful'";
        let suite = suite(text).unwrap();
        let [news, harmful] = &suite.eval[..] else { panic!() };
        assert_eq!((news.metric(), news.matching(), news.max_new_tokens()), (Metric::Accuracy, Match::Regex, 5));
        assert_eq!((news.labels.len(), news.reference()), (4, "label"));
        assert_eq!((harmful.metric(), harmful.max_new_tokens()), (Metric::Refusal, 512));
        assert_eq!(harmful.reference(), "output");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let lines = |text: &str| -> Vec<String> {
            let error = suite(text).unwrap_err().to_string();
            error.lines().map(|line| line.split("suite.toml").last().unwrap().to_string()).collect()
        };
        let text = "[[eval]]\ndata = 'a'\nmatric = 'loss'\nlimit = 'all'\n[[eval]]\ndata = 'b'\nmax_tokens = 5\nmatch = \
                    'same'\n";
        assert_eq!(
            lines(text),
            [
                "the suite cannot be read, 4 problems:",
                ":3; did you mean `metric`?",
                ":4: expected a whole number of 0 or more, found string \"all\"",
                ":7; did you mean `max_new_tokens`?",
                ":8: expected \"exact\", \"contains\", \"regex\", \"number\" or \"choice\", found \"same\"",
            ]
        );
        let text = "[[eval]]\ndata = 'a'\nmetric = 'judge'\nlimit = 0\n[[eval]]\nname = 'harm'\nmetric = 'refusal'\nmarker = \
                    'x'\n[[eval]]\nname = 'harm'\ndata = 'c'";
        assert_eq!(
            lines(text),
            [
                "the suite cannot be used, 5 problems:",
                ": [[eval]] 1 (harmful score): limit should be at least 1",
                ": [[eval]] 1 (harmful score): the metric judge needs `judge`, a moderation model's folder or id",
                ": [[eval]] 2 (harm): an evaluation needs `data`, the file of its samples",
                ": [[eval]] 2 (harm): `marker` has no effect on the metric refusal",
                ": two evaluations are called \"harm\"; give each a `name` of its own",
            ]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "missing key `eval` in "),
            ("eval = []", "no [[eval]]"),
            ("[[eval]]\ndata = 'a'\nmatric = 'loss'", "did you mean `metric`"),
            ("[[eval]]\nmetric = 'loss'", "needs `data`"),
            ("[[eval]]\ndata = 'a'\nmetric = 'refusal'\nmatch = 'exact'", "`match` has no effect"),
            ("[[eval]]\ndata = 'a'\nmetric = 'judge'", "needs `judge`"),
            ("[[eval]]\ndata = 'a'\nprefill = 'Sure'", "`prefill` has no effect on the metric loss"),
            ("[[eval]]\ndata = 'a'\nmetric = 'judge'\njudge = 'b'\njudge_preset = 'harmbench'", "as `judge_prompt`"),
            ("[[eval]]\ndata = 'a'\nmetric = 'judge'\njudge = 'b'\njudge_preset = 'shieldgemma'", "guideline"),
            (
                "[[eval]]\ndata = 'a'\nmetric = 'judge'\njudge = 'b'\njudge_labels = ['x']\njudge_pattern = 'y'",
                "two rules; give one",
            ),
            (
                "[[eval]]\ndata = 'a'\nmetric = 'judge'\njudge = 'b'\njudge_labels = ['x']\njudge_max_length = 9",
                "`judge_max_length` has no effect",
            ),
            ("[[eval]]\ndata = 'a'\nlimit = 0", "limit should be at least 1"),
            ("[[eval]]\ndata = 'a'\n[[eval]]\ndata = 'b'", "two evaluations are called \"loss\""),
        ] {
            let error = format!("{:#}", suite(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
