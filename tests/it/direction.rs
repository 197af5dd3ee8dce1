//! `asft direction` from checkpoints on disk to a validated direction file.

use crate::support::direction::request;
use crate::support::tensors::norm;
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::error::exit_code;
use asft::method::direction::{DirectionRequest, check, compute};
use asft::method::direction_file::Directions;
use asft::method::spectral::Keep;
use asft::method::summary::Summary;
use asft::names::Targets;
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::BTreeMap;
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;

const SHAPES: [(&str, usize, usize); 3] =
    [("self_attn.q_proj", 48, 32), ("self_attn.v_proj", 16, 32), ("mlp.up_proj", 80, 32)];

/// Two layers, an embedding and a bias: weights that f16 and bf16 hold exactly.
fn model(seed: u64) -> Tensors {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut tensor = |shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| random.random_range(-64i32..64) as f32 / 256.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let mut tensors = Tensors::from([("model.embed_tokens.weight".to_string(), tensor(&[10, 32]))]);
    for layer in 0..2 {
        for (name, d_out, d_in) in SHAPES {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor(&[d_out, d_in]));
        }
        tensors.insert(format!("model.layers.{layer}.self_attn.q_proj.bias"), tensor(&[48]));
    }
    tensors
}

fn save(tensors: &Tensors, dtype: DType) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let cast = tensors.iter().map(|(name, x)| (name.clone(), x.to_dtype(dtype).unwrap())).collect();
    save_tensors(&dir.path().join("model.safetensors"), &cast).unwrap();
    dir
}

fn save_sharded(tensors: &Tensors) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for (i, (name, x)) in tensors.iter().enumerate() {
        let file = format!("model-{i}.safetensors");
        save_tensors(&dir.path().join(&file), &Tensors::from([(name.clone(), x.clone())])).unwrap();
        map.insert(name.clone(), json!(file));
    }
    std::fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    dir
}

fn run(request: &DirectionRequest) -> anyhow::Result<Summary> {
    compute(request, &ProgressBar::hidden())
}

#[test]
fn every_storage_gives_the_same_file() {
    let (aligned, unaligned) = (model(1), model(2));
    let base = save(&unaligned, DType::F32);
    let folders =
        [save(&aligned, DType::F32), save(&aligned, DType::F16), save(&aligned, DType::BF16), save_sharded(&aligned)];
    let out = tempfile::tempdir().unwrap();
    let files: Vec<Directions> = folders
        .iter()
        .enumerate()
        .map(|(i, folder)| {
            let path = out.path().join(format!("{i}.safetensors"));
            run(&request(folder.path(), base.path(), path.clone())).unwrap();
            Directions::open(&path).unwrap()
        })
        .collect();
    for file in &files {
        assert_eq!(file.modules().len(), 4);
        assert_eq!(file.modules()[0], "model.layers.0.self_attn.q_proj");
        assert_eq!(file.header().module_hashes, files[0].header().module_hashes);
        assert_eq!(file.header().aligned.hash, files[0].header().aligned.hash);
        for module in file.modules() {
            let (a, b) = (file.read(module).unwrap(), files[0].read(module).unwrap());
            let same = |x: &Tensor, y: &Tensor| x.to_vec2::<f32>().unwrap() == y.to_vec2::<f32>().unwrap();
            assert!(same(&a.basis, &b.basis), "{module}");
            assert_eq!(a.right().unwrap().dims()[0], 32);
        }
    }
}

#[test]
fn the_factors_are_those_of_the_difference() {
    let (aligned, unaligned) = (model(1), model(2));
    let (a, u) = (save(&aligned, DType::F32), save(&unaligned, DType::F32));
    let out = tempfile::tempdir().unwrap();
    let mut request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    request.targets = Targets::AllLinear;
    request.keep = Keep::Tolerance(0.0);
    let summary = run(&request).unwrap();
    assert_eq!(summary.modules.len(), 6);
    let file = Directions::open(&request.out).unwrap();
    for module in file.modules() {
        let name = format!("{module}.weight");
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let v = (wide(&aligned[&name]) - wide(&unaligned[&name])).unwrap();
        let c = (v.matmul(&v.t().unwrap()).unwrap() / norm(&v)).unwrap();
        let direction = file.read(module).unwrap();
        let basis = wide(&direction.basis);
        let c_k = Tensor::new(direction.eigenvalues, &Device::Cpu).unwrap();
        let scaled = basis.broadcast_mul(&wide(&c_k)).unwrap();
        let rest = (&c - scaled.matmul(&basis.t().unwrap()).unwrap()).unwrap();
        assert!(norm(&rest) <= 1e-5 * norm(&c), "{module}");
        assert!(f64::from(direction.residual) <= 1e-4 * norm(&c), "{module}");
    }
}

#[test]
fn the_same_pair_gives_the_same_bytes() {
    let (a, u) = (save(&model(1), DType::F32), save(&model(2), DType::F32));
    let out = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = out.path().join(name);
        run(&request(a.path(), u.path(), path.clone())).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("one"), bytes("two"));
}

#[test]
fn equal_weights_are_reported_and_kept_without_directions() {
    let aligned = model(1);
    let mut unaligned = model(2);
    let name = "model.layers.1.self_attn.q_proj.weight";
    unaligned.insert(name.into(), aligned[name].clone());
    let (a, u) = (save(&aligned, DType::F32), save(&unaligned, DType::F32));
    let out = tempfile::tempdir().unwrap();
    let request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    let summary = run(&request).unwrap();
    assert!(summary.to_string().contains("V = 0 in model.layers.1.self_attn.q_proj"), "{summary}");
    let file = Directions::open(&request.out).unwrap();
    assert_eq!(file.shape("model.layers.1.self_attn.q_proj"), Some((48, 32, 0)));
    assert_eq!(file.v_norm("model.layers.1.self_attn.q_proj").unwrap(), 0.0);
}

#[test]
fn equal_models_have_no_direction() {
    let (a, u) = (save(&model(1), DType::F32), save_sharded(&model(1)));
    let out = tempfile::tempdir().unwrap();
    let mut request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    let texts = [run(&request).unwrap_err(), check(&request).unwrap_err()].map(|error| {
        assert_eq!(exit_code(&error), 2);
        error.to_string()
    });
    let needles =
        ["equal to the aligned model", a.path().to_str().unwrap(), u.path().to_str().unwrap(), "all 4 targeted"];
    for (text, needle) in texts.iter().flat_map(|text| needles.map(|needle| (text, needle))) {
        assert!(text.contains(needle), "no `{needle}` in {text}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    request.allow_equal = true;
    check(&request).unwrap();
    assert!(run(&request).unwrap().modules.iter().all(|module| module.rank == 0));
}

#[test]
fn every_mismatch_is_in_one_error() {
    let aligned = model(1);
    let mut unaligned = model(2);
    unaligned.remove("model.layers.0.self_attn.q_proj.weight");
    let other = Tensor::zeros((16, 31), DType::F32, &Device::Cpu).unwrap();
    unaligned.insert("model.layers.1.self_attn.v_proj.weight".into(), other.clone());
    unaligned.insert("model.layers.2.self_attn.v_proj.weight".into(), other);
    let (a, u) = (save(&aligned, DType::F32), save(&unaligned, DType::F32));
    let out = tempfile::tempdir().unwrap();
    let mut request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    let error = run(&request).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = error.to_string();
    for part in [
        "layers.0.self_attn.q_proj: not in the unaligned",
        "layers.1.self_attn.v_proj: aligned [16, 32], unaligned [16, 31]",
        "layers.2.self_attn.v_proj: not in the aligned",
        "--allow-missing",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    request.allow_missing = true;
    let summary = run(&request).unwrap();
    assert_eq!((summary.modules.len(), summary.skipped.len()), (2, 3));
    assert_eq!(Directions::open(&request.out).unwrap().modules().len(), 2);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut aligned = model(1);
    let name = "model.layers.1.self_attn.v_proj.weight";
    let broken = (&aligned[name] / 0.0).unwrap();
    aligned.insert(name.into(), broken);
    let (a, u) = (save(&aligned, DType::F32), save(&model(2), DType::F32));
    let out = tempfile::tempdir().unwrap();
    let error = run(&request(a.path(), u.path(), out.path().join("d.safetensors"))).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = format!("{error:#}");
    assert!(text.contains(name) && text.contains("aligned"), "{text}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_file_for_other_weights_is_refused_with_every_reason() {
    let (a, u) = (save(&model(1), DType::F32), save(&model(2), DType::F32));
    let out = tempfile::tempdir().unwrap();
    let request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    run(&request).unwrap();
    let file = Directions::open(&request.out).unwrap();
    let module = |layer: usize, name: &str, shape| (format!("model.layers.{layer}.{name}"), shape);
    let aligned = Checkpoint::open(a.path()).unwrap();
    let half = save(&model(1), DType::BF16);
    file.check_against(&[module(0, "self_attn.v_proj", (16, 32))], Some(&aligned)).unwrap();
    file.check_against(&[module(1, "self_attn.q_proj", (48, 32))], Some(&Checkpoint::open(half.path()).unwrap()))
        .unwrap();
    let other = Checkpoint::open(u.path()).unwrap();
    let wanted = [
        module(0, "self_attn.q_proj", (48, 33)),
        module(1, "self_attn.q_proj", (48, 32)),
        module(0, "mlp.up_proj", (80, 32)),
    ];
    let error = file.check_against(&wanted, Some(&other)).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = error.to_string();
    for part in ["[48, 32], expected [48, 33]", "other aligned weights", "mlp.up_proj: not in the file"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn damaged_files_are_refused() {
    let (a, u) = (save(&model(1), DType::F32), save(&model(2), DType::F32));
    let out = tempfile::tempdir().unwrap();
    let request = request(a.path(), u.path(), out.path().join("d.safetensors"));
    run(&request).unwrap();
    let metadata = Checkpoint::open_file(&request.out).unwrap().metadata().clone();
    let tensors = candle_core::safetensors::load(&request.out, &Device::Cpu).unwrap();
    const KEY: &str = "model.layers.0.self_attn.v_proj";
    type Damage = Box<dyn Fn(&mut BTreeMap<String, Tensor>)>;
    let damage: [(&str, Damage); 5] = [
        ("non-finite", Box::new(|t| replace(t, &format!("{KEY}.basis"), |x| x / 0.0))),
        ("unit length", Box::new(|t| replace(t, &format!("{KEY}.basis"), |x| x * 2.0))),
        ("descending", Box::new(|t| replace(t, &format!("{KEY}.eigenvalues"), |x| x.neg()))),
        ("no tensor `right_basis`", Box::new(|t| drop(t.remove(&format!("{KEY}.right_basis"))))),
        ("expected [1]", Box::new(|t| replace(t, &format!("{KEY}.residual"), |x| Tensor::cat(&[x, x], 0)))),
    ];
    for (message, damage) in damage {
        let mut tensors: BTreeMap<String, Tensor> = tensors.clone().into_iter().collect();
        damage(&mut tensors);
        let path = out.path().join("broken.safetensors");
        let bytes = safetensors::serialize(tensors.iter(), Some(metadata.clone())).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = Directions::open(&path).err().expect("a damaged file must be refused");
        assert_eq!(exit_code(&error), 2);
        let text = error.to_string();
        assert!(text.contains(message) && text.contains(KEY), "{message}: {text}");
    }
    let error = Directions::open(&a.path().join("model.safetensors")).err().unwrap();
    assert!(error.to_string().contains("not a direction file"), "{error}");
}

fn replace(tensors: &mut BTreeMap<String, Tensor>, name: &str, with: impl Fn(&Tensor) -> candle_core::Result<Tensor>) {
    let new = with(&tensors[name]).unwrap();
    tensors.insert(name.to_string(), new);
}
