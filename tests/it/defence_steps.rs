//! Ten steps under defences that change what is trained, or what becomes of it, on the golden models: against PyTorch.
//!
//! Goldens: `tests/fixtures/make/defence_steps.py`.

use crate::defence_terms::{CASES, dataset, prompts, ready, same_gradients, settings};
use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::data::collate;
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, Gradients, Parameters};
use asft::train::{Defence, DefenceOptions, Ema, NullSpace, Penalties, StepOutcome, TrainOptions, Trainer};

fn setting(name: &str) -> f64 {
    read_json(&fixture("defences").join("steps.json"))[name].as_f64().unwrap()
}

/// With plain shrinkage of this weight, if it is not 0; adapted models have the golden adapter of `case`.
fn trainer(case: &str, model: Decoder, lambda: f64, learning_rate: f64, weight_decay: f64) -> Trainer {
    let penalize = if lambda > 0.0 { Penalize::All } else { Penalize::None };
    let asft = AsftOptions { penalize, lambda: lambda.into(), ..Default::default() };
    let targets: Vec<String> = model.adapters().map(|(module, _)| module.to_string()).collect();
    let adapter = (!targets.is_empty()).then(|| golden_adapter(case));
    let penalties = Penalties::new(&asft, &targets, None, adapter.as_ref(), &model).unwrap();
    let options = TrainOptions { learning_rate, weight_decay, ..Default::default() };
    Trainer::new(model, penalties, &options, false)
}

/// Ten steps on the golden batch.
fn ten_steps(trainer: &mut Trainer, case: &str, learning_rate: f64) -> Vec<StepOutcome> {
    let batches = [collate(&GoldenBatch::load(case).examples())];
    (0..10).map(|step| trainer.step(step, &batches, learning_rate).unwrap()).collect()
}

/// The largest relative error of the parameters with a golden, of which there must be some.
#[track_caller]
fn error(parameters: &Parameters, golden: &Golden, prefix: &str, suffix: &str) -> f64 {
    let of = |(name, expected)| {
        relative_error(&to_vec(parameters[&format!("{name}{suffix}")].as_tensor()), &to_vec(expected))
    };
    let errors: Vec<f64> = golden.with_prefix(prefix).map(of).collect();
    assert_eq!(errors.len(), parameters.len(), "{prefix}");
    errors.into_iter().fold(0.0, f64::max)
}

fn values(parameters: &Parameters) -> Vec<Vec<f64>> {
    parameters.values().map(|parameter| to_vec(parameter.as_tensor())).collect()
}

#[test]
fn the_average_of_ten_steps_equals_pytorch() {
    let golden = Golden::load(&fixture("defences").join("ema.safetensors"));
    let lora = CASES.map(|case| (case, adapted(case), format!("{case}.average."), ".weight", setting("rate"), 0.01));
    let full = ("llama_gqa", base("llama_gqa", true), "full.average.".to_string(), "", setting("full_rate"), 0.0);
    for (case, model, prefix, suffix, rate, decay) in lora.into_iter().chain([full]) {
        let mut trainer = trainer(case, model, 0.0, rate, decay);
        let mut ema = Ema::new(&DefenceOptions { decay: setting("decay"), ..Default::default() });
        ema.start(&mut trainer.model).unwrap();
        trainer.defence = Box::new(ema);
        ten_steps(&mut trainer, case, rate);
        let trained = values(trainer.model.parameters());
        let of_average = trainer.as_result(|model| error(model.parameters(), &golden, &prefix, suffix)).unwrap();
        assert!(of_average <= 1e-5, "{prefix}: {of_average}");
        // What trains is as it was, and another thing.
        assert!(values(trainer.model.parameters()) == trained, "{prefix}");
        let of_trained = error(trainer.model.parameters(), &golden, &prefix, suffix);
        assert!(of_trained > 100.0 * of_average.max(1e-5), "{prefix}: {of_trained}");
    }
}

/// The names, shares and penalties of the goldens.
const NULL_SPACES: [(&str, f64); 3] = [("0.9", 0.9), ("1", 1.0), ("shrunk", 1.0)];

fn null_space(case: &str, energy: f64, batch_size: usize, model: &mut Decoder) -> NullSpace {
    let options = DefenceOptions { energy, batch_size, ..Default::default() };
    ready(NullSpace::new(&options), &settings(&options, true), dataset(&prompts(case)), model)
}

#[test]
fn updates_in_the_null_space_equal_pytorch() {
    let golden = Golden::load(&fixture("defences").join("null_space.safetensors"));
    for (case, (name, energy)) in CASES.into_iter().flat_map(|case| NULL_SPACES.map(|of| (case, of))) {
        let (prefix, lambda) = (format!("{case}.{name}."), if name == "shrunk" { setting("penalty") } else { 0.0 });
        let mut trainer = trainer(case, adapted(case), lambda, setting("rate"), 0.01);
        let mut defence = null_space(case, energy, 3, &mut trainer.model);
        let (batch, mut gradients) = (GoldenBatch::load(case), Gradients::default());
        let scale = 1.0 / batch.label_tokens() as f64;
        trainer.model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
        trainer.penalties.add_to(trainer.model.parameters(), &mut gradients, None).unwrap();
        assert!(defence.add_to(0, &mut trainer.model, &mut gradients).unwrap().is_none());
        same_gradients(&gradients, &golden, &format!("{prefix}grad."), ".weight");
        trainer.defence = Box::new(defence);
        let outcomes = ten_steps(&mut trainer, case, setting("rate"));
        let (losses, norms) = (golden.values(&format!("{prefix}loss")), golden.values(&format!("{prefix}norm")));
        for (outcome, (loss, norm)) in outcomes.iter().zip(losses.into_iter().zip(norms)) {
            assert!((outcome.task_loss / loss - 1.0).abs() < 1e-4, "{prefix} {} {loss}", outcome.task_loss);
            assert!((outcome.grad_norm / norm - 1.0).abs() < 1e-4, "{prefix} {} {norm}", outcome.grad_norm);
        }
        let at_the_end = error(trainer.model.parameters(), &golden, &format!("{prefix}final."), ".weight");
        assert!(at_the_end <= 1e-3, "{prefix} {at_the_end}");
    }
}

/// The naive check: where all inputs of the prompts are closed in every adapted layer, nothing that the model says to them changes.
#[test]
fn outputs_on_the_prompts_do_not_change_in_their_null_space() {
    for case in CASES {
        let prompts = collate(&prompts(case));
        let on_prompts = |model: &Decoder| to_vec(&model.logits(&prompts.input_ids, &prompts.lengths).unwrap());
        let aligned = on_prompts(&base(case, false));
        let moved = |defended: bool| {
            let mut trainer = trainer(case, adapted(case), 0.0, setting("rate"), 0.01);
            if defended {
                trainer.defence = Box::new(null_space(case, 1.0, 8, &mut trainer.model));
            }
            let outcomes = ten_steps(&mut trainer, case, setting("rate"));
            assert!(outcomes[9].task_loss < 0.97 * outcomes[0].task_loss, "{case}: nothing was learnt");
            max_difference(&on_prompts(&trainer.model), &aligned)
        };
        let (defended, plain) = (moved(true), moved(false));
        assert!(defended < 1e-4 && plain > 0.1, "{case}: {defended} {plain}");
    }
}
