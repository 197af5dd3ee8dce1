//! Colours and what they mean.

use plotters::style::RGBColor;

/// For frames and text.
pub const INK: RGBColor = RGBColor(40, 40, 40);
/// For the lines of an axis.
pub const FAINT: RGBColor = RGBColor(225, 225, 225);
/// For what has no value.
pub const NOTHING: RGBColor = RGBColor(205, 205, 205);
pub const WHITE: RGBColor = RGBColor(255, 255, 255);

/// Okabe and Ito's blue, vermilion and bluish green.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);

/// Okabe and Ito's colours that show on white, for any number of methods.
pub const METHODS: [RGBColor; 7] =
    [RGBColor(0, 0, 0), VERMILION, BLUE, GREEN, RGBColor(204, 121, 167), RGBColor(230, 159, 0), RGBColor(86, 180, 233)];

/// Nine equidistant colours of viridis, dark to light.
const VIRIDIS: [RGBColor; 9] = [
    RGBColor(68, 1, 84),
    RGBColor(71, 44, 122),
    RGBColor(59, 81, 139),
    RGBColor(44, 113, 142),
    RGBColor(33, 144, 141),
    RGBColor(39, 173, 129),
    RGBColor(92, 200, 99),
    RGBColor(170, 220, 50),
    RGBColor(253, 231, 37),
];

/// What these become where the reader has chosen dark pages: (drawn, dark), in the SVG's notation. Scales of amounts stay.
const DARK: [(RGBColor, &str); 8] = [
    (WHITE, "#12161C"),
    (INK, "#E6EAF0"),
    (FAINT, "#2B333E"),
    (NOTHING, "#4A525E"),
    (METHODS[0], "#F4F6F8"),
    (BLUE, "#3E9BE0"),
    (VERMILION, "#F0803C"),
    (GREEN, "#2FC79A"),
];

/// The style sheet of an SVG, which gives dark pages their colours; other viewers keep the drawn ones.
pub fn style() -> String {
    let rule = |(RGBColor(r, g, b), dark): (RGBColor, &str)| {
        let drawn = format!("#{r:02X}{g:02X}{b:02X}");
        format!("[fill=\"{drawn}\"]{{fill:{dark}}}[stroke=\"{drawn}\"]{{stroke:{dark}}}")
    };
    format!("<style>@media (prefers-color-scheme:dark){{{}}}</style>", DARK.map(rule).concat())
}

/// From -1 (orange) through 0 (white) to 1 (blue).
const SIGNED: [RGBColor; 5] = [
    RGBColor(179, 88, 6),
    RGBColor(253, 184, 99),
    RGBColor(250, 250, 250),
    RGBColor(146, 197, 222),
    RGBColor(5, 93, 158),
];

/// The colour of a share of the scale, 0 to 1.
pub fn amount(share: f64) -> RGBColor {
    between(&VIRIDIS, share)
}

/// The colour of a signed share, -1 to 1.
pub fn signed(share: f64) -> RGBColor {
    between(&SIGNED, (share + 1.0) / 2.0)
}

fn between(colours: &[RGBColor], share: f64) -> RGBColor {
    let place = share.clamp(0.0, 1.0) * (colours.len() - 1) as f64;
    let (first, part) = (place.floor() as usize, place.fract());
    let (a, b) = (colours[first], colours[(first + 1).min(colours.len() - 1)]);
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
