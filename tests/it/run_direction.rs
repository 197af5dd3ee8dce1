//! The direction that a run computes or is given.

use crate::support::command::{refused_unwritten, succeeds, train};
use crate::support::files::header_metadata;
use asft::method::direction_file::Directions;

#[test]
fn the_sign_needs_the_right_singular_vectors() {
    let scratch = tempfile::tempdir().unwrap();
    let (computed, stripped) = (scratch.path().join("run"), scratch.path().join("stripped.safetensors"));
    let sets = ["train.max_steps=2", "asft.penalize=orthogonal+reverse"];
    succeeds(train(&computed, &sets, &[]));
    let bytes = std::fs::read(computed.join("direction.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let metadata = header_metadata(&computed.join("direction.safetensors"));
    let kept = file.tensors().into_iter().filter(|(name, _)| !name.ends_with("right_basis"));
    safetensors::serialize_to_file(kept, Some(metadata), &stripped).unwrap();
    let direction = format!("asft.direction={}", stripped.display());
    let needles = ["has no tensor `right_basis`", "stripped.safetensors"];
    let other = scratch.path().join("other");
    refused_unwritten(train(&other, &[&direction, sets[1]], &[]), &other, &needles);
}

#[test]
fn a_direction_is_computed_as_exactly_as_asked() {
    let scratch = tempfile::tempdir().unwrap();
    let rank = |tolerance: &str| {
        let dir = scratch.path().join(tolerance);
        succeeds(train(&dir, &["train.max_steps=1", &format!("asft.tolerance={tolerance}")], &[]));
        let directions = Directions::open(&dir.join("direction.safetensors")).unwrap();
        assert_eq!(directions.header().kept, ("tolerance".to_string(), tolerance.to_string()));
        directions.shape(&directions.modules()[0]).unwrap().2
    };
    let ranks = ["0", "0.001", "0.3"].map(rank);
    assert!(ranks[0] >= ranks[1] && ranks[1] > ranks[2], "{ranks:?}");
    let one = scratch.path().join("one");
    refused_unwritten(train(&one, &["asft.tolerance=1"], &[]), &one, &["asft.tolerance must be"]);
}
