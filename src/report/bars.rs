//! Values before and after training as pairs of horizontal bars in inline SVG, one pair below another, so that long names
//! and many values fit a telephone. Colours are CSS classes, as in [`super::chart`].

use super::chart::{WIDTH, escape};
use super::evaluated::{Change, Value};
use super::short;
use crate::ticks;
use std::fmt::Write;

/// Right of the longest bar there is room for its value.
const ROOM: f64 = 62.0;
const LEFT: f64 = 2.0;
/// From a name's line to its first bar, from bar to bar, from pair to pair.
const NAME: f64 = 20.0;
const STEP: f64 = 16.0;
const BAR: f64 = 13.0;
const PAIR: f64 = NAME + 2.0 * STEP + 12.0;
/// Of the numbers below.
const FOOT: f64 = 22.0;
/// Characters of a name that fit the picture on a telephone.
const LONGEST: usize = 56;

/// The two ends and what the page calls them; the classes colour the bars and the legend.
const ENDS: [(&str, &str); 2] = [("before", "s0"), ("after", "s1")];

/// The changes as figures: one for all shares, one for each other value, whose scales differ.
pub fn figures(changes: &[Change]) -> String {
    let is_share = |change: &&Change| matches!(change.after.or(change.before), Some(Value::Rate(_)));
    let shares: Vec<&Change> = changes.iter().filter(is_share).collect();
    let others = changes.iter().filter(|change| !is_share(change) && !change.name.contains(": "));
    let mut html = figure("shares", &shares, 100.0, true);
    for change in others {
        let largest = ends(change).into_iter().flatten().map(Value::number).filter(|value| value.is_finite());
        html.push_str(&figure(&change.name, &[change], largest.fold(0.0, f64::max), false));
    }
    html
}

fn ends(change: &Change) -> [Option<Value>; 2] {
    [change.before, change.after]
}

/// Bars from 0 to `full` in the width of the picture; empty without changes.
fn figure(title: &str, changes: &[&Change], full: f64, percent: bool) -> String {
    if changes.is_empty() || full <= 0.0 {
        return String::new();
    }
    let unit = if percent { " %" } else { "" };
    let (title, plot) = (escape(title), WIDTH - LEFT - ROOM);
    let bottom = PAIR * changes.len() as f64;
    let legend = ENDS.map(|(name, class)| format!("<span class=\"{class}\">{name}</span>")).concat();
    let mut html = format!(
        "<figure class=\"bars\"><figcaption>{title}<span class=\"legend\">{legend}</span></figcaption><svg viewBox=\"0 0 \
         {WIDTH} {:.0}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>",
        bottom + FOOT
    );
    for (tick, label) in ticks::labelled((0.0, full), 5) {
        let x = LEFT + tick / full * plot;
        let _infallible = write!(
            html,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/><text class=\"{}\" x=\"{x:.1}\" \
             y=\"{:.1}\">{label}{unit}</text>",
            if tick == 0.0 { "start" } else { "x" },
            bottom + FOOT - 7.0
        );
    }
    for (i, change) in changes.iter().enumerate() {
        pair(change, PAIR * i as f64, (plot, full), &mut html);
    }
    html + "</svg></figure>\n"
}

/// The name and both bars of a change, from `top` on.
fn pair(change: &Change, top: f64, (plot, full): (f64, f64), svg: &mut String) {
    let name = shortened(&change.name);
    let _infallible =
        write!(svg, "<text class=\"name\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>", top + NAME - 5.0, escape(&name));
    for (i, ((name, class), value)) in ENDS.into_iter().zip(ends(change)).enumerate() {
        let y = top + NAME + STEP * i as f64;
        let Some(value) = value else {
            let _infallible = write!(
                svg,
                "<text class=\"start\" x=\"{:.1}\" y=\"{:.1}\">{name}: not measured</text>",
                LEFT + 3.0,
                y + BAR - 2.5
            );
            continue;
        };
        let (number, shown, spread) = match value {
            Value::Rate(rate) => {
                let (low, high) = rate.interval();
                (100.0 * rate.share(), format!("{:.1} %", 100.0 * rate.share()), Some((100.0 * low, 100.0 * high)))
            }
            value => (value.number(), short(value.number()), None),
        };
        let at = |number: f64| LEFT + number / full * plot;
        let (end, middle) = (at(number.clamp(0.0, full)), y + BAR / 2.0);
        let _infallible = write!(
            svg,
            "<g><title>{}, {name}: {}</title><rect class=\"hit\" x=\"0\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{STEP}\"/><rect \
             class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>",
            escape(&change.name),
            escape(&value.text()),
            end - LEFT
        );
        if let Some((low, high)) = spread {
            let _infallible = write!(
                svg,
                "<line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                at(low),
                at(high)
            );
        }
        // Beyond the bar and its interval, where nothing is drawn.
        let beside = spread.map_or(end, |(_, high)| at(high)) + 6.0;
        let _infallible = write!(
            svg,
            "<text class=\"start\" x=\"{beside:.1}\" y=\"{:.1}\">{}</text></g>",
            y + BAR - 2.5,
            escape(&shown)
        );
    }
}

/// A name as far as there is room for it; the table has it in full.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", name[..end].trim_end()),
        None => name.to_string(),
    }
}

/// The same as a table.
pub fn table(changes: &[Change]) -> String {
    let mut html = "<details><summary>numbers</summary><div class=\"wide\"><table><tr><th>value</th><th>before</th>\
                    <th>after</th></tr>"
        .to_string();
    for change in changes {
        let _infallible = write!(html, "<tr><td>{}</td>", escape(&change.name));
        for value in ends(change) {
            let text = value.map_or("not measured".to_string(), Value::text);
            let _infallible = write!(html, "<td>{}</td>", escape(&text));
        }
        html.push_str("</tr>");
    }
    html + "</table></div></details>\n"
}

#[cfg(test)]
mod tests {
    use super::super::evaluated::SuiteEnds;
    use super::super::evaluated::tests::ends;
    use super::*;

    /// The widths of the bars of a class.
    fn widths(html: &str, class: &str) -> Vec<f64> {
        let bars = html.split("<rect ").filter(|bar| bar.starts_with(&format!("class=\"{class}\"")));
        bars.map(|bar| bar.split(" width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_values_and_tell_them() {
        let html = figures(&ends().changes());
        assert_eq!((html.matches("<figure").count(), html.matches("</figure>").count()), (2, 2), "{html}");
        let plot = WIDTH - LEFT - ROOM;
        // Two shares of harm, and the task's loss; its perplexity has no picture.
        for (class, expected) in [("s0", [0.025, 0.0, 1.0]), ("s1", [0.5, 0.0, 0.75])] {
            let found = widths(&html, class);
            assert!(found.iter().zip(expected).all(|(found, share)| (found - share * plot).abs() < 0.06), "{found:?}");
            assert_eq!(found.len(), 3);
        }
        for told in [
            "<title>harm, before: 2.5 % (1/40, 0.4 to 12.9)</title>",
            "<title>harm, after: 50.0 % (20/40, 35.2 to 64.8)</title>",
            "<title>task, after: 1.5000</title>",
            ">50.0 %</text>",
        ] {
            assert!(html.contains(told), "{told}: {html}");
        }
        assert!(!html.contains("perplexity") && table(&ends().changes()).contains("<td>task: perplexity</td>"));
    }

    #[test]
    fn what_was_not_measured_says_so() {
        let html = figures(&SuiteEnds { before: None, ..ends() }.changes());
        assert!(html.contains("before: not measured") && widths(&html, "s0").is_empty(), "{html}");
        assert_eq!(figures(&[]), "");
    }

    #[test]
    fn no_text_is_beyond_the_picture() {
        let rate = |count| Some(Value::Rate(super::super::Rate { count, total: 100 }));
        let full = Change { name: "a < b".into(), before: rate(100), after: rate(0) };
        let html = figures(&[full]);
        assert!(html.contains("a &lt; b") && !html.contains("a < b"));
        let text = html.split("<text ").find(|text| text.contains(">100.0 %")).unwrap();
        let x: f64 = text.split("x=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        // Digits of 13 units are 7.5 wide.
        assert!(x + 7.5 * 7.0 <= WIDTH, "{text}");
        let long = Change { name: "é".repeat(LONGEST + 1), before: rate(1), after: rate(2) };
        let html = figures(std::slice::from_ref(&long));
        assert!(html.contains(&format!(">{}…</text>", "é".repeat(LONGEST))), "{html}");
        assert!(table(&[long]).contains(&"é".repeat(LONGEST + 1)));
    }
}
