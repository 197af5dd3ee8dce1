//! Rotary frequencies of a model: theta^(-2i/D) for i < D / 2, stretched as its `config.json` says.
//!
//! The formulas are those of transformers' `modeling_rope_utils`: linear, dynamic (NTK), YaRN (arXiv 2309.00071),
//! LongRoPE (arXiv 2402.13753), Llama 3.1's and Gemma 4's, which is proportional.

use crate::ops::rope::{Angles, Heads, Stretch};
use anyhow::Result;
use candle_core::Device;
use std::f64::consts::TAU;

/// The rotary embedding of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// The share of each head that is rotated, its beginning.
    pub partial: f64,
    /// Whether pairs of neighbours are rotated, rather than the halves of what is rotated.
    pub interleaved: bool,
    /// How queries grow with the position, if they do.
    pub growth: Option<Growth>,
}

/// A query at position p counts 1 + β ln(1 + ⌊p / original context⌋)-fold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    pub beta: f64,
    pub original_max_position_embeddings: f64,
}

impl Growth {
    fn at(self, position: usize) -> f32 {
        let contexts = (position as f64 / self.original_max_position_embeddings).floor();
        (1.0 + self.beta * (1.0 + contexts).ln()) as f32
    }
}

/// The rotations of a pass by one rope: they differ where queries grow.
pub struct Rotations {
    pub queries: Angles,
    pub keys: Angles,
}

/// How rotary frequencies are stretched for contexts longer than the pre-training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Only the first `share` of the pairs turned, at the frequencies that they have in a head turned whole, divided by `factor`.
    Proportional {
        factor: f64,
        share: f64,
    },
    /// theta grows with the sequence once it is longer than the model's context.
    Dynamic {
        factor: f64,
        max_position_embeddings: f64,
    },
    /// High frequencies kept, low ones divided by `factor`, a ramp in between; cos and sin grow by `attention_factor`.
    Yarn {
        factor: f64,
        attention_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: f64,
        truncate: bool,
    },
    /// Each frequency divided by its own factor; different factors for sequences beyond the original context.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        attention_factor: f64,
        original_max_position_embeddings: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp in between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
}

impl Rope {
    /// Whole heads in halves.
    pub fn new(theta: f64, scaling: RopeScaling) -> Self {
        Self { theta, scaling, partial: 1.0, interleaved: false, growth: None }
    }

    /// What of heads of `head_dim` values is rotated.
    pub fn heads(&self, head_dim: usize) -> Heads {
        // The frequencies of an odd number rotate one value more.
        Heads { head_dim, rotary_dim: self.dims(head_dim).next_multiple_of(2), interleaved: self.interleaved }
    }

    /// D of the frequencies: how many of `head_dim` values the config rotates, as transformers rounds it.
    fn dims(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// Positions that the scaling is made for, given `max_position_embeddings` of `config.json`. Some configs include
    /// the scaling in that number, some do not.
    pub fn context(&self, max_position_embeddings: usize) -> usize {
        let stretched = match self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Proportional { factor, .. } => {
                factor * max_position_embeddings as f64
            }
            RopeScaling::Dynamic { factor, max_position_embeddings: context } => factor * context,
            RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. }
            | RopeScaling::Llama3 { factor, original_max_position_embeddings: original, .. } => factor * original,
            RopeScaling::None | RopeScaling::LongRope { .. } => 0.0,
        };
        max_position_embeddings.max(stretched as usize)
    }

    /// The stretch of `length` positions from `start` on, for heads of `head_dim`. Some scalings depend on where the
    /// sequence ends.
    pub fn stretch(&self, head_dim: usize, start: usize, length: usize) -> Stretch {
        let frequencies = self.frequencies(self.dims(head_dim), start + length);
        Stretch { start, length, frequencies, magnitude: self.magnitude() }
    }

    /// Whether a sequence's frequencies, those of all its positions, become others as it grows to `length`.
    pub fn turns_at(&self, length: usize) -> bool {
        match &self.scaling {
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings: original, .. } => {
                let beyond = |length: usize| length as f64 > *original;
                short_factor != long_factor && beyond(length) && !beyond(length.saturating_sub(1))
            }
            // Dynamic scaling changes with every position; keys stay as they were rotated, as in transformers.
            _ => false,
        }
    }

    /// The rotations of rows at the positions of (start, length) stretches, one after another.
    pub fn rotations(&self, head_dim: usize, stretches: &[(usize, usize)], device: &Device) -> Result<Rotations> {
        let parts: Vec<Stretch> =
            stretches.iter().map(|&(start, length)| self.stretch(head_dim, start, length)).collect();
        let keys = Angles::new(&parts, device)?.of(self.heads(head_dim));
        let positions = stretches.iter().flat_map(|&(start, length)| start..start + length);
        let factors: Option<Vec<f32>> =
            self.growth.map(|growth| positions.map(|position| growth.at(position)).collect());
        let queries = match factors.filter(|factors| factors.iter().any(|&factor| factor != 1.0)) {
            Some(factors) => keys.times(factors)?,
            None => keys.clone(),
        };
        Ok(Rotations { queries, keys })
    }

    fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// Half of `rotary_dim` values, rounded up, for a sequence that ends before position `end`.
    fn frequencies(&self, rotary_dim: usize, end: usize) -> Vec<f32> {
        let base = |theta: f64| {
            (0..rotary_dim).step_by(2).map(move |i| 1.0 / theta.powf(f64::from(i as f32 / rotary_dim as f32)) as f32)
        };
        match &self.scaling {
            RopeScaling::None => base(self.theta).collect(),
            RopeScaling::Linear { factor } => base(self.theta).map(|frequency| frequency / *factor as f32).collect(),
            RopeScaling::Proportional { factor, share } => {
                let turned = (share * rotary_dim as f64 / 2.0) as usize;
                let of = |(i, frequency): (usize, f32)| if i < turned { frequency / *factor as f32 } else { 0.0 };
                base(self.theta).enumerate().map(of).collect()
            }
            RopeScaling::Dynamic { factor, max_position_embeddings: context } => {
                let (d, end) = (rotary_dim as f64, (end as f64).max(*context));
                base(self.theta * (factor * end / context - (factor - 1.0)).powf(d / (d - 2.0))).collect()
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let beyond = end as f64 > *original_max_position_embeddings;
                let factors = if beyond { long_factor } else { short_factor };
                base(self.theta).zip(factors).map(|(frequency, factor)| frequency / *factor as f32).collect()
            }
            RopeScaling::Yarn { .. } => {
                let ramp = self.yarn_ramp(rotary_dim);
                base(self.theta).zip(ramp).map(|(frequency, scale)| frequency * scale as f32).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let scaled = |frequency: f32| {
                    let turns = original_max_position_embeddings / (TAU / f64::from(frequency));
                    if turns > *high_freq_factor {
                        frequency
                    } else if turns < *low_freq_factor {
                        frequency / *factor as f32
                    } else {
                        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        ((1.0 - smooth) * f64::from(frequency) / factor + smooth * f64::from(frequency)) as f32
                    }
                };
                base(self.theta).map(scaled).collect()
            }
        }
    }

    /// YaRN's factor for each frequency: 1 where it turns more than `beta_fast` times in the original context,
    /// 1 / factor where it turns less than `beta_slow` times.
    fn yarn_ramp(&self, rotary_dim: usize) -> Vec<f64> {
        let RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } =
            self.scaling
        else {
            return vec![];
        };
        let d = rotary_dim as f64;
        let dimension =
            |turns: f64| d * (original_max_position_embeddings / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (0..rotary_dim.div_ceil(2)).map(|i| ramp(i) / factor + 1.0 - ramp(i)).collect()
    }
}

/// YaRN's attention factor where `config.json` gives none.
pub fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) => of(mscale) / of(all),
        _ => of(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_extends_the_context() {
        let of = |scaling| Rope::new(10_000.0, scaling).context(100);
        assert_eq!(of(RopeScaling::None), 100);
        assert_eq!(of(RopeScaling::Linear { factor: 2.5 }), 250);
        assert_eq!(of(RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 100.0 }), 200);
        let llama3 = |original_max_position_embeddings| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        };
        assert_eq!((of(llama3(50.0)), of(llama3(10.0))), (400, 100));
    }

    #[test]
    fn only_some_scalings_look_at_the_sequence() {
        let rope = |scaling| Rope::new(10_000.0, scaling);
        let plain = rope(RopeScaling::None).frequencies(8, 10);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 16.0 });
        assert_eq!(dynamic.frequencies(8, 16), plain);
        assert!(dynamic.frequencies(8, 32)[3] < plain[3]);
        let long = rope(RopeScaling::LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 2.0, 4.0, 8.0],
            attention_factor: 1.5,
            original_max_position_embeddings: 16.0,
        });
        assert_eq!(long.frequencies(8, 16), plain);
        assert_eq!(long.frequencies(8, 17), [1.0, 0.05, 0.0025, 0.000125]);
        assert_eq!(long.stretch(8, 0, 3).magnitude, 1.5);
        assert_eq!([15, 16, 17, 18].map(|length| long.turns_at(length)), [false, false, true, false]);
        assert!(!dynamic.turns_at(17));
    }
}
