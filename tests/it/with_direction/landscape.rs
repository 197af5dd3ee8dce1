//! `asft landscape`: the losses of models moved along and across V.

use super::*;
use crate::support::command::{refused, stdout};
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

/// The tiny aligned model with those weights of the unaligned one whose names hold one of `parts`.
fn with_unaligned(parts: &[&str], out: &Path) -> PathBuf {
    moved_along_v(0.0, out);
    let open = |side: &str| Checkpoint::open(&tiny(side)).unwrap();
    let (aligned, unaligned) = (open("aligned"), open("unaligned"));
    let pick = |name: &str| if parts.iter().any(|part| name.contains(part)) { &unaligned } else { &aligned };
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
    let expected = eval(&with_unaligned(&["_proj."], &scratch.path().join("unaligned")));
    near("the unaligned model", &record["landscape"]["curves"][0]["values"][0][0], expected);
}

/// A copy that was tuned on q and v alone and directions of all linear layers: where the copy does not differ from the model, it
/// is not reached at 0.
#[test]
fn only_modules_that_differ_say_where_a_model_is_reached() {
    let (scratch, direction) = with_direction(&tiny("aligned"), &tiny("unaligned"), "all-linear");
    let copy = with_unaligned(&["q_proj.", "v_proj."], &scratch.path().join("copy"));
    let (_all, sparse) = with_direction(&tiny("aligned"), &copy, "all-linear");
    let (_two, few) = with_direction(&tiny("aligned"), &copy, "q_proj,v_proj");
    let reached = |name: &str, direction: &Path, harm: &Path| -> Value {
        let out = scratch.path().join(name);
        let mut command = asft(&["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"]);
        command.args(["--unit", "weight", "--limit", "1", "--points", "3", "--grid", "0", "--repeats", "1"]);
        succeeds(command.arg("--direction").arg(direction).arg("--harm").arg(harm).arg("--out").arg(&out));
        read_json(&out.join("landscape.json"))["harm_at"].clone()
    };
    let found = reached("sparse", &direction, &sparse);
    assert!(found["nearest"].as_f64().unwrap() > 0.0 && found["median"].as_f64().unwrap() > 0.0, "{found}");
    assert_eq!(found, reached("few", &few, &few));
}

/// With the unaligned model as the harmful copy, moving towards harm is moving against V.
#[test]
fn the_harmful_copy_lies_on_its_axis_and_lengths_are_printed() {
    let (scratch, direction) = with_direction(&tiny("aligned"), &tiny("unaligned"), "all-linear");
    let (suite, out) = (scratch.path().join("suite.toml"), scratch.path().join("plane"));
    let harm =
        "[[eval]]\nname = 'harm'\ndata = 'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = 4\nmax_new_tokens = 3\n";
    std::fs::write(&suite, format!("{harm}[[eval]]\nname = 'loss'\ndata = 'tests/tiny/train.jsonl'\n")).unwrap();
    let mut command = asft(&["landscape", "--model", "tests/tiny/aligned", "--unit", "direction", "--range", "1"]);
    command.args(["--points", "3", "--grid", "3", "--repeats", "1"]).arg("--out").arg(&out).arg("--suite").arg(&suite);
    let table = stdout(command.arg("--direction").arg(&direction).arg("--harm").arg(&direction));
    for row in ["expected protected length", "against V", "along V", "towards harm", "orthogonal to V", "random"] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row}: {table}");
    }
    let record = read_json(&out.join("landscape.json"));
    assert!((record["harm_cosine"].as_f64().unwrap() + 1.0).abs() < 1e-5, "{record}");
    assert_eq!((&record["harm_at"]["nearest"], &record["harm_at"]["farthest"]), (&1.0.into(), &1.0.into()));
    let curves = &record["landscape"]["curves"];
    assert_eq!((&curves[0]["axis"], &curves[1]["axis"]), (&"aligned".into(), &"harm".into()));
    let loss =
        |curve: usize, step: usize| curves[curve]["values"].as_array().unwrap().last().unwrap()[step].as_f64().unwrap();
    assert!((loss(0, 0) - loss(1, 2)).abs() < 1e-6 && (loss(0, 2) - loss(1, 0)).abs() < 1e-6, "{curves}");
    // The plane's vertical axis is harm's: at right angles to nothing here, its corners cancel or double.
    assert_eq!(record["landscape"]["grid"]["y"]["axis"], "harm");
    let plane = record["landscape"]["grid"]["values"].as_array().unwrap().last().unwrap();
    assert!((plane[2][2].as_f64().unwrap() - loss(0, 1)).abs() < 1e-6, "{plane}");
    // Of harm alone there is a length, between 0 and the range; this model answers at once.
    let protected = curves[0]["protected"].as_array().unwrap();
    assert!(protected[0].is_object() && protected.last().unwrap().is_null(), "{curves}");
    assert_eq!(protected[0]["negative"]["length"], 0.0);
    let svg = std::fs::read_to_string(out.join("grid.svg")).unwrap();
    assert!(svg.contains("their cosine is -1.000") && svg.contains("towards harm"), "{svg}");
    assert!(
        std::fs::read_to_string(out.join("curves.svg")).unwrap().contains("expected protected length: against V 0.000")
    );
    // Another file's modules are no axis of this one's.
    let (_other, few) = tiny_direction();
    let mut command =
        asft(&["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--out"]);
    command.arg(scratch.path().join("no")).arg("--direction").arg(&direction).arg("--harm").arg(&few);
    refused(&mut command, &["lacks modules that", "k_proj", "--target-modules"]);
}
