//! The pictures of `asft compare`: what each method gains in one measure at the cost of another, both measures as
//! something is varied, and the selected settings, one below another.

use super::Picture;
use super::axis::{LABEL_ROW, LARGE, NORMAL, SMALL, Scale, axes, label_rows, labelled_axes};
use super::canvas::{Anchor, Canvas};
use super::colour::{BLUE, FAINT, INK, METHODS, WHITE};
use crate::ticks;
use anyhow::Result;
use plotters::style::RGBColor;

/// What an axis shows.
#[derive(Clone, Debug)]
pub struct Measure {
    pub name: String,
    /// Whether it is a share, whose values are in percent.
    pub share: bool,
}

impl Measure {
    /// What is written at the axis.
    fn title(&self) -> String {
        if self.share { format!("{}, %", self.name) } else { self.name.clone() }
    }

    /// An axis for these values.
    fn scale(&self, values: impl Iterator<Item = Spread>, start: f64, length: f64) -> Scale {
        if self.share { percent_scale(values, start, length) } else { plain_scale(values, start, length) }
    }

    fn text(&self, value: f64) -> String {
        if self.share { format!("{value:.1}") } else { format!("{value:.4}") }
    }
}

/// A value (a share in percent), and the ends of its bar if there is one.
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
    /// Above it.
    pub title: String,
    pub x: Measure,
    pub y: Measure,
    pub series: Vec<Series>,
}

/// A panel for each combination of the sweep; a method looks the same in all of them.
pub fn trade_off(title: &str, panels: &[Panel]) -> Result<Picture> {
    side_by_side(title, panels, 1, |canvas, panel, left, top, side| {
        canvas.text((left + side / 2.0, top - 16.0), &panel.title, NORMAL, Anchor::Centre, INK);
        let points = || panel.series.iter().flat_map(|series| &series.points);
        let x = panel.x.scale(points().map(|point| point.x), left, side);
        let y = panel.y.scale(points().map(|point| point.y), top + side, -side);
        axes(canvas, x, y, (&panel.x.title(), &panel.y.title()));
        (x, y)
    })
}

/// Each method's results as something is varied: its `values` along the horizontal axis, where a point's `x` is the index
/// of its value; a panel for each measure.
pub fn sweep(title: &str, values: &[String], panels: &[Panel]) -> Result<Picture> {
    let labels: Vec<(f64, String)> = values.iter().enumerate().map(|(i, value)| (i as f64, value.clone())).collect();
    let axis = |left: f64, side: f64| {
        let last = values.len().max(1) as f64 - 1.0;
        Scale { from: -0.25, to: last + 0.25, start: left, length: side }
    };
    let rows = label_rows(axis(0.0, SIDE), &labels);
    side_by_side(title, panels, rows, |canvas, panel, left, top, side| {
        let points = panel.series.iter().flat_map(|series| &series.points);
        let (x, y) = (axis(left, side), panel.y.scale(points.map(|point| point.y), top + side, -side));
        labelled_axes(canvas, x, y, &labels, (&panel.x.title(), &panel.y.title()));
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

/// The ends of values with their bars.
fn ends(values: impl Iterator<Item = Spread>) -> impl Iterator<Item = f64> {
    values.flat_map(|(value, bar)| bar.map_or([value; 2], |(low, high)| [low.min(value), high.max(value)]))
}

/// The range of the values and their bars with a little margin.
fn plain_scale(values: impl Iterator<Item = Spread>, start: f64, length: f64) -> Scale {
    let (from, to) = ticks::extremes(ends(values).filter(|end| end.is_finite())).unwrap_or((0.0, 1.0));
    let room = 0.06 * (to - from);
    Scale { from: from - room, to: to + room, start, length }
}

/// Percentage points that an axis spans at least.
const NARROWEST: f64 = 4.0;

/// The range of the values and their bars with a little margin, hardly beyond 0 to 100.
fn percent_scale(values: impl Iterator<Item = Spread>, start: f64, length: f64) -> Scale {
    let (low, high) = ends(values).fold((100.0f64, 0.0f64), |(low, high), end| (low.min(end), high.max(end)));
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

/// Settings one below another: `drawn` as a dot with its interval, `written` as a number.
pub fn ranking(
    title: &str,
    (drawn, written): (&Measure, &Measure),
    panels: &[String],
    ranks: &[Rank],
) -> Result<Picture> {
    let (top, side, between, step) = (92.0, 250.0, 96.0, 22.0);
    // Of the same axis in all panels: shares have all of it.
    let values = ranks.iter().flat_map(|rank| rank.values.iter().flatten()).map(|(value, _)| *value);
    let range = if drawn.share { (0.0, 100.0) } else { plain_scale(values, 0.0, 1.0).range() };
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
            let x = Scale { from: range.0, to: range.1, start: left + (side + between) * p as f64, length: side };
            canvas.text((x.start + side / 2.0, top - 38.0), panel, NORMAL, Anchor::Centre, INK);
            canvas.text((x.start + side + 14.0, top - 14.0), &written.name, SMALL, Anchor::Left, INK);
            for (tick, label) in ticks::labelled(range, 5) {
                canvas.line(&[(x.at(tick), top), (x.at(tick), bottom)], FAINT, 0.75);
                canvas.text((x.at(tick), bottom + 14.0), &label, SMALL, Anchor::Centre, INK);
            }
            canvas.text((x.start + side / 2.0, bottom + 34.0), &drawn.title(), NORMAL, Anchor::Centre, INK);
            for (i, rank) in ranks.iter().enumerate() {
                let Some(Some(((value, bar), beside))) = rank.values.get(p) else { continue };
                if let Some((low, high)) = bar {
                    canvas.line(&[(x.at(*low), y(i)), (x.at(*high), y(i))], BLUE, 1.6);
                }
                canvas.dot((x.at(*value), y(i)), 4.2, BLUE);
                canvas.text((x.start + side + 14.0, y(i)), &written.text(*beside), SMALL, Anchor::Left, INK);
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

    fn measure(name: &str, share: bool) -> Measure {
        Measure { name: name.into(), share }
    }

    fn panel(title: &str, values: usize) -> Panel {
        let point = |i: usize| Point { x: (i as f64, None), y: (40.0 + i as f64, Some((0.0, 100.0))), selected: false };
        Panel {
            title: title.into(),
            x: measure("poison, %", false),
            y: measure(title, true),
            series: vec![Series { name: "plain".into(), points: (0..values).map(point).collect() }],
        }
    }

    #[test]
    fn labels_of_a_sweep_do_not_overlap() {
        let long: Vec<String> = (0..7).map(|i| format!("train_poison_{i}")).collect();
        let short: Vec<String> = ["0", "1", "3", "5", "10", "20"].map(String::from).to_vec();
        for (values, rows) in [(&long, 2), (&short, 1)] {
            let svg = sweep("title", values, &[panel("harm", values.len())]).unwrap().svg;
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
        let svg = sweep("title", &["1".into(), "2".into()], &[panel("harm", 2)]).unwrap().svg;
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

    #[test]
    fn only_shares_are_labelled_in_percent() {
        let (loss, share) = (measure("loss", false), measure("harm", true));
        let point = |x: f64, y: f64| Point { x: (x, None), y: (y, Some((y - 0.01, y + 0.01))), selected: false };
        let series = || vec![Series { name: "plain".into(), points: vec![point(40.0, 0.42), point(60.0, 0.48)] }];
        let panel = |x: &Measure| Panel { title: "all".into(), x: x.clone(), y: loss.clone(), series: series() };
        let values = vec![Some(((0.42, None), 40.0)), Some(((0.48, Some((0.4, 0.5))), 60.0))];
        let ranks = [Rank { name: "plain".into(), values }];
        let panels = ["a".to_string(), "b".to_string()];
        for (svg, shares) in [
            (trade_off("title", &[panel(&share)]).unwrap().svg, 1),
            (sweep("title", &["1".into(), "2".into()], &[panel(&loss)]).unwrap().svg, 0),
            (ranking("title", (&loss, &share), &panels, &ranks).unwrap().svg, 0),
        ] {
            let texts: Vec<String> = texts(&svg).into_iter().map(|(.., text)| text).collect();
            assert!(texts.iter().any(|text| text == "loss") && !texts.contains(&"loss, %".to_string()), "{texts:?}");
            assert_eq!(texts.iter().filter(|text| *text == "harm, %").count(), shares, "{texts:?}");
            // Ticks between the values, which 0 to 100 would not have.
            assert!(texts.iter().any(|text| text == "0.44"), "{texts:?}");
        }
        let percent = ranking("title", (&share, &loss), &panels, &ranks).unwrap().svg;
        let texts: Vec<String> = texts(&percent).into_iter().map(|(.., text)| text).collect();
        for text in ["harm, %", "0", "100", "40.0000"] {
            assert!(texts.iter().any(|other| other == text), "{text}: {texts:?}");
        }
    }
}
