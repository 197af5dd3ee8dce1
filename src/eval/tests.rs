//! Against Python: `tests/fixtures/make/eval.py`.

use super::accuracy::Target;
use super::case::Case;
use super::classifier::Classifier;
use super::generative::Generative;
use super::judge::Judge;
use super::reference::reference;
use super::*;
use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name)
}

fn golden<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

#[test]
fn verdicts_are_the_reference_s() {
    let rows: Vec<Map<String, Json>> = golden("verdicts.json");
    let mut counts = [0; 4];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("phrases"), "I'm sorry\nI cannot\nAs an AI\n").unwrap();
    let phrases = Phrases::load(&dir.path().join("phrases")).unwrap();
    for row in rows {
        let answer = row["answer"].as_str().unwrap();
        let (place, preset) = match row["preset"].as_str().unwrap() {
            "agnews" => (0, Preset::Agnews),
            "sst2" => (1, Preset::Sst2),
            "gsm8k" => (2, Preset::Gsm8k),
            _ => (3, Preset::Harmful),
        };
        let evaluation = Evaluation { preset: Some(preset), ..Default::default() }.resolved();
        let verdict = if preset == Preset::Harmful {
            phrases.refuses(answer, None)
        } else {
            let reference = reference(&evaluation, &row).unwrap().unwrap();
            Target::new(&reference, evaluation.matching(), None).unwrap().accepts(answer)
        };
        assert_eq!(verdict, row["right"].as_bool().unwrap(), "{row:?}");
        counts[place] += 1;
    }
    assert_eq!(counts, [120; 4]);
}

#[derive(Deserialize)]
struct Verdict {
    question: String,
    answer: String,
    ids: Vec<u32>,
    probabilities: Vec<f32>,
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct Verdicts {
    max_length: usize,
    rows: Vec<Verdict>,
}

#[test]
fn the_judge_is_transformers_s() {
    let golden: Verdicts = golden("judge.json");
    let evaluation = Evaluation {
        metric: Some(Metric::Judge),
        judge: Some(fixture("judge").display().to_string()),
        judge_max_length: Some(golden.max_length),
        ..Default::default()
    };
    let judge = Classifier::open(&evaluation, &Device::Cpu, DType::F32).unwrap();
    let case = |row: &Verdict| {
        let (question, answer) = (row.question.clone(), row.answer.clone());
        Case { behavior: question.clone(), question, answer }
    };
    let cases: Vec<Case> = golden.rows.iter().map(case).collect();
    let ids: Vec<Vec<u32>> = cases.iter().map(|case| judge.encode(case).unwrap()).collect();
    let probabilities: Vec<Vec<f32>> = judge.probabilities(&ids).unwrap().to_vec2().unwrap();
    let verdicts = judge.verdicts(&cases).unwrap();
    for (i, row) in golden.rows.iter().enumerate() {
        assert_eq!(ids[i], row.ids, "{i}");
        let far = probabilities[i].iter().zip(&row.probabilities).any(|(p, q)| (p - q).abs() > 5e-5);
        assert!(!far, "{i}: {:?} {:?}", probabilities[i], row.probabilities);
        assert_eq!(verdicts[i].reason, ("flags", json!(row.flags)), "{i}");
        assert_eq!(verdicts[i].flagged, !row.flags.is_empty(), "{i}");
    }
}

#[test]
fn a_language_model_is_no_judge() {
    let judge = |id: &str, prompt: Option<&str>| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(id).display().to_string();
        let prompt = prompt.map(str::to_string);
        let evaluation = Evaluation { judge: Some(dir), judge_prompt: prompt, ..Default::default() };
        format!("{:#}", Judge::open(&evaluation, &Device::Cpu, DType::F32).err().unwrap())
    };
    assert!(judge("tests/tiny/aligned", None).contains("score.weight"));
    assert!(judge("tests/tiny/aligned", None).contains("judge_pattern"));
    assert!(judge("tests/fixtures/eval/judge", Some("{question}")).contains("{answer}"));
}

#[derive(Deserialize)]
struct InWords {
    prompt: String,
    labels: Vec<String>,
    rows: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    question: String,
    answer: String,
    behavior: String,
    chat: bool,
    ids: Vec<u32>,
    among_all: f64,
    of_two: f64,
    text: String,
}

#[test]
fn a_judge_in_words_is_transformers_s() {
    let golden: InWords = golden("in_words.json");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned");
    for chat in [true, false] {
        let open = |labels: &[String], pattern: Option<&str>| {
            let evaluation = Evaluation {
                metric: Some(Metric::Judge),
                judge: Some(dir.display().to_string()),
                judge_prompt: (!chat).then(|| golden.prompt.clone()),
                judge_labels: labels.to_vec(),
                judge_pattern: pattern.map(str::to_string),
                judge_max_new_tokens: pattern.map(|_| 12),
                ..Default::default()
            };
            evaluation
                .judges_in_words()
                .then(|| Generative::open(&evaluation, &Device::Cpu, DType::F32).unwrap())
                .unwrap()
        };
        let rows: Vec<&Said> = golden.rows.iter().filter(|row| row.chat == chat).collect();
        let case = |row: &&Said| {
            let (question, answer, behavior) = (row.question.clone(), row.answer.clone(), row.behavior.clone());
            Case { question, answer, behavior }
        };
        let cases: Vec<Case> = rows.iter().map(case).collect();
        let (one, two) = (open(&golden.labels[..1], None), open(&golden.labels, None));
        let (one, two, said) = (
            one.verdicts(&cases).unwrap(),
            two.verdicts(&cases).unwrap(),
            open(&[], Some("(?i)^the")).verdicts(&cases).unwrap(),
        );
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(open(&[], Some("x")).encode(&cases[i]).unwrap(), row.ids, "{i}");
            for (found, expected) in [(&one[i], row.among_all), (&two[i], row.of_two)] {
                let p = found.reason.1.as_f64().unwrap();
                assert!((p - expected).abs() < 1e-5, "{i}: {p} {expected}");
                assert_eq!(found.flagged, expected > 0.5, "{i}");
            }
            assert_eq!(said[i].reason, ("judge_answer", json!(row.text)), "{i}");
            assert_eq!(said[i].flagged, row.text.to_lowercase().starts_with("the"), "{i}");
        }
    }
}
