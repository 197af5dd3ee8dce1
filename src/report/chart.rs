//! Line charts as inline SVG. Colours are CSS classes, so that the page's style sheet decides them for light, dark and
//! paper, which is why they are not drawn by a plotting library.

use crate::ticks::{self, extremes};
use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 230.0;
/// Left, right, top, bottom of the plot inside the picture.
const MARGINS: [f64; 4] = [56.0, 22.0, 12.0, 38.0];
/// More points than this are averaged, with a band from the lowest to the highest.
const MOST_POINTS: usize = 280;
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
        Some(Self { x, y: aired(y), log })
    }

    fn place_x(&self, x: f64) -> f64 {
        let [left, right, ..] = MARGINS;
        left + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - left - right)
    }

    fn place_y(&self, y: f64) -> f64 {
        let [.., top, bottom] = MARGINS;
        let y = if self.log { y.log10() } else { y };
        HEIGHT - bottom - (y - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - top - bottom)
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
        html.push_str("</svg></figure>\n");
        html
    }

    fn draw_axes(&self, frame: &Frame, svg: &mut String) {
        let [left, right, _, bottom] = MARGINS;
        let (end, base) = (WIDTH - right, HEIGHT - bottom);
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
        for (value, label) in ticks::whole(frame.x, 7) {
            let x = frame.place_x(value);
            let _infallible = write!(svg, "<text class=\"x\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", base + 16.0);
        }
        let _infallible = write!(
            svg,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{end}\" y1=\"{base}\" y2=\"{base}\"/><text class=\"x\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            (left + end) / 2.0,
            HEIGHT - 6.0,
            escape(self.x_label)
        );
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

/// Bins of equally many neighbouring points.
fn bins(points: &[(f64, f64)]) -> Vec<Bin> {
    let size = points.len().div_ceil(MOST_POINTS);
    let bin = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        Bin {
            x: points.iter().map(|(x, _)| x).sum::<f64>() / count,
            mean: points.iter().map(|(_, y)| y).sum::<f64>() / count,
            low: points.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min),
            high: points.iter().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max),
        }
    };
    points.chunks(size).map(bin).collect()
}

/// Text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let chart = |points: Vec<(f64, f64)>| Chart {
            title: "a < b".to_string(),
            x_label: "step",
            series: vec![Series::new("loss", points)],
            from_zero: false,
            may_log: true,
        };
        assert_eq!(chart(vec![]).to_html(), "");
        assert_eq!(chart(vec![(1.0, f64::NAN)]).to_html(), "");
        let single = chart(vec![(1.0, 3.0)]).to_html();
        assert!(single.contains("a &lt; b") && single.contains("<circle") && !single.contains("NaN"), "{single}");
        let flat = chart(vec![(1.0, 0.0), (2.0, 0.0)]).to_html();
        assert!(!flat.contains("NaN") && !flat.contains("inf"), "{flat}");
    }

    #[test]
    fn many_points_become_a_band_and_far_ones_a_logarithm() {
        let points = (0..10_000).map(|x| (f64::from(x), 1.0 + f64::from(x % 7)));
        let chart = Chart {
            title: "loss".to_string(),
            x_label: "step",
            series: vec![Series::new("loss", points)],
            from_zero: false,
            may_log: true,
        };
        let html = chart.to_html();
        assert!(html.contains("band") && html.len() < 20_000 && !html.contains("(log)"));
        let wide = Series::new("norm", [(0.0, 1e-4), (1.0, 1.0)]);
        let html =
            Chart { title: "norm".to_string(), x_label: "layer", series: vec![wide], from_zero: true, may_log: true }
                .to_html();
        assert!(html.contains("(log)"));
    }
}
