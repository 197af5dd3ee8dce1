//! GGUF files, as llama.cpp has models: typed metadata, then tensors in the types of ggml.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3, little-endian. Nothing in
//! a header is believed before it is checked against the file: no count reserves memory, and every tensor lies within
//! the file, apart from the others. [`model`] and [`config`] turn what a header says into Hugging Face's terms.

mod config;
mod facts;
mod family;
mod header;
mod model;
mod source;
mod value;
mod write;

pub use config::model_config;
pub use family::{Family, stored_row};
pub use header::{Entry, Header};
pub use model::{Arrangement, tensors};
pub use value::Value;
pub use write::{Planned, Written, write};

use std::path::Path;

/// Whether a model's place is a GGUF file, rather than a folder.
pub fn is_gguf(place: &Path) -> bool {
    place.to_str().is_some_and(is_gguf_name) && place.is_file()
}

/// Whether a file with this name should be a GGUF file.
pub fn is_gguf_name(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests;
