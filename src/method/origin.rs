//! Whether a direction was computed from the given weights: those of a checkpoint, or those under an adapter.

use super::direction_file::Directions;
use super::likeness::{Likeness, Pair};
use crate::adapter::{Adapter, BaseIdentity};
use crate::checkpoint::sketch::{shortened, sketch};
use crate::checkpoint::{Checkpoint, combined_hash, weight_hash};
use crate::console::log;
use crate::ensure_valid;
use crate::error::listing;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// How a weight stands to the one that a direction was computed from.
enum Known {
    Equal,
    /// A quantised form of it.
    Like(Likeness),
    /// Another, and how that shows.
    Other(String),
}

impl Directions {
    /// Checks that the file belongs to these modules, given with (d_out, d_in), of this aligned checkpoint; without one,
    /// only that it has them in their shapes.
    ///
    /// # Errors
    /// One error that lists every module that is missing, has another shape, or comes from other weights. Quantised weights
    /// are those that the file's sketches are of if they are within the error of their type, and nearer to the aligned
    /// model than to the unaligned one.
    pub fn check_against(&self, modules: &[(String, (usize, usize))], aligned: Option<&Checkpoint>) -> Result<()> {
        let (mut problems, mut by_likeness) = (vec![], vec![]);
        for (module, (d_out, d_in)) in modules {
            match self.shape(module) {
                None => problems.push(format!("{module}: not in the file")),
                Some((rows, columns, _)) if (rows, columns) != (*d_out, *d_in) => problems
                    .push(format!("{module}: the file has V of shape [{rows}, {columns}], expected [{d_out}, {d_in}]")),
                Some(_) => {
                    let Some(aligned) = aligned else { continue };
                    match self.check_weight(module, aligned)? {
                        Known::Equal => {}
                        Known::Like(likeness) => by_likeness.push(likeness),
                        Known::Other(why) => problems.push(format!("{module}: {why}")),
                    }
                }
            }
        }
        let together = by_likeness.iter().copied().reduce(Likeness::with);
        // Of one module the error of quantisation may hide V, of all of them hardly.
        let place = together.map_or(0.0, Likeness::towards_unaligned);
        if place > 0.5 {
            problems.push(format!(
                "the quantised weights are those of the unaligned model: {:.0} % of the way there from the aligned one",
                100.0 * place
            ));
        }
        ensure_valid!(
            problems.is_empty(),
            "direction file {} (aligned: {}) does not fit this model; compute it again with `asft direction`:\n  {}",
            self.path().display(),
            self.header().aligned.id,
            problems.join("\n  ")
        );
        if let Some(together) = together {
            let (count, percent) = (by_likeness.len(), 100.0 * together.distance());
            let text = format!(
                "the direction's {count} aligned weights are known by their sketches: the quantised ones are {percent:.1} % \
                 from them"
            );
            log::info(
                &text,
                json!({"modules": count, "relative_distance": together.distance(), "towards_unaligned": place}),
            );
        }
        Ok(())
    }

    /// Whether a module's weight is the aligned one that the file was computed from, or a quantised form of it.
    fn check_weight(&self, module: &str, aligned: &Checkpoint) -> Result<Known> {
        let name = format!("{module}.weight");
        let (values, info) = (aligned.read_f32(&name)?, aligned.info(&name));
        let shape = info.map(|info| info.shape.clone()).unwrap_or_default();
        if self.header().module_hashes.get(module) == Some(&weight_hash(&shape, &values)) {
            return Ok(Known::Equal);
        }
        let other = |why: &str| Ok(Known::Other(why.to_string()));
        let stored = info.map(|info| info.stored);
        let Some((stored, worst)) = stored.and_then(|stored| Some((stored, stored.worst_error()?))) else {
            return other("computed from other aligned weights");
        };
        let Some(pair) = self.sketches(module)? else {
            return other("the file has no sketch of the weight, by which a quantised form of it would be known");
        };
        let likeness = Likeness::of(&sketch(&values), &pair);
        let distance = likeness.distance();
        if distance <= worst {
            return Ok(Known::Like(likeness));
        }
        Ok(Known::Other(format!(
            "the weight in {stored} is {:.1} % from the aligned one, more than the {:.1} % that its type may leave",
            100.0 * distance,
            100.0 * worst
        )))
    }

    /// Checks that the file has every module of the adapter in `dir`, in its shape and, if the adapter records what it
    /// was trained on, computed from those weights. This needs no model.
    ///
    /// # Errors
    /// One error that lists every module that is missing or has another shape; other weights.
    pub fn check_adapter(&self, dir: &Path, adapter: &Adapter) -> Result<()> {
        let mut problems = vec![];
        for (name, module) in &adapter.modules {
            let (d_out, d_in) = (module.b.dims()[0], module.a.dims()[1]);
            match self.shape(name) {
                None => problems.push(format!("{name} is not in the direction")),
                Some((rows, columns, _)) if (rows, columns) != (d_out, d_in) => {
                    problems.push(format!("{name} is [{d_out}, {d_in}] here and [{rows}, {columns}] in the direction"))
                }
                Some(_) => {}
            }
        }
        let header = self.header();
        let (base, aligned) = (adapter.base.as_deref().unwrap_or("an unnamed base"), &header.aligned.id);
        ensure_valid!(
            problems.is_empty(),
            "the adapter in {} (for {base}) does not fit the direction (of {aligned}); compute one for its base and \
             modules with `asft direction --target-modules`: {}",
            dir.display(),
            listing(&problems, 8)
        );
        let Some(recorded) = BaseIdentity::read(dir)? else {
            let last = |id: &str| Path::new(id).file_name().map(|name| name.to_ascii_lowercase());
            if last(base) != last(aligned) {
                let text = format!(
                    "the adapter names {base} as its base, the direction is of {aligned}; nothing in {} tells whether \
                     these are the same weights",
                    dir.display()
                );
                log::warn(&text, json!({"adapter_base": base, "direction_of": aligned}));
            }
            return Ok(());
        };
        let hashes: BTreeMap<String, String> = adapter
            .modules
            .keys()
            .filter_map(|name| Some((name.clone(), header.module_hashes.get(name)?.clone())))
            .collect();
        let aligned_sketch = |module: &str| Ok(self.sketches(module)?.map(|pair| pair.aligned));
        ensure_valid!(
            recorded.base_weights == combined_hash(&hashes) || recorded.is_quantised_form(adapter, aligned_sketch)?,
            "the adapter in {} (for {base}) was trained on other weights than the aligned model of the direction \
             ({aligned}); compute the direction of its own base with `asft direction`",
            dir.display()
        );
        let together = self.likeness(&recorded)?;
        let place = together.towards_unaligned();
        // Shortened sketches of few modules tell little where V is small.
        ensure_valid!(
            place - 2.0 * together.uncertainty() <= 0.5,
            "the adapter in {} (for {base}) was trained on quantised weights that are {:.0} % of the way from the aligned model of \
             the direction ({aligned}) to the unaligned one: they are the latter's",
            dir.display(),
            100.0 * place
        );
        Ok(())
    }

    /// How the quantised weights that an adapter was trained on, if it was, lie to both sides, all together.
    fn likeness(&self, recorded: &BaseIdentity) -> Result<Likeness> {
        let mut together = Likeness::default();
        for (module, weight) in &recorded.quantised {
            if let Some(pair) = self.sketches(module)? {
                let pair = Pair { aligned: shortened(&pair.aligned), unaligned: shortened(&pair.unaligned) };
                together = together.with(Likeness::of(&weight.sketch, &pair));
            }
        }
        Ok(together)
    }
}
