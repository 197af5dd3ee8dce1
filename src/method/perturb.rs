//! Directions to move a model in, one module at a time: along V, towards a second model, orthogonal to V, or random.
//!
//! ```text
//! aligned      D = ‖W‖_F V / ‖V‖_F
//! harm         D = ‖W‖_F H / ‖H‖_F,  H = W_harmful − W_aligned
//! orthogonal   D_i = ‖w_i‖ g_i / ‖g_i‖,  g_i = x_i − (⟨x_i, v_i⟩ / ‖v_i‖²) v_i
//! random       D_i = ‖w_i‖ x_i / ‖x_i‖
//! ```
//!
//! with x_i, v_i, w_i the rows (filters) of X, V and W [d_out, d_in], and X standard normal. Every D thus has the norm of its
//! W, and a step α moves each module by α times the norm of its weight ([`Unit::Weight`]) or, multiplied by ‖V‖ / ‖W‖, of its V
//! ([`Unit::Direction`]); in that unit D along V is V itself and α = −1 gives the unaligned model. The random directions
//! are filter-normalised (Li et al., arXiv 1712.09913). The code of "Navigating the Safety Landscape" (arXiv 2405.17374)
//! scales the matrix as a whole to ‖W‖_F instead, and so does `aligned` here: scaling V row by row would change its
//! direction. A D that is orthogonal to V in every row has ⟨D, V⟩ = 0, and keeps it when its rows are scaled.
//!
//! H comes from a second direction file, whose "unaligned" model is the harmful one: H is minus that file's V. It is not made
//! orthogonal to V, so that the harmful model lies on the axis; [`Perturbation::harm_cosine`] says how far it leans.
//!
//! Nothing random is stored: X follows from the seed and the module's name.

use super::direction_file::Directions;
use super::random::normals;
use crate::checkpoint::Checkpoint;
use crate::ensure_valid;
use crate::model::Decoder;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use rayon::prelude::*;
use serde::Serialize;

/// How a direction relates to V.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    Aligned,
    /// Towards the second model.
    Harm,
    Orthogonal,
    Random,
}

/// The length of a step of 1, in each module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The norm of each module's weight
    Weight,
    /// The norm of each module's V: along V, -1 is the unaligned model
    Direction,
}

/// One direction of the whole model. `repeat` distinguishes random ones of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ray {
    pub axis: Axis,
    pub repeat: u64,
}

/// Moves a decoder's weights, always starting from the checkpoint's, so that steps do not accumulate and can be undone.
pub struct Perturbation<'a> {
    checkpoint: &'a Checkpoint,
    directions: &'a Directions,
    /// The direction file of the second model, of the same modules.
    harm: Option<&'a Directions>,
    /// The modules that move: those with V ≠ 0 in either file.
    modules: Vec<String>,
    unit: Unit,
    seed: u64,
}

impl<'a> Perturbation<'a> {
    /// # Errors
    /// A second direction file whose modules are not those of the first.
    pub fn new(
        checkpoint: &'a Checkpoint,
        directions: &'a Directions,
        harm: Option<&'a Directions>,
        (unit, seed): (Unit, u64),
    ) -> Result<Self> {
        for (file, other) in harm.into_iter().flat_map(|harm| [(directions, harm), (harm, directions)]) {
            let missing: Vec<&str> =
                file.modules().iter().filter(|module| other.shape(module).is_none()).map(String::as_str).collect();
            ensure_valid!(
                missing.is_empty(),
                "{} lacks modules that {} has: {}; make both with the same `asft direction --target-modules`",
                other.path().display(),
                file.path().display(),
                missing.join(", ")
            );
        }
        let moving = |module: &&String| moves(directions, module) || harm.is_some_and(|harm| moves(harm, module));
        let modules = directions.modules().iter().filter(moving).cloned().collect();
        Ok(Self { checkpoint, directions, harm, modules, unit, seed })
    }

    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Sets every module that moves to W + Σ α D, or to W without steps. Only a few modules are in memory in f32 at a time.
    pub fn apply(&self, model: &mut Decoder, steps: &[(Ray, f64)]) -> Result<()> {
        for modules in self.modules.chunks(rayon::current_num_threads()) {
            let moved: Vec<Tensor> =
                modules.par_iter().map(|module| self.moved(module, steps)).collect::<Result<_>>()?;
            for (module, weight) in modules.iter().zip(moved) {
                model.set_weight(module, &weight)?;
            }
        }
        Ok(())
    }

    /// W + Σ α D [d_out, d_in] of a module, in f32.
    fn moved(&self, module: &str, steps: &[(Ray, f64)]) -> Result<Tensor> {
        let name = format!("{module}.weight");
        let weight = self.checkpoint.read_f32(&name)?;
        let (d_out, d_in, _) = self.directions.shape(module).context("a module of the direction")?;
        let mut sum = weight.clone();
        // V of either file, multiplied out once for all steps.
        let mut read: [Option<Vec<f32>>; 2] = [None, None];
        for (ray, alpha) in steps.iter().filter(|(_, alpha)| *alpha != 0.0) {
            let file = self.file(ray.axis)?;
            let [own, harm] = &mut read;
            let place = if ray.axis == Axis::Harm { harm } else { own };
            let v: &[f32] = match place {
                _ if ray.axis == Axis::Random => &[],
                Some(v) => v,
                None => place.insert(v_of(file, module)?),
            };
            let unit = match self.unit {
                Unit::Weight => 1.0,
                Unit::Direction => relative_v_norm(file, module, &weight)?,
            };
            let direction = direction(*ray, (self.seed, module), &weight, v, d_in);
            for (sum, value) in sum.iter_mut().zip(&direction) {
                *sum += (*alpha * unit * f64::from(*value)) as f32;
            }
        }
        Ok(Tensor::from_vec(sum, (d_out, d_in), &Device::Cpu)?)
    }

    /// The direction file that an axis is about.
    fn file(&self, axis: Axis) -> Result<&'a Directions> {
        match axis {
            Axis::Harm => self.harm.context("the harmful axis needs a second direction file"),
            Axis::Aligned | Axis::Orthogonal | Axis::Random => Ok(self.directions),
        }
    }

    /// The α at which a file's direction reaches the weights of its other model: the nearest to 0, the median and the
    /// farthest of the modules in which the two models differ, the only ones that move on this axis. Along V that is the unaligned model, at −1 in units of the direction;
    /// along H the harmful one, at 1.
    ///
    /// # Errors
    /// An axis without a file; weights that cannot be read.
    pub fn reached_at(&self, axis: Axis) -> Result<(f64, f64, f64)> {
        let file = self.file(axis)?;
        let sign = if axis == Axis::Harm { 1.0 } else { -1.0 };
        let of = |module: &String| -> Result<f64> {
            match self.unit {
                Unit::Weight => {
                    let weight = self.checkpoint.read_f32(&format!("{module}.weight"))?;
                    relative_v_norm(file, module, &weight)
                }
                Unit::Direction => Ok(1.0),
            }
        };
        let differs = |module: &&String| moves(file, module);
        let mut all: Vec<f64> = self.modules.iter().filter(differs).map(of).collect::<Result<_>>()?;
        all.sort_by(f64::total_cmp);
        let at = |i: usize| sign * all.get(i).copied().unwrap_or(0.0);
        Ok((at(0), at(all.len() / 2), at(all.len().saturating_sub(1))))
    }

    /// Σ ⟨H, V⟩ / (‖H‖ ‖V‖) over the modules: 0 if the axes are orthogonal, −1 if harm lies along −V. `None` without a
    /// second file.
    ///
    /// # Errors
    /// Factors that cannot be read.
    pub fn harm_cosine(&self) -> Result<Option<f64>> {
        let Some(harm) = self.harm else { return Ok(None) };
        let (mut product, mut squares) = (0.0, (0.0, 0.0));
        for module in &self.modules {
            let (v, other) = (v_of(self.directions, module)?, v_of(harm, module)?);
            product -= dot(&v, &other);
            squares = (squares.0 + dot(&v, &v), squares.1 + dot(&other, &other));
        }
        Ok(Some(product / (squares.0 * squares.1).sqrt().max(f64::MIN_POSITIVE)))
    }
}

/// Whether V ≠ 0 there.
fn moves(file: &Directions, module: &str) -> bool {
    file.shape(module).is_some_and(|(_, _, k)| k > 0)
}

/// V [d_out × d_in] of a module as its file holds it, row-major; zeros where V = 0.
fn v_of(file: &Directions, module: &str) -> Result<Vec<f32>> {
    let (d_out, d_in, k) = file.shape(module).context("a module of the direction")?;
    if k == 0 {
        return Ok(vec![0.0; d_out * d_in]);
    }
    Ok(file.read(module)?.matrix(usize::MAX)?.flatten_all()?.to_vec1()?)
}

/// ‖V‖ / ‖W‖
fn relative_v_norm(file: &Directions, module: &str, weight: &[f32]) -> Result<f64> {
    Ok(f64::from(file.v_norm(module)?) / norm(weight).max(f64::MIN_POSITIVE))
}

/// D, row-major; `v` may be empty for [`Axis::Random`].
fn direction(ray: Ray, (seed, module): (u64, &str), weight: &[f32], v: &[f32], d_in: usize) -> Vec<f32> {
    if let Axis::Aligned | Axis::Harm = ray.axis {
        let sign = if ray.axis == Axis::Harm { -1.0 } else { 1.0 };
        let scale = match norm(v) {
            // There is no way along V where V = 0.
            0.0 => 0.0,
            length => sign * norm(weight) / length,
        };
        return v.iter().map(|value| (f64::from(*value) * scale) as f32).collect();
    }
    let draws = normals(&format!("{seed} {:?} {} {module}", ray.axis, ray.repeat));
    let mut out: Vec<f32> = draws.take(weight.len()).map(|x| x as f32).collect();
    for (i, (row, w)) in out.chunks_mut(d_in).zip(weight.chunks(d_in)).enumerate() {
        if ray.axis == Axis::Orthogonal {
            remove_component(row, &v[i * d_in..][..row.len()]);
        }
        let scale = norm(w) / norm(row).max(f64::MIN_POSITIVE);
        row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
    out
}

/// Makes `x` orthogonal to `v`.
fn remove_component(x: &mut [f32], v: &[f32]) {
    let square = dot(v, v);
    if square > 0.0 {
        let share = dot(x, v) / square;
        x.iter_mut().zip(v).for_each(|(x, v)| *x = (f64::from(*x) - share * f64::from(*v)) as f32);
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn norm(x: &[f32]) -> f64 {
    dot(x, x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    const ROWS: usize = 6;
    const WIDTH: usize = 40;

    fn flat(seed: u64) -> Vec<f32> {
        random(&[ROWS, WIDTH], seed).flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn directions_have_the_norms_and_angles_they_claim() {
        let (weight, v) = (flat(1), flat(2));
        let of = |axis, repeat| direction(Ray { axis, repeat }, (7, "m"), &weight, &v, WIDTH);
        for axis in [Axis::Aligned, Axis::Harm, Axis::Orthogonal, Axis::Random] {
            assert!((norm(&of(axis, 0)) / norm(&weight) - 1.0).abs() < 1e-6, "{axis:?}");
        }
        let cosine = |x: &[f32], y: &[f32]| dot(x, y) / (norm(x) * norm(y));
        assert!((cosine(&of(Axis::Aligned, 0), &v) - 1.0).abs() < 1e-6);
        // The harmful model lies at minus its file's V.
        assert!((cosine(&of(Axis::Harm, 0), &v) + 1.0).abs() < 1e-6);
        let zero = vec![0.0; v.len()];
        for axis in [Axis::Aligned, Axis::Harm] {
            assert_eq!(direction(Ray { axis, repeat: 0 }, (7, "m"), &weight, &zero, WIDTH), zero, "{axis:?}");
        }
        assert!(cosine(&of(Axis::Orthogonal, 0), &v).abs() < 1e-6);
        for axis in [Axis::Orthogonal, Axis::Random] {
            for (row, w) in of(axis, 0).chunks(WIDTH).zip(weight.chunks(WIDTH)) {
                assert!((norm(row) / norm(w) - 1.0).abs() < 1e-6, "a filter has another norm");
            }
            assert_eq!(of(axis, 0), of(axis, 0));
            assert!(cosine(&of(axis, 0), &of(axis, 1)).abs() < 0.5, "{axis:?} repeats itself");
        }
    }
}
