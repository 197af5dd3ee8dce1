//! `target_modules` and `layers_to_transform` as an exported adapter has them: in PEFT they have to name the adapted modules of the
//! whole model, and no others.

use crate::names::{BLOCKS, Naming, layer_number, short_name, split_block};
use serde_json::{Value, json};
use std::collections::BTreeSet;

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
/// all layers that have it, or in those among the same layers; full paths otherwise.
fn in_wrapper(layout: Naming, adapted: &[&String], all: &[String]) -> Value {
    let parts = || adapted.iter().filter_map(|module| split_block(module));
    let linears: BTreeSet<&str> = parts().map(|(_, linear)| linear).collect();
    let layers: BTreeSet<usize> = parts().map(|(layer, _)| layer).collect();
    let named = || all.iter().filter_map(|module| split_block(module)).filter(|(_, linear)| linears.contains(linear));
    let numbers = if named().count() == adapted.len() {
        r"\d+".to_string()
    } else if named().filter(|(layer, _)| layers.contains(layer)).count() == adapted.len() {
        format!("({})", layers.iter().map(usize::to_string).collect::<Vec<_>>().join("|"))
    } else {
        return json!(adapted.iter().map(|module| layout.name(module)).collect::<Vec<_>>());
    };
    let linears: Vec<String> = linears.iter().map(|linear| regex::escape(linear)).collect();
    json!(format!(r"{}{numbers}\.({})", regex::escape(&layout.name(BLOCKS)), linears.join("|")))
}
