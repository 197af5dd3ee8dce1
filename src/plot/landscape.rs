//! The pictures of `asft landscape`: curves of the basin, and a map of it.

use super::Picture;
use super::axis::{CHARACTER, LARGE, NORMAL, SMALL, Scale, axes, colour_bar, label};
use super::canvas::{Anchor, Canvas};
use super::colour::{BLUE, GREEN, INK, METHODS, NOTHING, VERMILION, WHITE, amount};
use crate::console::wrapped;
use crate::eval::basin;
use crate::eval::landscape::{Curve, Grid, Landscape, PERCENT, Quantity};
use crate::method::perturb::{Axis, Unit};
use crate::ticks::{self, extremes};
use anyhow::Result;
use plotters::style::RGBColor;

/// Lines of equal value in a plan, about.
const LEVELS: usize = 7;

/// The mark at that step: other weights than those that move may differ from the unaligned model's.
const TAKEN_BACK: &str = "V taken back";
/// Likewise.
const TUNED: &str = "harmful copy";

/// A point of a plane, or of a picture.
type Point = (f64, f64);

/// What both pictures say about themselves.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// The model.
    pub subject: &'a str,
    pub unit: Unit,
    /// The step at which the modules that move have the unaligned model's weights: V is taken back. It is not that model
    /// unless nothing else differs between the two.
    pub unaligned_at: f64,
    /// The second model, if the weights move towards one.
    pub harm: Option<Harm>,
}

/// The model tuned on harmful data.
#[derive(Clone, Copy)]
pub struct Harm {
    /// The step at which the modules that move have its weights.
    pub at: f64,
    /// The cosine of its direction and V.
    pub cosine: f64,
}

impl Frame<'_> {
    /// Of steps along what the letter stands for.
    fn unit(&self, of: &str) -> String {
        match self.unit {
            Unit::Weight => "in norms of each module's weight".to_string(),
            Unit::Direction => format!("in norms of each module's {of}"),
        }
    }
}

/// How a kind of direction is drawn.
struct Look {
    axis: Axis,
    name: &'static str,
    colour: RGBColor,
    /// Points drawn and left out alternately; `None` for a solid line.
    dash: Option<(f64, f64)>,
}

const LOOKS: [Look; 4] = [
    Look { axis: Axis::Random, name: "random", colour: GREEN, dash: Some((2.5, 3.0)) },
    Look { axis: Axis::Orthogonal, name: "orthogonal to V", colour: VERMILION, dash: Some((8.0, 4.0)) },
    Look { axis: Axis::Harm, name: "towards harm", colour: METHODS[4], dash: Some((12.0, 3.0)) },
    Look { axis: Axis::Aligned, name: "along V (+: more aligned)", colour: BLUE, dash: None },
];

/// One panel of curves for each quantity.
pub fn curves(landscape: &Landscape, frame: &Frame) -> Result<Picture> {
    let (left, width, panel, head) = (82.0, 620.0, 346.0, 78.0);
    let count = landscape.quantities.len();
    // Towards harm they are the norms of H.
    let along = if frame.harm.is_some() { "V or H" } else { "V" };
    let size = (left + width + 30.0, head + panel * count as f64);
    Picture::draw(size.0 as u32, size.1 as u32, |canvas| {
        canvas.text((left, 20.0), &format!("Moving the weights of {}", frame.subject), LARGE, Anchor::Left, INK);
        let band = "mean; band: least to greatest";
        canvas.text((left + width, 20.0), band, SMALL, Anchor::Right, INK);
        legend(canvas, (left, 48.0), &landscape.curves);
        for (i, quantity) in landscape.quantities.iter().enumerate() {
            let top = head + panel * i as f64 + 12.0;
            let values = landscape.curves.iter().flat_map(|curve| curve.values[i].iter().flatten().copied());
            let Some((low, high)) = extremes(values) else { continue };
            // Rates are best shown from 0 to 100.
            let (low, high) = if quantity.unit == PERCENT { (0.0, 100.0) } else { (low, high) };
            let room = 0.06 * (high - low);
            let x = scale(&landscape.steps, left, width);
            let y = Scale { from: low - room, to: high + room, start: top + panel - 78.0, length: -(panel - 106.0) };
            canvas.text((left + width / 2.0, top - 4.0), &quantity.name, NORMAL, Anchor::Centre, INK);
            if let Some(lengths) = protected(landscape, i) {
                canvas.text((left + width / 2.0, top + 13.0), &lengths, SMALL, Anchor::Centre, INK);
            }
            axes(canvas, x, y, (&format!("perturbation, {}", frame.unit(along)), quantity.unit));
            let taken_back = Some(frame.unaligned_at).filter(|at| *at > x.from && *at < x.to).map(|at| x.at(at));
            let top = y.start + y.length;
            if let Some(at) = taken_back {
                canvas.dashed(&[(at, y.start), (at, top)], INK, 1.0, (3.0, 3.0));
            }
            for look in &LOOKS {
                let group: Vec<&Curve> = landscape.curves.iter().filter(|curve| curve.ray.axis == look.axis).collect();
                draw_group(canvas, look, &group, (i, &landscape.steps), (x, y));
            }
            // Over the curves, which would strike it through.
            if let Some(at) = taken_back {
                label(canvas, (at, top + 10.0), TAKEN_BACK, x);
            }
        }
        Ok(())
    })
}

fn scale(steps: &[f64], start: f64, length: f64) -> Scale {
    let (from, to) = extremes(steps.iter().copied()).unwrap_or((-1.0, 1.0));
    Scale { from, to, start, length }
}

/// The expected protected lengths of a quantity that is a harmful score, on a line.
fn protected(landscape: &Landscape, quantity: usize) -> Option<String> {
    let place = landscape.harms().iter().position(|harm| *harm == quantity)?;
    let lengths = basin::lengths(landscape).into_iter();
    let each = lengths.filter_map(|(name, lengths)| Some(format!("{name} {}", (*lengths.get(place)?)?.text())));
    Some(format!("expected protected length: {}", each.collect::<Vec<_>>().join(", ")))
}

fn legend(canvas: &Canvas, (left, y): Point, curves: &[Curve]) {
    let mut x = left;
    for look in LOOKS.iter().rev().filter(|look| curves.iter().any(|curve| curve.ray.axis == look.axis)) {
        stroke(canvas, look, &[(x, y), (x + 34.0, y)]);
        if look.dash.is_none() {
            canvas.dot((x + 17.0, y), 3.2, look.colour);
        }
        canvas.text((x + 42.0, y), look.name, SMALL, Anchor::Left, INK);
        x += 66.0 + 5.4 * look.name.chars().count() as f64;
    }
}

fn stroke(canvas: &Canvas, look: &Look, points: &[Point]) {
    match look.dash {
        None => canvas.line(points, look.colour, 2.0),
        Some(dash) => canvas.dashed(points, look.colour, 2.0, dash),
    }
}

/// A line of means over a band from least to greatest, with a gap where a value is not finite.
fn draw_group(
    canvas: &Canvas,
    look: &Look,
    group: &[&Curve],
    (quantity, steps): (usize, &[f64]),
    (x, y): (Scale, Scale),
) {
    let mut pieces: Vec<Vec<(f64, [f64; 3])>> = vec![vec![]];
    for (i, step) in steps.iter().enumerate() {
        let values: Option<Vec<f64>> = group.iter().map(|curve| curve.values[quantity][i]).collect();
        match values.filter(|values| !values.is_empty()) {
            Some(values) => {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let (low, high) = values.iter().fold((mean, mean), |(low, high), v| (low.min(*v), high.max(*v)));
                if let Some(piece) = pieces.last_mut() {
                    piece.push((*step, [low, mean, high]));
                }
            }
            None => pieces.push(vec![]),
        }
    }
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let line = |which: usize| piece.iter().map(move |(step, values)| (x.at(*step), y.at(values[which])));
        if group.len() > 1 {
            canvas.polygon(line(0).chain(line(2).rev()).collect(), look.colour, 0.18);
        }
        let points: Vec<Point> = line(1).collect();
        stroke(canvas, look, &points);
        if look.dash.is_none() {
            points.iter().for_each(|point| canvas.dot(*point, 3.2, look.colour));
        }
    }
}

/// A map of each quantity that is not the same everywhere: a cell for each point, and lines of equal value. Several stand
/// in rows, about as many below as beside each other.
pub fn grid(landscape: &Landscape, grid: &Grid, frame: &Frame) -> Result<Picture> {
    let (left, side, between, head, foot) = (82.0, 380.0, 170.0, 40.0, 66.0);
    let all = 0..landscape.quantities.len();
    let (mut drawn, mut left_out): (Vec<usize>, Vec<usize>) = all.partition(|&i| constant(&grid.values[i]).is_none());
    if drawn.is_empty() {
        std::mem::swap(&mut drawn, &mut left_out);
    }
    let columns = (drawn.len() as f64).sqrt().ceil().max(1.0) as usize;
    let width = left + (side + between) * columns as f64 - between + 92.0;
    let caption = caption(landscape, grid, (&left_out, frame.harm), width - 2.0 * MARGIN);
    let first = 36.0 + LINE * caption.len() as f64;
    let height = first + (head + side + foot) * drawn.len().div_ceil(columns) as f64;
    Picture::draw(width as u32, height as u32, |canvas| {
        let across = if frame.harm.is_some() { "towards harm" } else { "across it" };
        let title = format!("Moving the weights of {} along V and {across}", frame.subject);
        canvas.text((MARGIN, 20.0), &title, LARGE, Anchor::Left, INK);
        for (i, line) in caption.iter().enumerate() {
            canvas.text((MARGIN, 42.0 + LINE * i as f64), line, SMALL, Anchor::Left, INK);
        }
        for (place, &i) in drawn.iter().enumerate() {
            let left = left + (side + between) * (place % columns) as f64;
            let top = first + (head + side + foot) * (place / columns) as f64 + head;
            draw_quantity(canvas, &landscape.quantities[i], (grid, i), frame, (left, top, side));
        }
        Ok(())
    })
}

const MARGIN: f64 = 20.0;
/// Height of a line of small text.
const LINE: f64 = 15.0;

/// The value of a quantity that is the same everywhere.
fn constant(rows: &[Vec<Option<f64>>]) -> Option<f64> {
    let first = rows.first()?.first().copied()??;
    rows.iter().flatten().all(|value| *value == Some(first)).then_some(first)
}

/// Which quantities are the same everywhere, and how the axes lie, in lines of at most `width`.
fn caption(landscape: &Landscape, grid: &Grid, (left_out, harm): (&[usize], Option<Harm>), width: f64) -> Vec<String> {
    let value = |&i: &usize| {
        let (quantity, value) = (&landscape.quantities[i], constant(&grid.values[i])?);
        let value = if quantity.unit == PERCENT { format!("{value:.1}") } else { format!("{value:.4}") };
        Some(format!("{} ({value} {})", quantity.name, quantity.unit))
    };
    let values: Vec<String> = left_out.iter().filter_map(value).collect();
    let same = (!values.is_empty()).then(|| format!("The same everywhere, so not drawn: {}", values.join(", ")));
    let axes = harm.map(|harm| format!("The axes are drawn at right angles; their cosine is {:+.3}", harm.cosine));
    let lines = axes.into_iter().chain(same).flat_map(|text| wrapped(&text, (width / CHARACTER) as usize, 0));
    lines.collect()
}

fn draw_quantity(
    canvas: &Canvas,
    quantity: &Quantity,
    (grid, i): (&Grid, usize),
    frame: &Frame,
    (left, top, side): (f64, f64, f64),
) {
    let name = format!("{}, {}", quantity.name, quantity.unit);
    canvas.text((left + side / 2.0, top - 14.0), &name, NORMAL, Anchor::Centre, INK);
    let range = (quantity.unit == PERCENT).then_some((0.0, 100.0));
    let (across, of) = if frame.harm.is_some() { ("towards harm", "H") } else { ("orthogonal to V", "V") };
    let names = [format!("along V, {}", frame.unit("V")), format!("{across}, {}", frame.unit(of))];
    draw_plan(canvas, &grid.values[i], &grid.steps, (range, &names), (left, top, side));
    let (x, y) = (cells(&grid.steps, left, side), cells(&grid.steps, top + side, -side));
    let mark = |(at, above): Point, name: &str, below: f64| {
        let at = (x.at(at), y.at(above));
        canvas.dot(at, 4.5, WHITE);
        canvas.dot(at, 3.0, INK);
        label(canvas, (at.0, at.1 + below), name, x);
    };
    if frame.unaligned_at > x.from && frame.unaligned_at < x.to {
        mark((frame.unaligned_at, 0.0), TAKEN_BACK, 13.0);
    }
    if let Some(harm) = frame.harm.filter(|harm| harm.at > y.from && harm.at < y.to) {
        mark((0.0, harm.at), TUNED, -13.0);
    }
    mark((0.0, 0.0), "model", -13.0);
}

/// Cells are centred on the points, so they reach half a step beyond the outer ones.
fn cells(steps: &[f64], start: f64, length: f64) -> Scale {
    let Scale { from, to, .. } = scale(steps, start, length);
    let half = (to - from) / (steps.len().max(2) - 1) as f64 / 2.0;
    Scale { from: from - half, to: to + half, start, length }
}

/// `range`: the range of the colours, if it is not that of the values.
fn draw_plan(
    canvas: &Canvas,
    rows: &[Vec<Option<f64>>],
    steps: &[f64],
    (range, names): (Option<Point>, &[String; 2]),
    (left, top, side): (f64, f64, f64),
) {
    let (x, y) = (cells(steps, left, side), cells(steps, top + side, -side));
    let Some((low, high)) = range.or(extremes(rows.iter().flatten().flatten().copied())) else { return };
    let colour = Scale { from: low, to: high, start: top + side, length: -side };
    axes(canvas, x, y, (&names[0], &names[1]));
    let cell = side / steps.len().max(1) as f64;
    for (row, y_step) in rows.iter().zip(steps) {
        for (value, x_step) in row.iter().zip(steps) {
            let fill = value.map_or(NOTHING, |value| amount(colour.share(value)));
            let corner = (x.at(*x_step) - cell / 2.0 - 0.15, y.at(*y_step) - cell / 2.0 - 0.15);
            canvas.rectangle(corner, (cell + 0.3, cell + 0.3), fill);
        }
    }
    let levels = ticks::ticks(colour.range(), LEVELS);
    let place = |(column, row): Point| (left + (column + 0.5) * cell, top + side - (row + 0.5) * cell);
    // White under ink is visible on every colour.
    for (ink, width) in [(WHITE, 2.5), (INK, 1.0)] {
        for (a, b) in levels.iter().flat_map(|level| contour(rows, *level)) {
            canvas.line(&[place(a), place(b)], ink, width);
        }
    }
    canvas.frame((left, top), (side, side), INK);
    colour_bar(canvas, left + side + 14.0, colour, LEVELS, amount);
}

/// Where the values, linear between neighbouring points, equal `level`: segments in (column, row).
fn contour(rows: &[Vec<Option<f64>>], level: f64) -> Vec<(Point, Point)> {
    let mut segments = vec![];
    for (r, pair) in rows.windows(2).enumerate() {
        for c in 0..pair[0].len().saturating_sub(1) {
            let corners = [pair[0][c], pair[0][c + 1], pair[1][c + 1], pair[1][c]];
            let [Some(a), Some(b), Some(d), Some(e)] = corners else { continue };
            let (c, r) = (c as f64, r as f64);
            let around = [((c, r), a), ((c + 1.0, r), b), ((c + 1.0, r + 1.0), d), ((c, r + 1.0), e)];
            let mut crossings = vec![];
            for i in 0..4 {
                let ((p, from), (q, to)) = (around[i], around[(i + 1) % 4]);
                if (from < level) != (to < level) {
                    let t = (level - from) / (to - from);
                    crossings.push((p.0 + t * (q.0 - p.0), p.1 + t * (q.1 - p.1)));
                }
            }
            // A saddle has four crossings; they may be paired either way.
            for pair in crossings.chunks_exact(2) {
                segments.push((pair[0], pair[1]));
            }
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::perturb::Ray;

    #[test]
    fn a_plane_has_straight_contours() {
        let rows: Vec<Vec<Option<f64>>> =
            (0..3).map(|_| (0..4).map(|column| Some(f64::from(column))).collect()).collect();
        let lines = contour(&rows, 1.5);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|(a, b)| (a.0 - 1.5).abs() < 1e-12 && (b.0 - 1.5).abs() < 1e-12));
        assert!(contour(&rows, 9.0).is_empty());
    }

    fn landscape(names: &[&str], values: Vec<Vec<Vec<Option<f64>>>>) -> (Landscape, Grid) {
        let quantities = names.iter().map(|name| Quantity { name: name.to_string(), unit: PERCENT }).collect();
        let landscape = Landscape { quantities, steps: vec![-1.0, 0.0, 1.0], curves: vec![], grid: None };
        let ray = |axis| Ray { axis, repeat: 0 };
        let (x, y) = (ray(Axis::Aligned), ray(Axis::Orthogonal));
        (landscape, Grid { x, y, steps: vec![-1.0, 0.0, 1.0], values })
    }

    #[test]
    fn maps_wrap_and_what_never_changes_is_named_instead() {
        let varied = || (0..3).map(|r| (0..3).map(|c| Some(f64::from(10 * r + c))).collect()).collect();
        let same = |value: f64| vec![vec![Some(value); 3]; 3];
        let names = ["harmful score", "empty", "accuracy", "noise", "told", "gibberish"];
        let values = vec![varied(), same(0.0), varied(), varied(), varied(), same(12.5)];
        let (landscape, grid) = landscape(&names, values);
        let frame = Frame { subject: "m", unit: Unit::Direction, unaligned_at: -1.0, harm: None };
        let svg = super::grid(&landscape, &grid, &frame).unwrap().svg;
        assert!(svg.contains("The same everywhere, so not drawn: empty (0.0 %), gibberish (12.5 %)"), "{svg}");
        assert_eq!(svg.matches("along V, in norms").count(), 4);
        assert!(svg.contains(TAKEN_BACK) && !svg.contains("\nunaligned\n"));
        // Two rows of two.
        let size = |name: &str| -> f64 {
            svg.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        assert!(size("width") < 1.2 * size("height"), "{} {}", size("width"), size("height"));
        assert!(svg.contains("prefers-color-scheme:dark"));
        let harm = Some(Harm { at: 1.0, cosine: -0.25 });
        let svg = super::grid(&landscape, &grid, &Frame { harm, ..frame }).unwrap().svg;
        assert!(svg.contains("their cosine is -0.250") && svg.matches(TUNED).count() == 4, "{svg}");
        assert!(svg.contains("towards harm, in norms") && !svg.contains("orthogonal to V"));
    }

    #[test]
    fn maps_without_any_change_are_drawn_and_captions_keep_the_width() {
        let same = vec![vec![Some(1.0); 3]; 3];
        let names: Vec<String> = (0..12).map(|i| format!("measure number {i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (landscape, grid) = landscape(&names, vec![same; 12]);
        let frame = Frame { subject: "m", unit: Unit::Weight, unaligned_at: -9.0, harm: None };
        let one = Landscape { quantities: landscape.quantities[..1].to_vec(), ..landscape.clone() };
        let svg = super::grid(&one, &grid, &frame).unwrap().svg;
        assert!(svg.contains("measure number 0, %") && !svg.contains("not drawn") && !svg.contains(TAKEN_BACK));
        let lines = caption(&landscape, &grid, (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], None), 500.0);
        assert!(
            lines.len() > 1 && lines.iter().all(|line| line.chars().count() as f64 * CHARACTER <= 500.0),
            "{lines:?}"
        );
    }
}
