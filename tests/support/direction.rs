//! Directions of model folders.

use asft::hub::Resolved;
use asft::method::direction::DirectionRequest;
use asft::method::spectral::Keep;
use asft::names::Targets;
use std::path::{Path, PathBuf};

/// For q and v, with the defaults of the command.
pub fn request(aligned: &Path, unaligned: &Path, out: PathBuf) -> DirectionRequest {
    let folder = |dir: &Path| Resolved { place: dir.to_path_buf(), tokenizer: None, id: None, revision: None };
    DirectionRequest {
        aligned: folder(aligned),
        unaligned: folder(unaligned),
        out,
        targets: Targets::List(vec!["q_proj".into(), "v_proj".into()]),
        keep: Keep::Tolerance(1e-3),
        allow_missing: false,
        allow_equal: false,
        allow_quantised: false,
    }
}
