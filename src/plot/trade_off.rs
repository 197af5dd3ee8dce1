//! The pictures of `asft compare`: what each method gains in one measure at the cost of another, both measures as
//! something is varied, and the selected settings, one below another.

use super::Picture;
use super::axis::{LABEL_ROW, LARGE, NORMAL, SMALL, Scale, axes, label_rows, labelled_axes};
use super::canvas::{Anchor, Canvas};
use super::colour::{BLUE, FAINT, INK, METHODS, WHITE};
use crate::ticks;
use anyhow::Result;
use plotters::style::RGBColor;

/// A value in percent, and the ends of its bar if there is one.
pub type Spread = (f64, Option<(f64, f64)>);

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
    side_by_side(title, panels, 1, |canvas, panel, left, top, side| {
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
    let axis = |left: f64, side: f64| {
        let last = values.len().max(1) as f64 - 1.0;
        Scale { from: -0.25, to: last + 0.25, start: left, length: side }
    };
    let rows = label_rows(axis(0.0, SIDE), &labels);
    side_by_side(title, panels, rows, |canvas, panel, left, top, side| {
        let y = percent_scale(
            panel.series.iter().flat_map(|series| &series.points).map(|point| point.y),
            top + side,
            -side,
        );
        let x = axis(left, side);
        labelled_axes(canvas, x, y, &labels, (key, &format!("{}, %", panel.title)));
        (x, y)
    })
}

const SIDE: f64 = 380.0;

/// Panels with a legend to their right. `label_rows`: of their horizontal axes. `frame` draws a panel's axes, given its
/// left, top and side length, and returns their scales.
fn side_by_side(
    title: &str,
    panels: &[Panel],
    label_rows: usize,
    frame: impl Fn(&Canvas, &Panel, f64, f64, f64) -> (Scale, Scale),
) -> Result<Picture> {
    let (left, top, side, between) = (86.0, 76.0, SIDE, 84.0);
    let mut names: Vec<&str> = vec![];
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    let legend_at = left + (side + between) * panels.len() as f64 - between + 36.0;
    let legend_width = 40.0 + 6.4 * names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64;
    let height = (top + side + 46.0 + LABEL_ROW * label_rows as f64).max(top + 20.0 * names.len() as f64 + 44.0);
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

/// Percentage points that an axis spans at least.
const NARROWEST: f64 = 4.0;

/// The range of the values and their bars with a little margin, hardly beyond 0 to 100.
fn percent_scale(values: impl Iterator<Item = Spread>, start: f64, length: f64) -> Scale {
    let ends = values.flat_map(|(value, bar)| bar.map_or([value; 2], |(low, high)| [low.min(value), high.max(value)]));
    let (low, high) = ends.fold((100.0f64, 0.0f64), |(low, high), end| (low.min(end), high.max(end)));
    // No tick is beyond 0 or 100: they are further apart than the margin.
    let (low, high) = (low.min(high - NARROWEST).max(0.0), high.max(low + NARROWEST).min(100.0));
    let room = 0.06 * (high - low);
    Scale { from: low - room.min(3.0), to: high + room.min(3.0), start, length }
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
        let ends = |(_, bar): Spread, scale: Scale| {
            let at = |end: f64| scale.at(end.clamp(scale.from, scale.to));
            bar.map(|(low, high)| (at(low), at(high)))
        };
        if let Some((from, to)) = ends(point.x, x) {
            canvas.line(&[(from, py), (to, py)], look.0, 0.6);
        }
        if let Some((from, to)) = ends(point.y, y) {
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
                let Some(Some(((value, bar), beside))) = rank.values.get(p) else { continue };
                if let Some((low, high)) = bar {
                    canvas.line(&[(x.at(*low), y(i)), (x.at(*high), y(i))], BLUE, 1.6);
                }
                canvas.dot((x.at(*value), y(i)), 4.2, BLUE);
                canvas.text((x.start + side + 14.0, y(i)), &format!("{beside:.1}"), SMALL, Anchor::Left, INK);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (x, y, text) of every text, in points.
    fn texts(svg: &str) -> Vec<(f64, f64, String)> {
        let attribute = |tag: &str, name: &str| -> f64 {
            tag.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        let text = |tag: &str| tag.split(">\n").nth(1).unwrap().split("\n<").next().unwrap().to_string();
        svg.split("<text")
            .skip(1)
            .map(|tag| (attribute(tag, "x") / 4.0, attribute(tag, "y") / 4.0, text(tag)))
            .collect()
    }

    fn panel(title: &str, values: usize) -> Panel {
        let point = |i: usize| Point { x: (i as f64, None), y: (40.0 + i as f64, Some((0.0, 100.0))), selected: false };
        Panel {
            title: title.into(),
            series: vec![Series { name: "plain".into(), points: (0..values).map(point).collect() }],
        }
    }

    #[test]
    fn labels_of_a_sweep_do_not_overlap() {
        let long: Vec<String> = (0..7).map(|i| format!("train_poison_{i}")).collect();
        let short: Vec<String> = ["0", "1", "3", "5", "10", "20"].map(String::from).to_vec();
        for (values, rows) in [(&long, 2), (&short, 1)] {
            let svg = sweep("title", "poison, %", values, &[panel("harm", values.len())]).unwrap().svg;
            let all = texts(&svg);
            assert!(all.iter().any(|(.., text)| text == "poison, %") && all.iter().any(|(.., text)| text == "harm, %"));
            let labels: Vec<_> = all.iter().filter(|(_, y, text)| *y > 76.0 + SIDE && values.contains(text)).collect();
            assert_eq!(labels.len(), values.len());
            let mut heights: Vec<f64> = labels.iter().map(|(_, y, _)| *y).collect();
            heights.dedup();
            heights.truncate(rows);
            for height in &heights {
                let row: Vec<_> = labels.iter().filter(|(_, y, _)| y == height).collect();
                for pair in row.windows(2) {
                    let width = 5.5 * (pair[0].2.chars().count() + pair[1].2.chars().count()) as f64 / 2.0;
                    assert!(pair[1].0 - pair[0].0 > width, "{pair:?}");
                }
            }
            assert_eq!(labels.iter().filter(|(_, y, _)| !heights.contains(y)).count(), 0);
        }
    }

    #[test]
    fn no_tick_is_beyond_0_or_100_percent() {
        for (values, inside) in [(vec![100.0, 100.0], "100"), (vec![0.0], "0"), (vec![97.5], "100"), (vec![], "20")] {
            let scale = percent_scale(values.iter().map(|value| (*value, None)), 0.0, 1.0);
            let ticks = crate::ticks::labelled(scale.range(), 5);
            assert!(ticks.iter().all(|(tick, _)| (0.0..=100.0).contains(tick)), "{values:?}: {ticks:?}");
            assert!(ticks.iter().any(|(_, label)| label == inside), "{values:?}: {ticks:?}");
        }
    }

    #[test]
    fn bars_end_at_0_and_100_percent() {
        let svg = sweep("title", "key", &["1".into(), "2".into()], &[panel("harm", 2)]).unwrap().svg;
        let at = |label: &str| texts(&svg).iter().find(|(x, _, text)| *x < 86.0 && text == label).unwrap().1 * 4.0;
        let (zero, hundred) = (at("0"), at("100"));
        // A method's first colour is black, and its bars upright.
        let bars: Vec<&str> =
            svg.lines().filter(|line| line.contains("stroke=\"#000000\" stroke-width=\"2\"")).collect();
        assert_eq!(bars.len(), 2, "{svg}");
        for bar in bars {
            let points = bar.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            for point in points.split_whitespace() {
                let y: f64 = point.split(',').nth(1).unwrap().parse().unwrap();
                assert!((hundred - 2.0..=zero + 2.0).contains(&y), "{bar}: {hundred} to {zero}");
            }
        }
    }
}
