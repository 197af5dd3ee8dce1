//! `asft landscape`: the losses of models moved along and across V.

use super::*;
use crate::support::files::{copy_files, read_json};
use crate::support::tensors::norm;
use asft::checkpoint::{Checkpoint, save_tensors};
use candle_core::{DType, Device};

fn eval(model: &Path) -> f64 {
    let eval = ["eval", "--json", "--data", "tests/tiny/train.jsonl", "--model", text(model)];
    evaluation(asft(&eval))["loss"].as_f64().unwrap()
}

/// The tiny model moved by `alpha` of each weight's norm along V, by hand.
fn moved_along_v(alpha: f64, out: &Path) {
    let open = |side: &str| Checkpoint::open(&tiny(side)).unwrap();
    let (aligned, unaligned) = (open("aligned"), open("unaligned"));
    let mut tensors = BTreeMap::new();
    for name in aligned.names() {
        let weight = aligned.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let moves = name.ends_with("q_proj.weight") || name.ends_with("v_proj.weight");
        let weight = if moves {
            let v = (&weight - unaligned.tensor(name, DType::F32, &Device::Cpu).unwrap()).unwrap();
            (&weight + (&v * (alpha * norm(&weight) / norm(&v))).unwrap()).unwrap()
        } else {
            weight
        };
        tensors.insert(name.to_string(), weight);
    }
    copy_files(&tiny("aligned"), out);
    save_tensors(&out.join("model.safetensors"), &tensors).unwrap();
}

/// The tiny aligned model with the unaligned one's block linears.
fn unaligned_linears(out: &Path) -> PathBuf {
    moved_along_v(0.0, out);
    let open = |side: &str| Checkpoint::open(&tiny(side)).unwrap();
    let (aligned, unaligned) = (open("aligned"), open("unaligned"));
    let pick = |name: &str| if name.contains("_proj.") { &unaligned } else { &aligned };
    let tensor = |name: &str| (name.to_string(), pick(name).tensor(name, DType::F32, &Device::Cpu).unwrap());
    save_tensors(&out.join("model.safetensors"), &aligned.names().map(tensor).collect()).unwrap();
    out.to_path_buf()
}

#[test]
fn a_landscape_is_what_moved_models_measure() {
    let (scratch, direction) = tiny_direction();
    let landscape = |name: &str, seed: &str| -> String {
        let out = scratch.path().join(name);
        let model = ["landscape", "--model", "tests/tiny/aligned", "--direction", text(&direction)];
        let plan = ["--points", "3", "--grid", "3", "--repeats", "2", "--seed", seed, "--out", text(&out)];
        succeeds(asft(&model).args(["--data", "toy=tests/tiny/train.jsonl"]).args(plan));
        for picture in ["curves", "grid"] {
            let svg = std::fs::read_to_string(out.join(format!("{picture}.svg"))).unwrap();
            assert!(
                svg.starts_with("<svg") && svg.contains("toy") && svg.contains("nats per label token"),
                "{picture}"
            );
            let png = std::fs::read(out.join(format!("{picture}.png"))).unwrap();
            assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{picture}");
        }
        std::fs::read_to_string(out.join("landscape.json")).unwrap()
    };
    let text = landscape("a", "1");
    assert_eq!(text, landscape("b", "1"), "one seed, one landscape");
    assert_ne!(text, landscape("c", "2"));
    let record: Value = serde_json::from_str(&text).unwrap();
    let found = &record["landscape"];
    assert_eq!(found["steps"], serde_json::json!([-0.5, 0.0, 0.5]));
    let curves = found["curves"].as_array().unwrap();
    assert_eq!(curves.iter().filter(|curve| curve["axis"] == "orthogonal").count(), 2);
    let along = &curves[0];
    assert_eq!(along["axis"], "aligned");
    near("the model itself", &along["values"][0][1], eval(&tiny("aligned")));
    for (i, alpha) in [(0, -0.5), (2, 0.5)] {
        let model = scratch.path().join(format!("moved-{i}"));
        moved_along_v(alpha, &model);
        near("moved along V", &along["values"][0][i], eval(&model));
        // The grid's middle row is that curve.
        assert_eq!(found["grid"]["values"][0][1][i], along["values"][0][i]);
    }
    // In norms of V, the unaligned model is at -1, and nothing of the tiny pair differs but what the direction holds.
    let out = scratch.path().join("d");
    let model =
        ["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--unit", "direction"];
    let plan = ["--range", "1", "--points", "3", "--grid", "0", "--repeats", "1"];
    let (_scratch, whole) = with_direction(&tiny("aligned"), &tiny("unaligned"), "all-linear");
    succeeds(asft(&model).args(plan).arg("--direction").arg(&whole).arg("--out").arg(&out));
    let record = read_json(&out.join("landscape.json"));
    assert_eq!(record["unaligned_at"]["farthest"], -1.0);
    let expected = eval(&unaligned_linears(&scratch.path().join("unaligned")));
    near("the unaligned model", &record["landscape"]["curves"][0]["values"][0][0], expected);
}
