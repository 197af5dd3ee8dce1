//! `asft inspect`: the shares of an update along and beside V.

use super::*;
use crate::support::command::stdout;
use asft::adapter;
use asft::checkpoint::{Checkpoint, save_tensors};
use candle_core::{DType, Device, Tensor};

const SHARES: [&str; 8] =
    ["norm", "aligned", "orthogonal", "subspace_aligned", "subspace_orthogonal", "cosine", "input", "signed"];

#[test]
fn the_shares_of_an_adapter_are_those_of_its_whole_matrices() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (source, svg) = (fixture("llama_gqa").join("adapter"), scratch.path().join("map.svg"));
    let adapter = ["inspect", "--adapter", text(&source), "--direction", text(&direction)];
    let report = json(asft(&adapter).args(["--json", "--sort", "signed", "--svg", text(&svg)]));
    let modules = by_module(&report);
    assert_eq!(modules.len(), 12);
    for (module, row) in modules {
        for share in SHARES {
            near(&format!("{module} {share}"), &row[share], golden.values(&format!("{module}.{share}"))[0]);
        }
    }
    let signed: Vec<f64> =
        report["modules"].as_array().unwrap().iter().map(|m| m["signed"].as_f64().unwrap()).collect();
    assert!(signed.is_sorted(), "{signed:?}");
    assert!(report["verdict"].as_str().is_some_and(|verdict| verdict.contains("V")));
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("down_proj") && svg.trim_end().ends_with("</svg>"));
    let table = stdout(asft(&adapter));
    assert!(table.lines().any(|line| line.starts_with("verdict: ")), "{table}");
}

/// `model` with every weight of the adapter moved as the golden has it.
fn tuned(model: &Path, source: &Path, out: &Path) {
    let (checkpoint, adapter) = (Checkpoint::open(model).unwrap(), adapter::load(source, &Device::Cpu).unwrap());
    let mut tensors = BTreeMap::new();
    for name in checkpoint.names() {
        let weight = checkpoint.tensor(name, DType::F64, &Device::Cpu).unwrap();
        let module = name.strip_suffix(".weight").and_then(|module| adapter.modules.get(module));
        let moved = module.map(|module| {
            let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
            let update = (wide(&module.b).matmul(&wide(&module.a)).unwrap() * adapter.scale(module)).unwrap();
            ((&weight + update).unwrap() + (&weight * 0.01).unwrap()).unwrap()
        });
        tensors.insert(name.to_string(), moved.unwrap_or(weight).to_dtype(DType::F32).unwrap());
    }
    std::fs::create_dir(out).unwrap();
    save_tensors(&out.join("model.safetensors"), &tensors).unwrap();
}

#[test]
fn the_shares_of_a_tuned_model_are_those_of_its_difference() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (base, out) = (fixture("llama_gqa").join("model"), scratch.path().join("tuned"));
    tuned(&base, &fixture("llama_gqa").join("adapter"), &out);
    let models = ["--model", text(&out), "--base", text(&base), "--direction", text(&direction)];
    let report = json(asft(&["inspect", "--json"]).args(models));
    for (module, row) in by_module(&report) {
        for share in SHARES {
            near(&format!("{module} {share}"), &row[share], golden.values(&format!("full.{module}.{share}"))[0]);
        }
    }
}
