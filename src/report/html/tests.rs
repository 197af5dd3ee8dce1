use super::super::evaluated::tests::ends;
use super::*;
use serde_json::json;

fn files() -> RunFiles {
    let rows = [
        json!({"step": 1, "epoch": 0.25, "loss": 2.5, "task_loss": 2.0, "penalty": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4}),
        json!({"step": 2, "skipped": "the loss is NaN", "samples": ["a.jsonl:3"]}),
        json!({"step": 3, "epoch": 0.75, "loss": 2.0, "task_loss": 1.5, "penalty": 0.5, "grad_norm": null, "learning_rate": 5e-5}),
        json!({"step": 3, "eval_loss": 1.75, "eval_tokens": 9}),
    ];
    let norm = |layer: usize| {
        json!({
            "module": format!("model.layers.{layer}.self_attn.q_proj"),
            "norm": 1.0, "parallel": 0.25, "orthogonal": 0.75,
        })
    };
    RunFiles {
        rows: rows.iter().map(|row| row.as_object().unwrap().clone()).collect(),
        config: "[model]\naligned = \"<script>\"\n[output]\ndir = \"runs/a\"\n".to_string(),
        record: Some(json!({
            "asft_version": "0.1.0", "device": "cpu", "samples": {"train": 88}, "tokens": 1234, "label_tokens": 321,
            "steps": 2, "skipped_steps": 1, "elapsed_seconds": 3.0,
            "inputs": {"train": {"source": "a.jsonl", "hash": "ab12"}},
            "update_norms": [norm(0), norm(1)],
        })),
        others: vec!["adapter/"],
    }
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let html = Page::of(files()).to_html();
    for part in [
        "asft run runs/a",
        "2.0000",
        "validation loss",
        "skipped steps",
        "q_proj",
        "orthogonal",
        "ab12",
        "<dt>training samples</dt><dd>88</dd>",
        "<dt>tokens</dt><dd>1,234</dd>",
        "<dt>label tokens</dt><dd>321</dd>",
        "<dt>device</dt><dd>cpu</dd>",
        "<a href=\"metrics.jsonl\">",
        "<a href=\"run.json\">",
        "<a href=\"adapter/\">",
        ">epoch</text>",
        "<title>step 3, epoch 0.75\nloss 2.0000\ntask loss 1.5000\nvalidation loss 1.7500</title>",
        "prefers-color-scheme: dark",
        "@media print",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html.matches("<svg").count(), 5);
    for foreign in ["<script", "http:", "https:", "src=", "<link", "url(", "NaN"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert_eq!(html.matches("<figure>").count(), html.matches("</figure>").count());
}

#[test]
fn evaluations_are_compared_before_and_after() {
    let with = |ends: Value| {
        let mut files = files();
        files.record.as_mut().unwrap()["eval"] = ends;
        Page::of(files).to_html()
    };
    let html = with(json!(ends()));
    for part in [
        "<h2>Evaluations</h2>",
        "What suite.toml finds before the first step and in the exported state, of step 48.",
        "<title>harm, after: 50.0 % (20/40, 35.2 to 64.8)</title>",
        "<td>harm: empty</td>",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    assert_eq!(html.matches("<svg").count(), 7);
    // Rows in between are drawn by step.
    let mut drawn = files();
    drawn.record.as_mut().unwrap()["eval"] = json!(ends());
    let between = ends().after.map(|row| SuiteRow { step: 20, ..row });
    for row in [ends().before, between, ends().after].into_iter().flatten() {
        drawn.rows.push(json!(row).as_object().unwrap().clone());
    }
    let html = Page::of(drawn).to_html();
    assert_eq!(html.matches("<svg").count(), 9);
    for told in
        ["<title>step 20, epoch 0.75\nshare, % 50.0000</title>", "<title>step 48, epoch 0.75\nvalue 1.5000</title>"]
    {
        assert!(html.contains(told), "{told}: {html}");
    }
    let html = with(json!(SuiteEnds { after: None, ..ends() }));
    assert!(html.contains("in the exported state, not measured.") && html.contains("after: not measured"));
    assert!(!Page::of(files()).to_html().contains("Evaluations"));
}

#[test]
fn an_unfinished_or_empty_run_has_a_page_too() {
    let html = Page::of(RunFiles { record: None, ..files() }).to_html();
    assert!(html.contains("unfinished") && !html.contains("Updates by layer"));
    let html = Page::of(RunFiles { rows: vec![], config: String::new(), record: None, others: vec![] }).to_html();
    assert!(!html.contains("<svg"));
}

#[test]
fn a_page_elsewhere_links_to_the_run() {
    let html = Page::of(files()).outside(Path::new("../runs/a")).to_html();
    assert!(html.contains("<a href=\"../runs/a/metrics.jsonl\">metrics.jsonl</a>"), "{html}");
}
