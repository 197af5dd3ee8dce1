//! `target_modules` and `layers_to_transform` as an exported adapter has them: in PEFT they have to name the adapted modules of the
//! whole model, and no others.

use crate::names::{BLOCKS, Naming, layer_number, short_name, split_block};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The two, for an adapter of `adapted` among `all` linears of the text model's blocks.
pub fn targets(layout: Naming, adapted: &[&String], all: &[String]) -> (Value, Option<Vec<usize>>) {
    if layout != Naming::Text {
        return (in_wrapper(layout, adapted, all), None);
    }
    let (mut names, mut layers): (Vec<&str>, BTreeSet<usize>) = (vec![], BTreeSet::new());
    for module in all.iter().filter(|module| adapted.contains(module)) {
        if !names.contains(&short_name(module)) {
            names.push(short_name(module));
        }
        layers.extend(layer_number(module));
    }
    let named: Vec<&String> = all.iter().filter(|module| names.contains(&short_name(module))).collect();
    if named.len() == adapted.len() {
        return (json!(names), None);
    }
    let in_layers = named.iter().filter(|module| layer_number(module).is_some_and(|n| layers.contains(&n))).count();
    if in_layers == adapted.len() {
        return (json!(names), Some(layers.into_iter().collect()));
    }
    (json!(adapted), None)
}

/// A vision tower has linears of the same short names. So a regular expression for whole paths, if every linear is adapted in
/// the same layers; full paths otherwise.
fn in_wrapper(layout: Naming, adapted: &[&String], all: &[String]) -> Value {
    let mut layers_of: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (layer, linear) in adapted.iter().filter_map(|module| split_block(module)) {
        layers_of.entry(linear).or_default().insert(layer);
    }
    let count = all.iter().filter_map(|module| layer_number(module)).collect::<BTreeSet<_>>().len();
    let same = layers_of.values().collect::<BTreeSet<_>>();
    let Some(layers) = same.first().filter(|_| same.len() == 1) else {
        return json!(adapted.iter().map(|module| layout.name(module)).collect::<Vec<_>>());
    };
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let numbers = if numbers.len() == count { r"\d+".to_string() } else { format!("({})", numbers.join("|")) };
    let linears: Vec<String> = layers_of.keys().map(|linear| regex::escape(linear)).collect();
    json!(format!(r"{}{numbers}\.({})", regex::escape(&layout.name(BLOCKS)), linears.join("|")))
}
