use super::*;

#[test]
fn what_cannot_be_drawn_is_left_out() {
    let chart = |points: Vec<(f64, f64)>| Chart {
        title: "a < b".to_string(),
        x_label: "step",
        epochs: vec![],
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
        epochs: vec![],
        series: vec![Series::new("loss", points)],
        from_zero: false,
        may_log: true,
    };
    let html = chart.to_html();
    assert!(html.contains("band") && html.len() < 40_000 && !html.contains("(log)"));
    let wide = Series::new("norm", [(0.0, 1e-4), (1.0, 1.0)]);
    let html = Chart {
        title: "norm".to_string(),
        x_label: "layer",
        epochs: vec![],
        series: vec![wide],
        from_zero: true,
        may_log: true,
    }
    .to_html();
    assert!(html.contains("(log)"));
}

#[test]
fn values_are_told_on_hover() {
    let chart = Chart {
        title: "loss".to_string(),
        x_label: "step",
        epochs: vec![(0.0, 0.0), (4.0, 2.0)],
        series: vec![
            Series::new("loss", [(1.0, 3.0), (2.0, 2.5), (4.0, 2.0)]),
            Series::new("validation loss", [(2.0, 2.75)]).with_dots(),
        ],
        from_zero: false,
        may_log: false,
    };
    let html = chart.to_html();
    for told in [
        "<title>step 1, epoch 0.50\nloss 3.0000</title>",
        "<title>step 2, epoch 1.00\nloss 2.5000\nvalidation loss 2.7500</title>",
        "<title>step 4, epoch 2.00\nloss 2.0000</title>",
    ] {
        assert!(html.contains(told), "{told}: {html}");
    }
    let many = Series::new("loss", (0..1000).map(|x| (f64::from(x), f64::from(x % 2))));
    let html = Chart { epochs: vec![], series: vec![many], ..chart }.to_html();
    assert_eq!(html.matches("class=\"hit\"").count(), MOST_STRIPS);
    assert!(html.contains("<title>steps 0 to 9\nloss 0.5000 (0.0000 to 1.0000)</title>"), "{html}");
}

/// (x, y, text) of every text of a class.
fn texts(html: &str, class: &str) -> Vec<(f64, f64, String)> {
    let attribute = |tag: &str, name: &str| -> f64 {
        tag.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
    };
    let tags = html.split("<text ").skip(1).filter(|tag| tag.starts_with(&format!("class=\"{class}\"")));
    let text = |tag: &str| tag.split('>').nth(1).unwrap().split('<').next().unwrap().to_string();
    tags.map(|tag| (attribute(tag, "x"), attribute(tag, "y"), text(tag))).collect()
}

#[test]
fn epochs_stand_below_their_steps_and_no_numbers_overlap() {
    for (steps, epochs) in [(44, 4.0), (100_000, 3.0), (7, 0.01), (12_000, 0.4)] {
        let steps = f64::from(steps);
        let chart = Chart {
            title: "loss".to_string(),
            x_label: "step",
            epochs: vec![(0.0, 0.0), (steps, epochs)],
            series: vec![Series::new("loss", [(1.0, 3.0), (steps, 2.0)])],
            from_zero: false,
            may_log: false,
        };
        let html = chart.to_html();
        let (numbers, names) = (texts(&html, "x"), texts(&html, "y"));
        let row = |name: &str| names.iter().find(|(.., text)| text == name).unwrap().1;
        assert!(row("epoch") - row("step") >= 14.0 && row("epoch") < HEIGHT, "{html}");
        for name in ["step", "epoch"] {
            let at: Vec<_> = numbers.iter().filter(|(_, y, _)| *y == row(name)).collect();
            assert!(at.len() >= 3, "{name}: {at:?}");
            // 13 units, the size on a narrow page, make digits of 7.5.
            let half = |text: &str| 7.5 * text.chars().count() as f64 / 2.0;
            for pair in at.windows(2) {
                let ((a, _, left), (b, _, right)) = (pair[0], pair[1]);
                assert!(b - a > half(left) + half(right), "{name}: {left} {right}");
            }
        }
        let (last_step, last_epoch) = (numbers.iter().rfind(|n| n.1 == row("step")), numbers.last());
        let (last_step, last_epoch) = (last_step.unwrap(), last_epoch.unwrap());
        let per_unit = |(x, _, text): &(f64, f64, String)| (x - MARGINS[0]) / text.parse::<f64>().unwrap();
        if last_step.2.len() > 1 && !last_step.2.contains('e') {
            // Both count from the same place: a step's share of an epoch.
            let share = per_unit(last_step) * steps / (per_unit(last_epoch) * epochs);
            assert!((share - 1.0).abs() < 0.03, "{share}");
        }
    }
}
