//! The ranges of charts' axes and the round numbers along them.

/// The least and the greatest of the values, never equal; `None` without values.
pub fn extremes(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values.into_iter().fold(ends, |(low, high), x| (low.min(x), high.max(x)));
    if low > high {
        return None;
    }
    let slack = match low.abs() {
        _ if high > low => 0.0,
        size if size < 1e-12 => 0.5,
        size => size * 0.05,
    };
    Some((low - slack, high + slack))
}

/// Round values within a range, about `count` of them.
pub fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return vec![low];
    }
    let multiples = |step: f64| -> Vec<f64> {
        let slack = step * 1e-6;
        let (first, last) = (((low - slack) / step).ceil() as i64, ((high + slack) / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    };
    let power = (span / count.max(1) as f64).log10().floor() as i32;
    let steps = (power - 1..=power + 1).flat_map(|p| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(p)));
    steps.map(multiples).min_by_key(|ticks| ticks.len().abs_diff(count)).unwrap_or_default()
}

/// [`ticks`] with their labels.
pub fn labelled(range: (f64, f64), count: usize) -> Vec<(f64, String)> {
    let ticks = ticks(range, count);
    let step = step_of(&ticks);
    ticks.into_iter().map(|tick| (tick, label(tick, step))).collect()
}

/// The whole numbers among the ticks: steps and layers have no halves.
pub fn whole(range: (f64, f64), count: usize) -> Vec<(f64, String)> {
    let whole = ticks(range, count).into_iter().filter(|value| value.fract() == 0.0);
    whole.map(|value| (value, label(value, 1.0))).collect()
}

/// Powers of ten, with their 2- and 5-folds where there are few; the range is in logarithms to base 10.
pub fn logarithmic((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let (first, last) = (low.floor() as i32, high.ceil() as i32);
    let every = ((last - first) / 6).max(1);
    let folds: &[f64] = if high - low <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    (first..=last)
        .filter(|power| power.rem_euclid(every) == 0)
        .flat_map(|power| folds.iter().map(move |fold| fold * 10f64.powi(power)))
        .filter(|value| (low..=high).contains(&value.log10()))
        .map(|value| (value, label(value, value)))
        .collect()
}

/// The distance between ticks.
fn step_of(ticks: &[f64]) -> f64 {
    match ticks {
        [a, b, ..] => b - a,
        [a] => a.abs() * 0.01,
        [] => 1.0,
    }
}

/// A number with as many digits as `step`, the distance between ticks, asks for.
pub fn label(value: f64, step: f64) -> String {
    let (value, step) = (if value.abs() < step.abs() * 1e-6 { 0.0 } else { value }, step.abs().max(1e-300));
    // A step of 0.1 may be a little less than that.
    let power = |x: f64| (x.log10() + 1e-6).floor();
    let text = if value == 0.0 && step < 1e-3 {
        "0".to_string()
    } else if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        let digits = (power(value.abs()) - power(step)).clamp(0.0, 4.0) as usize;
        format!("{value:.digits$e}")
    } else {
        let digits = (-power(step)).clamp(0.0, 6.0) as usize;
        format!("{value:.digits$}")
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<(f64, String)>) -> String {
        ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let near = |range: (f64, f64), b: &[f64]| {
            let a = ticks(range, 5);
            assert_eq!(a.len(), b.len(), "{a:?}");
            a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} {b}"));
        };
        near((-0.5, 0.5), &[-0.4, -0.2, 0.0, 0.2, 0.4]);
        near((-0.05, 0.05), &[-0.04, -0.02, 0.0, 0.02, 0.04]);
        near((0.0, 100.0), &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        near((1.0, 1.0), &[1.0]);
    }

    #[test]
    fn a_range_is_never_empty() {
        assert_eq!(extremes([3.0, -1.0, 2.0]), Some((-1.0, 3.0)));
        assert_eq!(extremes([2.0, 2.0]), Some((1.9, 2.1)));
        assert_eq!(extremes([0.0]), Some((-0.5, 0.5)));
        assert_eq!(extremes([]), None);
    }

    #[test]
    fn labels_have_the_digits_that_tell_ticks_apart() {
        assert_eq!(labels(labelled((0.0, 1.0), 5)), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(labelled((1.93, 2.61), 5)), "2.0 2.2 2.4 2.6");
        assert_eq!(labels(labelled((0.0, 5e-5), 5)), "0 1e−5 2e−5 3e−5 4e−5 5e−5");
        assert_eq!(labels(labelled((-3.0, 240_000.0), 5)), "0 50000 1.0e5 1.5e5 2.0e5");
        assert_eq!(labels(whole((0.0, 2.0), 7)), "0 1 2");
        assert_eq!(labels(logarithmic((-2.1, -0.2))), "0.01 0.02 0.05 0.1 0.2 0.5");
        assert_eq!(labels(logarithmic((-9.0, 3.0))), "1e−8 1e−6 1e−4 0.01 1 100");
        assert_eq!(label(-0.4000001, 0.2), "−0.4");
        assert_eq!(label(7.8, 7.9 - 7.8), "7.8");
        assert_eq!(label(1.23e-5, 1e-6), "1.2e−5");
    }
}
