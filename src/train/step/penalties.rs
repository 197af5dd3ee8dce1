//! The penalty of a run: every targeted module's term, by module path; its λ; and what each module's update is.

use crate::adapter::Adapter;
use crate::method::direction_file::Directions;
use crate::method::shares::Products;
use crate::method::{AsftOptions, Direction, Dual, Lambda, Operator, Penalty, Together, random_direction};
use crate::model::{Decoder, Gradients, Parameters};
use crate::names::{LoraMatrix, sort_naturally};
use crate::ops::owned;
use crate::ops::scalar::Scalar;
use crate::ops::sum::{square_sum, total};
use crate::report::{ModuleRow, UpdateNorm};
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
    /// What stands for C in its penalty; none where that does not depend on V.
    operator: Option<Operator>,
    /// What its update is measured by, on the device that trains, where modules are logged and there is a direction.
    direction: Option<Direction>,
    update: Update,
}

/// A module's penalty with its gradients, by parameter.
struct Term {
    value: Scalar,
    /// ‖M ΔW‖² of the effective update over `value`.
    square: f64,
    gradients: Vec<(String, Tensor)>,
}

/// λ that is found while training.
struct Constraint {
    dual: Dual,
    /// `asft.max_orthogonal`
    limit: f64,
    /// Σ ‖W‖² over the targeted modules.
    weights: f64,
}

/// What modules are made from.
struct Sources<'a> {
    directions: Option<&'a Directions>,
    /// Whether updates are to be measured, penalised or not.
    measured: bool,
    adapter: Option<&'a Adapter>,
    model: &'a Decoder,
}

impl Sources<'_> {
    /// One module's operator and direction, each where it is wanted. R is half of a direction: it is read only where it
    /// counts.
    fn of_module(&self, options: &AsftOptions, name: &str) -> Result<(Option<Operator>, Option<Direction>)> {
        let Some(directions) = self.directions else { return Ok((None, None)) };
        let signed = self.measured || options.needs_right();
        let stored = if signed { directions.read(name)? } else { directions.read_without_right(name)? };
        let stored = if self.measured { stored.to_device(self.model.device())? } else { stored };
        let operator = options.needs_direction().then(|| self.operator(options, name, &stored)).transpose()?;
        Ok((operator, self.measured.then_some(stored)))
    }

    fn operator(&self, options: &AsftOptions, name: &str, stored: &Direction) -> Result<Operator> {
        let wanted = if options.needs_right() { stored.clone() } else { stored.without_right() };
        let direction = if options.projector.is_random() {
            random_direction(&wanted, name, options.projector_seed)?
        } else {
            wanted
        };
        Operator::new(options, &direction, self.model.device()).with_context(|| format!("direction of {name}"))
    }
}

/// What was added to a step's gradients, module by module, perhaps still on the device.
#[derive(Default)]
pub struct Added {
    /// The terms' values, λ included.
    pub values: Vec<Scalar>,
    /// ‖M ΔW‖² of the effective updates over those.
    squares: Vec<f64>,
}

impl Added {
    /// What it comes to, from the values as read.
    pub fn sum(&self, values: &[f64]) -> Sum {
        let square = total(values.iter().zip(&self.squares).map(|(value, square)| value * square));
        Sum { value: total(values.iter().copied()), square }
    }
}

/// What the penalty of a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    /// λ included.
    pub value: f64,
    /// Σ ‖M ΔW‖² of the effective updates.
    square: f64,
}

/// λ of a step, and √(Σ ‖M ΔW‖² / Σ ‖W‖²) of the updates before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounded {
    pub lambda: f64,
    pub share: f64,
}

/// λ Σ ‖M ΔW‖_F² over the targeted modules.
pub struct Penalties {
    penalty: Penalty,
    constraint: Option<Constraint>,
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
        // For the norms at the end: an adapter's updates cost nothing to keep track of, those of whole weights do.
        let targets = if penalty.is_active() || adapter.is_some() { targets } else { &[] };
        let directions = directions.filter(|_| options.needs_direction());
        let sources = Sources { directions, measured: false, adapter, model };
        Self::over(penalty, options, targets, &sources)
    }

    /// As [`Penalties::new`], with every target's update to be measured, penalised or not, and by its direction where there
    /// is one.
    pub fn measured(
        options: &AsftOptions,
        targets: &[String],
        directions: Option<&Directions>,
        adapter: Option<&Adapter>,
        model: &Decoder,
    ) -> Result<Self> {
        Self::over(Penalty::new(options)?, options, targets, &Sources { directions, measured: true, adapter, model })
    }

    fn over(penalty: Penalty, options: &AsftOptions, targets: &[String], sources: &Sources) -> Result<Self> {
        let (mut modules, mut weights) = (BTreeMap::new(), 0.0);
        let Sources { model, adapter, .. } = sources;
        for name in targets {
            let (operator, direction) = sources.of_module(options, name)?;
            let update = match adapter {
                Some(adapter) => {
                    let module = adapter.modules.get(name).with_context(|| format!("{name} has no adapter"))?;
                    Update::Lora { scale: adapter.scale(module) }
                }
                None => Update::Full { start: owned(model.weight(name)?.tensor()?)? },
            };
            if options.lambda == Lambda::AUTO {
                weights += model.weight(name)?.square_sum()?;
            }
            modules.insert(name.clone(), Module { operator, direction, update });
        }
        let constraint = match (options.lambda, options.max_orthogonal) {
            (Lambda::AUTO, Some(limit)) => Some(Constraint { dual: Dual::default(), limit, weights }),
            _ => None,
        };
        Ok(Self { penalty, constraint, modules })
    }

    /// Adds the penalty's gradients; with `rows`, every module's measures are put there, `step` in them.
    pub fn add_to(
        &self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        mut rows: Option<(usize, &mut Vec<ModuleRow>)>,
    ) -> Result<Added> {
        let mut added = Added::default();
        if !self.penalty.is_active() && rows.is_none() {
            return Ok(added);
        }
        if rows.is_none()
            && let Some(added) = self.add_together(parameters, gradients)?
        {
            return Ok(added);
        }
        let mut add = |term: Term, gradients: &mut Gradients| -> Result<()> {
            added.values.push(term.value);
            added.squares.push(term.square);
            term.gradients.into_iter().try_for_each(|(name, gradient)| gradients.add(&name, gradient))
        };
        // Modules are small beside the threads on a CPU: side by side, and added in order. Full updates are not small, and
        // their temporaries are as large as the weights.
        let thin = |module: &Module| matches!(module.update, Update::Lora { .. });
        let on_cpu = parameters.iter().all(|(_, parameter)| parameter.device().is_cpu());
        if rows.is_none() && on_cpu && self.modules.values().all(thin) {
            let term = |(name, module): (&String, &Module)| {
                module.term(name, &self.penalty, &module.values(name, parameters)?)
            };
            let terms: Result<Vec<Term>> = self.modules.par_iter().map(term).collect();
            terms?.into_iter().try_for_each(|term| add(term, gradients))?;
            return Ok(added);
        }
        for (name, module) in &self.modules {
            let update = module.values(name, parameters)?;
            let term = module.term(name, &self.penalty, &update)?;
            if let Some((step, rows)) = &mut rows {
                let ratio = ratio(&term, gradients)?.filter(|_| self.penalty.is_active());
                rows.push(module.row(*step, name, &update, ratio)?);
            }
            add(term, gradients)?;
        }
        Ok(added)
    }

    /// All terms at once, where a GPU's kernels serve for that.
    fn add_together(&self, parameters: &Parameters, gradients: &Gradients) -> Result<Option<Added>> {
        let mut found = vec![];
        for (name, module) in &self.modules {
            // Whole weights would cost a difference as large as they are.
            if let Update::Full { .. } = module.update {
                return Ok(None);
            }
            let values = module.values(name, parameters)?;
            let [of_a, of_b] = [LoraMatrix::A, LoraMatrix::B].map(|matrix| gradients.get(&matrix.name(name)));
            let (Values::Lora { a, b }, Ok(of_a), Ok(of_b)) = (values, of_a, of_b) else { return Ok(None) };
            found.push((self.penalty.square_of_value(module.scale()), module, (a, b), [of_a, of_b]));
        }
        // Values of one factor are summed on the device: most runs have but one.
        found.sort_by(|one, other| one.0.total_cmp(&other.0));
        let together = found.iter().map(|(_, module, (a, b), gradients)| Together {
            operator: module.operator.as_ref(),
            a,
            b,
            scale: module.scale(),
            gradients: *gradients,
        });
        let Some(values) = self.penalty.lora_together(&together.collect::<Vec<_>>())? else { return Ok(None) };
        let (mut added, mut start) = (Added::default(), 0);
        for alike in found.chunk_by(|one, other| one.0 == other.0) {
            added.values.push(Scalar::of(values.narrow(0, start, alike.len())?.sum_all()?)?);
            added.squares.extend(alike.first().map(|(square, ..)| *square));
            start += alike.len();
        }
        Ok(Some(added))
    }

    /// λ of the step that `added` belongs to, where it is found while training; then moves it on.
    pub fn ascend(&mut self, added: Sum) -> Option<Bounded> {
        let constraint = self.constraint.as_mut()?;
        let share = (added.square / constraint.weights).sqrt();
        let step = Bounded { lambda: constraint.dual.lambda, share };
        constraint.dual.ascend(share, constraint.limit);
        self.penalty.set_lambda(constraint.dual.lambda);
        Some(step)
    }

    /// Where λ stands, if it is found while training.
    pub fn dual(&self) -> Option<Dual> {
        self.constraint.as_ref().map(|constraint| constraint.dual)
    }

    /// Puts λ to where a checkpoint has it.
    pub fn set_dual(&mut self, dual: Option<Dual>) {
        if let (Some(constraint), Some(dual)) = (&mut self.constraint, dual) {
            constraint.dual = dual;
            self.penalty.set_lambda(dual.lambda);
        }
    }

    /// ‖ΔW‖_F of each module, and where there are `directions`, the norms of its two parts, ‖CΔW‖_F and ‖(I − C)ΔW‖_F, by the
    /// direction's own C, whatever stands for it in the penalty. ΔW is bare, as the penalty has it: with `asft.scaled` it counts
    /// alpha/rank in.
    ///
    /// In full tuning with neither penalty nor module log there is none: the weights from before training are not kept.
    pub fn update_norms(
        &self,
        scaled: bool,
        parameters: &Parameters,
        directions: Option<&Directions>,
    ) -> Result<Vec<UpdateNorm>> {
        let mut names: Vec<String> = self.modules.keys().cloned().collect();
        sort_naturally(&mut names);
        let norms = names.into_iter().map(|name| {
            let module = &self.modules[&name];
            let update = module.values(&name, parameters)?;
            let read = |directions: &Directions| directions.read_without_right(&name)?.to_device(update.device());
            let direction = directions.map(read).transpose()?;
            let products = update.products(direction.as_ref(), if scaled { module.scale() } else { 1.0 })?;
            let part = |square: f64| direction.as_ref().map(|_| square.max(0.0).sqrt());
            let (parallel, orthogonal) = (part(products.c_square), part(products.orthogonal_square()));
            Ok(UpdateNorm { module: name, norm: products.norm(), parallel, orthogonal })
        });
        norms.collect()
    }
}

/// A module's update as it is now.
enum Values {
    Lora { a: Tensor, b: Tensor },
    Full { delta: Tensor },
}

impl Values {
    fn device(&self) -> &Device {
        match self {
            Self::Lora { a, .. } => a.device(),
            Self::Full { delta } => delta.device(),
        }
    }

    /// Of the update times `scale`, which counts for adapters alone.
    fn products(&self, direction: Option<&Direction>, scale: f64) -> Result<Products> {
        match self {
            Self::Lora { a, b } => Products::lora(direction, a, b, scale),
            Self::Full { delta } => Products::full(direction, delta),
        }
    }
}

impl Module {
    fn values(&self, name: &str, parameters: &Parameters) -> Result<Values> {
        let parameter = |name: &str| {
            let found = parameters.get(name).with_context(|| format!("no parameter {name}"))?;
            Ok::<_, anyhow::Error>(found.as_detached_tensor())
        };
        Ok(match &self.update {
            Update::Lora { .. } => {
                Values::Lora { a: parameter(&LoraMatrix::A.name(name))?, b: parameter(&LoraMatrix::B.name(name))? }
            }
            Update::Full { start } => Values::Full { delta: (parameter(&format!("{name}.weight"))? - start)? },
        })
    }

    /// What `penalty` makes of an update.
    fn term(&self, name: &str, penalty: &Penalty, update: &Values) -> Result<Term> {
        let operator = self.operator.as_ref();
        Ok(match (update, &self.update) {
            (Values::Lora { a, b }, Update::Lora { scale }) => {
                let term = penalty.lora(operator, a, b, *scale)?;
                let gradients = vec![(LoraMatrix::A.name(name), term.grad_a), (LoraMatrix::B.name(name), term.grad_b)];
                Term { value: term.value, square: penalty.square_of_value(*scale), gradients }
            }
            (Values::Lora { .. }, Update::Full { .. }) => anyhow::bail!("{name} has no adapter"),
            (Values::Full { delta }, _) => {
                let term = penalty.full(operator, delta)?;
                let gradients = vec![(format!("{name}.weight"), term.grad)];
                Term { value: term.value, square: penalty.square_of_value(1.0), gradients }
            }
        })
    }

    /// How many times B A an adapter counts; 1 for whole weights.
    fn scale(&self) -> f64 {
        if let Update::Lora { scale } = self.update { scale } else { 1.0 }
    }

    /// Of the effective update.
    fn row(&self, step: usize, name: &str, update: &Values, gradient_ratio: Option<f64>) -> Result<ModuleRow> {
        let direction = self.direction.as_ref();
        let products = update.products(direction, self.scale())?;
        Ok(ModuleRow {
            step,
            module: name.to_string(),
            norm: products.norm(),
            aligned: products.aligned(),
            orthogonal: products.orthogonal(),
            subspace_aligned: products.subspace_aligned(),
            subspace_orthogonal: products.subspace_orthogonal(),
            input: direction.and_then(|direction| products.input(direction)),
            signed: direction.and_then(|direction| products.signed(direction)),
            gradient_ratio,
        })
    }
}

/// Norm of the penalty's gradient over that of the task's, for one module's parameters; none where the task has none.
fn ratio(term: &Term, task: &Gradients) -> Result<Option<f64>> {
    let (mut of_penalty, mut of_task) = (0.0, 0.0);
    for (parameter, gradient) in &term.gradients {
        of_penalty += square_sum(gradient)?.read()?;
        of_task += square_sum(task.get(parameter)?)?.read()?;
    }
    Ok((of_task > 0.0).then(|| (of_penalty / of_task).sqrt()))
}
