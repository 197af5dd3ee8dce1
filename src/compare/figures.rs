//! The pictures of a comparison: what each method gains at the cost of another measure, the selected settings, both measures along what
//! the sweep varies, and the worst cases.

use super::grid::sweep_values;
use super::options::{CompareOptions, Figure};
use super::results::PICTURES;
use super::summary::{Mean, Summary};
use super::worst::WorstCase;
use crate::plot::{Measure, Panel, Picture, Point, Rank, Series, Spread, ranking, sweep, trade_off};
use anyhow::Result;
use std::path::Path;

/// Those that the comparison has, each with its name.
///
/// # Errors
/// None that a user could cause.
pub fn pictures(
    options: &CompareOptions,
    summaries: &[Summary],
    worst: &[WorstCase],
) -> Result<Vec<(&'static str, Picture)>> {
    let [trade, chosen, swept_along, worst_name] = PICTURES;
    let (mut all, title) = (vec![], title(options));
    if let Some(figure) = &options.figure {
        all.push((trade, trade_off(&title, &panels(summaries, figure))?));
        if options.select.is_some() {
            let (panels, ranks) = ranks(summaries, figure);
            let (drawn, written) = (measure(summaries, &figure.y), measure(summaries, &figure.x));
            all.push((chosen, ranking(&title, (&drawn, &written), &panels, &ranks)?));
        }
        if let Some((key, values)) = swept(options, summaries) {
            let axis = figure.along.as_deref().unwrap_or(key);
            let panel = |name: &String| Panel {
                title: name.clone(),
                x: Measure { name: axis.to_string(), share: false },
                y: measure(summaries, name),
                series: along(summaries, name, (key, &values), options.select.is_some()),
            };
            let panels = [panel(&figure.y), panel(&figure.x)];
            all.push((swept_along, sweep(&title, &labels(options, figure, key, values), &panels)?));
        }
    }
    if let Some(options) = options.worst.as_ref().filter(|_| !worst.is_empty()) {
        let rank = |case: &WorstCase| Rank {
            name: format!("{}: {}{}", case.title(), case.under, if case.is_complete() { "" } else { " (incomplete)" }),
            values: vec![Some((spread(&case.harm), spread(&case.harm).0))],
        };
        let ranks: Vec<Rank> = worst.iter().map(rank).collect();
        let drawn = measure(summaries, &options.harm);
        let panels = ["worst case of each setting".to_string()];
        all.push((worst_name, ranking(&title, (&drawn, &drawn), &panels, &ranks)?));
    }
    Ok(all)
}

/// A picture of its own for each combination of the sweep, for a page that may be narrow.
///
/// # Errors
/// None that a user could cause.
pub fn trade_offs(summaries: &[Summary], figure: &Figure) -> Result<Vec<(String, Picture)>> {
    let one = |panel: Panel| Ok((panel.title.clone(), trade_off("", &[panel])?));
    panels(summaries, figure).into_iter().map(one).collect()
}

/// The comparison's name, and how many seeds stand behind a point.
pub fn title(options: &CompareOptions) -> String {
    let name = Path::new(&options.config).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match options.seeds.len() {
        1 => format!("{name}: 1 seed"),
        2 => format!("{name}: 2 seeds, bars: least to greatest"),
        seeds => format!("{name}: {seeds} seeds, bars: 95 % of the mean"),
    }
}

/// The combinations of the sweep among the results; one without a title if there is no sweep.
fn sweeps(summaries: &[Summary]) -> Vec<String> {
    let mut titles: Vec<String> = vec![];
    for summary in summaries.iter().filter(|summary| summary.trained) {
        let title = summary.case.sweep_title();
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    titles
}

/// What an evaluation measures, a share or not, which is the same in all results.
fn measure(summaries: &[Summary], name: &str) -> Measure {
    let share = summaries.iter().find_map(|summary| summary.get(name)).is_none_or(|mean| mean.share);
    Measure { name: name.to_string(), share }
}

/// A share in percent.
fn spread(mean: &Mean) -> Spread {
    let factor = if mean.share { 100.0 } else { 1.0 };
    (mean.mean * factor, mean.bar().map(|(low, high)| (low * factor, high * factor)))
}

/// A panel for each combination of the sweep, with a series for each method.
fn panels(summaries: &[Summary], figure: &Figure) -> Vec<Panel> {
    let panel = |title: String| {
        let mut all: Vec<Series> = vec![];
        for summary in summaries.iter().filter(|s| s.trained && s.case.sweep_title() == title) {
            let (Some(x), Some(y)) = (summary.get(&figure.x), summary.get(&figure.y)) else { continue };
            let point = Point { x: spread(x), y: spread(y), selected: summary.selected };
            add(&mut all, summary.case.method.clone(), point);
        }
        Panel { title, x: measure(summaries, &figure.x), y: measure(summaries, &figure.y), series: all }
    };
    sweeps(summaries).into_iter().map(panel).collect()
}

fn add(all: &mut Vec<Series>, name: String, point: Point) {
    match all.iter_mut().find(|series| series.name == name) {
        Some(series) => series.points.push(point),
        None => all.push(Series { name, points: vec![point] }),
    }
}

/// The key that the comparison's sweep varies, and its values in the sweep's order; `None` if it varies no key or several.
fn swept<'a>(options: &CompareOptions, summaries: &'a [Summary]) -> Option<(&'a str, Vec<String>)> {
    let case = &summaries.iter().find(|summary| summary.trained)?.case;
    let varied = case.sweep.iter().map(|(key, _)| {
        let mut values: Vec<String> = vec![];
        for summary in summaries.iter().filter(|summary| summary.trained) {
            let value = summary.case.swept(key).filter(|value| !values.contains(value));
            values.extend(value);
        }
        let order = sweep_values(options, key);
        values.sort_by_key(|value| order.iter().position(|other| other == value).unwrap_or(order.len()));
        (key.as_str(), values)
    });
    let varied: Vec<(&str, Vec<String>)> = varied.filter(|(_, values)| values.len() > 1).collect();
    <[_; 1]>::try_from(varied).ok().map(|[only]| only)
}

/// What stands at the values of a sweep: the figure's labels, or the values themselves.
fn labels(options: &CompareOptions, figure: &Figure, key: &str, values: Vec<String>) -> Vec<String> {
    let order = sweep_values(options, key);
    let label = |value: String| {
        let place = order.iter().position(|other| *other == value);
        place.and_then(|place| figure.labels.get(place).cloned()).unwrap_or(value)
    };
    values.into_iter().map(label).collect()
}

/// Distance between the methods at one value of a sweep, relative to that between values.
const APART: f64 = 0.06;

/// The measure `name` along the values of a key, for each method's selected settings or for all.
fn along(summaries: &[Summary], name: &str, (key, values): (&str, &[String]), selected: bool) -> Vec<Series> {
    let mut all: Vec<Series> = vec![];
    for summary in summaries.iter().filter(|summary| summary.trained && (summary.selected || !selected)) {
        let place = values.iter().position(|value| summary.case.swept(key).as_ref() == Some(value));
        let (Some(place), Some(measured)) = (place, summary.get(name)) else { continue };
        let title = if selected { summary.case.method.clone() } else { summary.case.title() };
        add(&mut all, title, Point { x: (place as f64, None), y: spread(measured), selected: false });
    }
    // Slightly apart, so that their intervals can be told apart too.
    let middle = (all.len() as f64 - 1.0) / 2.0;
    for (i, series) in all.iter_mut().enumerate() {
        series.points.iter_mut().for_each(|point| point.x.0 += APART * (i as f64 - middle));
    }
    all
}

/// The selected setting of every method, by combination of the sweep.
fn ranks(summaries: &[Summary], figure: &Figure) -> (Vec<String>, Vec<Rank>) {
    let titles = sweeps(summaries);
    let mut ranks: Vec<Rank> = vec![];
    for summary in summaries.iter().filter(|summary| summary.selected) {
        let (Some(x), Some(y)) = (summary.get(&figure.x), summary.get(&figure.y)) else { continue };
        let Some(panel) = titles.iter().position(|title| *title == summary.case.sweep_title()) else { continue };
        let name = &summary.case.method;
        let found = ranks.iter().position(|rank| rank.name == *name).unwrap_or(ranks.len());
        if found == ranks.len() {
            ranks.push(Rank { name: name.clone(), values: vec![None; titles.len()] });
        }
        ranks[found].values[panel] = Some((spread(y), spread(x).0));
    }
    (titles, ranks)
}
