//! Pictures: a heat map of an update, the curves and contours of a landscape, and the trade-off of a comparison, as SVG and PNG.
//!
//! Colours can be told apart with any colour vision: viridis for amounts, orange to blue through white for signed ones,
//! and Okabe and Ito's for lines, which differ in dash too. Text is set in Roboto (font/, Apache-2.0, a subset), so a
//! PNG is the same on every machine; an SVG asks its viewer for a sans-serif, and follows the page's dark mode.

mod axis;
mod canvas;
mod colour;
mod heat_map;
mod landscape;
mod trade_off;

pub use heat_map::heat_map;
pub use landscape::{Frame, Harm, curves, grid};
pub use trade_off::{Measure, Panel, Point, Rank, Series, Spread, ranking, sweep, trade_off};

use anyhow::Result;

/// One picture in both forms.
pub struct Picture {
    pub svg: String,
    /// An encoded PNG, at twice the SVG's size.
    pub png: Vec<u8>,
}

impl Picture {
    fn draw(width: u32, height: u32, draw: impl Fn(&canvas::Canvas) -> Result<()>) -> Result<Self> {
        let strokes = canvas::record(width, height, draw)?;
        Ok(Self { svg: strokes.svg()?, png: strokes.png()? })
    }
}
