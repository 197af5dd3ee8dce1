//! An adapter whose scale is folded into its matrices, for readers that know one rank and one lora_alpha, or take rsLoRA's
//! scale for lora_alpha / r.

use super::{Adapter, AdapterModule};
use anyhow::Result;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

impl Adapter {
    /// The same updates with lora_alpha = r for every module, so that each scale is 1: B ← s B. Modules of lower rank than
    /// r, the largest, get zeros: A [r', d_in] → [r, d_in], B [d_out, r'] → [d_out, r].
    pub fn folded(&self) -> Result<Self> {
        let rank = self.modules.values().map(AdapterModule::rank).max().unwrap_or(1);
        let mut modules = BTreeMap::new();
        for (name, module) in &self.modules {
            let missing = rank - module.rank();
            let (mut a, mut b) = (module.a.clone(), (&module.b * self.scale(module))?);
            if missing > 0 {
                let (rows, columns) = ((missing, a.dims2()?.1), (b.dims2()?.0, missing));
                a = Tensor::cat(&[&a, &Tensor::zeros(rows, DType::F32, a.device())?], 0)?;
                b = Tensor::cat(&[&b, &Tensor::zeros(columns, DType::F32, b.device())?], 1)?;
            }
            modules.insert(name.clone(), AdapterModule { a, b, alpha: rank as f64 });
        }
        Ok(Self { modules, use_rslora: false, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Naming;
    use candle_core::Device;

    #[test]
    fn the_updates_stay_and_every_scale_is_one() {
        let random = |shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let module = |rank, alpha| AdapterModule { a: random((rank, 5)), b: random((7, rank)), alpha };
        let modules = [("q_proj".to_string(), module(4, 16.0)), ("v_proj".to_string(), module(2, 6.0))].into();
        let adapter =
            Adapter { modules, use_rslora: true, dropout: 0.0, base: None, revision: None, layout: Naming::Text };
        let folded = adapter.folded().unwrap();
        assert!(adapter.portability().is_some() && folded.portability().is_none());
        for (name, module) in &adapter.modules {
            let update = |adapter: &Adapter, module: &AdapterModule| {
                let update = (module.b.matmul(&module.a).unwrap() * adapter.scale(module)).unwrap();
                update.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let other = &folded.modules[name];
            assert_eq!((other.rank(), other.alpha, folded.scale(other)), (4, 4.0, 1.0));
            let pairs = update(&adapter, module).into_iter().zip(update(&folded, other));
            assert!(pairs.into_iter().all(|(x, y)| (x - y).abs() <= 1e-5 * x.abs().max(1.0)), "{name}");
        }
    }
}
