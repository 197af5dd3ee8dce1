//! Scales: values to places, round ticks, and bars that explain colours.

use super::canvas::{Anchor, Canvas};
use super::colour::{FAINT, INK, WHITE};
use plotters::style::RGBColor;

pub const SMALL: f64 = 11.0;
pub const NORMAL: f64 = 12.5;
pub const LARGE: f64 = 15.0;
const BAR_STEPS: usize = 64;

/// Values `from` to `to` along `length` points that begin at `start`; a negative length runs upwards.
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

    /// Round values within the scale, as near to `count` of them as may be.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        let span = self.to - self.from;
        if !span.is_finite() || span <= 0.0 {
            return vec![self.from];
        }
        let power = (span / count.max(1) as f64).log10().floor() as i32;
        let steps = (power - 1..=power + 1).flat_map(|p| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(p)));
        let nearest = steps.map(|step| self.multiples(step)).min_by_key(|ticks| ticks.len().abs_diff(count));
        nearest.unwrap_or_default()
    }

    fn multiples(&self, step: f64) -> Vec<f64> {
        let slack = step * 1e-6;
        let (first, last) = (((self.from - slack) / step).ceil() as i64, ((self.to + slack) / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// The least and the greatest of the values, apart by something; none without values.
pub fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high {
        return None;
    }
    let slack = if high > low { 0.0 } else { low.abs().max(1e-12) * 0.05 };
    Some((low - slack, high + slack))
}

/// As short as `step`, the distance between ticks, allows.
pub fn number(value: f64, step: f64) -> String {
    let value = if value.abs() < step.abs() * 1e-6 { 0.0 } else { value };
    let text = if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        format!("{value:.1e}")
    } else {
        // A step of 0.1 is a little less than that.
        let digits = (-(step.abs().max(1e-12).log10() + 1e-6).floor()).clamp(0.0, 6.0) as usize;
        format!("{value:.digits$}")
    };
    text.replace('-', "−")
}

fn step_of(ticks: &[f64]) -> f64 {
    match ticks {
        [a, b, ..] => b - a,
        [a] => a.abs() * 0.01,
        [] => 1.0,
    }
}

/// Ticks and faint lines of both axes, and the frame, around (x.start, y.start + y.length).
pub fn axes(canvas: &Canvas, x: Scale, y: Scale, names: (&str, &str)) {
    let ticks = x.ticks(6);
    let labelled: Vec<(f64, String)> = ticks.iter().map(|tick| (*tick, number(*tick, step_of(&ticks)))).collect();
    labelled_axes(canvas, x, y, &labelled, names);
}

/// As [`axes`], with texts at places of the horizontal one.
pub fn labelled_axes(canvas: &Canvas, x: Scale, y: Scale, labels: &[(f64, String)], (x_name, y_name): (&str, &str)) {
    let (left, bottom, right, top) = (x.start, y.start, x.start + x.length, y.start + y.length);
    for (tick, label) in labels {
        let at = x.at(*tick);
        canvas.line(&[(at, bottom), (at, top)], FAINT, 0.75);
        canvas.line(&[(at, bottom), (at, bottom + 4.0)], INK, 1.0);
        canvas.text((at, bottom + 14.0), label, SMALL, Anchor::Centre, INK);
    }
    let ticks = y.ticks(5);
    for tick in &ticks {
        let at = y.at(*tick);
        canvas.line(&[(left, at), (right, at)], FAINT, 0.75);
        canvas.line(&[(left - 4.0, at), (left, at)], INK, 1.0);
        canvas.text((left - 8.0, at), &number(*tick, step_of(&ticks)), SMALL, Anchor::Right, INK);
    }
    canvas.frame((left, top), (right - left, bottom - top), INK);
    canvas.text(((left + right) / 2.0, bottom + 34.0), x_name, NORMAL, Anchor::Centre, INK);
    canvas.text_upwards((left - 52.0, (top + bottom) / 2.0), y_name, NORMAL, INK);
}

/// A vertical bar that says which colour is which value.
pub fn colour_bar(canvas: &Canvas, x: f64, scale: Scale, ticks: &[f64], colour: impl Fn(f64) -> RGBColor) {
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
    for tick in ticks {
        let at = scale.at(*tick);
        canvas.line(&[(x + width, at), (x + width + 4.0, at)], INK, 1.0);
        canvas.text((x + width + 7.0, at), &number(*tick, step_of(ticks)), SMALL, Anchor::Left, INK);
    }
}

/// Text on a white ground, so that it reads on anything; as near to (x, y) as it can be within `bounds`.
pub fn label(canvas: &Canvas, (x, y): (f64, f64), text: &str, bounds: Scale) {
    let width = 6.0 * text.chars().count() as f64;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |from: f64, to: f64| Scale { from, to, start: 0.0, length: 1.0 }.ticks(5);
        let near = |a: Vec<f64>, b: &[f64]| {
            assert_eq!(a.len(), b.len(), "{a:?}");
            a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} {b}"));
        };
        near(ticks(-0.5, 0.5), &[-0.4, -0.2, 0.0, 0.2, 0.4]);
        near(ticks(-0.05, 0.05), &[-0.04, -0.02, 0.0, 0.02, 0.04]);
        near(ticks(0.0, 100.0), &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        near(ticks(1.0, 1.0), &[1.0]);
        assert_eq!(extremes([2.0, 2.0].into_iter()), Some((1.9, 2.1)));
        assert_eq!(extremes([].into_iter()), None);
        assert_eq!(number(-0.4000001, 0.2), "−0.4");
        assert_eq!(number(7.8, 7.9 - 7.8), "7.8");
        assert_eq!(number(1.23e-5, 1e-6), "1.2e−5");
    }
}
