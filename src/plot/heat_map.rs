//! The heat map of `asft inspect`: layers across, kinds of module down, for three numbers of an update.

use super::axis::{LARGE, NORMAL, SMALL, Scale, colour_bar};
use super::canvas::{Anchor, Canvas, record};
use super::colour::{INK, NOTHING, amount, signed};
use crate::method::inspect::ModuleShares;
use crate::names::{layer_number, short_name};
use anyhow::Result;
use plotters::style::RGBColor;

const LEFT: f64 = 104.0;
const RIGHT: f64 = 96.0;
const TITLE: f64 = 46.0;
/// Space above a panel for its title, and below it for the layer numbers.
const PANEL_HEAD: f64 = 30.0;
const PANEL_FOOT: f64 = 34.0;
const CELL_HEIGHT: f64 = 24.0;

/// One number of every module, with its colours.
struct Panel {
    title: &'static str,
    value: fn(&ModuleShares) -> Option<f64>,
    is_signed: bool,
}

const PANELS: [Panel; 3] = [
    Panel { title: "size |dW|", value: |m| Some(m.norm), is_signed: false },
    Panel {
        title: "aligned share |P dW| / |dW| (P: the subspace of V)",
        value: |m| m.subspace_aligned,
        is_signed: false,
    },
    Panel {
        title: "lean <dW, V> / (|dW| |V|): blue along V, orange towards the unaligned model",
        value: |m| m.signed,
        is_signed: true,
    },
];

/// Modules may be in any order. Grey means no value, as where V = 0.
pub fn heat_map(modules: &[ModuleShares], subject: &str) -> Result<String> {
    let mut kinds: Vec<&str> = vec![];
    for module in modules {
        let kind = short_name(&module.module);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let layers = modules.iter().filter_map(|m| layer_number(&m.module)).max().map_or(1, |last| last + 1);
    // Cells shrink as layers increase, so that the picture keeps a page's width.
    let cell = (900.0 / layers as f64).clamp(9.0, 64.0);
    let width = LEFT + (cell * layers as f64).max(520.0) + RIGHT;
    let inner = CELL_HEIGHT * kinds.len() as f64;
    // A bar needs some height even beside a single row.
    let panel = PANEL_HEAD + inner.max(3.0 * CELL_HEIGHT) + PANEL_FOOT;
    let height = TITLE + panel * PANELS.len() as f64;
    let strokes = record(width.ceil() as u32, height.ceil() as u32, |canvas| {
        canvas.text((LEFT, 22.0), &format!("Update dW of {}", shortened(subject)), LARGE, Anchor::Left, INK);
        for (i, of) in PANELS.iter().enumerate() {
            let top = TITLE + i as f64 * panel + PANEL_HEAD;
            draw_panel(canvas, of, modules, (&kinds, layers), (cell, top));
        }
        Ok(())
    })?;
    strokes.svg()
}

fn draw_panel(canvas: &Canvas, panel: &Panel, modules: &[ModuleShares], rows: (&[&str], usize), place: (f64, f64)) {
    let ((kinds, layers), (cell, top)) = (rows, place);
    let values = modules.iter().filter_map(|m| (panel.value)(m));
    let most = values.map(f64::abs).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let (from, to) = if panel.is_signed { (-most, most) } else { (0.0, most) };
    let colour = |share: f64| -> RGBColor { if panel.is_signed { signed(2.0 * share - 1.0) } else { amount(share) } };
    let (width, height) = (cell * layers as f64, CELL_HEIGHT * kinds.len() as f64);
    let scale = Scale { from, to, start: top + height.max(3.0 * CELL_HEIGHT), length: -height.max(3.0 * CELL_HEIGHT) };
    canvas.text((LEFT, top - 14.0), panel.title, NORMAL, Anchor::Left, INK);
    for (row, kind) in kinds.iter().enumerate() {
        let middle = top + CELL_HEIGHT * (row as f64 + 0.5);
        canvas.text((LEFT - 8.0, middle), kind, SMALL, Anchor::Right, INK);
    }
    canvas.rectangle((LEFT, top), (width, height), NOTHING);
    for module in modules {
        let row = kinds.iter().position(|kind| *kind == short_name(&module.module));
        if let (Some(row), Some(layer), Some(value)) = (row, layer_number(&module.module), (panel.value)(module)) {
            let at = (LEFT + cell * layer as f64, top + CELL_HEIGHT * row as f64);
            canvas.rectangle(at, (cell, CELL_HEIGHT), colour(scale.share(value)));
        }
    }
    canvas.frame((LEFT, top), (width, height), INK);
    let every = (28.0 / cell).ceil() as usize;
    for layer in (0..layers).step_by(every.max(1)) {
        let middle = LEFT + cell * (layer as f64 + 0.5);
        canvas.text((middle, top + height + 11.0), &layer.to_string(), SMALL, Anchor::Centre, INK);
    }
    canvas.text((LEFT - 8.0, top + height + 11.0), "layer", SMALL, Anchor::Right, INK);
    colour_bar(canvas, LEFT + width + 14.0, scale, 4, colour);
}

/// The end of a long path, which is the part that tells paths apart.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= 64 { text.to_string() } else { format!("…{}", text.chars().skip(count - 63).collect::<String>()) }
}
