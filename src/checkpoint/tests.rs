use super::*;
use crate::error::exit_code;
use serde_json::json;
use std::collections::BTreeMap;

fn folder_with(tensors: &[(&str, &[f32])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let map =
        tensors.iter().map(|(name, values)| (name.to_string(), Tensor::new(*values, &Device::Cpu).unwrap())).collect();
    save_tensors(&dir.path().join("model.safetensors"), &map).unwrap();
    dir
}

#[test]
fn reads_what_it_wrote() {
    let dir = folder_with(&[("a", &[1.0, -2.5]), ("b", &[3.0])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.read_f32("a").unwrap(), [1.0, -2.5]);
    assert_eq!(checkpoint.metadata()["format"], "pt");
}

#[test]
fn a_file_without_tensors_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.safetensors");
    save_tensors_staged(&path, &BTreeMap::new()).unwrap();
    assert_eq!(Checkpoint::open_file(&path).unwrap().names().count(), 0);
}

#[test]
fn half_types_widen_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let values = Tensor::new(&[1.5f32, -0.25, 1024.0], &Device::Cpu).unwrap();
    let map = BTreeMap::from([
        ("f16".to_string(), values.to_dtype(DType::F16).unwrap()),
        ("bf16".to_string(), values.to_dtype(DType::BF16).unwrap()),
    ]);
    let path = dir.path().join("x.safetensors");
    save_tensors(&path, &map).unwrap();
    let file = Checkpoint::open_file(&path).unwrap();
    assert_eq!(file.read_f32("f16").unwrap(), [1.5, -0.25, 1024.0]);
    assert_eq!(file.read_f32("bf16").unwrap(), [1.5, -0.25, 1024.0]);
}

/// Values that differ between any two of the types: rounding both ways, ties, subnormals, overflow in f16, zeros,
/// infinities.
fn awkward() -> Vec<f32> {
    let special = [0.0, -0.0, 1e-8, -3e-40, 65504.0, 65520.0, 1e30, f32::MAX, f32::INFINITY, f32::NEG_INFINITY];
    let ties = [1.0, 3.0].into_iter().flat_map(|x| [1.0 + x / 256.0, 1.0 + x / 2048.0]);
    let many = (0..3000).map(|i| (i as f32 * 0.37).sin() * 1.5f32.powi(i % 40 - 20));
    special.into_iter().chain(ties).chain(many).collect()
}

#[test]
fn every_type_is_read_as_every_other_as_candle_converts_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let exact = Tensor::new(awkward(), &Device::Cpu).unwrap();
    let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
    let stored = |dtype| exact.to_dtype(dtype).unwrap();
    save_tensors(&path, &types.map(|(name, dtype)| (name.to_string(), stored(dtype))).into()).unwrap();
    let file = Checkpoint::open_file(&path).unwrap();
    let bits = |tensor: Tensor| {
        let values: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        values.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    for (name, from) in types {
        for to in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let read = file.tensor(name, to, &Device::Cpu).unwrap();
            assert_eq!(read.dtype(), to);
            let expected = stored(from).to_dtype(DType::F32).unwrap().to_dtype(to).unwrap();
            assert!(bits(read) == bits(expected), "{from:?} as {to:?}");
        }
    }
}

#[test]
fn same_looks_at_type_shape_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let values = Tensor::new(&[1.5f32, 2.0], &Device::Cpu).unwrap();
    let others = [
        ("a", values.clone()),
        ("equal", values.clone()),
        ("other", (&values + 1.0).unwrap()),
        ("shape", values.reshape((1, 2)).unwrap()),
        ("type", values.to_dtype(DType::F16).unwrap()),
    ];
    save_tensors(&path, &others.map(|(name, tensor)| (name.to_string(), tensor)).into()).unwrap();
    let file = Checkpoint::open_file(&path).unwrap();
    assert_eq!(
        ["equal", "other", "shape", "type"].map(|name| file.same("a", name).unwrap()),
        [true, false, false, false]
    );
}

#[test]
fn stream_writer_makes_the_same_file_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let mut writer = StreamWriter::create(&path).unwrap();
    writer.add_f32("x.basis", &[2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
    writer.add_f32("x.empty", &[2, 0], &[]).unwrap();
    writer.finish(&BTreeMap::from([("format".into(), "asft-direction".into())])).unwrap();
    let file = Checkpoint::open_file(&path).unwrap();
    assert_eq!(file.info("x.basis").unwrap().shape, [2, 2]);
    assert_eq!(file.info("x.empty").unwrap().shape, [2, 0]);
    assert_eq!(file.read_f32("x.basis").unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(file.metadata()["format"], "asft-direction");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_place_to_write_is_checked_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    check_writable(&dir.path().join("a/b")).unwrap();
    check_writable_file(&dir.path().join("a/b.safetensors")).unwrap();
    check_writable_file(Path::new("b.safetensors")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::write(dir.path().join("file"), "").unwrap();
    for refused in [check_writable(&dir.path().join("file/a")), check_writable_file(dir.path())] {
        assert_eq!(exit_code(&refused.unwrap_err()), 2);
    }
}

#[test]
fn truncated_and_garbage_files_are_user_errors() {
    let dir = folder_with(&[("a", &[1.0; 64])]);
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for broken in [&bytes[..bytes.len() - 7], &bytes[..20], &bytes[..3], &[0xff; 64][..]] {
        std::fs::write(&path, broken).unwrap();
        let error = Checkpoint::open(dir.path()).err().expect("a broken file must be refused");
        assert_eq!(exit_code(&error), 2, "{error:#}");
        assert!(error.to_string().contains("model.safetensors"), "{error:#}");
    }
}

#[test]
fn an_index_may_not_leave_its_folder() {
    let dir = folder_with(&[("a", &[1.0])]);
    for file in ["../model.safetensors", "/etc/passwd"] {
        let index = json!({"weight_map": {"a": file}}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let error = Checkpoint::open(dir.path()).err().expect("must be refused");
        assert!(format!("{error:#}").contains("outside"), "{error:#}");
    }
}

#[test]
fn shards_are_files_beside_their_index() {
    let dir = folder_with(&[("a", &[1.0]), ("b", &[2.0])]);
    let open = |map: Value| {
        let index = json!({"weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        Checkpoint::open(dir.path())
    };
    let file = open(json!({"a": "./model.safetensors", "b": "model.safetensors"})).unwrap();
    assert_eq!(file.shards().len(), 1);
    // A copy of the folder would write files of one name over each other.
    for (file, needle) in [("one/model.safetensors", "a folder of its own"), ("", "not a file name")] {
        let error = open(json!({"a": file})).err().expect("must be refused");
        assert!(exit_code(&error) == 2 && format!("{error:#}").contains(needle), "{error:#}");
    }
}

#[test]
fn a_tensor_stands_once_in_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("twice.safetensors");
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open_file(&path).err().expect("must be refused");
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("a stands twice in its header"), "{error:#}");
}

#[test]
fn the_hash_sees_values_and_not_sharding() {
    let one = folder_with(&[("a", &[1.0]), ("b", &[2.0])]);
    let two = folder_with(&[("a", &[1.0])]);
    let three = folder_with(&[("a", &[1.5])]);
    let hash = |dir: &tempfile::TempDir| Checkpoint::open(dir.path()).unwrap().content_hash(["a"]).unwrap();
    assert_eq!(hash(&one), hash(&two));
    assert_ne!(hash(&one), hash(&three));
}
