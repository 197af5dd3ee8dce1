//! Hashes that identify weights, whatever file or exact type they are stored in.

use std::collections::BTreeMap;

/// The hash of a weight: its shape and its values as f32, so a copy stored in another exact type has the same hash.
pub fn weight_hash(shape: &[usize], values: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{shape:?}\n").as_bytes());
    let mut bytes = Vec::with_capacity(1 << 14);
    for chunk in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(chunk.iter().map(|value| value.to_le_bytes()));
        hasher.update(bytes.as_flattened());
    }
    hasher.finalize().to_hex().to_string()
}

/// One hash for many modules, independent of their order.
pub fn combined_hash(modules: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (module, hash) in modules {
        hasher.update(format!("{module} {hash}\n").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
