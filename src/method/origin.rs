//! Whether a direction was computed from the given weights: those of a checkpoint, or those under an adapter.

use super::direction_file::Directions;
use crate::adapter::{Adapter, BaseIdentity};
use crate::checkpoint::{Checkpoint, combined_hash, weights_hash};
use crate::console::log;
use crate::ensure_valid;
use crate::error::listing;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

impl Directions {
    /// Checks that the file belongs to these modules, given with (d_out, d_in), of this aligned checkpoint; without one,
    /// only that it has them in their shapes.
    ///
    /// # Errors
    /// One error that lists every module that is missing, has another shape, or comes from other weights.
    pub fn check_against(&self, modules: &[(String, (usize, usize))], aligned: Option<&Checkpoint>) -> Result<()> {
        let mut problems = vec![];
        for (module, (d_out, d_in)) in modules {
            match self.shape(module) {
                None => problems.push(format!("{module}: not in the file")),
                Some((rows, columns, _)) if (rows, columns) != (*d_out, *d_in) => problems
                    .push(format!("{module}: the file has V of shape [{rows}, {columns}], expected [{d_out}, {d_in}]")),
                Some(_) => {
                    let Some(aligned) = aligned else { continue };
                    let hash = weights_hash(aligned, std::slice::from_ref(module))?.remove(module);
                    if self.header().module_hashes.get(module) != hash.as_ref() {
                        problems.push(format!("{module}: computed from other aligned weights"));
                    }
                }
            }
        }
        ensure_valid!(
            problems.is_empty(),
            "direction file {} (aligned: {}) does not fit this model; compute it again with `asft direction`:\n  {}",
            self.path().display(),
            self.header().aligned.id,
            problems.join("\n  ")
        );
        Ok(())
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
        ensure_valid!(
            recorded.base_weights == combined_hash(&hashes),
            "the adapter in {} (for {base}) was trained on other weights than the aligned model of the direction \
             ({aligned}); compute the direction of its own base with `asft direction`",
            dir.display()
        );
        Ok(())
    }
}
