//! The decoder against PyTorch + transformers + PEFT on tiny random models: logits, loss, every gradient.
//!
//! Goldens: `tests/fixtures/make/goldens.py`. Run with `ASFT_OPS=generic` too: the code that an accelerator runs.

use crate::support::goldens::*;
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::data::{Batch, collate};
use asft::model::{Decoder, DropoutKey, GenerateOptions, Gradients, KvCache, Parameters, Scored, Sequences, Slots};
use std::collections::BTreeMap;

const GRADIENT_TOLERANCE: f64 = 1e-4;

/// Largest difference of logits over all tokens.
fn logit_difference(case: &str, got: &[f64], golden: &str) -> f64 {
    let expected = GoldenBatch::load(case).live(&Golden::expected(case).values(golden), spec(case).vocab_size);
    max_difference(got, &expected)
}

#[test]
fn logits_equal_transformers() {
    for case in CASES {
        let batch = GoldenBatch::load(case);
        for (model, golden) in [(base(case, false), "base.logits"), (adapted(case), "lora.logits")] {
            let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
            let difference = logit_difference(case, &logits, golden);
            assert!(difference <= 1e-4, "{case} {golden}: {difference}");
        }
    }
}

#[test]
fn lora_loss_and_gradients_equal_peft() {
    for case in CASES {
        let (golden, batch, model) = (Golden::expected(case), GoldenBatch::load(case), adapted(case));
        for checkpointing in [true, false] {
            let mut gradients = Gradients::default();
            let scale = 1.0 / batch.label_tokens() as f64;
            let sum = model.loss_and_gradients(batch.sequences(), scale, checkpointing, None, &mut gradients).unwrap();
            let expected = golden.values("lora.loss64")[0];
            assert!((sum * scale / expected - 1.0).abs() <= 1e-5, "{case}: {} {expected}", sum * scale);
            assert!((model.loss(batch.sequences()).unwrap() / sum - 1.0).abs() <= 1e-6);
            let mut compared = 0;
            for (name, expected) in golden.with_prefix("lora.grad.") {
                let got = to_vec(gradients.get(&format!("{name}.weight")).unwrap());
                let error = relative_error(&got, &to_vec(expected));
                assert!(error <= GRADIENT_TOLERANCE, "{case} {name}: {error}");
                compared += 1;
            }
            assert_eq!(compared, model.parameters().len());
            // Four linears a layer; a gated DeltaNet has five of its own.
            let modules = match case {
                "qwen3_5_text" | "qwen3_5" => 2 * 6 + 4,
                "qwen3_5_moe" | "qwen3_5_moe_text" => 2 * 7 + 5,
                // Two layers of five have no v.
                "gemma4_wide" => 5 * 3 + 3,
                // Two linears take an input of each layer in; three layers of five have no v.
                "gemma4_shared" => 2 * 6 + 3 * 5,
                _ => 3 * 4,
            };
            assert_eq!(compared, modules * 2);
        }
    }
}

#[test]
fn full_loss_and_gradients_equal_transformers() {
    for case in CASES {
        let (golden, batch, model) = (Golden::expected(case), GoldenBatch::load(case), base(case, true));
        for checkpointing in [true, false] {
            let mut gradients = Gradients::default();
            let scale = 1.0 / batch.label_tokens() as f64;
            let sum = model.loss_and_gradients(batch.sequences(), scale, checkpointing, None, &mut gradients).unwrap();
            assert!((sum * scale / golden.values("full.loss64")[0] - 1.0).abs() <= 1e-5, "{case}");
            let mut compared = 0;
            for (name, expected) in golden.with_prefix("full.grad.") {
                let error = relative_error(&to_vec(gradients.get(name).unwrap()), &to_vec(expected));
                assert!(error <= GRADIENT_TOLERANCE, "{case} {name}: {error}");
                compared += 1;
            }
            assert_eq!(compared, model.parameters().len(), "{case}");
        }
    }
}

/// The Llama with its golden adapter, with dropout.
fn with_dropout() -> Decoder {
    let mut model = base("llama_gqa", false);
    let mut adapter = golden_adapter("llama_gqa");
    adapter.dropout = 0.3;
    attach(&mut model, &adapter);
    model
}

#[test]
fn checkpointing_changes_no_bit_even_with_dropout() {
    let (batch, model) = (GoldenBatch::load("llama_gqa"), with_dropout());
    let run = |checkpointing, seed| {
        let mut gradients = Gradients::default();
        let key = Some(DropoutKey { seed, first_row: 0 });
        let loss = model.loss_and_gradients(batch.sequences(), 1.0, checkpointing, key, &mut gradients).unwrap();
        (loss, gradients.iter().map(|(name, g)| (name.to_string(), to_vec(g))).collect::<Vec<_>>())
    };
    assert_eq!(run(true, 5), run(false, 5));
    assert_ne!(run(true, 5).0, run(true, 6).0);
}

/// What ranks rely on: the samples of a batch one by one, with their parts of its dropout masks, add up to the batch.
#[test]
fn the_parts_of_a_batch_are_the_batch_even_with_dropout() {
    let (batch, model) = (collate(&GoldenBatch::load("llama_gqa").examples()), with_dropout());
    let run = |batch: &Batch, first_row: usize, gradients: &mut Gradients| {
        let key = Some(DropoutKey { seed: 5, first_row });
        model.loss_and_gradients(batch.into(), 0.01, true, key, gradients).unwrap()
    };
    let (mut whole, mut sum) = (Gradients::default(), Gradients::default());
    let expected = run(&batch, 0, &mut whole);
    let parts = (0..batch.lengths.len()).map(|sample| batch.part(sample..sample + 1));
    let loss: f64 = parts.map(|(first_row, part)| run(&part, first_row, &mut sum)).sum();
    assert!((loss / expected - 1.0).abs() < 1e-6, "{loss} {expected}");
    for (name, gradient) in whole.iter() {
        let error = relative_error(&to_vec(sum.get(name).unwrap()), &to_vec(gradient));
        assert!(error < 1e-5, "{name}: {error}");
    }
    // Masks that started over with each sample would differ.
    let (_, second) = batch.part(1..2);
    let (start, anew) = (batch.lengths[0], &mut Gradients::default());
    assert_ne!(run(&second, start, anew), run(&second, 0, anew));
}

#[test]
fn cached_decoding_equals_the_whole_sequence() {
    for case in CASES {
        let (golden, model) = (Golden::expected(case), adapted(case));
        let mut ids: Vec<u32> = golden.integers("generate.prompt").into_iter().map(|id| id as u32).collect();
        let expected = golden.integers("generate.tokens");
        let mut cache = KvCache::new(model.spec(), 1, ids.len() + expected.len());
        let mut fresh = ids.clone();
        for token in expected {
            let logits = to_vec(&model.next_logits(&[(0, &fresh)], &mut cache).unwrap());
            let whole = to_vec(&model.logits(&ids, &[ids.len()]).unwrap());
            let error = relative_error(&logits, &whole[whole.len() - logits.len()..]);
            assert!(error < 1e-5, "{case}: {error}");
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(best as i64, token, "{case}");
            fresh = vec![best as u32];
            ids.push(best as u32);
        }
    }
}

/// A model and its clone without the adapter, which share weights, take turns over one cache of three slots: each of five prompts is
/// answered as alone, and scored as the whole sequence is.
#[test]
fn models_that_share_weights_and_cache_answer_as_alone() {
    for case in CASES {
        let (golden, adapted) = (Golden::expected(case), adapted(case));
        let mut base = adapted.clone();
        base.attach(BTreeMap::new(), Parameters::new()).unwrap();
        let models = [adapted, base];
        let ids: Vec<u32> = golden.integers("generate.prompt").into_iter().map(|id| id as u32).collect();
        let prompts: Vec<Vec<u32>> = (0..5).map(|i| ids[i % 3..ids.len() - i / 2].to_vec()).collect();
        let options =
            GenerateOptions { max_new_tokens: 6, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids: vec![ids[0]] };
        let mut slots = Slots::new(models[0].spec(), 3, ids.len() + 6);
        let (mut waiting, mut running, mut answers) = (0..prompts.len(), [None; 3], vec![vec![]; prompts.len()]);
        let (scored, mut scores) = (Scored { prompt: true, top: 1 }, vec![0.0; prompts.len()]);
        loop {
            while let Some((slot, index)) = slots.free().and_then(|slot| Some((slot, waiting.next()?))) {
                slots.begin(slot, &prompts[index], &options, Some(scored)).unwrap();
                running[slot] = Some(index);
            }
            if running.iter().all(Option::is_none) {
                break;
            }
            for (number, model) in models.iter().enumerate() {
                let own: Vec<usize> =
                    (0..3).filter(|slot| running[*slot].is_some_and(|index| index % 2 == number)).collect();
                if own.is_empty() {
                    continue;
                }
                for (slot, step) in slots.step(model, &own).unwrap() {
                    let (step, index) = (step.unwrap(), running[slot].unwrap());
                    scores[index] += step.prompt.iter().map(|score| f64::from(score.log_probability)).sum::<f64>();
                    let own = step.score.unwrap();
                    assert_eq!(own.top, [(step.token.unwrap(), own.log_probability)]);
                    if step.end.is_some() {
                        answers[index] = slots.end(slot);
                        running[slot] = None;
                    }
                }
            }
        }
        for (index, prompt) in prompts.iter().enumerate() {
            let model = &models[index % 2];
            assert_eq!(answers[index], model.generate(prompt, &options, |_| Ok(())).unwrap(), "{case}");
            let labels: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
            let whole = Sequences { input_ids: prompt, labels: &labels, lengths: &[prompt.len()] };
            let expected = model.log_likelihoods(whole).unwrap()[0];
            assert!((scores[index] / expected - 1.0).abs() < 1e-5, "{case}: {} {expected}", scores[index]);
        }
    }
}

/// Five prompts in three slots, so that some join while others are running, get the same answers as alone.
#[test]
fn prompts_beside_one_another_answer_as_alone() {
    for case in CASES {
        let (golden, model) = (Golden::expected(case), adapted(case));
        let ids: Vec<u32> = golden.integers("generate.prompt").into_iter().map(|id| id as u32).collect();
        let prompts: Vec<Vec<u32>> = (0..5).map(|i| ids[i % 3..ids.len() - i / 2].to_vec()).collect();
        let options =
            GenerateOptions { max_new_tokens: 6, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids: vec![ids[0]] };
        let alone: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| model.generate(prompt, &options, |_| Ok(())).unwrap()).collect();
        let mut together = vec![vec![]; prompts.len()];
        let keep = |index: usize, answer| {
            together[index] = answer;
            Ok(())
        };
        model.generate_all(&prompts, 3, &options, keep).unwrap();
        assert_eq!(together, alone, "{case}");
    }
}
