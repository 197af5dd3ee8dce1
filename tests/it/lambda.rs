//! λ found in training, so that the penalised share of the updates stays under a bound.

use crate::support::command::{refused_unwritten, succeeds, train};
use crate::support::files::tiny;
use crate::support::runs::{WEIGHTS, interrupt, metrics, same_file, same_run, timeless};
use crate::support::tensors::norm;
use asft::adapter;
use asft::checkpoint::Checkpoint;
use asft::method::direction_file::Directions;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// √(Σ ‖(I − C) ΔW‖² / Σ ‖W‖²) of a run's adapter, with every matrix formed.
fn penalised_share(dir: &Path) -> f64 {
    let adapter = adapter::load(&dir.join("adapter"), &Device::Cpu).unwrap();
    let directions = Directions::open(&dir.join("direction.safetensors")).unwrap();
    let base = Checkpoint::open(&tiny("aligned")).unwrap();
    let (mut orthogonal, mut weights) = (0.0, 0.0);
    for (name, module) in &adapter.modules {
        let direction = directions.read_without_right(name).unwrap();
        let (basis, eigenvalues) = (&direction.basis, Tensor::new(direction.eigenvalues, &Device::Cpu).unwrap());
        let c = basis.broadcast_mul(&eigenvalues).unwrap().matmul(&basis.t().unwrap()).unwrap();
        let update = (module.b.matmul(&module.a).unwrap() * adapter.scale(module)).unwrap();
        orthogonal += norm(&(&update - c.matmul(&update).unwrap()).unwrap()).powi(2);
        let weight = base.tensor(&format!("{name}.weight"), DType::F32, &Device::Cpu).unwrap();
        weights += norm(&weight).powi(2);
    }
    (orthogonal / weights).sqrt()
}

#[test]
fn lambda_is_found_so_that_the_share_stays_under_its_bound() {
    let scratch = tempfile::tempdir().unwrap();
    let free = scratch.path().join("free");
    succeeds(train(&free, &["asft.lambda=1e-6"], &[]));
    assert!(penalised_share(&free) > 0.3, "{}", penalised_share(&free));
    for (limit, scaled) in [(0.2, false), (0.05, true), (0.02, false)] {
        let dir = scratch.path().join(limit.to_string());
        let sets = ["asft.lambda=auto", &format!("asft.max_orthogonal={limit}"), &format!("asft.scaled={scaled}")];
        succeeds(train(&dir, &sets, &[]));
        let share = penalised_share(&dir);
        assert!(share < limit && share > 0.7 * limit, "{limit}: {share}");
        let rows = metrics(&dir);
        let lambdas: Vec<f64> = rows.iter().map(|row| row["lambda"].as_f64().unwrap()).collect();
        assert!(lambdas[0] == 1.0 && lambdas.iter().all(|lambda| (1e-4..=1e4).contains(lambda)), "{lambdas:?}");
        // The last row is from before the last step, whose rate is almost zero.
        let told = rows[rows.len() - 1]["penalised_share"].as_f64().unwrap();
        assert!((told / share - 1.0).abs() < 0.01, "{told} {share}");
    }
    let none = scratch.path().join("none");
    refused_unwritten(train(&none, &["asft.lambda=auto"], &[]), &none, &["needs asft.max_orthogonal"]);
}

#[test]
fn lambda_and_modules_go_on_exactly() {
    for (method, weights) in WEIGHTS {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, parts) = (scratch.path().join("whole"), scratch.path().join("parts"));
        let method = format!("train.method={method}");
        let sets = [
            "asft.lambda=auto",
            "asft.max_orthogonal=0.05",
            "asft.penalize=orthogonal+reverse",
            "asft.projector=random",
            "asft.projector_seed=3",
            "output.log_modules_every=3",
            "output.save_every_steps=5",
            "train.max_steps=12",
            "train.learning_rate=3e-3",
            &method,
        ];
        succeeds(train(&whole, &sets, &[]));
        succeeds(train(&parts, &sets, &[]));
        interrupt(&parts, weights.split_once('/').unwrap().0, &[12]);
        succeeds(train(&parts, &sets, &["--resume"]));
        same_run(&whole, &parts, weights);
        same_file(&whole, &parts, "modules.jsonl");
        let last = timeless(&whole).pop().unwrap();
        assert!(last["lambda"].as_f64() != Some(1.0), "{last}");
    }
}
