//! The pictures of `asft compare`: what each method gains in one measure at the cost of another, both measures as
//! something is varied, and the selected settings, one below another.

use super::Picture;
use super::axis::{LARGE, NORMAL, SMALL, Scale, axes, labelled_axes};
use super::canvas::{Anchor, Canvas};
use super::colour::{BLUE, FAINT, INK, METHODS, WHITE};
use crate::ticks;
use anyhow::Result;
use plotters::style::RGBColor;

/// A value in percent, and half the width of its interval if there is one.
pub type Spread = (f64, Option<f64>);

/// A setting of a method, over its seeds.
pub struct Point {
    pub x: Spread,
    pub y: Spread,
    /// Whether it is the setting to report.
    pub selected: bool,
}

/// The settings of a method, in the order in which they are joined.
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

/// One of several plots side by side.
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

/// A panel for each combination of the sweep; a method looks the same in all of them.
pub fn trade_off(title: &str, (x_name, y_name): (&str, &str), panels: &[Panel]) -> Result<Picture> {
    side_by_side(title, panels, |canvas, panel, left, top, side| {
        canvas.text((left + side / 2.0, top - 16.0), &panel.title, NORMAL, Anchor::Centre, INK);
        let points = || panel.series.iter().flat_map(|series| &series.points);
        let x = percent_scale(points().map(|point| point.x), left, side);
        let y = percent_scale(points().map(|point| point.y), top + side, -side);
        axes(canvas, x, y, (&format!("{x_name}, %"), &format!("{y_name}, %")));
        (x, y)
    })
}

/// Each method's results as something is varied: `key` and its `values` along the horizontal axis, where a point's `x`
/// is the index of its value; a panel for each measure, titled with it.
pub fn sweep(title: &str, key: &str, values: &[String], panels: &[Panel]) -> Result<Picture> {
    let labels: Vec<(f64, String)> = values.iter().enumerate().map(|(i, value)| (i as f64, value.clone())).collect();
    side_by_side(title, panels, |canvas, panel, left, top, side| {
        let y = percent_scale(
            panel.series.iter().flat_map(|series| &series.points).map(|point| point.y),
            top + side,
            -side,
        );
        let last = values.len().max(1) as f64 - 1.0;
        let x = Scale { from: -0.25, to: last + 0.25, start: left, length: side };
        labelled_axes(canvas, x, y, &labels, (key, &format!("{}, %", panel.title)));
        (x, y)
    })
}

/// Panels with a legend to their right. `frame` draws a panel's axes, given its left, top and side length, and returns
/// their scales.
fn side_by_side(
    title: &str,
    panels: &[Panel],
    frame: impl Fn(&Canvas, &Panel, f64, f64, f64) -> (Scale, Scale),
) -> Result<Picture> {
    let (left, top, side, between) = (86.0, 76.0, 380.0f64, 84.0);
    let mut names: Vec<&str> = vec![];
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    let legend_at = left + (side + between) * panels.len() as f64 - between + 36.0;
    let legend_width = 40.0 + 6.4 * names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64;
    let height = (top + side + 60.0).max(top + 20.0 * names.len() as f64 + 44.0);
    Picture::draw((legend_at + legend_width) as u32, height as u32, |canvas| {
        canvas.text((left, 22.0), title, LARGE, Anchor::Left, INK);
        for (i, panel) in panels.iter().enumerate() {
            let (x, y) = frame(canvas, panel, left + (side + between) * i as f64, top, side);
            for series in &panel.series {
                let place = names.iter().position(|name| *name == series.name).unwrap_or(0);
                draw(canvas, series, look(place), (x, y));
            }
        }
        for (i, name) in names.iter().enumerate() {
            let at = (legend_at, top + 8.0 + 20.0 * i as f64);
            mark(canvas, at, 4.5, look(i), false);
            canvas.text((at.0 + 14.0, at.1), name, SMALL, Anchor::Left, INK);
        }
        if panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points).any(|point| point.selected) {
            let at = (legend_at, top + 20.0 * names.len() as f64 + 18.0);
            canvas.text(at, "ringed: selected", SMALL, Anchor::Left, INK);
        }
        Ok(())
    })
}

/// The range of the values with a little margin, hardly beyond 0 to 100.
fn percent_scale(values: impl Iterator<Item = Spread>, start: f64, length: f64) -> Scale {
    let (low, high) = values.fold((100.0f64, 0.0f64), |(low, high), (value, _)| (low.min(value), high.max(value)));
    let room = (0.06 * (high - low)).max(2.0);
    let (from, to) = ((low - room).max(-3.0), (high + room).min(103.0));
    Scale { from, to: if to > from { to } else { from + 1.0 }, start, length }
}

/// Colour and number of corners; a circle has none.
type Look = (RGBColor, usize);

fn look(i: usize) -> Look {
    let corners = [0, 4, 3, 5];
    // A colour that recurs comes with another shape.
    (METHODS[i % METHODS.len()], corners[(i + 2 * (i / METHODS.len())) % corners.len()])
}

fn draw(canvas: &Canvas, series: &Series, look: Look, (x, y): (Scale, Scale)) {
    let at = |point: &Point| (x.at(point.x.0), y.at(point.y.0));
    let path: Vec<(f64, f64)> = series.points.iter().map(at).collect();
    if path.len() > 1 {
        canvas.line(&path, look.0, 1.2);
    }
    for point in &series.points {
        let (px, py) = at(point);
        let ends = |(value, half): Spread, scale: Scale| {
            half.map(|half| [value - half, value + half].map(|end| scale.at(end.clamp(scale.from, scale.to))))
        };
        if let Some([from, to]) = ends(point.x, x) {
            canvas.line(&[(from, py), (to, py)], look.0, 0.6);
        }
        if let Some([from, to]) = ends(point.y, y) {
            canvas.line(&[(px, from), (px, to)], look.0, 0.6);
        }
        mark(canvas, (px, py), 4.5, look, point.selected);
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
        canvas.dot((x, y), radius + 3.6, INK);
        canvas.dot((x, y), radius + 2.6, WHITE);
    }
    canvas.polygon(shape(radius), colour, 1.0);
}

/// A line of a [`ranking`]: a setting, and its values in each panel that has it.
pub struct Rank {
    pub name: String,
    /// (what is drawn, what is written beside it)
    pub values: Vec<Option<(Spread, f64)>>,
}

/// Settings one below another: `drawn` as a dot with its interval, `written` as a number; both in percent.
pub fn ranking(title: &str, (drawn, written): (&str, &str), panels: &[String], ranks: &[Rank]) -> Result<Picture> {
    let (top, side, between, step) = (92.0, 250.0, 96.0, 22.0);
    let left = 26.0 + 6.6 * ranks.iter().map(|rank| rank.name.chars().count()).max().unwrap_or(0) as f64;
    let bottom = top + step * ranks.len() as f64;
    let width = left + (side + between) * panels.len() as f64;
    Picture::draw(width as u32, (bottom + 52.0) as u32, |canvas| {
        canvas.text((20.0, 22.0), title, LARGE, Anchor::Left, INK);
        let y = |i: usize| top + step * (i as f64 + 0.5);
        for (i, rank) in ranks.iter().enumerate() {
            canvas.text((left - 14.0, y(i)), &rank.name, NORMAL, Anchor::Right, INK);
        }
        for (p, panel) in panels.iter().enumerate() {
            let x = Scale { from: 0.0, to: 100.0, start: left + (side + between) * p as f64, length: side };
            canvas.text((x.start + side / 2.0, top - 38.0), panel, NORMAL, Anchor::Centre, INK);
            canvas.text((x.start + side + 14.0, top - 14.0), written, SMALL, Anchor::Left, INK);
            for tick in [0.0, 20.0, 40.0, 60.0, 80.0, 100.0] {
                canvas.line(&[(x.at(tick), top), (x.at(tick), bottom)], FAINT, 0.75);
                canvas.text((x.at(tick), bottom + 14.0), &ticks::label(tick, 20.0), SMALL, Anchor::Centre, INK);
            }
            canvas.text((x.start + side / 2.0, bottom + 34.0), &format!("{drawn}, %"), NORMAL, Anchor::Centre, INK);
            for (i, rank) in ranks.iter().enumerate() {
                let Some(Some(((value, half), beside))) = rank.values.get(p) else { continue };
                if let Some(half) = half {
                    let ends = [value - half, value + half].map(|end| (x.at(end.clamp(0.0, 100.0)), y(i)));
                    canvas.line(&ends, BLUE, 1.6);
                }
                canvas.dot((x.at(*value), y(i)), 4.2, BLUE);
                canvas.text((x.start + side + 14.0, y(i)), &format!("{beside:.1}"), SMALL, Anchor::Left, INK);
            }
        }
        Ok(())
    })
}
