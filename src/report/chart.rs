//! Line charts as inline SVG. Colours are CSS classes, so that the page's style sheet decides them for light, dark and
//! paper, which is why they are not drawn by a plotting library.

use super::short;
use crate::ticks::{self, extremes};
use std::fmt::Write;

/// Little more than a telephone is wide: text stays readable when the picture shrinks to that.
pub const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 210.0;
/// Left, right, top of the plot inside the picture.
const MARGINS: [f64; 3] = [54.0, 16.0, 12.0];
/// A row of numbers below the plot.
const ROW: f64 = 16.0;
/// More points than this are averaged, with a band from the lowest to the highest.
const MOST_POINTS: usize = 200;
/// More places than this share the strips that tell values on hover.
const MOST_STRIPS: usize = 100;
/// Positive values whose ratio exceeds this are shown on a logarithmic axis.
const LOG_SPREAD: f64 = 50.0;

/// One line of a chart.
pub struct Series {
    pub name: &'static str,
    /// x ascending; only finite values.
    pub points: Vec<(f64, f64)>,
    /// Mark each point; suits few points.
    pub dots: bool,
}

pub struct Chart {
    pub title: String,
    pub x_label: &'static str,
    /// (x, epoch), ascending: a second row of numbers below the plot; empty for none.
    pub epochs: Vec<(f64, f64)>,
    pub series: Vec<Series>,
    /// The y axis begins at 0 if it is linear.
    pub from_zero: bool,
    /// The y axis may be logarithmic.
    pub may_log: bool,
}

impl Series {
    pub fn new(name: &'static str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        Self { name, points, dots: false }
    }

    pub fn with_dots(self) -> Self {
        Self { dots: true, ..self }
    }
}

/// The axes' ranges, and the mapping from values to the picture.
struct Frame {
    /// Of the plot's lower edge.
    base: f64,
    x: (f64, f64),
    /// Logarithms to base 10 if `log` is set.
    y: (f64, f64),
    log: bool,
}

impl Frame {
    fn of(chart: &Chart) -> Option<Self> {
        let values = || chart.series.iter().flat_map(|series| &series.points);
        let x = extremes(values().map(|(x, _)| *x))?;
        let y = || values().map(|(_, y)| *y);
        let (low, high) = extremes(y())?;
        let log = chart.may_log && low > 0.0 && high / low > LOG_SPREAD;
        let y = match log {
            true => (low.log10(), high.log10()),
            false if chart.from_zero => extremes(y().chain([0.0]))?,
            false => (low, high),
        };
        let rows = if chart.epochs.is_empty() { 1.0 } else { 2.0 };
        Some(Self { base: HEIGHT - ROW * rows - 9.0, x, y: aired(y), log })
    }

    fn place_x(&self, x: f64) -> f64 {
        let [left, right, _] = MARGINS;
        left + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - left - right)
    }

    fn place_y(&self, y: f64) -> f64 {
        let [.., top] = MARGINS;
        let y = if self.log { y.log10() } else { y };
        self.base - (y - self.y.0) / (self.y.1 - self.y.0) * (self.base - top)
    }
}

/// A range with some air. A lower end of 0 stays.
fn aired((low, high): (f64, f64)) -> (f64, f64) {
    let air = (high - low) * 0.05;
    (if low == 0.0 { 0.0 } else { low - air }, high + air)
}

impl Chart {
    /// A figure with its title and legend; empty if there is nothing to show.
    pub fn to_html(&self) -> String {
        let Some(frame) = Frame::of(self) else { return String::new() };
        let title = escape(&self.title);
        let mut html = format!("<figure><figcaption>{title}{}", if frame.log { " <small>(log)</small>" } else { "" });
        if self.series.len() > 1 {
            html.push_str("<span class=\"legend\">");
            for (number, series) in self.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty()) {
                let _infallible = write!(html, "<span class=\"s{number}\">{}</span>", escape(series.name));
            }
            html.push_str("</span>");
        }
        let _infallible = write!(
            html,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
        );
        self.draw_axes(&frame, &mut html);
        for (number, series) in self.series.iter().enumerate() {
            draw(series, number, &frame, &mut html);
        }
        self.draw_strips(&frame, &mut html);
        html.push_str("</svg></figure>\n");
        html
    }

    fn draw_axes(&self, frame: &Frame, svg: &mut String) {
        let [left, right, _] = MARGINS;
        let (end, base) = (WIDTH - right, frame.base);
        for (value, label) in if frame.log { ticks::logarithmic(frame.y) } else { ticks::labelled(frame.y, 5) } {
            let y = frame.place_y(value);
            let _infallible = write!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"y\" \
                 x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                left - 7.0,
                y + 4.0
            );
        }
        let _infallible = write!(svg, "<line class=\"axis\" x1=\"{left}\" x2=\"{end}\" y1=\"{base}\" y2=\"{base}\"/>");
        let mut row = |number: f64, name: &str, labels: &mut dyn Iterator<Item = (f64, String)>| {
            let y = base + ROW * number + 3.0;
            let _infallible =
                write!(svg, "<text class=\"y\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>", left - 12.0, escape(name));
            for (x, label) in labels {
                let x = frame.place_x(x);
                let _infallible = write!(svg, "<text class=\"x\" x=\"{x:.1}\" y=\"{y:.1}\">{label}</text>");
            }
        };
        row(1.0, self.x_label, &mut ticks::whole(frame.x, 7).into_iter());
        if !self.epochs.is_empty() {
            let range = (between(&self.epochs, frame.x.0), between(&self.epochs, frame.x.1));
            let steps: Vec<(f64, f64)> = self.epochs.iter().map(|&(step, epoch)| (epoch, step)).collect();
            let labels = ticks::labelled(range, 5).into_iter().map(|(epoch, label)| (between(&steps, epoch), label));
            row(2.0, "epoch", &mut { labels });
        }
    }

    /// Transparent strips that tell the values of all series where the pointer is.
    fn draw_strips(&self, frame: &Frame, svg: &mut String) {
        let [left, right, top] = MARGINS;
        let mut places: Vec<f64> = self.series.iter().flat_map(|series| &series.points).map(|(x, _)| *x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let groups: Vec<&[f64]> = places.chunks(places.len().div_ceil(MOST_STRIPS).max(1)).collect();
        let ends = |group: &[f64]| (group[0], group[group.len() - 1]);
        let mut from = left;
        for (i, group) in groups.iter().enumerate() {
            let (first, last) = ends(group);
            let to = groups.get(i + 1).map_or(WIDTH - right, |next| frame.place_x((last + ends(next).0) / 2.0));
            let _infallible = write!(
                svg,
                "<rect class=\"hit\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                to - from,
                frame.base - top,
                escape(&self.told((first, last)))
            );
            from = to;
        }
    }

    /// What there is between two places, in words and numbers; a line for each series.
    fn told(&self, (first, last): (f64, f64)) -> String {
        let mut text = match first == last {
            true => format!("{} {first}", self.x_label),
            false => format!("{}s {first} to {last}", self.x_label),
        };
        if !self.epochs.is_empty() {
            let _infallible = write!(text, ", epoch {:.2}", between(&self.epochs, last));
        }
        for series in &self.series {
            let within: Vec<(f64, f64)> =
                series.points.iter().filter(|(x, _)| (first..=last).contains(x)).copied().collect();
            let Some(Bin { mean, low, high, .. }) = Bin::of(&within) else { continue };
            let spread = if low == high { String::new() } else { format!(" ({} to {})", short(low), short(high)) };
            let _infallible = write!(text, "\n{} {}{spread}", series.name, short(mean));
        }
        text
    }
}

/// Linear between the points, whose x ascends, and constant beyond them.
fn between(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|(other, _)| *other < x);
    match (points.get(after.wrapping_sub(1)), points.get(after)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (x - x0) / (x1 - x0) * (y1 - y0),
        (Some((_, y)), None) | (None, Some((_, y))) => *y,
        (None, None) => x,
    }
}

fn draw(series: &Series, number: usize, frame: &Frame, svg: &mut String) {
    let place = |x: f64, y: f64| format!("{:.1},{:.1}", frame.place_x(x), frame.place_y(y));
    let mut line: Vec<String> = vec![];
    if series.points.len() > MOST_POINTS {
        let bins = bins(&series.points);
        let upper = bins.iter().map(|bin| place(bin.x, bin.high));
        let lower = bins.iter().rev().map(|bin| place(bin.x, bin.low));
        let outline: Vec<String> = upper.chain(lower).collect();
        let _infallible = write!(svg, "<polygon class=\"s{number} band\" points=\"{}\"/>", outline.join(" "));
        line.extend(bins.iter().map(|bin| place(bin.x, bin.mean)));
    } else {
        line.extend(series.points.iter().map(|&(x, y)| place(x, y)));
    }
    let _infallible = write!(svg, "<polyline class=\"s{number}\" points=\"{}\"/>", line.join(" "));
    if series.dots || series.points.len() == 1 {
        for &(x, y) in &series.points {
            let (x, y) = (frame.place_x(x), frame.place_y(y));
            let _infallible = write!(svg, "<circle class=\"s{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>");
        }
    }
}

struct Bin {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

impl Bin {
    fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        (!points.is_empty()).then(|| Self {
            x: points.iter().map(|(x, _)| x).sum::<f64>() / count,
            mean: points.iter().map(|(_, y)| y).sum::<f64>() / count,
            low: points.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min),
            high: points.iter().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// Bins of equally many neighbouring points.
fn bins(points: &[(f64, f64)]) -> Vec<Bin> {
    points.chunks(points.len().div_ceil(MOST_POINTS)).filter_map(Bin::of).collect()
}

/// Text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
