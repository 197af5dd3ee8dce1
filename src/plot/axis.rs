//! Scales: values to places, axes with their ticks, and bars that explain colours.

use super::canvas::{Anchor, Canvas};
use super::colour::{FAINT, INK, WHITE};
use crate::ticks;
use plotters::style::RGBColor;

pub const SMALL: f64 = 11.0;
pub const NORMAL: f64 = 12.5;
pub const LARGE: f64 = 15.0;
/// Width of a character of small text, on average and rounded up.
pub const CHARACTER: f64 = 6.0;
const BAR_STEPS: usize = 64;

/// Values `from` to `to` along `length` points from `start` on; a negative length runs upwards.
#[derive(Clone, Copy)]
pub struct Scale {
    pub from: f64,
    pub to: f64,
    pub start: f64,
    pub length: f64,
}

impl Scale {
    pub fn at(&self, value: f64) -> f64 {
        self.start + self.share(value) * self.length
    }

    pub fn share(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    /// The values that the scale spans.
    pub fn range(&self) -> (f64, f64) {
        (self.from, self.to)
    }
}

/// Ticks and faint lines of both axes, and the frame, from the corner (x.start, y.start + y.length).
pub fn axes(canvas: &Canvas, x: Scale, y: Scale, names: (&str, &str)) {
    labelled_axes(canvas, x, y, &ticks::labelled(x.range(), 6), names);
}

/// Height of a row of labels.
pub const LABEL_ROW: f64 = 14.0;

/// The rows that labels take in turn so that none overlap.
pub fn label_rows(x: Scale, labels: &[(f64, String)]) -> usize {
    let widest = labels.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0) as f64 * CHARACTER;
    let gap = labels.windows(2).map(|pair| (x.at(pair[1].0) - x.at(pair[0].0)).abs()).fold(f64::INFINITY, f64::min);
    ((widest / gap).ceil() as usize).clamp(1, labels.len().max(1))
}

/// As [`axes`], with texts at positions along the horizontal axis.
pub fn labelled_axes(canvas: &Canvas, x: Scale, y: Scale, labels: &[(f64, String)], (x_name, y_name): (&str, &str)) {
    let (left, bottom, right, top) = (x.start, y.start, x.start + x.length, y.start + y.length);
    let rows = label_rows(x, labels);
    for (i, (tick, label)) in labels.iter().enumerate() {
        let at = x.at(*tick);
        canvas.line(&[(at, bottom), (at, top)], FAINT, 0.75);
        canvas.line(&[(at, bottom), (at, bottom + 4.0)], INK, 1.0);
        canvas.text((at, bottom + 14.0 + LABEL_ROW * (i % rows) as f64), label, SMALL, Anchor::Centre, INK);
    }
    for (tick, label) in ticks::labelled(y.range(), 5) {
        let at = y.at(tick);
        canvas.line(&[(left, at), (right, at)], FAINT, 0.75);
        canvas.line(&[(left - 4.0, at), (left, at)], INK, 1.0);
        canvas.text((left - 8.0, at), &label, SMALL, Anchor::Right, INK);
    }
    canvas.frame((left, top), (right - left, bottom - top), INK);
    canvas.text(((left + right) / 2.0, bottom + 20.0 + LABEL_ROW * rows as f64), x_name, NORMAL, Anchor::Centre, INK);
    canvas.text_upwards((left - 52.0, (top + bottom) / 2.0), y_name, NORMAL, INK);
}

/// A vertical bar that says which colour is which value, with about `count` ticks.
pub fn colour_bar(canvas: &Canvas, x: f64, scale: Scale, count: usize, colour: impl Fn(f64) -> RGBColor) {
    let width = 14.0;
    let step = scale.length / BAR_STEPS as f64;
    for i in 0..BAR_STEPS {
        let share = (i as f64 + 0.5) / BAR_STEPS as f64;
        let at = scale.start + i as f64 * step;
        // A little overlap, so that no seam shows.
        canvas.rectangle((x, at + step - 0.3), (width, -step + 0.6), colour(share));
    }
    let (low, high) = (scale.start.min(scale.start + scale.length), scale.length.abs());
    canvas.frame((x, low), (width, high), INK);
    for (tick, label) in ticks::labelled(scale.range(), count) {
        let at = scale.at(tick);
        canvas.line(&[(x + width, at), (x + width + 4.0, at)], INK, 1.0);
        canvas.text((x + width + 7.0, at), &label, SMALL, Anchor::Left, INK);
    }
}

/// Text on a white background, readable on anything, as near to (x, y) as `bounds` allow.
pub fn label(canvas: &Canvas, (x, y): (f64, f64), text: &str, bounds: Scale) {
    let width = CHARACTER * text.chars().count() as f64;
    let (low, high) = (bounds.start + width / 2.0 + 2.0, bounds.start + bounds.length - width / 2.0 - 2.0);
    let x = x.min(high).max(low);
    canvas.polygon(
        vec![
            (x - width / 2.0, y - 6.0),
            (x + width / 2.0, y - 6.0),
            (x + width / 2.0, y + 6.0),
            (x - width / 2.0, y + 6.0),
        ],
        WHITE,
        0.8,
    );
    canvas.text((x, y), text, SMALL - 1.0, Anchor::Centre, INK);
}
