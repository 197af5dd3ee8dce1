//! The picture of `asft compare`: what each method gains in one measure at the cost of another.

use super::Picture;
use super::axis::{LARGE, NORMAL, SMALL, Scale, axes};
use super::canvas::{Anchor, Canvas};
use super::colour::{INK, METHODS, WHITE};
use anyhow::Result;
use plotters::style::RGBColor;

/// A setting of a method, over its seeds.
pub struct Point {
    /// Value, and half of its interval if there is one.
    pub x: (f64, Option<f64>),
    pub y: (f64, Option<f64>),
    /// Whether it is the one to report.
    pub selected: bool,
}

/// The settings of a method, in the order in which they are joined.
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

/// One picture: `x` and `y` are in percent. `title`: what is compared.
pub fn trade_off(title: &str, (x_name, y_name): (&str, &str), series: &[Series]) -> Result<Picture> {
    let (left, top, width, height) = (86.0, 52.0, 470.0, 400.0f64);
    let legend_width = 40.0 + 6.2 * series.iter().map(|s| s.name.chars().count()).max().unwrap_or(0) as f64;
    let size = (left + width + 24.0 + legend_width, (top + height + 66.0).max(top + 24.0 * series.len() as f64 + 40.0));
    Picture::draw(size.0 as u32, size.1 as u32, |canvas| {
        canvas.text((left, 22.0), title, LARGE, Anchor::Left, INK);
        let points = || series.iter().flat_map(|series| &series.points);
        let x = percent_scale(points().map(|point| point.x), left, width);
        let y = percent_scale(points().map(|point| point.y), top + height, -height);
        axes(canvas, x, y, (&format!("{x_name}, %"), &format!("{y_name}, %")));
        for (i, series) in series.iter().enumerate() {
            let look = look(i);
            draw(canvas, series, look, (x, y));
            let at = (left + width + 30.0, top + 12.0 + 24.0 * i as f64);
            mark(canvas, at, 5.0, look, false);
            canvas.text((at.0 + 14.0, at.1), &series.name, NORMAL, Anchor::Left, INK);
        }
        let note = (left + width + 24.0, top + 24.0 * series.len() as f64 + 20.0);
        if points().any(|point| point.selected) {
            canvas.text(note, "ringed: selected", SMALL, Anchor::Left, INK);
        }
        Ok(())
    })
}

/// The range of the values with a little room, within 0 to 100.
fn percent_scale(values: impl Iterator<Item = (f64, Option<f64>)>, start: f64, length: f64) -> Scale {
    let (low, high) = values.fold((100.0f64, 0.0f64), |(low, high), (value, _)| (low.min(value), high.max(value)));
    let room = (0.06 * (high - low)).max(2.0);
    let (from, to) = ((low - room).max(-3.0), (high + room).min(103.0));
    Scale { from, to: if to > from { to } else { from + 1.0 }, start, length }
}

/// Colour and number of corners; a circle has none.
type Look = (RGBColor, usize);

fn look(i: usize) -> Look {
    let corners = [0, 4, 3, 5];
    (METHODS[i % METHODS.len()], corners[(i / METHODS.len() + i) % corners.len()])
}

fn draw(canvas: &Canvas, series: &Series, look: Look, (x, y): (Scale, Scale)) {
    let at = |point: &Point| (x.at(point.x.0), y.at(point.y.0));
    let path: Vec<(f64, f64)> = series.points.iter().map(at).collect();
    if path.len() > 1 {
        canvas.line(&path, look.0, 1.2);
    }
    for point in &series.points {
        let (px, py) = at(point);
        if let Some(half) = point.x.1 {
            let ends = [point.x.0 - half, point.x.0 + half].map(|value| (x.at(value.clamp(x.from, x.to)), py));
            canvas.line(&ends, look.0, 0.8);
        }
        if let Some(half) = point.y.1 {
            let ends = [point.y.0 - half, point.y.0 + half].map(|value| (px, y.at(value.clamp(y.from, y.to))));
            canvas.line(&ends, look.0, 0.8);
        }
        mark(canvas, (px, py), 5.0, look, point.selected);
    }
}

fn mark(canvas: &Canvas, (x, y): (f64, f64), radius: f64, (colour, corners): Look, ring: bool) {
    let shape = |radius: f64| -> Vec<(f64, f64)> {
        let count = if corners == 0 { 20 } else { corners };
        let at = |i: usize| {
            let angle = std::f64::consts::TAU * (i as f64 / count as f64 - 0.25);
            (x + radius * angle.cos(), y + radius * angle.sin())
        };
        (0..count).map(at).collect()
    };
    if ring {
        canvas.dot((x, y), radius + 4.5, INK);
        canvas.dot((x, y), radius + 3.2, WHITE);
    }
    canvas.polygon(shape(radius), colour, 1.0);
}
