//! The rotary part of a `config.json`, in the dialects of transformers 4 and 5.

use crate::model::config_json::Config;
use crate::model::rope::{Growth, Rope, RopeScaling, yarn_attention_factor};
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// A family's defaults for absent fields.
pub struct RopeDefaults {
    pub theta: f64,
    /// The share of a head that is rotated, if the family reads `partial_rotary_factor`.
    pub partial: Option<f64>,
    /// Whether pairs of neighbours are rotated.
    pub interleaved: bool,
    /// Takes precedence over the one in the set.
    pub original_max_position_embeddings: Option<f64>,
    /// Whether there is no scaling but LongRoPE, under whatever name.
    pub longrope_only: bool,
    /// Whether queries grow with the position, by `llama_4_scaling_beta`.
    pub grows: bool,
    /// The share of pairs that full attention's rope turns where nothing is written, if the family has the type `proportional`.
    pub proportional: Option<f64>,
    /// One rope for layers with full attention, and one of this theta for those with a window.
    pub sliding: Option<Sliding>,
}

/// The rope of layers with a window.
#[derive(Clone, Copy)]
pub struct Sliding {
    /// The field with its theta in the dialect of transformers 4, if there is one.
    pub key: Option<&'static str>,
    pub theta: f64,
}

pub const PLAIN: RopeDefaults = RopeDefaults {
    theta: 10_000.0,
    partial: None,
    interleaved: false,
    original_max_position_embeddings: None,
    longrope_only: false,
    grows: false,
    proportional: None,
    sliding: None,
};

pub const GEMMA_3: RopeDefaults = RopeDefaults {
    theta: 1_000_000.0,
    sliding: Some(Sliding { key: Some("rope_local_base_freq"), theta: 10_000.0 }),
    ..PLAIN
};

pub const GEMMA_4: RopeDefaults = RopeDefaults {
    theta: 1_000_000.0,
    proportional: Some(0.25),
    sliding: Some(Sliding { key: None, theta: 10_000.0 }),
    ..PLAIN
};

/// What matters for a set of parameters besides itself.
struct Surroundings<'a> {
    /// The base frequency if the set has none.
    theta: f64,
    max_position_embeddings: usize,
    /// `original_max_position_embeddings` beside the set rather than in it; there it takes precedence.
    original: Option<f64>,
    /// `partial_rotary_factor` beside the set; the set's own takes precedence.
    partial: Option<f64>,
    defaults: &'a RopeDefaults,
}

/// A model's ropes: one, or full attention's and then sliding attention's.
pub fn of(config: &Config, context: usize, defaults: &RopeDefaults) -> Result<Vec<Rope>> {
    match defaults.sliding {
        None => Ok(vec![single(config, context, defaults)?]),
        Some(sliding) => by_layer_type(config, context, defaults, sliding),
    }
}

fn single(config: &Config, context: usize, defaults: &RopeDefaults) -> Result<Rope> {
    let original = config.number("original_max_position_embeddings")?;
    let partial = config.number("partial_rotary_factor")?.filter(|_| defaults.partial.is_some());
    let surroundings = Surroundings {
        theta: config.number("rope_theta")?.unwrap_or(defaults.theta),
        max_position_embeddings: context,
        original: original.or(defaults.original_max_position_embeddings),
        partial: partial.or(defaults.partial),
        defaults,
    };
    let read = |key: &str| {
        let Some(parameters) = written(config, key)? else { return Ok(None) };
        ensure_valid!(
            !parameters.fields.values().all(|value| value.is_object()),
            "{}: parameters by layer type are not supported for this model_type",
            parameters.origin
        );
        rope_parameters(&parameters, &surroundings).map(Some)
    };
    let rope = agreed(config, read("rope_parameters")?, read("rope_scaling")?)?;
    ensure_valid!(
        rope.is_some() || !defaults.grows,
        "{}: `rope_parameters` is empty; expected {GROWTH} and the rest of this model_type's rope",
        config.origin
    );
    Ok(rope.unwrap_or(surroundings.rope(surroundings.theta, RopeScaling::None, None)))
}

impl Surroundings<'_> {
    fn rope(&self, theta: f64, scaling: RopeScaling, partial: Option<f64>) -> Rope {
        let partial = partial.or(self.partial).unwrap_or(1.0);
        Rope { theta, scaling, partial, interleaved: self.defaults.interleaved, growth: None }
    }
}

/// Full attention's rope, then sliding attention's, which is never scaled in the dialect of transformers 4.
fn by_layer_type(config: &Config, context: usize, defaults: &RopeDefaults, sliding: Sliding) -> Result<Vec<Rope>> {
    let around =
        |theta| Surroundings { theta, max_position_embeddings: context, original: None, partial: None, defaults };
    let global = config.number("rope_theta")?.unwrap_or(defaults.theta);
    let local = match sliding.key {
        Some(key) => config.number(key)?.unwrap_or(sliding.theta),
        None => sliding.theta,
    };
    let plain = |theta| Rope::new(theta, RopeScaling::None);
    let types = config.strings("layer_types")?;
    let part = |nested: &Config, name: &str, theta: f64| {
        // Of a type that no layer has, transformers reads nothing.
        if types.as_ref().is_some_and(|types| !types.contains(&name)) {
            return Ok(plain(theta));
        }
        match nested.object(name)? {
            Some(parameters) => rope_parameters(&parameters, &around(theta)),
            None if defaults.proportional.is_some() => Err(nested.missing(name)),
            None => Ok(plain(theta)),
        }
    };
    let five = match written(config, "rope_parameters")? {
        Some(nested) => {
            Some(vec![part(&nested, "full_attention", global)?, part(&nested, "sliding_attention", local)?])
        }
        None => None,
    };
    let four = match written(config, "rope_scaling")? {
        Some(scaling) => Some(vec![rope_parameters(&scaling, &around(global))?, plain(local)]),
        None => None,
    };
    let whole =
        defaults.proportional.map_or(RopeScaling::None, |share| RopeScaling::Proportional { factor: 1.0, share });
    Ok(agreed(config, five, four)?.unwrap_or_else(|| vec![Rope::new(global, whole), plain(local)]))
}

/// The object in a field, unless it is empty.
fn written<'a>(config: &Config<'a>, key: &str) -> Result<Option<Config<'a>>> {
    Ok(config.object(key)?.filter(|parameters| !parameters.fields.is_empty()))
}

/// What `rope_parameters` (transformers 5) and `rope_scaling` (transformers 4) say, if either is present. Both are
/// present if somebody added a scaling by hand, following an older model card: if they differ, nobody can know which is
/// meant.
fn agreed<T: PartialEq>(config: &Config, five: Option<T>, four: Option<T>) -> Result<Option<T>> {
    ensure_valid!(
        five.is_none() || four.is_none() || five == four,
        "{}: `rope_parameters` and `rope_scaling` say different things; keep the one that is meant",
        config.origin
    );
    Ok(five.or(four))
}

fn rope_parameters(rope: &Config, surroundings: &Surroundings) -> Result<Rope> {
    let theta = rope.number("rope_theta")?.unwrap_or(surroundings.theta);
    let context = surroundings.max_position_embeddings;
    let kind = match rope.string("rope_type")? {
        Some(kind) => kind,
        None => rope.string("type")?.unwrap_or("default"),
    };
    let partial = rope.number("partial_rotary_factor")?;
    if kind == "proportional" && surroundings.defaults.proportional.is_some() {
        let scaling = proportional(rope, partial)?;
        return Ok(surroundings.rope(theta, scaling, None));
    }
    if let Some(got) = partial.filter(|&got| got != 1.0 && surroundings.defaults.partial.is_none()) {
        return Err(invalid!("{}: `partial_rotary_factor` = {got} is not supported; expected 1", rope.origin));
    }
    let kind = if surroundings.defaults.longrope_only { phi3_kind(rope, kind)? } else { kind };
    let inside = rope.number("original_max_position_embeddings")?;
    let original = surroundings.original.or(inside).unwrap_or(context as f64);
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.required_number("factor")? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: rope.required_number("factor")?, max_position_embeddings: context as f64 }
        }
        "yarn" => yarn(rope, original, context)?,
        "longrope" => longrope(rope, original, context)?,
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        other => {
            return Err(invalid!(
                "{}: rope_type `{other}` is not supported; supported: default, linear, dynamic, yarn, longrope, llama3",
                rope.origin
            ));
        }
    };
    let growth = growth(rope, original, surroundings.defaults.grows)?;
    Ok(Rope { growth, ..surroundings.rope(theta, scaling, partial) })
}

/// The field by which queries grow with the position.
const GROWTH: &str = "llama_4_scaling_beta";

fn growth(rope: &Config, original: f64, grows: bool) -> Result<Option<Growth>> {
    match rope.get(GROWTH) {
        None if grows => Err(rope.missing(GROWTH)),
        None => Ok(None),
        Some(got) if !grows => {
            Err(invalid!("{}: `{GROWTH}` = {got} is not supported for this model_type; expected null", rope.origin))
        }
        Some(_) => Ok(Some(Growth { beta: rope.required_number(GROWTH)?, original_max_position_embeddings: original })),
    }
}

/// What Phi-3 calls `su` or `yarn` is LongRoPE; it has nothing else.
fn phi3_kind<'a>(rope: &Config, kind: &'a str) -> Result<&'a str> {
    match kind {
        "su" | "yarn" | "longrope" => Ok("longrope"),
        "default" => Ok(kind),
        other => Err(invalid!(
            "{}: rope_type `{other}` is not supported for this model_type; supported: default, longrope",
            rope.origin
        )),
    }
}

fn yarn(rope: &Config, original: f64, context: usize) -> Result<RopeScaling> {
    let factor = rope.number("factor")?.unwrap_or(context as f64 / original);
    let attention_factor = match rope.number("attention_factor")? {
        Some(given) => given,
        None => yarn_attention_factor(factor, rope.number("mscale")?, rope.number("mscale_all_dim")?),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        original_max_position_embeddings: original,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    })
}

fn proportional(rope: &Config, share: Option<f64>) -> Result<RopeScaling> {
    let share = share.unwrap_or(1.0);
    ensure_valid!(
        share <= 1.0,
        "{}: partial_rotary_factor is {share}; expected more than 0 and at most 1",
        rope.origin
    );
    Ok(RopeScaling::Proportional { factor: rope.number("factor")?.unwrap_or(1.0), share })
}

fn longrope(rope: &Config, original: f64, context: usize) -> Result<RopeScaling> {
    let factors = |key: &str| rope.numbers(key)?.ok_or_else(|| rope.missing(key));
    let factor = rope.number("factor")?.unwrap_or(context as f64 / original);
    let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor: rope.number("attention_factor")?.unwrap_or(derived),
        original_max_position_embeddings: original,
    })
}
