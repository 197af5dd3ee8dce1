//! Against Python: `tests/fixtures/make/eval.py`.

use super::accuracy::Target;
use super::judge::Judge;
use super::reference::reference;
use super::*;
use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
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
            phrases.refuses(answer)
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
    let judge = Judge::open(&evaluation, &Device::Cpu, DType::F32).unwrap();
    let ids: Vec<Vec<u32>> = golden.rows.iter().map(|row| judge.encode(&row.question, &row.answer).unwrap()).collect();
    let probabilities: Vec<Vec<f32>> = judge.probabilities(&ids).unwrap().to_vec2().unwrap();
    let pairs: Vec<(String, String)> =
        golden.rows.iter().map(|row| (row.question.clone(), row.answer.clone())).collect();
    let flags = judge.flags(&pairs).unwrap();
    for (i, row) in golden.rows.iter().enumerate() {
        assert_eq!(ids[i], row.ids, "{i}");
        let far = probabilities[i].iter().zip(&row.probabilities).any(|(p, q)| (p - q).abs() > 5e-5);
        assert!(!far, "{i}: {:?} {:?}", probabilities[i], row.probabilities);
        assert_eq!(flags[i], row.flags, "{i}");
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
    assert!(judge("tests/fixtures/eval/judge", Some("{question}")).contains("{answer}"));
}
