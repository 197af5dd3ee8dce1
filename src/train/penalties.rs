//! The penalty of a run: every targeted module's term, by module path.

use crate::adapter::Adapter;
use crate::method::direction_file::Directions;
use crate::method::{AsftOptions, Factors, Penalize, Penalty};
use crate::model::{Decoder, Gradients, Parameters};
use crate::names::sort_naturally;
use crate::report::UpdateNorm;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// What a module's update ΔW is.
enum Update {
    /// B A, with the adapter's scale.
    Lora { scale: f64 },
    /// W minus the weight it started from.
    Full { start: Tensor },
}

struct Module {
    factors: Option<Factors>,
    update: Update,
}

/// λ Σ ‖M ΔW‖_F² over the targeted modules.
pub struct Penalties {
    penalty: Penalty,
    modules: BTreeMap<String, Module>,
}

impl Penalties {
    /// `directions` may be missing only where the penalty does not depend on them. `adapter` is missing in full tuning.
    pub fn new(
        options: &AsftOptions,
        targets: &[String],
        directions: Option<&Directions>,
        adapter: Option<&Adapter>,
        model: &Decoder,
    ) -> Result<Self> {
        let penalty = Penalty::new(options)?;
        let mut modules = BTreeMap::new();
        // An adapter's updates cost nothing to keep track of; those of whole weights do.
        if penalty.is_active() || adapter.is_some() {
            for name in targets {
                let factors = match directions {
                    Some(directions) if options.needs_direction() => {
                        Some(factors(options, directions, name, model.device())?)
                    }
                    _ => None,
                };
                let update = match adapter {
                    Some(adapter) => {
                        let module = adapter.modules.get(name).with_context(|| format!("{name} has no adapter"))?;
                        Update::Lora { scale: adapter.scale(module) }
                    }
                    None => Update::Full { start: model.weight(name)?.copy()? },
                };
                modules.insert(name.clone(), Module { factors, update });
            }
        }
        Ok(Self { penalty, modules })
    }

    /// The value (λ included); adds its gradients.
    pub fn add_to(&self, parameters: &Parameters, gradients: &mut Gradients) -> Result<f64> {
        let mut value = 0.0;
        if !self.penalty.is_active() {
            return Ok(value);
        }
        let parameter = |name: &str| parameters.get(name).with_context(|| format!("no parameter {name}"));
        for (name, module) in &self.modules {
            let factors = module.factors.as_ref();
            match &module.update {
                Update::Lora { scale } => {
                    let (a_name, b_name) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
                    let (a, b) = (parameter(&a_name)?.as_detached_tensor(), parameter(&b_name)?.as_detached_tensor());
                    let term = self.penalty.lora(factors, &a, &b, *scale)?;
                    gradients.add(&a_name, term.grad_a)?;
                    gradients.add(&b_name, term.grad_b)?;
                    value += term.value;
                }
                Update::Full { start } => {
                    let weight_name = format!("{name}.weight");
                    let update = (parameter(&weight_name)?.as_detached_tensor() - start)?;
                    let term = self.penalty.full(factors, &update)?;
                    gradients.add(&weight_name, term.grad)?;
                    value += term.value;
                }
            }
        }
        Ok(value)
    }
}

impl Penalties {
    /// ‖ΔW‖_F of each module, and where there is a direction, its two parts: ‖CΔW‖_F and ‖(I − C)ΔW‖_F, in closed form.
    /// ΔW is what the penalty sees: with `asft.scaled` it counts alpha/rank in.
    ///
    /// In full tuning without a penalty there is none: the weights from before training are not kept.
    pub fn update_norms(&self, options: &AsftOptions, parameters: &Parameters) -> Result<Vec<UpdateNorm>> {
        let part = |penalize| Penalty::new(&AsftOptions { penalize, lambda: 1.0, ..options.clone() });
        let (whole, parallel, orthogonal) =
            (part(Penalize::All)?, part(Penalize::Aligned)?, part(Penalize::Orthogonal)?);
        let value = |name: String| {
            let parameter = parameters.get(&name).with_context(|| format!("no parameter {name}"));
            parameter.map(|parameter| parameter.as_detached_tensor())
        };
        let mut norms = vec![];
        let mut names: Vec<String> = self.modules.keys().cloned().collect();
        sort_naturally(&mut names);
        for name in &names {
            let module = &self.modules[name];
            let factors = module.factors.as_ref();
            let norm = |penalty: &Penalty| {
                let square = match &module.update {
                    Update::Lora { scale } => {
                        let (a, b) = (value(format!("{name}.lora_A.weight"))?, value(format!("{name}.lora_B.weight"))?);
                        penalty.lora(factors, &a, &b, *scale)?.value
                    }
                    Update::Full { start } => {
                        penalty.full(factors, &(value(format!("{name}.weight"))? - start)?)?.value
                    }
                };
                Ok::<_, anyhow::Error>(square.max(0.0).sqrt())
            };
            norms.push(UpdateNorm {
                module: name.clone(),
                norm: norm(&whole)?,
                parallel: factors.map(|_| norm(&parallel)).transpose()?,
                orthogonal: factors.map(|_| norm(&orthogonal)).transpose()?,
            });
        }
        Ok(norms)
    }
}

fn factors(options: &AsftOptions, directions: &Directions, name: &str, device: &Device) -> Result<Factors> {
    Factors::new(options, &directions.factors(name)?, device).with_context(|| format!("direction of {name}"))
}
