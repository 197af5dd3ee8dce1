use super::*;
use crate::checkpoint::{Checkpoint, Stored};
use crate::error::exit_code;
use crate::quant::ggml::GgmlType;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// A file, piece by piece.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// The beginning of a file of this many tensors and metadata.
    fn new(tensors: u64, metadata: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(metadata)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.string(key).u32(8).string(value)
    }

    fn whole(self, key: &str, value: u32) -> Self {
        self.string(key).u32(4).u32(value)
    }

    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        let described = self.string(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(described, |bytes, size| bytes.u64(*size)).u32(kind).u64(offset)
    }

    /// Zeros up to the data, and so many more.
    fn data(mut self, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }

    fn opened(self) -> Result<Checkpoint, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, &self.0).unwrap();
        Checkpoint::open(&path).map_err(|error| {
            assert_eq!(exit_code(&error), 2, "{error:#}");
            let text = format!("{error:#}");
            assert!(text.contains("model.gguf"), "{text}");
            text
        })
    }
}

fn llama(tensors: u64) -> Bytes {
    Bytes::new(tensors, 2).text("general.architecture", "llama").whole("llama.attention.head_count", 1)
}

/// What `rope_scaling` becomes of these metadata.
fn rope_scaling(kind: Option<&str>, factor: Option<f32>) -> serde_json::Value {
    let bytes = Bytes::new(1, 7 + u64::from(kind.is_some()) + u64::from(factor.is_some()));
    let bytes = bytes.text("general.architecture", "llama").string("llama.attention.layer_norm_rms_epsilon").u32(6);
    let bytes =
        bytes.raw(&1e-5f32.to_le_bytes()).whole("llama.attention.head_count", 1).whole("llama.context_length", 64);
    let bytes =
        bytes.whole("llama.embedding_length", 8).whole("llama.feed_forward_length", 8).whole("llama.block_count", 1);
    let bytes = kind.iter().fold(bytes, |bytes, kind| bytes.text("llama.rope.scaling.type", kind));
    let bytes = factor
        .iter()
        .fold(bytes, |bytes, factor| bytes.string("llama.rope.scaling.factor").u32(6).raw(&factor.to_le_bytes()));
    let bytes = bytes.tensor("token_embd.weight", &[8, 4], 0, 0).data(128);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes.0).unwrap();
    let header = Header::read(&path).unwrap();
    let config = model_config(&header).map_err(|e| panic!("{e:#}")).unwrap();
    config.get("rope_scaling").cloned().unwrap_or_default()
}

#[test]
fn a_rope_that_is_not_scaled_may_be_said_in_several_ways() {
    let linear = serde_json::json!({"rope_type": "linear", "factor": 2.0});
    for (kind, factor, expected) in [
        (None, None, None),
        (None, Some(2.0), Some(&linear)),
        (Some("linear"), Some(2.0), Some(&linear)),
        (Some("linear"), None, None),
        (Some("linear"), Some(1.0), None),
        (Some("linear"), Some(0.0), None),
        (Some("none"), None, None),
        (Some("none"), Some(2.0), None),
    ] {
        assert_eq!(rope_scaling(kind, factor), expected.cloned().unwrap_or_default(), "{kind:?} {factor:?}");
    }
}

#[test]
fn quantised_rows_are_read_in_the_order_of_transformers() {
    let (file, expected) =
        (Checkpoint::open(&fixture("blocks.gguf")), Checkpoint::open_file(&fixture("blocks.safetensors")));
    let (file, expected) = (file.unwrap(), expected.unwrap());
    assert_eq!(file.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    let kinds = [("q", GgmlType::Q4K), ("k", GgmlType::Q6K), ("v", GgmlType::Q8_0), ("o", GgmlType::Q4_1)];
    for (short, kind) in kinds {
        let name = format!("model.layers.0.self_attn.{short}_proj.weight");
        let info = file.info(&name).unwrap();
        assert_eq!((info.stored, &info.shape), (Stored::Blocks(kind), &expected.info(&name).unwrap().shape));
        let values = expected.read_f32(&name).unwrap();
        assert_eq!(file.read_f32(&name).unwrap(), values, "{name}");
        // The blocks are in the same order as the values.
        let mut widened = vec![0f32; values.len()];
        kind.widen(&file.read_bytes(&name).unwrap(), &mut widened);
        assert_eq!(widened, values, "{name}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let cases = [
        (Bytes::default(), "the file's mark needs 4 bytes, and 0 are left"),
        (Bytes::default().raw(b"GGML"), "does not begin with GGUF"),
        (Bytes::default().raw(b"GGUF").u32(1).data(64), "version 1"),
        (Bytes::default().raw(b"GGUF\0\0\0\x03").data(64), "big-endian"),
        (Bytes::new(0, u64::MAX), "metadata key 0"),
        (Bytes::new(u64::MAX, 0), "the name of tensor 0"),
        (Bytes::new(0, 1).u64(u64::MAX), "metadata key 0 of 1 needs 18446744073709551615 bytes"),
        (Bytes::new(0, 1).string("k").u32(8).u64(1 << 40), "k needs 1099511627776 bytes"),
        (Bytes::new(0, 1).string("k").u32(9).u32(4).u64(u64::MAX), "k claims"),
        (Bytes::new(0, 1).string("k").u32(9).u32(5).u64(1 << 40), "(truncated?)"),
        (Bytes::new(0, 1).string("k").u32(9).u32(9).u64(1), "array of type 9"),
        (Bytes::new(0, 1).string("k").u32(77), "unknown type 77"),
        (Bytes::new(0, 2).text("k", "a").text("k", "b"), "k twice"),
        (Bytes::new(0, 1).u64(1).raw(&[0xff]).data(64), "not UTF-8"),
        (Bytes::new(0, 1).whole("general.alignment", 0), "general.alignment"),
        (Bytes::new(0, 1).whole("general.alignment", 48), "power of two"),
    ];
    for (bytes, expected) in cases {
        let error = bytes.opened().err().unwrap();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let name = "blk.0.attn_v.weight";
    let one = |dimensions: &[u64], kind, offset, data| llama(1).tensor(name, dimensions, kind, offset).data(data);
    let norm = "output_norm.weight";
    let cases = [
        (one(&[], 0, 0, 64), "0 dimensions"),
        (one(&[1; 5], 0, 0, 64), "5 dimensions"),
        (one(&[4, 0], 0, 0, 64), "a dimension is 0"),
        (one(&[u64::MAX, u64::MAX], 0, 0, 64), "beyond any file"),
        (one(&[1 << 40, 1 << 20], 0, 0, 64), "(truncated?)"),
        (one(&[32], 0, 0, 127), "ends at byte 128"),
        (one(&[32], 0, u64::MAX - 31, 64), "beyond any file"),
        (one(&[32], 0, 4, 256), "no multiple of the alignment"),
        (one(&[16, 4], 2, 0, 256), "not whole blocks of Q4_0"),
        (one(&[256], 18, 0, 256), "i-quant"),
        (one(&[32], 39, 0, 256), "MXFP4"),
        (one(&[32], 1000, 0, 256), "unknown"),
        (llama(2).tensor(name, &[8], 0, 0).tensor(norm, &[8], 0, 0).data(64), "overlap"),
        (llama(2).tensor(name, &[8], 0, 0).tensor(name, &[8], 0, 32).data(64), "twice"),
        (
            llama(2)
                .tensor("blk.0.ffn_norm.weight", &[8], 0, 0)
                .tensor("blk.0.post_attention_norm.weight", &[8], 0, 32)
                .data(64),
            "two tensors that are both model.layers.0.post_attention_layernorm.weight",
        ),
        (llama(1).tensor("blk.00.attn_v.weight", &[8], 0, 0).data(32), "blk.00.attn_v.weight is not part of"),
        (llama(1).tensor("blk.0.ffn_gate_inp.weight", &[8], 0, 0).data(32), "ffn_gate_inp.weight is not part of"),
        (llama(1).tensor("blk.0.attn_q.weight", &[8, 3], 0, 0).data(96), "3 rows are not 1 heads"),
    ];
    for (bytes, expected) in cases {
        let error = bytes.opened().err().unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(["tensor", "tensors"].iter().any(|word| error.contains(word)), "{error}");
    }
    assert!(one(&[32], 0, 0, 128).opened().is_ok());
}

#[test]
fn files_that_hold_no_model_of_ours_say_so() {
    let with = |kind: &str| Bytes::new(0, 1).text("general.architecture", kind);
    let adapter = Bytes::new(0, 2).text("general.type", "adapter").text("general.architecture", "llama");
    let part = Bytes::new(0, 2).text("general.architecture", "llama").whole("split.count", 3);
    let cases = [
        (Bytes::new(0, 0), "no general.architecture"),
        (with("gemma"), "`gemma` is not supported; supported: llama, qwen2"),
        (adapter, "general.type is `adapter`"),
        (part, "one of 3 parts"),
    ];
    for (bytes, expected) in cases {
        let error = bytes.opened().err().unwrap();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = std::fs::read(fixture("blocks.gguf")).unwrap();
    // Every length up to the data, some beyond.
    for length in (0..1024).chain((1024..whole.len()).step_by(257)) {
        let error = Bytes(whole[..length].to_vec()).opened().err().unwrap();
        assert!(error.contains("truncated") || error.contains("not a usable"), "{length}: {error}");
    }
}

#[test]
fn damaged_scales_are_refused() {
    // A Q8_0 block whose scale is infinite.
    let bytes = llama(1).tensor("blk.0.attn_v.weight", &[32], 8, 0).data(0).raw(&[0, 0x7c]).raw(&[1; 32]);
    let file = bytes.0.clone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, &file).unwrap();
    let error = Checkpoint::open(&path).unwrap().read_f32("model.layers.0.self_attn.v_proj.weight").unwrap_err();
    assert!(error.to_string().contains("infinite or undefined scales"), "{error}");
}
