//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use super::config::{PeftConfig, to_json};
use super::reach::Reach;
use super::{Adapter, AdapterModule, BaseIdentity, outer_modules};
use crate::checkpoint::{Checkpoint, publish, save_tensors, stage, write_atomic};
use crate::console::log;
use crate::error::{listing, path_hint};
use crate::model::ModelSpec;
use crate::names::{LoraMatrix, Naming, PEFT_PREFIX, text_name};
use crate::ops::sum::is_finite;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What older releases of PEFT wrote instead.
const PICKLED: &str = "adapter_model.bin";

/// Reads a PEFT LoRA folder; matrices become f32. The names of a multimodal class become those of its text model. Whether all
/// that the config names is there cannot be told without the base: [`load_for`], [`load_among`].
///
/// # Errors
/// Missing files, tensors without their partner or with a rank other than the config's, and whatever the config asks
/// for that asft does not support.
pub fn load(dir: &Path, device: &Device) -> Result<Adapter> {
    Ok(read(dir, device)?.0)
}

/// As [`load`], for a base with the modules `has` among others: each of them that the config names must have matrices.
///
/// # Errors
/// As [`load`]; modules without matrices, listed.
pub fn load_among(dir: &Path, has: &[String], device: &Device) -> Result<Adapter> {
    let (adapter, reach) = read(dir, device)?;
    check_whole(dir, &adapter, &reach, has)?;
    Ok(adapter)
}

/// As [`load`], for a model. What it holds in the place of keys and values that a layer sees of an earlier one is left out: older
/// transformers had linears there, which nothing read.
///
/// # Errors
/// As [`load`]; an adapter that does not fit the model; modules that the config names, and that have no matrices.
pub fn load_for(dir: &Path, spec: &ModelSpec, device: &Device) -> Result<Adapter> {
    let (mut adapter, reach) = read(dir, device)?;
    let unread = |module: &&String| spec.is_replaced(&format!("{module}.weight"));
    let unread: Vec<String> = adapter.modules.keys().filter(unread).cloned().collect();
    if !unread.is_empty() {
        let text = format!(
            "{}: the matrices of {} are left out: these layers see the keys and values of an earlier one, and do not read what is \
             in their place",
            dir.display(),
            listing(&unread, 4)
        );
        log::warn(&text, json!({"adapter": dir, "modules": unread}));
        adapter.modules.retain(|module, _| !unread.contains(module));
        ensure_valid!(!adapter.modules.is_empty(), "{} has matrices for nothing that this model reads", dir.display());
    }
    adapter.check_fits(spec)?;
    let (beyond, count) = (reach.layers_beyond(spec.num_hidden_layers), spec.num_hidden_layers);
    ensure_valid!(
        beyond.is_empty(),
        "{}: `layers_to_transform` names layer {}; the model has layers 0 to {}",
        dir.join(CONFIG).display(),
        listing(&beyond, 8),
        count.saturating_sub(1)
    );
    let has: Vec<String> = spec.linear_modules().into_iter().chain(outer_modules(spec)).collect();
    check_whole(dir, &adapter, &reach, &has)?;
    Ok(adapter)
}

fn check_whole(dir: &Path, adapter: &Adapter, reach: &Reach, has: &[String]) -> Result<()> {
    let stored = |module: &String| adapter.layout.name(module).into_owned();
    let here: BTreeSet<String> = adapter.modules.keys().map(stored).collect();
    let missing =
        reach.missing(has.iter().map(|module| adapter.layout.name(module)), |module| here.contains(module))?;
    refuse(&dir.join(WEIGHTS), &missing)
}

fn refuse(path: &Path, contradictions: &[String]) -> Result<()> {
    ensure_valid!(
        contradictions.is_empty(),
        "{} does not hold what `target_modules` in {CONFIG} says: {}",
        path.display(),
        listing(contradictions, 8)
    );
    Ok(())
}

fn read(dir: &Path, device: &Device) -> Result<(Adapter, Reach)> {
    ensure_valid!(dir.is_dir(), "adapter folder {} does not exist{}", dir.display(), path_hint(dir));
    let config = PeftConfig::load(&dir.join(CONFIG))?;
    let path = dir.join(WEIGHTS);
    ensure_valid!(
        path.is_file() || !dir.join(PICKLED).is_file(),
        "{} has {PICKLED}, which is pickled and never read, and no {WEIGHTS}: load it with PEFT and save it again \
         (PeftModel.from_pretrained(...).save_pretrained(...))",
        dir.display()
    );
    let halves = matrices(&path, device)?;
    refuse(&path, &config.reach.contradictions(halves.keys().map(String::as_str))?)?;
    let layout =
        halves.keys().map(|module| Naming::of(module)).find(|layout| *layout != Naming::Text).unwrap_or_default();
    let mut modules = BTreeMap::new();
    for (module, pair) in halves {
        let [Some(a), Some(b)] = pair else {
            return Err(invalid!("{}: {module} has only one of lora_A and lora_B", path.display()));
        };
        let rank = config.rank_of(&module);
        ensure_valid!(
            a.dims()[0] == rank && b.dims()[1] == rank,
            "{}: {module} has lora_A {:?} and lora_B {:?}, {CONFIG} says rank {rank}",
            path.display(),
            a.dims(),
            b.dims()
        );
        let alpha = config.alpha_of(&module);
        let name = text_name(&module).unwrap_or(module);
        ensure_valid!(
            modules.insert(name.clone(), AdapterModule { a, b, alpha }).is_none(),
            "{}: {name} is there twice, with the names of two classes",
            path.display()
        );
    }
    let PeftConfig { use_rslora, dropout, base, revision, reach, .. } = config;
    Ok((Adapter { modules, use_rslora, dropout, base, revision, layout }, reach))
}

/// A and B of each module, by the names in the file.
fn matrices(path: &Path, device: &Device) -> Result<BTreeMap<String, [Option<Tensor>; 2]>> {
    let file = Checkpoint::open_file(path)?;
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for name in file.names() {
        let (module, matrix) = name.strip_prefix(PEFT_PREFIX).and_then(LoraMatrix::split).ok_or_else(|| {
            invalid!(
                "{}: unexpected tensor {name}; expected {} and .lora_B.weight",
                path.display(),
                peft_name(LoraMatrix::A, "<module>")
            )
        })?;
        let tensor = file.tensor(name, DType::F32, device)?;
        ensure_valid!(tensor.rank() == 2, "{}: {name} has shape {:?}", path.display(), tensor.dims());
        ensure_valid!(is_finite(&tensor)?, "{}: {name} holds values that are not finite", path.display());
        halves.entry(module.to_string()).or_default()[matrix as usize] = Some(tensor);
    }
    ensure_valid!(!halves.is_empty(), "{} holds no adapter matrices", path.display());
    Ok(halves)
}

/// A hash of an adapter's matrices.
pub fn content_hash(dir: &Path) -> Result<String> {
    let file = Checkpoint::open_file(&dir.join(WEIGHTS))?;
    file.content_hash(file.names())
}

/// Writes the adapter as a PEFT folder with its model card and its base's identity, then reads it back and compares
/// every value.
///
/// The folder appears under its name only when it is complete.
pub fn save(adapter: &Adapter, spec: &ModelSpec, base: &Checkpoint, card: &str, dir: &Path) -> Result<()> {
    let staging = stage(dir)?;
    write_into(adapter, spec, &BaseIdentity::of(adapter, base)?, card, staging.path())?;
    verify(adapter, staging.path()).context("the adapter just written does not read back as it was")?;
    publish(staging, dir)
}

/// As [`save`], for an adapter read from `source` of which only the values were changed: its config and its base's
/// identity are kept.
pub fn save_changed(adapter: &Adapter, source: &Path, card: &str, dir: &Path) -> Result<()> {
    let staging = stage(dir)?;
    save_tensors(&staging.path().join(WEIGHTS), &tensors(adapter)?)?;
    write_atomic(&staging.path().join("README.md"), |file| Ok(file.write_all(card.as_bytes())?))?;
    for name in [CONFIG, BaseIdentity::file_name()] {
        let from = source.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            write_atomic(&staging.path().join(name), |file| Ok(file.write_all(&bytes)?))?;
        }
    }
    verify(adapter, staging.path()).context("the adapter just written does not read back as it was")?;
    publish(staging, dir)
}

/// Writes the files of a PEFT folder into an existing folder.
pub fn write_into(adapter: &Adapter, spec: &ModelSpec, identity: &BaseIdentity, card: &str, dir: &Path) -> Result<()> {
    save_tensors(&dir.join(WEIGHTS), &tensors(adapter)?)?;
    let config = serde_json::to_string_pretty(&to_json(adapter, &spec.linear_modules()))? + "\n";
    let identity = identity.to_json()?;
    for (name, text) in [(CONFIG, config.as_str()), ("README.md", card), (BaseIdentity::file_name(), &identity)] {
        write_atomic(&dir.join(name), |file| Ok(file.write_all(text.as_bytes())?))?;
    }
    Ok(())
}

/// The matrices by the names that PEFT gives them.
fn tensors(adapter: &Adapter) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, module) in &adapter.modules {
        let name = adapter.layout.name(name);
        tensors.insert(peft_name(LoraMatrix::A, &name), module.a.contiguous()?);
        tensors.insert(peft_name(LoraMatrix::B, &name), module.b.contiguous()?);
    }
    Ok(tensors)
}

/// What the file of an adapter calls the parameter `name`, such as `model.layers.0.self_attn.q_proj.lora_A.weight`: the names
/// may be those of a multimodal class.
pub fn stored_name(file: &Checkpoint, name: &str) -> String {
    let names = Naming::ALL.map(|layout| format!("{PEFT_PREFIX}{}", layout.name(name)));
    let found = names.iter().find(|name| file.info(name).is_some());
    found.unwrap_or(&names[0]).clone()
}

fn peft_name(matrix: LoraMatrix, module: &str) -> String {
    format!("{PEFT_PREFIX}{}", matrix.name(module))
}

fn verify(written: &Adapter, dir: &Path) -> Result<()> {
    let read = load(dir, &Device::Cpu)?;
    anyhow::ensure!(read.modules.keys().eq(written.modules.keys()), "other modules were written");
    anyhow::ensure!(read.use_rslora == written.use_rslora && read.base == written.base, "other settings were written");
    for (name, module) in &written.modules {
        let other = &read.modules[name];
        anyhow::ensure!(other.alpha == module.alpha, "{name}: lora_alpha is {}, was {}", other.alpha, module.alpha);
        for (a, b) in [(&module.a, &other.a), (&module.b, &other.b)] {
            let values = |t: &Tensor| t.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
            let same = values(a)?.iter().zip(&values(b)?).all(|(x, y)| x.to_bits() == y.to_bits());
            anyhow::ensure!(a.dims() == b.dims() && same, "{name}: other values were written");
        }
    }
    Ok(())
}
