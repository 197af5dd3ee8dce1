//! How good a model's neighbours in weight space are, measured along single directions and on a plane.
//!
//! A [`Gauge`] says what is measured, a [`Plan`] where, a [`Perturbation`] how the weights move.

use super::protected::{Protected, Sides};
use super::{Metric, Outcome, Prepared};
use crate::console::log;
use crate::method::perturb::{Axis, Perturbation, Ray};
use crate::model::Decoder;
use crate::report::Value;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a number measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantity {
    pub name: String,
    pub unit: &'static str,
}

/// A number of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub quantity: Quantity,
    pub value: f64,
    /// Of a harmful score: which prompts are answered, in their order.
    pub harmful: Option<Vec<bool>>,
}

/// Anything that turns a model into numbers, always equally many.
pub trait Gauge {
    fn measure(&self, model: &Decoder) -> Result<Vec<Reading>>;
}

/// An evaluation as `asft eval` runs it.
pub struct EvalGauge {
    pub prepared: Prepared,
    pub batch_size: usize,
}

impl Gauge for EvalGauge {
    fn measure(&self, model: &Decoder) -> Result<Vec<Reading>> {
        let outcomes = self.prepared.measure_with(model, self.batch_size, &ProgressBar::hidden)?;
        Ok(outcomes.iter().flat_map(readings).collect())
    }
}

/// An evaluation's main quantity, first, and its other rates.
fn readings(outcome: &Outcome) -> Vec<Reading> {
    let mut readings = vec![];
    let is_harm = matches!(outcome.metric, Metric::Refusal | Metric::Judge);
    for (i, (name, value)) in outcome.readings().into_iter().enumerate() {
        let (unit, value) = match value {
            Value::Rate(rate) => (PERCENT, 100.0 * rate.share()),
            Value::Number(number) if i == 0 => ("nats per label token", number),
            Value::Number(_) | Value::Count(_) => continue,
        };
        let harmful = (is_harm && i == 0).then(|| outcome.hits.clone());
        readings.push(Reading { quantity: Quantity { name, unit }, value, harmful });
    }
    readings
}

/// The unit of rates.
pub const PERCENT: &str = "%";

/// Where a landscape is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Largest step in either direction.
    pub range: f64,
    /// Of a curve.
    pub points: usize,
    /// Random directions of each kind.
    pub repeats: u64,
    /// Points along each side of the grid; 0 for no grid.
    pub grid: usize,
    /// Whether there is a second model, towards which to move.
    pub harm: bool,
}

/// Values along one direction: `values[quantity][point]`, `None` where a value is not finite.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    #[serde(flatten)]
    pub ray: Ray,
    pub values: Vec<Vec<Option<f64>>>,
    /// For each quantity that is a harmful score, how far the curve's two sides are protected.
    pub protected: Vec<Option<Sides>>,
}

/// Values on the plane of the aligned direction (x) and another one (y), towards the second model or orthogonal: `values[quantity][y][x]`.
#[derive(Clone, Debug, Serialize)]
pub struct Grid {
    pub x: Ray,
    pub y: Ray,
    pub steps: Vec<f64>,
    pub values: Vec<Vec<Vec<Option<f64>>>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Landscape {
    pub quantities: Vec<Quantity>,
    /// α of the curves' points.
    pub steps: Vec<f64>,
    pub curves: Vec<Curve>,
    pub grid: Option<Grid>,
}

impl Landscape {
    /// The quantities that are harmful scores.
    pub fn harms(&self) -> Vec<usize> {
        let is_harm = |i: &usize| self.curves.iter().any(|curve| curve.protected.get(*i).is_some_and(Option::is_some));
        (0..self.quantities.len()).filter(is_harm).collect()
    }
}

/// Steps along rays, none of them 0.
type Place = Vec<(Ray, f64)>;
/// A place as a key; no two differ only by rounding.
type Key = Vec<(Ray, u64)>;

const ALIGNED: Ray = Ray { axis: Axis::Aligned, repeat: 0 };
const HARM: Ray = Ray { axis: Axis::Harm, repeat: 0 };
const ORTHOGONAL: Ray = Ray { axis: Axis::Orthogonal, repeat: 0 };

impl Plan {
    fn steps(&self, points: usize) -> Vec<f64> {
        let at = |i: usize| self.range * (2.0 * i as f64 / (points.max(2) - 1) as f64 - 1.0);
        // Twelve digits, so that a place on two paths is the same place.
        (0..points).map(|i| (at(i) * 1e12).round() / 1e12).collect()
    }

    /// The directions of the curves.
    fn rays(&self) -> Vec<Ray> {
        let of = |axis| (0..self.repeats).map(move |repeat| Ray { axis, repeat });
        let towards = self.harm.then_some(HARM);
        [ALIGNED].into_iter().chain(towards).chain(of(Axis::Orthogonal)).chain(of(Axis::Random)).collect()
    }

    /// The grid's vertical direction.
    fn across(&self) -> Ray {
        if self.harm { HARM } else { ORTHOGONAL }
    }

    /// Every place to measure, once each.
    fn places(&self) -> BTreeMap<Key, Place> {
        let steps = self.steps(self.points);
        let on_curves = self.rays().into_iter().flat_map(|ray| steps.iter().map(move |step| vec![(ray, *step)]));
        let side = self.steps(self.grid);
        let on_grid = side.iter().flat_map(|y| side.iter().map(|x| vec![(ALIGNED, *x), (self.across(), *y)]));
        on_curves.chain(on_grid).map(|place| (key(&place), moved(place))).collect()
    }
}

fn moved(place: Place) -> Place {
    place.into_iter().filter(|(_, step)| *step != 0.0).collect()
}

fn key(place: &[(Ray, f64)]) -> Key {
    place.iter().filter(|(_, step)| *step != 0.0).map(|(ray, step)| (*ray, step.to_bits())).collect()
}

/// What was found at each place: for each quantity its value and, of a harmful score, the prompts answered.
type Found = BTreeMap<Key, Vec<Option<Reading>>>;

/// Measures wherever the plan says, and leaves the model as it was.
///
/// A model moved too far gives no finite numbers; its place stays empty.
///
/// # Errors
/// Whatever keeps a gauge from measuring the model itself, unmoved.
pub fn explore(
    model: &mut Decoder,
    perturbation: &Perturbation,
    gauges: &[Box<dyn Gauge>],
    plan: &Plan,
    progress: &ProgressBar,
) -> Result<Landscape> {
    let itself = gauges.iter().map(|gauge| gauge.measure(model)).collect::<Result<Vec<_>>>()?;
    let places = plan.places();
    progress.set_length(places.len() as u64);
    let mut found = Found::new();
    for (key, place) in places {
        let mut readings = vec![];
        if place.is_empty() {
            readings.extend(itself.iter().flatten().cloned().map(Some));
        } else {
            perturbation.apply(model, &place)?;
            for (gauge, known) in gauges.iter().zip(&itself) {
                readings.extend(moved_readings(gauge.as_ref(), model, known.len()));
            }
        }
        found.insert(key, readings);
        progress.inc(1);
    }
    perturbation.apply(model, &[])?;
    let quantities = itself.into_iter().flatten().map(|reading| reading.quantity).collect();
    assembled(plan, quantities, &found)
}

/// The curves and the grid of what was found.
fn assembled(plan: &Plan, quantities: Vec<Quantity>, found: &Found) -> Result<Landscape> {
    let reading = |place: &[(Ray, f64)], quantity: usize| -> Result<Option<&Reading>> {
        let readings = found.get(&key(place)).context("a place that was not measured")?;
        readings.get(quantity).map(Option::as_ref).context("a gauge gave fewer values than it named")
    };
    let value = |place: &[(Ray, f64)], quantity| Ok(reading(place, quantity)?.map(|reading| reading.value));
    let all = 0..quantities.len();
    let steps = plan.steps(plan.points);
    // From 0 outwards.
    let positive: Vec<f64> = steps.iter().copied().filter(|step| *step >= 0.0).collect();
    let negative: Vec<f64> = steps.iter().copied().filter(|step| *step <= 0.0).rev().collect();
    let side = |ray: Ray, quantity: usize, steps: &[f64]| -> Result<Option<Protected>> {
        let found = steps.iter().map(|step| reading(&[(ray, *step)], quantity)).collect::<Result<Vec<_>>>()?;
        let harmful: Vec<Option<&[bool]>> = found.into_iter().map(|reading| reading?.harmful.as_deref()).collect();
        Ok(Protected::of(steps, &harmful))
    };
    let sides = |ray: Ray, quantity: usize| -> Result<Option<Sides>> {
        let both = (side(ray, quantity, &negative)?, side(ray, quantity, &positive)?);
        Ok(both.0.zip(both.1).map(|(negative, positive)| Sides { negative, positive }))
    };
    let along = |ray: Ray, quantity| steps.iter().map(|step| value(&[(ray, *step)], quantity)).collect::<Result<_>>();
    let curves = plan.rays().into_iter().map(|ray| {
        let values = all.clone().map(|quantity| along(ray, quantity)).collect::<Result<_>>()?;
        let protected = all.clone().map(|quantity| sides(ray, quantity)).collect::<Result<_>>()?;
        Ok(Curve { ray, values, protected })
    });
    let curves = curves.collect::<Result<_>>()?;
    let (side, across) = (plan.steps(plan.grid), plan.across());
    let row = |y: f64, quantity| side.iter().map(|x| value(&[(ALIGNED, *x), (across, y)], quantity)).collect();
    let plane = |quantity| side.iter().map(|y| row(*y, quantity)).collect::<Result<_>>();
    let grid = (plan.grid > 0).then(|| {
        let values = all.clone().map(plane).collect::<Result<_>>()?;
        anyhow::Ok(Grid { x: ALIGNED, y: across, steps: side.clone(), values })
    });
    Ok(Landscape { grid: grid.transpose()?, quantities, steps: steps.clone(), curves })
}

/// The readings of a moved model, `None` where they are not finite. A gauge that could measure the model itself fails
/// only for that reason; its error is logged all the same.
fn moved_readings(gauge: &dyn Gauge, model: &Decoder, count: usize) -> Vec<Option<Reading>> {
    match gauge.measure(model) {
        Ok(readings) => readings.into_iter().map(|reading| Some(reading).filter(|r| r.value.is_finite())).collect(),
        Err(error) => {
            log::warn(&format!("a place stays empty: {error:#}"), serde_json::Value::Null);
            vec![None; count]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_on_two_paths_is_measured_once() {
        let plan = Plan { range: 0.3, points: 7, repeats: 2, grid: 7, harm: false };
        assert_eq!(plan.steps(7)[3], 0.0);
        // Seven points on each of five curves through one centre, and a grid whose middle row and column are two of the
        // curves.
        assert_eq!(plan.places().len(), 1 + 5 * 6 + 6 * 6);
        assert!(plan.places().keys().next().unwrap().is_empty());
        // Towards a second model there is one curve more, which is the grid's middle column.
        let towards = Plan { harm: true, ..plan };
        assert_eq!(towards.places().len(), 1 + 6 * 6 + 6 * 6);
        let plane = |place: &&Place| place.len() == 2 && place.iter().all(|(ray, _)| *ray == ALIGNED || *ray == HARM);
        assert_eq!(towards.places().values().filter(plane).count(), 6 * 6);
    }
}
