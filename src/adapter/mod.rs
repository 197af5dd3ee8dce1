//! LoRA adapters: in memory, as PEFT folders, and merged into their base.

mod base;
mod card;
mod config;
mod fold;
mod gguf;
mod gguf_model;
mod identity;
mod merge;
mod options;
mod patterns;
mod peft;
mod reach;
mod stored_targets;
mod targets;

pub use base::Base;
pub use card::{model_card, projected_card};
pub use config::PeftConfig;
pub use gguf::save_gguf;
pub use gguf_model::{Parts, save_merged_gguf};
pub use identity::BaseIdentity;
pub use merge::merge;
pub use options::{FileFormat, LoraOptions, ModelFile};
pub use peft::CONFIG as ADAPTER_CONFIG;
pub use peft::{WEIGHTS, content_hash, load, load_among, load_for, save, save_changed, stored_name, write_into};
pub use targets::ModuleSize;

use crate::error::listing;
use crate::model::{Lora, ModelSpec, Parameters};
use crate::names::{EMBEDDING, HEAD, LAYER_EMBEDDING, LAYER_PROJECTION, LoraMatrix, Naming, split_block};
use crate::ops::owned;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// One module's matrices and their scaling.
#[derive(Clone, Debug)]
pub struct AdapterModule {
    /// A: [r, d_in], f32
    pub a: Tensor,
    /// B: [d_out, r], f32
    pub b: Tensor,
    pub alpha: f64,
}

/// A LoRA adapter: its modules by path (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, Debug)]
pub struct Adapter {
    pub modules: BTreeMap<String, AdapterModule>,
    pub use_rslora: bool,
    pub dropout: f64,
    /// What `base_model_name_or_path` says.
    pub base: Option<String>,
    /// Hub revision of the base.
    pub revision: Option<String>,
    /// For which class its names are written; in memory they are the text model's own.
    pub layout: Naming,
}

impl AdapterModule {
    /// r
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

impl Adapter {
    /// lora_alpha / r, or lora_alpha / √r for rsLoRA.
    pub fn scale(&self, module: &AdapterModule) -> f64 {
        let rank = module.rank() as f64;
        module.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// What other readers of PEFT adapters would get wrong about it, if anything.
    pub fn portability(&self) -> Option<String> {
        let found: Vec<String> = self.misread_patterns().into_iter().chain(self.misread_scale()).collect();
        let advice = if found.len() > 1 { "for those" } else { "there" };
        (!found.is_empty()).then(|| format!("{}; {advice} use the merged model (asft merge)", found.join("; ")))
    }

    /// Several ranks or alphas, for readers that know one.
    fn misread_patterns(&self) -> Option<String> {
        let differ = |of: &dyn Fn(&AdapterModule) -> f64| {
            let mut values = self.modules.values().map(of);
            values.next().is_some_and(|first| values.any(|value| value != first))
        };
        let (scales, alphas) = (differ(&|module| self.scale(module)), differ(&|module| module.alpha));
        let readers = match (scales, alphas) {
            (true, true) => "vLLM (one scale, lora_alpha / r, for all) and llama.cpp (one lora_alpha)",
            (true, false) => "vLLM (one scale, lora_alpha / r, for all)",
            (false, true) => "llama.cpp (one lora_alpha for all)",
            (false, false) => return None,
        };
        Some(format!("the adapter's modules have different ranks or alphas, which {readers} does not read right"))
    }

    /// A scale other than alpha / r, for readers that know only that.
    fn misread_scale(&self) -> Option<String> {
        let differs = self.use_rslora && self.modules.values().any(|module| module.rank() > 1);
        let text = "the adapter has rsLoRA's scale (lora_alpha / sqrt(r)), which llama.cpp takes for lora_alpha / r";
        differs.then(|| text.to_string())
    }

    /// Checks that every module is a linear layer of the model and has its shape.
    ///
    /// # Errors
    /// What the adapter was made for, the first module that differs, and how many do.
    pub fn check_fits(&self, spec: &ModelSpec) -> Result<()> {
        self.refuse_unserved(spec)?;
        let (mut problems, modules) = (vec![], self.modules.len());
        for (name, module) in &self.modules {
            let (a, b) = (module.a.dims(), module.b.dims());
            match module_shape(spec, name) {
                None => problems.push(format!("this model has no {name}")),
                Some((d_out, d_in)) if a[1] != d_in || b[0] != d_out || a[0] != b[1] => {
                    let (rows, columns) = (b[0], a[1]);
                    problems.push(format!("its {name} is [{rows}, {columns}], this model's [{d_out}, {d_in}]"))
                }
                Some(_) => {}
            }
        }
        let Some(first) = problems.first() else { return Ok(()) };
        let base = self.base.as_deref().unwrap_or("another model, which it does not name");
        let count = problems.len();
        Err(invalid!(
            "the adapter was made for {base}, not for this model: {first} ({count} of its {modules} modules differ)"
        ))
    }

    /// Modules that the model has and that take no adapter here.
    fn refuse_unserved(&self, spec: &ModelSpec) -> Result<()> {
        let of_experts = |module: &str| {
            let (layer, part) = split_block(module)?;
            spec.mixture_matrices(layer).iter().any(|matrix| matrix == part).then_some(())
        };
        let outer = outer_modules(spec);
        let unserved = |module: &&String| outer.contains(module) || of_experts(module).is_some();
        let unserved: Vec<String> = self.modules.keys().filter(unserved).cloned().collect();
        ensure_valid!(
            unserved.is_empty(),
            "the adapter has matrices for {}; asft serves adapters of the blocks' linears only, experts and routers excepted",
            listing(&unserved, 8)
        );
        Ok(())
    }

    /// The same with A and B on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let mut adapter = self.clone();
        for module in adapter.modules.values_mut() {
            (module.a, module.b) = (module.a.to_device(device)?, module.b.to_device(device)?);
        }
        Ok(adapter)
    }

    /// The adapter in the form that the decoder attaches: views by module, and variables by name over the same storage.
    pub fn trainable(&self) -> Result<(BTreeMap<String, Lora>, Parameters)> {
        let (mut loras, mut parameters) = (BTreeMap::new(), Parameters::new());
        for (name, module) in &self.modules {
            let (a, b) = (Var::from_tensor(&module.a)?, Var::from_tensor(&module.b)?);
            let lora = Lora {
                a: a.as_detached_tensor(),
                b: b.as_detached_tensor(),
                scale: self.scale(module),
                dropout: self.dropout,
            };
            loras.insert(name.clone(), lora);
            parameters.insert(LoraMatrix::A.name(name), a);
            parameters.insert(LoraMatrix::B.name(name), b);
        }
        Ok((loras, parameters))
    }

    /// A copy with the trained values of `parameters`.
    pub fn with_values(&self, parameters: &Parameters) -> Result<Self> {
        let mut adapter = self.clone();
        for (name, module) in &mut adapter.modules {
            for (matrix, tensor) in [(LoraMatrix::A, &mut module.a), (LoraMatrix::B, &mut module.b)] {
                let key = matrix.name(name);
                let var = parameters.get(&key).ok_or_else(|| anyhow::anyhow!("{key} is not among the parameters"))?;
                *tensor = owned(var.as_tensor())?;
            }
        }
        Ok(adapter)
    }
}

/// A new adapter as PEFT initialises it: A uniform in ±1/√d_in (Kaiming, a = √5), B zero. Every matrix has its own
/// random stream, so it does not depend on which other modules are adapted.
pub fn fresh_modules(
    spec: &ModelSpec,
    sizes: &BTreeMap<String, ModuleSize>,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, AdapterModule>> {
    let mut adapters = BTreeMap::new();
    for (module, &ModuleSize { rank, alpha }) in sizes {
        let (d_out, d_in) =
            module_shape(spec, module).ok_or_else(|| invalid!("{module} is not a linear of this model's blocks"))?;
        let seed = blake3::hash(format!("{seed} {module}").as_bytes());
        let mut rng = rand_chacha::ChaCha8Rng::from_seed(*seed.as_bytes());
        let bound = 1.0 / (d_in as f32).sqrt();
        let values: Vec<f32> = (0..rank * d_in).map(|_| rng.random_range(-bound..bound)).collect();
        let a = Tensor::from_vec(values, (rank, d_in), device)?;
        let b = Tensor::zeros((d_out, rank), candle_core::DType::F32, device)?;
        adapters.insert(module.clone(), AdapterModule { a, b, alpha: alpha as f64 });
    }
    Ok(adapters)
}

/// Modules outside of the blocks that PEFT can adapt and asft does not.
fn outer_modules(spec: &ModelSpec) -> Vec<String> {
    let of_inputs = [LAYER_EMBEDDING, LAYER_PROJECTION].into_iter().filter(|_| spec.layer_inputs.is_some());
    let names = [EMBEDDING, HEAD].into_iter().chain(of_inputs);
    names.map(|name| name.strip_suffix(".weight").unwrap_or(name).to_string()).collect()
}

/// (d_out, d_in) of a block linear by its full module path.
pub fn module_shape(spec: &ModelSpec, module: &str) -> Option<(usize, usize)> {
    let (layer, linear) = split_block(module)?;
    let exists = layer < spec.num_hidden_layers && spec.block_linears(layer).any(|known| known == linear);
    exists.then(|| spec.linear_shape(layer, linear))?
}
