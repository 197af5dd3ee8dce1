//! What a picture is made of: lines, polygons and text in points, recorded once and drawn as SVG or PNG.

use super::colour::style;
use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, TextStyle, register_font};
use std::cell::RefCell;
use std::sync::Once;

/// Backend pixels per point: plotters knows only whole pixels, and a point is too coarse for a curve.
const FINE: u32 = 4;
/// Backend pixels averaged into one of the PNG, in each direction: plotters draws thick lines without smoothing.
const SMOOTHING: u32 = 2;
/// In an SVG, text may be a little narrower than Roboto if the viewer uses another font; nothing relies on widths.
const FONT: &str = "sans-serif";
static ROBOTO: &[u8] = include_bytes!("font/Roboto-Regular-subset.ttf");

/// Where a text's reference point is.
#[derive(Clone, Copy)]
pub enum Anchor {
    Left,
    Centre,
    Right,
}

enum Stroke {
    Line { points: Vec<(f64, f64)>, colour: RGBColor, width: f64 },
    Polygon { points: Vec<(f64, f64)>, colour: RGBColor, opacity: f64 },
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, colour: RGBColor, upwards: bool },
}

/// Records what is drawn; coordinates are points from the upper left.
pub struct Canvas {
    strokes: RefCell<Vec<Stroke>>,
}

/// A finished recording.
pub struct Strokes {
    width: u32,
    height: u32,
    strokes: Vec<Stroke>,
}

pub fn record(width: u32, height: u32, draw: impl Fn(&Canvas) -> Result<()>) -> Result<Strokes> {
    let canvas = Canvas { strokes: RefCell::new(vec![]) };
    draw(&canvas)?;
    Ok(Strokes { width, height, strokes: canvas.strokes.into_inner() })
}

impl Canvas {
    pub fn line(&self, points: &[(f64, f64)], colour: RGBColor, width: f64) {
        self.push(Stroke::Line { points: points.to_vec(), colour, width });
    }

    /// A dashed line: alternately `on` points drawn and `off` points left out.
    pub fn dashed(&self, points: &[(f64, f64)], colour: RGBColor, width: f64, (on, off): (f64, f64)) {
        let (mut drawing, mut left, mut dash) = (true, on, points.first().copied().into_iter().collect::<Vec<_>>());
        for pair in points.windows(2) {
            let ((mut x, mut y), (to_x, to_y)) = (pair[0], pair[1]);
            loop {
                let rest = (to_x - x).hypot(to_y - y);
                if rest <= left {
                    left -= rest;
                    dash.push((to_x, to_y));
                    break;
                }
                (x, y) = (x + (to_x - x) * left / rest, y + (to_y - y) * left / rest);
                dash.push((x, y));
                if drawing {
                    self.line(&dash, colour, width);
                }
                drawing = !drawing;
                left = if drawing { on } else { off };
                dash = vec![(x, y)];
            }
        }
        if drawing && dash.len() > 1 {
            self.line(&dash, colour, width);
        }
    }

    pub fn polygon(&self, points: Vec<(f64, f64)>, colour: RGBColor, opacity: f64) {
        self.push(Stroke::Polygon { points, colour, opacity });
    }

    pub fn rectangle(&self, (x, y): (f64, f64), (width, height): (f64, f64), colour: RGBColor) {
        self.polygon(vec![(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour, 1.0);
    }

    pub fn frame(&self, (x, y): (f64, f64), (width, height): (f64, f64), colour: RGBColor) {
        let corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)];
        self.line(&corners, colour, 1.0);
    }

    pub fn dot(&self, (x, y): (f64, f64), radius: f64, colour: RGBColor) {
        let at = |i: u32| (x + radius * circle(i).0, y + radius * circle(i).1);
        self.polygon((0..16).map(at).collect(), colour, 1.0);
    }

    /// Text whose vertical middle is at `at`.
    pub fn text(&self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, colour: RGBColor) {
        self.push(Stroke::Text { at, text: text.to_string(), size, anchor, colour, upwards: false });
    }

    /// Text that reads upwards, centred at `at`.
    pub fn text_upwards(&self, at: (f64, f64), text: &str, size: f64, colour: RGBColor) {
        self.push(Stroke::Text { at, text: text.to_string(), size, anchor: Anchor::Centre, colour, upwards: true });
    }

    fn push(&self, stroke: Stroke) {
        self.strokes.borrow_mut().push(stroke);
    }
}

fn circle(sixteenth: u32) -> (f64, f64) {
    let angle = f64::from(sixteenth) * std::f64::consts::TAU / 16.0;
    (angle.cos(), angle.sin())
}

impl Strokes {
    pub fn svg(&self) -> Result<String> {
        let (width, height) = (self.width * FINE, self.height * FINE);
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area())?;
        // The backend's pixels are a fraction of a point.
        let fine = format!("<svg width=\"{width}\" height=\"{height}\"");
        let points = format!("<svg width=\"{}\" height=\"{}\"", self.width, self.height);
        anyhow::ensure!(svg.contains(&fine), "the SVG begins in another way than expected");
        // The first line is the root's tag.
        Ok(svg.replacen(&fine, &points, 1).replacen(">\n", &format!(">\n{}\n", style()), 1))
    }

    pub fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = (self.width * FINE, self.height * FINE);
        let mut pixels = vec![0u8; (3 * width * height) as usize];
        self.draw(BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area())?;
        let (small_width, small_height) = (width / SMOOTHING, height / SMOOTHING);
        let pixels = averaged(&pixels, width as usize);
        let mut out = vec![];
        let mut encoder = png::Encoder::new(&mut out, small_width, small_height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("encoding a PNG")?;
        writer.write_image_data(&pixels).context("encoding a PNG")?;
        writer.finish().context("encoding a PNG")?;
        Ok(out)
    }

    fn draw<DB: DrawingBackend>(&self, area: DrawingArea<DB, Shift>) -> Result<()> {
        use_roboto();
        let failed = |e: DrawingAreaErrorKind<DB::ErrorType>| anyhow!("drawing: {e}");
        area.fill(&WHITE).map_err(failed)?;
        for stroke in &self.strokes {
            match stroke {
                Stroke::Line { points, colour, width } => {
                    let style = colour.stroke_width((width * f64::from(FINE)).round() as u32);
                    area.draw(&PathElement::new(fine(points), style)).map_err(failed)?;
                }
                Stroke::Polygon { points, colour, opacity } => {
                    area.draw(&Polygon::new(fine(points), colour.mix(*opacity).filled())).map_err(failed)?;
                }
                Stroke::Text { at, text, size, anchor, colour, upwards } => {
                    let h = match anchor {
                        Anchor::Left => HPos::Left,
                        Anchor::Centre => HPos::Center,
                        Anchor::Right => HPos::Right,
                    };
                    let font = (FONT, size * f64::from(FINE)).into_font();
                    let font = if *upwards { font.transform(FontTransform::Rotate270) } else { font };
                    let style = TextStyle::from(font).color(colour).pos(Pos::new(h, VPos::Center));
                    area.draw(&Text::new(text.clone(), fine(&[*at])[0], style)).map_err(failed)?;
                }
            }
        }
        area.present().map_err(failed)
    }
}

fn fine(points: &[(f64, f64)]) -> Vec<(i32, i32)> {
    let fine = |x: f64| (x * f64::from(FINE)).round() as i32;
    points.iter().map(|&(x, y)| (fine(x), fine(y))).collect()
}

/// Averages each square of SMOOTHING × SMOOTHING pixels into one.
fn averaged(pixels: &[u8], width: usize) -> Vec<u8> {
    let step = SMOOTHING as usize;
    let mut out = Vec::with_capacity(pixels.len() / (step * step));
    for rows in pixels.chunks_exact(3 * width * step) {
        for x in (0..width).step_by(step) {
            for channel in 0..3 {
                let square = (0..step * step).map(|i| 3 * ((i / step) * width + x + i % step) + channel);
                let sum: usize = square.filter_map(|at| rows.get(at)).map(|value| usize::from(*value)).sum();
                out.push((sum / (step * step)) as u8);
            }
        }
    }
    out
}

fn use_roboto() {
    static ONCE: Once = Once::new();
    // The font is a constant that a test draws with; if it were unusable, drawing text would fail.
    ONCE.call_once(|| drop(register_font(FONT, FontStyle::Normal, ROBOTO)));
}
