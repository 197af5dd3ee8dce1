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
    // A copy of the folder would put files of one name on top of each other.
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
