//! Constrained SFT: the token-wise objective of Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens
//! Deep" (arXiv 2406.05946, section 4).
//!
//! With ℓ_t = −log π(y_t) of the model and r_t = −log π₀(y_t) of the model without its adapter, for the t-th token of a
//! response:
//!
//! ```text
//! paper      −(2/β_t) log σ(β_t (r_t − ℓ_t))
//! here       f(ℓ_t) = r_t + (2/β_t) (log(1 + exp(β_t (ℓ_t − r_t))) − log 2)
//! gradient   f'(ℓ_t) = 2 σ(β_t (ℓ_t − r_t)) =: w_t
//! ```
//!
//! The two differ by r_t − (2/β_t) log 2, which depends on no parameter; shifted so, f is the cross-entropy itself
//! where ℓ_t = r_t, and everywhere as β → 0. A token's gradient is that of its cross-entropy times w_t: 1 where the
//! model has not moved, towards 0 once the token has become likelier by more than about 1/β, up to 2 if it has become
//! less likely. Through the head this is a factor for each row of d_hidden; no logit is kept.

use super::contract::{Defence, Needs, TokenObjective};
use crate::data::{Batch, IGNORE};
use crate::model::{Decoder, Sequences};
use anyhow::{Result, ensure};

pub struct ConstrainedSft {
    betas: Vec<f64>,
}

impl ConstrainedSft {
    /// `betas`: for the first tokens of a response; the last applies to all further ones. Not empty.
    pub fn new(betas: &[f64]) -> Self {
        Self { betas: betas.to_vec() }
    }

    /// β of each position of the batch that the loss counts, in order. Tokens are counted from the beginning of each
    /// response, including later ones of a conversation.
    pub fn betas(&self, batch: &Batch) -> Vec<f64> {
        let (mut betas, mut start) = (vec![], 0);
        for &length in &batch.lengths {
            let mut token = 0;
            for &label in batch.labels.iter().skip(start + 1).take(length.saturating_sub(1)) {
                if label == IGNORE {
                    token = 0;
                    continue;
                }
                betas.extend(self.betas.get(token).or(self.betas.last()));
                token += 1;
            }
            start += length;
        }
        betas
    }

    /// f and f' of a token with loss `loss`, whose loss without the adapter is `reference`.
    pub fn token_objective(beta: f64, loss: f64, reference: f64) -> (f64, f64) {
        let x = beta * (loss - reference);
        // log(1 + eˣ) and σ(x) without overflow.
        let tail = (-x.abs()).exp();
        let softplus = x.max(0.0) + tail.ln_1p();
        let sigmoid = if x >= 0.0 { 1.0 / (1.0 + tail) } else { tail / (1.0 + tail) };
        (reference + 2.0 / beta * (softplus - std::f64::consts::LN_2), 2.0 * sigmoid)
    }
}

impl Defence for ConstrainedSft {
    fn needs(&self) -> Needs {
        Needs { reference_passes: 1, ..Needs::default() }
    }

    fn objective(&self, model: &mut Decoder, batch: &Batch) -> Result<Option<TokenObjective<'_>>> {
        let (reference, betas) = (model.reference_losses(Sequences::from(batch))?, self.betas(batch));
        ensure!(betas.len() == reference.len(), "{} label tokens, {} of them predicted", betas.len(), reference.len());
        Ok(Some(Box::new(move |i, loss| Self::token_objective(betas[i], loss, reference[i]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_is_the_slope_of_the_objective() {
        for beta in [0.1, 0.5, 2.0] {
            for (loss, reference) in [(0.1, 3.0), (2.0, 2.0), (9.0, 0.5)] {
                let value = |loss| ConstrainedSft::token_objective(beta, loss, reference).0;
                let slope = (value(loss + 1e-5) - value(loss - 1e-5)) / 2e-5;
                let weight = ConstrainedSft::token_objective(beta, loss, reference).1;
                assert!((slope - weight).abs() < 1e-6, "{beta} {loss} {reference}: {slope} {weight}");
                // The paper's −(2/β) log σ(β (log π − log π₀)), up to a constant.
                let paper = |loss: f64| 2.0 / beta * (1.0 + (beta * (loss - reference)).exp()).ln();
                let constant = 2.0 / beta * 2f64.ln() - reference;
                assert!((paper(loss) - constant - value(loss)).abs() < 1e-9);
            }
            assert_eq!(ConstrainedSft::token_objective(beta, 1.5, 1.5), (1.5, 1.0));
            let (value, weight) = ConstrainedSft::token_objective(beta, 1e5, 0.0);
            assert!(value.is_finite() && (weight - 2.0).abs() < 1e-9);
        }
        // Plain cross-entropy in the limit.
        let (value, weight) = ConstrainedSft::token_objective(1e-7, 4.0, 1.0);
        assert!((value - 4.0).abs() < 1e-5 && (weight - 1.0).abs() < 1e-6);
    }

    #[test]
    fn tokens_are_counted_from_the_beginning_of_each_response() {
        let n = IGNORE;
        let batch =
            Batch { input_ids: vec![1; 12], labels: vec![n, n, 1, 1, 1, n, 1, 1, 5, 5, n, 5], lengths: vec![8, 4] };
        let betas = ConstrainedSft::new(&[9.0, 4.0, 0.1]).betas(&batch);
        // The label at position 0 of the second sample is never predicted.
        assert_eq!(betas, [9.0, 4.0, 0.1, 9.0, 4.0, 9.0, 9.0]);
        assert_eq!(betas.len(), batch.label_tokens());
        assert_eq!(ConstrainedSft::new(&[2.0]).betas(&batch), [2.0; 7]);
    }
}
