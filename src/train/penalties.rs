//! The penalty of a run: every targeted module's term, by module path.

use crate::adapter::Adapter;
use crate::method::direction_file::Directions;
use crate::method::{AsftOptions, Factors, Penalty};
use crate::model::{Decoder, Gradients, Parameters};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
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

/// One module's part of the value, and its gradients by parameter.
struct ModuleTerm {
    value: f64,
    gradients: Vec<(String, Tensor)>,
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
        if penalty.is_active() {
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
        let mut add = |term: ModuleTerm| -> Result<()> {
            value += term.value;
            term.gradients.into_iter().try_for_each(|(name, gradient)| gradients.add(&name, gradient))
        };
        // Modules are small beside the threads on a CPU: side by side, and added in order. Full updates are not small, and
        // their temporaries are as large as the weights.
        let thin = |module: &Module| matches!(module.update, Update::Lora { .. });
        let on_cpu = parameters.iter().all(|(_, parameter)| parameter.device().is_cpu());
        if on_cpu && self.modules.values().all(thin) {
            let terms: Result<Vec<ModuleTerm>> =
                self.modules.par_iter().map(|(name, module)| self.term(name, module, parameters)).collect();
            terms?.into_iter().try_for_each(add)?;
        } else {
            self.modules.iter().try_for_each(|(name, module)| add(self.term(name, module, parameters)?))?;
        }
        Ok(value)
    }

    fn term(&self, name: &str, module: &Module, parameters: &Parameters) -> Result<ModuleTerm> {
        let parameter = |name: &str| parameters.get(name).with_context(|| format!("no parameter {name}"));
        let factors = module.factors.as_ref();
        Ok(match &module.update {
            Update::Lora { scale } => {
                let (a_name, b_name) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
                let (a, b) = (parameter(&a_name)?.as_detached_tensor(), parameter(&b_name)?.as_detached_tensor());
                let term = self.penalty.lora(factors, &a, &b, *scale)?;
                ModuleTerm { value: term.value, gradients: vec![(a_name, term.grad_a), (b_name, term.grad_b)] }
            }
            Update::Full { start } => {
                let weight_name = format!("{name}.weight");
                let update = (parameter(&weight_name)?.as_detached_tensor() - start)?;
                let term = self.penalty.full(factors, &update)?;
                ModuleTerm { value: term.value, gradients: vec![(weight_name, term.grad)] }
            }
        })
    }
}

fn factors(options: &AsftOptions, directions: &Directions, name: &str, device: &Device) -> Result<Factors> {
    Factors::new(options, &directions.factors(name)?, device).with_context(|| format!("direction of {name}"))
}
