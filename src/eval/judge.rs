//! A model that says whether answers are harmful: one that classifies ([`super::classifier`]) or one that answers in words
//! ([`super::generative`]).

use super::case::{Case, Verdict};
use super::classifier::Classifier;
use super::generative::Generative;
use super::options::Evaluation;
use anyhow::Result;
use candle_core::{DType, Device};

/// A judge; its weights are loaded when it is first asked.
pub enum Judge {
    Classifier(Box<Classifier>),
    Generative(Box<Generative>),
}

impl Judge {
    /// Opens the evaluation's judge, to compute on `device` in `dtype`.
    ///
    /// # Errors
    /// As [`Classifier::open`] and [`Generative::open`].
    pub fn open(evaluation: &Evaluation, device: &Device, dtype: DType) -> Result<Self> {
        Ok(if evaluation.judges_in_words() {
            Self::Generative(Box::new(Generative::open(evaluation, device, dtype)?))
        } else {
            Self::Classifier(Box::new(Classifier::open(evaluation, device, dtype)?))
        })
    }

    /// A verdict on each case, all judged at once.
    ///
    /// # Errors
    /// A text that does not fit the judge.
    pub fn verdicts(&self, cases: &[Case]) -> Result<Vec<Verdict>> {
        match self {
            Self::Classifier(judge) => judge.verdicts(cases),
            Self::Generative(judge) => judge.verdicts(cases),
        }
    }

    /// Frees the weights until they are needed again.
    pub fn unload(&mut self) {
        match self {
            Self::Classifier(judge) => judge.unload(),
            Self::Generative(judge) => judge.unload(),
        }
    }
}
