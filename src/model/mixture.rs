//! A mixture of experts in place of a block's MLP: a router sends each row to a few gated MLPs and weighs what they return.
//!
//! y_n = Σ_{e in S_n} w_ne expert_e(h_n), with S and w of [`crate::ops::routing`]. Rows are gathered by expert, so each expert that
//! has any is computed once; the host reads the router's logits, and in the backward pass the gradients of the weights.

use super::Pass;
use super::mlp::{Mlp, Saved as MlpSaved};
use super::parameters::Gradients;
use super::shared_expert::{Saved as SharedSaved, SharedExpert};
use crate::ops::routing::Routing;
use crate::ops::sum::add;
use crate::ops::traffic::{self, counted};
use crate::ops::weight::Weight;
use crate::ops::{cast, linear};
use anyhow::Result;
use candle_core::{D, DType, Shape, Tensor};

/// Values of experts' rows that are added up at a time, in f32.
const SUMMED: usize = 1 << 24;

#[derive(Clone)]
pub struct Mixture {
    /// The router's name, `…mlp.gate`.
    pub module: String,
    /// [E, hidden_size]
    pub router: Weight,
    pub experts: Vec<Mlp>,
    /// How many experts a row goes to.
    pub per_row: usize,
    /// Whether a row's weights add up to 1.
    pub normalised: bool,
    /// The expert that every row goes to besides.
    pub shared: Option<SharedExpert>,
    /// Whether the router trains.
    pub trains: bool,
}

/// What the backward pass needs.
pub struct Saved {
    h: Tensor,
    routing: Routing,
    parts: Vec<Part>,
    shared: Option<SharedSaved>,
}

/// What one expert computed.
struct Part {
    expert: usize,
    /// [m] rows of h
    rows: Tensor,
    /// Where their weights are in [N, K].
    places: Vec<usize>,
    /// [m, hidden_size], before it is weighed
    y: Tensor,
    saved: MlpSaved,
}

impl Mixture {
    /// h: [N, hidden_size] -> [N, hidden_size]
    pub fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, Saved)> {
        let logits = cast(&linear::forward(h, &self.router, None)?, DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let routing = Routing::new(&logits, self.experts.len(), self.per_row, self.normalised)?;
        let mut parts = vec![];
        for (expert, rows, places) in routing.by_expert() {
            let rows = Tensor::new(rows, h.device())?;
            let (y, saved) = self.experts[expert].forward(&gathered(h, &rows)?, pass)?;
            parts.push(Part { expert, rows, places, y, saved });
        }
        let values: Vec<&Tensor> = parts.iter().map(|part| &part.y).collect();
        let weights = in_type(routing.weights.clone(), (h.dim(0)?, self.per_row, 1), h)?;
        let mut sum = cast(&self.sum(&parts, &values, Some(&weights), h)?, h.dtype())?;
        let mut shared = None;
        if let Some(expert) = &self.shared {
            let (y, saved) = expert.forward(h, pass)?;
            (sum, shared) = (add(&sum, &y)?, Some(saved));
        }
        Ok((sum, Saved { h: h.clone(), routing, parts, shared }))
    }

    /// Adds up what the parts have for each row, [m, hidden_size] each and weighed by `weights`, [N, K, 1] -> [N, hidden_size] in
    /// f32. `like` has the sum's shape. Some rows at a time: in their order all would be as large again, in f32 twice as large.
    fn sum(&self, parts: &[Part], values: &[&Tensor], weights: Option<&Tensor>, like: &Tensor) -> Result<Tensor> {
        let (n, hidden_size) = like.dims2()?;
        let mut order = vec![0u32; n * self.per_row];
        for (i, &place) in parts.iter().flat_map(|part| &part.places).enumerate() {
            order[place] = i as u32;
        }
        if order.is_empty() {
            return Ok(like.to_dtype(DType::F32)?);
        }
        let (order, values) = (Tensor::new(order, like.device())?, together(values)?);
        let at_once = rows_at_once(self.per_row, hidden_size).min(n);
        let sums = (0..n).step_by(at_once).map(|start| {
            let rows = at_once.min(n - start);
            let own = gathered(&values, &order.narrow(0, start * self.per_row, rows * self.per_row)?)?;
            let own = own.reshape((rows, self.per_row, hidden_size))?;
            let own = match weights {
                Some(weights) => {
                    let weights = weights.narrow(0, start, rows)?;
                    counted(own.broadcast_mul(&weights)?, &[&own, &weights])
                }
                None => own,
            };
            let own = cast(&own, DType::F32)?;
            Ok(counted(own.sum(1)?, &[&own]))
        });
        let sums = sums.collect::<Result<Vec<_>>>()?;
        if let [all] = &sums[..] { Ok(all.clone()) } else { together(&sums.iter().collect::<Vec<_>>()) }
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let (mut slopes, mut inner) = (vec![], vec![]);
        for part in &saved.parts {
            let dy = gathered(dy, &part.rows)?;
            let (wide, y) = (cast(&dy, DType::F32)?, cast(&part.y, DType::F32)?);
            let products = counted((&wide * &y)?, &[&wide, &y]);
            slopes.push(counted(products.sum(D::Minus1)?, &[&products]));
            let weights = part.places.iter().map(|&place| saved.routing.weights[place]).collect::<Vec<f32>>();
            let weights = in_type(weights, (part.places.len(), 1), &dy)?;
            let dy = counted(dy.broadcast_mul(&weights)?, &[&dy, &weights]);
            inner.push(self.experts[part.expert].backward(&part.saved, &dy, pass, gradients)?);
        }
        let dh = self.sum(&saved.parts, &inner.iter().collect::<Vec<_>>(), None, dy)?;
        let dz = self.router_gradient(saved, &slopes)?;
        if self.trains {
            gradients.add(&format!("{}.weight", self.module), linear::backward_weight(&dz, &saved.h)?)?;
            self.add_zeros(saved, gradients)?;
        }
        let of_router = cast(&linear::backward_input(&dz, &self.router)?, DType::F32)?;
        let dh = cast(&counted((&dh + &of_router)?, &[&dh, &of_router]), dy.dtype())?;
        match (&self.shared, &saved.shared) {
            (Some(expert), Some(saved)) => add(&dh, &expert.backward(saved, dy, pass, gradients)?),
            _ => Ok(dh),
        }
    }

    /// An expert without rows has a gradient of zero, so that the optimizer treats it as the others.
    fn add_zeros(&self, saved: &Saved, gradients: &mut Gradients) -> Result<()> {
        let idle = self.experts.iter().enumerate();
        let idle = idle.filter(|(expert, _)| saved.parts.iter().all(|part| part.expert != *expert));
        for linear in idle.flat_map(|(_, expert)| expert.linears()) {
            let name = format!("{}.weight", linear.module);
            if gradients.get(&name).is_err() {
                gradients.add(&name, linear.weight.tensor()?.zeros_like()?)?;
            }
        }
        Ok(())
    }

    /// The gradients of the weights, [m] for each part -> those of the logits, [N, E] in the type of h
    fn router_gradient(&self, saved: &Saved, slopes: &[Tensor]) -> Result<Tensor> {
        let (n, experts) = (saved.h.dim(0)?, self.experts.len());
        if slopes.is_empty() {
            return Ok(Tensor::zeros((n, experts), saved.h.dtype(), saved.h.device())?);
        }
        let slopes = together(&slopes.iter().collect::<Vec<_>>())?.to_vec1::<f32>()?;
        let mut dw = vec![0.0; n * self.per_row];
        let places = saved.parts.iter().flat_map(|part| &part.places);
        for (&place, slope) in places.zip(slopes) {
            dw[place] = slope;
        }
        let dz = Tensor::from_vec(saved.routing.backward(&dw), (n, experts), saved.h.device())?;
        cast(&dz, saved.h.dtype())
    }

    /// The matrices that take no adapters: the router's and the experts', by module.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &Weight)> {
        let experts = self.experts.iter().flat_map(Mlp::linears).map(|linear| (linear.module.as_str(), &linear.weight));
        std::iter::once((self.module.as_str(), &self.router)).chain(experts)
    }
}

/// The rows of x that `rows` names.
fn gathered(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let y = x.index_select(rows, 0)?;
    // Of x only these are read.
    traffic::launch(&[&y], &[&y]);
    Ok(y)
}

/// One after another.
fn together(parts: &[&Tensor]) -> Result<Tensor> {
    Ok(counted(Tensor::cat(parts, 0)?, parts))
}

/// Numbers of the host on the device of `like`, in its type.
fn in_type(values: Vec<f32>, shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    cast(&Tensor::from_vec(values, shape.into(), like.device())?, like.dtype())
}

/// Rows whose experts' values are added up at a time.
pub fn rows_at_once(per_row: usize, hidden_size: usize) -> usize {
    (SUMMED / (per_row * hidden_size).max(1)).max(1)
}
