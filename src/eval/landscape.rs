//! How good a model's neighbours in weight space are, measured along single directions and on a plane.
//!
//! A [`Gauge`] says what is measured, a [`Plan`] where, a [`Perturbation`] how the weights move.

use super::{Outcome, Prepared};
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

/// Anything that turns a model into numbers, always equally many.
pub trait Gauge {
    fn measure(&self, model: &Decoder) -> Result<Vec<(Quantity, f64)>>;
}

/// An evaluation as `asft eval` runs it.
pub struct EvalGauge {
    pub prepared: Prepared,
    pub batch_size: usize,
}

impl Gauge for EvalGauge {
    fn measure(&self, model: &Decoder) -> Result<Vec<(Quantity, f64)>> {
        let outcomes = self.prepared.measure_with(model, self.batch_size, &ProgressBar::hidden)?;
        Ok(outcomes.iter().flat_map(readings).collect())
    }
}

/// An evaluation's main quantity, first, and its other rates.
fn readings(outcome: &Outcome) -> Vec<(Quantity, f64)> {
    let mut readings = vec![];
    for (i, (name, value)) in outcome.readings().into_iter().enumerate() {
        let (unit, number) = match value {
            Value::Rate(rate) => (PERCENT, 100.0 * rate.share()),
            Value::Number(number) if i == 0 => ("nats per label token", number),
            Value::Number(_) | Value::Count(_) => continue,
        };
        readings.push((Quantity { name, unit }, number));
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
}

/// Values along one direction: `values[quantity][point]`, `None` where a value is not finite.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    #[serde(flatten)]
    pub ray: Ray,
    pub values: Vec<Vec<Option<f64>>>,
}

/// Values on the plane of the aligned direction (x) and an orthogonal one (y): `values[quantity][y][x]`.
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

/// Steps along rays, none of them 0.
type Place = Vec<(Ray, f64)>;
/// A place as a key; no two differ only by rounding.
type Key = Vec<(Ray, u64)>;

const ALIGNED: Ray = Ray { axis: Axis::Aligned, repeat: 0 };
const ACROSS: Ray = Ray { axis: Axis::Orthogonal, repeat: 0 };

impl Plan {
    fn steps(&self, points: usize) -> Vec<f64> {
        let at = |i: usize| self.range * (2.0 * i as f64 / (points.max(2) - 1) as f64 - 1.0);
        // Twelve digits, so that a place on two paths is the same place.
        (0..points).map(|i| (at(i) * 1e12).round() / 1e12).collect()
    }

    /// The directions of the curves.
    fn rays(&self) -> Vec<Ray> {
        let of = |axis| (0..self.repeats).map(move |repeat| Ray { axis, repeat });
        std::iter::once(ALIGNED).chain(of(Axis::Orthogonal)).chain(of(Axis::Random)).collect()
    }

    /// Every place to measure, once each.
    fn places(&self) -> BTreeMap<Key, Place> {
        let steps = self.steps(self.points);
        let on_curves = self.rays().into_iter().flat_map(|ray| steps.iter().map(move |step| vec![(ray, *step)]));
        let side = self.steps(self.grid);
        let on_grid = side.iter().flat_map(|y| side.iter().map(|x| vec![(ALIGNED, *x), (ACROSS, *y)]));
        on_curves.chain(on_grid).map(|place| (key(&place), moved(place))).collect()
    }
}

fn moved(place: Place) -> Place {
    place.into_iter().filter(|(_, step)| *step != 0.0).collect()
}

fn key(place: &[(Ray, f64)]) -> Key {
    place.iter().filter(|(_, step)| *step != 0.0).map(|(ray, step)| (*ray, step.to_bits())).collect()
}

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
    let quantities: Vec<Quantity> = itself.iter().flatten().map(|(quantity, _)| quantity.clone()).collect();
    let places = plan.places();
    progress.set_length(places.len() as u64);
    let mut found: BTreeMap<Key, Vec<Option<f64>>> = BTreeMap::new();
    for (key, place) in places {
        let mut values = vec![];
        if place.is_empty() {
            values.extend(itself.iter().flatten().map(|(_, value)| Some(*value)));
        } else {
            perturbation.apply(model, &place)?;
            for (gauge, known) in gauges.iter().zip(&itself) {
                values.extend(moved_values(gauge.as_ref(), model, known.len()));
            }
        }
        found.insert(key, values);
        progress.inc(1);
    }
    perturbation.apply(model, &[])?;
    let value = |place: &[(Ray, f64)], quantity: usize| -> Result<Option<f64>> {
        let values = found.get(&key(place)).context("a place that was not measured")?;
        values.get(quantity).copied().context("a gauge gave fewer values than it named")
    };
    let all = 0..quantities.len();
    let steps = plan.steps(plan.points);
    let along = |ray: Ray, quantity| steps.iter().map(|step| value(&[(ray, *step)], quantity)).collect::<Result<_>>();
    let curves = plan.rays().into_iter().map(|ray| {
        let values = all.clone().map(|quantity| along(ray, quantity)).collect::<Result<_>>()?;
        Ok(Curve { ray, values })
    });
    let curves = curves.collect::<Result<_>>()?;
    let side = plan.steps(plan.grid);
    let row = |y: f64, quantity| side.iter().map(|x| value(&[(ALIGNED, *x), (ACROSS, y)], quantity)).collect();
    let plane = |quantity| side.iter().map(|y| row(*y, quantity)).collect::<Result<_>>();
    let grid = (plan.grid > 0).then(|| {
        let values = all.clone().map(plane).collect::<Result<_>>()?;
        anyhow::Ok(Grid { x: ALIGNED, y: ACROSS, steps: side.clone(), values })
    });
    Ok(Landscape { grid: grid.transpose()?, quantities, steps: steps.clone(), curves })
}

/// The values of a moved model, `None` where they are not finite. A gauge that could measure the model itself fails
/// only for that reason; its error is logged all the same.
fn moved_values(gauge: &dyn Gauge, model: &Decoder, count: usize) -> Vec<Option<f64>> {
    match gauge.measure(model) {
        Ok(readings) => readings.into_iter().map(|(_, value)| value.is_finite().then_some(value)).collect(),
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
        let plan = Plan { range: 0.3, points: 7, repeats: 2, grid: 7 };
        assert_eq!(plan.steps(7)[3], 0.0);
        // Seven points on each of five curves through one centre, and a grid whose middle row and column are two of the
        // curves.
        assert_eq!(plan.places().len(), 1 + 5 * 6 + 6 * 6);
        assert!(plan.places().keys().next().unwrap().is_empty());
    }
}
