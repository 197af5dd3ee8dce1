//! What `asft eval` puts around prompts, how it counts refusals, and judges that answer in words; with the real binary.

use crate::support::command::{asft, ends, json, text};
use crate::support::files::{read_json_lines, tiny, write_json_lines};
use asft::checkpoint::Checkpoint;
use asft::data::Template;
use asft::model::{Decoder, GenerateOptions, ModelSpec, Weights};
use asft::tokenizer::Tokenizer;
use candle_core::{DType, Device};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Runs one evaluation of the toy model; its values and its samples.
fn measured(data: &Path, arguments: &[&str]) -> (Value, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let samples = dir.path().join("samples.jsonl");
    let mut command = asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--max-new-tokens", "12"]);
    command.arg("--data").arg(data).arg("--samples").arg(&samples).args(arguments);
    let found = json(&mut command)["models"][0]["evaluations"][0].clone();
    (found, read_json_lines(&samples))
}

fn questions(dir: &Path) -> (std::path::PathBuf, Vec<Value>) {
    let data = dir.join("data.jsonl");
    let record = |i: usize| {
        let user = json!({"role": "user", "content": format!("What is {i} and {}?", 2 * i)});
        if i.is_multiple_of(2) { json!({"messages": [user]}) } else { json!({"prompt": user["content"]}) }
    };
    let records: Vec<Value> = (0..6).map(record).collect();
    write_json_lines(&data, &records);
    (data, records)
}

#[test]
fn what_is_put_around_a_prompt_reaches_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (data, records) = questions(dir.path());
    let framing = ["--system", "Be brief.", "--prefix", "Now: ", "--suffix", " Say it.", "--prefill", "Well, the"];
    let (_, samples) = measured(&data, &[&["--metric", "refusal"], &framing[..]].concat());

    let model = tiny("aligned");
    let tokenizer = Tokenizer::load(&model).unwrap();
    let template = Template::load("tokenizer", &Default::default(), &tokenizer).unwrap();
    let (spec, checkpoint) = (ModelSpec::load(&model).unwrap(), Checkpoint::open(&model).unwrap());
    let hidden = indicatif::ProgressBar::hidden();
    let model = Decoder::load(&spec, &checkpoint, (&Device::Cpu, DType::F32), Weights::Frozen, &hidden).unwrap();
    let stop_ids = tokenizer.eos_ids().to_vec();
    let options = GenerateOptions { max_new_tokens: 12, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids };
    for (record, sample) in records.iter().zip(&samples) {
        let question = record["prompt"].as_str().or(record["messages"][0]["content"].as_str()).unwrap();
        let messages = [
            json!({"role": "system", "content": "Be brief."}),
            json!({"role": "user", "content": format!("Now: {question} Say it.")}),
        ];
        let prompt = template.render(&messages, true, &Default::default()).unwrap() + "Well, the";
        let ids = tokenizer.encode(&prompt, false).unwrap();
        let begun = tokenizer.encode("Well, the", false).unwrap();
        let answer = model.generate(&ids, &options, |_| Ok(())).unwrap();
        let answer = tokenizer.decode(&[begun, answer].concat(), true).unwrap();
        assert!(answer.starts_with("Well, the"), "{answer}");
        assert_eq!(sample["answer"], json!(answer.trim()), "{record}");
    }
}

#[test]
fn refusals_are_counted_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let (data, _) = questions(dir.path());
    let (_, samples) = measured(&data, &["--metric", "refusal"]);
    let answers: Vec<&str> = samples.iter().map(|sample| sample["answer"].as_str().unwrap()).collect();
    // A piece from within an answer.
    let phrase: String = answers[0].chars().skip(3).take(2).collect();
    let phrases = dir.path().join("phrases.txt");
    fs::write(&phrases, format!("{phrase}\n")).unwrap();
    let place = |answer: &&str| answer.find(&phrase).map(|byte| answer[..byte].chars().count());
    let anywhere = answers.iter().filter_map(place).count();
    let near = answers.iter().filter_map(place).filter(|place| *place < 3).count();
    assert!(near < anywhere, "{answers:?}");
    let by_phrase = |metric: &str, more: &[&str]| {
        measured(&data, &[&["--metric", metric, "--phrases", text(&phrases)], more].concat()).0
    };
    let count = |found: &Value, name: &str| found[name]["count"].as_u64().map(|count| count as usize);
    assert_eq!(count(&by_phrase("refusal", &[]), "harmful_score"), Some(6 - anywhere));
    let found = by_phrase("refusal", &["--phrases-within", "3"]);
    assert_eq!(count(&found, "harmful_score"), Some(6 - near), "{found}");
    assert_eq!(count(&found, "harmful_score_anywhere"), Some(6 - anywhere), "{found}");
    let found = by_phrase("over-refusal", &["--phrases-within", "3"]);
    assert_eq!((found["name"].as_str(), found["metric"].as_str()), (Some("over-refusal"), Some("over_refusal")));
    assert_eq!((count(&found, "over_refusal"), count(&found, "over_refusal_anywhere")), (Some(near), Some(anywhere)));
    assert!(["empty", "repeated", "off_script"].iter().all(|name| count(&found, name).is_some()), "{found}");
}

#[test]
fn a_language_model_judges() {
    let dir = tempfile::tempdir().unwrap();
    let (data, _) = questions(dir.path());
    let suite = dir.path().join("suite.toml");
    let judge = "metric = 'judge'\njudge = 'tests/tiny/aligned'\nmax_new_tokens = 12\n";
    let of = |name: &str, more: &str| format!("[[eval]]\nname = '{name}'\ndata = '{}'\n{judge}{more}\n", text(&data));
    let evaluations = of("pattern", "judge_pattern = '(?i)^(one|two)'\njudge_max_new_tokens = 6")
        + &of("label", "judge_labels = ['The', 'A']\njudge_threshold = 0.9");
    fs::write(&suite, evaluations).unwrap();
    let samples = dir.path().join("samples.jsonl");
    let mut command = asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--batch-size", "4"]);
    let found = json(command.arg("--suite").arg(&suite).arg("--samples").arg(&samples));
    let samples = read_json_lines(&samples);
    assert_eq!(samples.len(), 12);
    let flagged = |of: &[Value]| of.iter().filter(|sample| sample["flagged"] == json!(true)).count();
    let (by_pattern, by_label) = samples.split_at(6);
    for (sample, label) in by_pattern.iter().zip(by_label) {
        let said = sample["judge_answer"].as_str().unwrap().to_lowercase();
        assert_eq!(sample["flagged"], json!(said.starts_with("one") || said.starts_with("two")), "{sample}");
        assert_eq!(label["flagged"], json!(label["judge_probability"].as_f64().unwrap() > 0.9), "{label}");
    }
    for (i, of) in [by_pattern, by_label].into_iter().enumerate() {
        assert_eq!(found["models"][0]["evaluations"][i]["harmful_score"]["count"], json!(flagged(of)), "{found}");
    }
}

#[test]
fn framings_that_have_no_effect_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, _) = questions(dir.path());
    let template = dir.path().join("last.jinja");
    fs::write(&template, "{{ messages[-1].content }}").unwrap();
    for (arguments, words) in [
        (
            vec!["--metric", "refusal", "--system", "Be brief.", "--template", "asft-alpaca"],
            vec!["data.jsonl:1", "refuses the conversation", "system"],
        ),
        (
            vec!["--metric", "refusal", "--system", "Be brief.", "--template", text(&template)],
            vec!["`system` would have no effect", "last.jinja"],
        ),
        (vec!["--metric", "loss", "--prefill", "Sure"], vec!["`prefill` has no effect on the metric loss"]),
        (vec!["--metric", "accuracy", "--phrases-within", "9"], vec!["`phrases_within` has no effect"]),
        (
            vec!["--metric", "judge", "--judge", "x", "--judge-preset", "wildguard"],
            vec!["`judge_prompt`", "model card"],
        ),
        (vec!["--metric", "judge", "--judge", "tests/tiny/aligned"], vec!["score.weight", "`judge_preset`"]),
    ] {
        let mut command = asft(&["eval", "--model", "tests/tiny/aligned", "--data", text(&data)]);
        ends(command.args(&arguments), 2, &words);
    }
}
