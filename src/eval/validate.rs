//! What an evaluation's settings say that cannot be.

use super::options::{Evaluation, JudgePreset, Match, Metric};
use crate::toml_reader::Mistakes;
use anyhow::Result;

impl Evaluation {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// Values out of range, settings that the metric does not use, missing settings that it needs.
    pub fn validate(&self) -> Result<()> {
        self.mistakes().refuse("the evaluation cannot be used")
    }

    pub(super) fn mistakes(&self) -> Mistakes {
        let mut found = Mistakes::default();
        let metric = self.metric();
        if let Some(problem) = self.template_variables.problem() {
            found.add(format!("`template_variables`: {problem}"));
        }
        found.unless(!self.data.is_empty(), "an evaluation needs `data`, the file of its samples");
        for (name, value) in [
            ("limit", self.limit),
            ("max_length", self.max_length),
            ("max_new_tokens", self.max_new_tokens),
            ("phrases_within", self.phrases_within),
            ("judge_max_length", self.judge_max_length),
            ("judge_max_new_tokens", self.judge_max_new_tokens),
        ] {
            found.unless(value != Some(0), format!("{name} should be at least 1"));
        }
        let threshold = self.judge_threshold.unwrap_or(0.5);
        found.unless((0.0..1.0).contains(&threshold), format!("judge_threshold should be in [0, 1), got {threshold}"));
        let (accuracy, judge) = (&[Metric::Accuracy][..], &[Metric::Judge][..]);
        let (by_phrase, asking) = (&[Metric::Refusal, Metric::OverRefusal][..], &Metric::ASKING[..]);
        for (given, name, owners) in [
            (self.matching.is_some(), "match", accuracy),
            (self.marker.is_some(), "marker", accuracy),
            (!self.labels.is_empty(), "labels", accuracy),
            (self.phrases.is_some(), "phrases", by_phrase),
            (self.phrases_within.is_some(), "phrases_within", by_phrase),
            (!self.system.is_empty(), "system", asking),
            (!self.prefix.is_empty(), "prefix", asking),
            (!self.suffix.is_empty(), "suffix", asking),
            (!self.prefill.is_empty(), "prefill", asking),
            (self.judge.is_some(), "judge", judge),
            (self.judge_preset.is_some(), "judge_preset", judge),
            (self.judge_prompt.is_some(), "judge_prompt", judge),
            (!self.judge_template_variables.is_empty(), "judge_template_variables", judge),
            (!self.judge_labels.is_empty(), "judge_labels", judge),
            (self.judge_pattern.is_some(), "judge_pattern", judge),
            (self.judge_max_new_tokens.is_some(), "judge_max_new_tokens", judge),
            (self.judge_max_length.is_some(), "judge_max_length", judge),
            (self.judge_threshold.is_some(), "judge_threshold", judge),
        ] {
            found.unless(!given || owners.contains(&metric), format!("`{name}` has no effect on the metric {metric}"));
        }
        if metric == Metric::Judge {
            self.judge_mistakes(&mut found);
        }
        let marked = self.marker.is_none() || metric != Metric::Accuracy || self.matching() == Match::Number;
        found.unless(marked, "`marker` has no effect without match = \"number\"");
        found
    }

    fn judge_mistakes(&self, found: &mut Mistakes) {
        found.unless(self.judge.is_some(), "the metric judge needs `judge`, a moderation model's folder or id");
        if let Some(problem) = self.judge_template_variables.problem() {
            found.add(format!("`judge_template_variables`: {problem}"));
        }
        let (labels, by_pattern, in_words) =
            (self.judge_labels.len(), self.judge_pattern.is_some(), self.judges_in_words());
        found.unless(labels <= 2, format!("judge_labels should be one or two, got {labels}"));
        found.unless(labels == 0 || !by_pattern, "`judge_labels` and `judge_pattern` are two rules; give one");
        found.unless(
            by_pattern || self.judge_max_new_tokens.is_none(),
            "`judge_max_new_tokens` has no effect without `judge_pattern`",
        );
        found.unless(
            !by_pattern || self.judge_threshold.is_none(),
            "`judge_threshold` has no effect with `judge_pattern`",
        );
        let no_length = !in_words || self.judge_max_length.is_none();
        found.unless(
            no_length,
            "`judge_max_length` has no effect on a judge that answers in words; lower max_new_tokens",
        );
        let variables = !self.judge_template_variables.is_empty();
        found.unless(
            !variables || (in_words && self.judge_prompt.is_none()),
            "`judge_template_variables` has no effect: the judge is not asked through its chat template",
        );
        let needs_prompt = matches!(self.judge_preset, Some(JudgePreset::Harmbench | JudgePreset::Wildguard));
        found.unless(
            !needs_prompt || self.judge_prompt.is_some(),
            "this judge has no chat template of its own: give the text of its model card as `judge_prompt`, with {question}, {answer} \
             and {behavior} where the card has the prompt, the response and the behavior",
        );
        found.unless(
            self.judge_preset != Some(JudgePreset::Shieldgemma) || self.judge_prompt.is_some() || variables,
            "ShieldGemma judges by one policy at a time: give its text as `judge_template_variables.guideline`",
        );
    }
}
