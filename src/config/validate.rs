//! Ranges and cross-checks of [`Settings`]: what types alone cannot express.

mod defence;

use super::Settings;
use crate::data::{Cache, TrainOn, Validation, source_problems};
use crate::names::Targets;
use crate::toml_reader::Mistakes;
use crate::train::Tuning;

/// Everything that is wrong with the settings, one line each.
pub fn mistakes(settings: &Settings) -> Mistakes {
    let mut found = mistakes_of_data(settings);
    direction(settings, &mut found);
    found
}

/// As [`mistakes`], for what uses neither a penalty nor a direction.
pub fn mistakes_of_data(settings: &Settings) -> Mistakes {
    let mut found = Mistakes::default();
    required(settings, &mut found);
    model(settings, &mut found);
    lora(settings, &mut found);
    asft(settings, &mut found);
    defence::mistakes(settings, &mut found);
    data(settings, &mut found);
    eval(settings, &mut found);
    output(settings, &mut found);
    train(settings, &mut found);
    found
}

fn required(settings: &Settings, found: &mut Mistakes) {
    let Settings { model, asft, data, output, .. } = settings;
    found.unless(!model.aligned.is_empty(), "`model.aligned` is required: the model to fine-tune, a folder or hub id");
    found.unless(
        !data.train.is_empty(),
        "`data.train` is required: a JSON, JSONL, CSV, TSV or Parquet file of training samples, or several",
    );
    found.unless(!output.dir.is_empty(), "`output.dir` must name a folder");
    let optional = [
        ("model.tokenizer", &model.tokenizer),
        ("model.unaligned", &model.unaligned),
        ("asft.direction", &asft.direction),
        ("lora.init_adapter", &settings.lora.init_adapter),
    ];
    for (key, value) in optional {
        found.unless(value.as_ref().is_none_or(|text| !text.is_empty()), format!("`{key}` is empty: leave it out"));
    }
}

fn model(settings: &Settings, found: &mut Mistakes) {
    let model = &settings.model;
    found.unless(
        model.quantize.is_none() || settings.train.method == Tuning::Lora,
        "`model.quantize` is for `train.method = \"lora\"`: weights that train cannot be quantised",
    );
    found.unless(
        model.quantize.is_some() || !model.quantize_head,
        "`model.quantize_head` has no use without `model.quantize`",
    );
}

fn direction(settings: &Settings, found: &mut Mistakes) {
    let Settings { model, asft, .. } = settings;
    found.unless(
        !asft.needs_direction() || model.unaligned.is_some() || asft.direction.is_some(),
        "one of `model.unaligned` and `asft.direction` is required: the base model to compare with, or a direction \
         file made from it (`asft.penalize = \"none\"` or \"all\" needs neither)",
    );
    let computed = settings.penalises_by_direction() && asft.direction.is_none();
    found.unless(
        !computed || model.aligned.is_empty() || model.unaligned.as_ref() != Some(&model.aligned),
        "`model.unaligned` and `model.aligned` are the same, so that V = 0 and there is no direction: the unaligned model \
         is the base that the aligned one was tuned from (`asft.penalize = \"all\"` needs none)",
    );
}

fn lora(settings: &Settings, found: &mut Mistakes) {
    let lora = &settings.lora;
    found.at_least_one("lora.rank", lora.rank);
    found.at_least_one("lora.alpha", lora.alpha);
    found.range((0.0..1.0).contains(&lora.dropout), "lora.dropout", "at least 0 and below 1", lora.dropout);
    let named = match &lora.target_modules {
        Targets::AllLinear => true,
        Targets::Regex(pattern) => !pattern.is_empty(),
        Targets::List(names) => !names.is_empty() && names.iter().all(|name| !name.is_empty()),
    };
    found.unless(named, "`lora.target_modules` must name at least one layer, and no empty name");
    let layers = lora.layers_to_transform.as_ref();
    found.unless(layers.is_none_or(|layers| !layers.is_empty()), "`lora.layers_to_transform` is empty: leave it out");
    for (key, pattern) in [("lora.rank_pattern", &lora.rank_pattern), ("lora.alpha_pattern", &lora.alpha_pattern)] {
        for (name, value) in pattern {
            found.unless(!name.is_empty(), format!("`{key}` has an empty name"));
            found.at_least_one(&format!("{key}` of `{name}"), *value);
        }
    }
    if let Some(ratio) = lora.loraplus_lr_ratio {
        let usable = ratio > 0.0 && ratio.is_finite();
        found.range(usable, "lora.loraplus_lr_ratio", "above 0 and finite (LoRA+ wants it above 1)", ratio);
    }
    let patterns = !lora.rank_pattern.is_empty() || !lora.alpha_pattern.is_empty();
    if settings.train.method == Tuning::Full {
        let unused = [
            ("lora.init_adapter", lora.init_adapter.is_some()),
            ("lora.rank_pattern` and `lora.alpha_pattern", patterns),
            ("lora.loraplus_lr_ratio", lora.loraplus_lr_ratio.is_some()),
            ("export.fold_scale", settings.export.fold_scale),
            ("export.layout", settings.export.layout.is_some()),
        ];
        for (key, _) in unused.into_iter().filter(|(_, given)| *given) {
            found.add(format!("`{key}` has no use with `train.method = \"full\"`"));
        }
    }
    found.unless(
        lora.init_adapter.is_none() || (!patterns && layers.is_none()),
        "`lora.rank_pattern`, `lora.alpha_pattern` and `lora.layers_to_transform` have no use with \
         `lora.init_adapter`: that adapter's own ranks, alphas and modules are used",
    );
}

fn asft(settings: &Settings, found: &mut Mistakes) {
    if let Err(problem) = settings.asft.validate() {
        found.add(problem.to_string());
    }
    found.unless(
        !settings.asft.scaled || settings.train.method == Tuning::Lora,
        "`asft.scaled` has no meaning with `train.method = \"full\"`: there the update has no alpha/rank",
    );
}

fn data(settings: &Settings, found: &mut Mistakes) {
    let data = &settings.data;
    found.range(data.max_length >= 2, "data.max_length", "at least 2", data.max_length);
    found.at_least_one("data.max_samples", data.max_samples.unwrap_or(1));
    if let Some(problem) = data.columns.problem(data.format.fields()) {
        found.add(format!("`data.columns`: {problem}"));
    }
    let sources: Vec<_> = data.sources().into_iter().map(|l| (data.format_of(&l.source), l)).collect();
    if !data.train.is_empty() {
        found.extend(source_problems(&sources));
    }
    let without_user = !data.format.has_user() && sources.iter().all(|(format, _)| !format.has_user());
    if let Some(problem) = data.template_variables.problem() {
        found.add(format!("`data.template_variables`: {problem}"));
    }
    found.unless(
        !without_user || data.train_on == TrainOn::default(),
        "`data.train_on` has no effect: with this `data.format`, every token or the record itself says what is trained on",
    );
    found.unless(!data.template.is_empty(), "`data.template` must be \"tokenizer\" or name a template");
    found.unless(
        data.cache != Cache::Folder(String::new()),
        "`data.cache` is empty: name a folder, or `true` for one beside `output.dir`, or `false` for memory alone",
    );
    let has_task = data.train.is_empty() || sources.iter().any(|(_, listed)| listed.is_task());
    found.unless(
        has_task || !matches!(data.validation, Some(Validation::Share(_))),
        "`data.validation` is a share of the sources of `data.train` that are taken whole, and each has a `share` or a \
         `count`: leave these out of one, or name a file of validation samples",
    );
    match &data.validation {
        Some(Validation::Share(share)) => {
            found.range(*share > 0.0 && *share < 1.0, "data.validation", "above 0 and below 1, or a file", share);
        }
        Some(Validation::File(file)) => found.unless(!file.is_empty(), "`data.validation` is empty: leave it out"),
        None => {}
    }
}

fn eval(settings: &Settings, found: &mut Mistakes) {
    let eval = &settings.eval;
    found.unless(eval.suite.as_ref().is_none_or(|file| !file.is_empty()), "`eval.suite` is empty: leave it out");
    found.unless(eval.suite.is_some() || eval.every.is_none(), "`eval.every` needs `eval.suite`");
    found.at_least_one("eval.every", eval.every.unwrap_or(1));
    found.at_least_one("eval.batch_size", eval.batch_size);
}

fn output(settings: &Settings, found: &mut Mistakes) {
    let Settings { output, train, data, .. } = settings;
    if let Some(steps) = output.eval_every_steps {
        found.at_least_one("output.eval_every_steps", steps);
        found.unless(data.validation.is_some(), "`output.eval_every_steps` needs `data.validation`");
    }
    for (key, steps) in
        [("output.save_every_steps", output.save_every_steps), ("output.log_modules_every", output.log_modules_every)]
    {
        steps.into_iter().for_each(|steps| found.at_least_one(key, steps));
    }
    found.at_least_one("output.keep_last", output.keep_last);
    found.unless(!output.save_best || data.validation.is_some(), "`output.save_best` needs `data.validation`");
    found.at_least_one("train.max_bad_steps", train.max_bad_steps);
    if let Some(evaluations) = train.patience {
        found.at_least_one("train.patience", evaluations);
        found.unless(output.eval_every_steps.is_some(), "`train.patience` needs `output.eval_every_steps`");
    }
}

fn train(settings: &Settings, found: &mut Mistakes) {
    let train = &settings.train;
    let positive = |value: f64| value > 0.0 && value.is_finite();
    let not_negative = |value: f64| value >= 0.0 && value.is_finite();
    found.range(positive(train.epochs), "train.epochs", "above 0 and finite", train.epochs);
    found.range(positive(train.learning_rate), "train.learning_rate", "above 0 and finite", train.learning_rate);
    found.range(positive(train.adam_epsilon), "train.adam_epsilon", "above 0 and finite", train.adam_epsilon);
    found.range(not_negative(train.weight_decay), "train.weight_decay", "0 or more and finite", train.weight_decay);
    found.range(not_negative(train.max_grad_norm), "train.max_grad_norm", "0 (off) or more", train.max_grad_norm);
    found.range(train.gamma > 0.0 && train.gamma <= 1.0, "train.gamma", "above 0 and at most 1", train.gamma);
    let betas = train.adam_betas;
    let in_range = betas.iter().all(|beta| (0.0..1.0).contains(beta));
    found.range(in_range, "train.adam_betas", "two numbers of at least 0 and below 1", betas);
    found.at_least_one("train.batch_size", train.batch_size);
    found.at_least_one("train.gradient_accumulation", train.gradient_accumulation);
    if let Some(steps) = train.max_steps {
        found.at_least_one("train.max_steps", steps);
    }
    if let Some(ratio) = train.warmup_ratio {
        found.range((0.0..=1.0).contains(&ratio), "train.warmup_ratio", "between 0 and 1", ratio);
        found.unless(
            train.warmup_steps.is_none(),
            "`train.warmup_steps` and `train.warmup_ratio` exclude each other: leave one out",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Format, Source, Sources};
    use crate::train::DefenceKind;

    fn usable() -> Settings {
        let mut settings = Settings::default();
        settings.model.aligned = "chat".to_string();
        settings.model.unaligned = Some("base".to_string());
        settings.data.train = "train.jsonl".into();
        settings
    }

    fn check(change: impl FnOnce(&mut Settings), expected: &[&str]) {
        let mut settings = usable();
        change(&mut settings);
        let mistakes = mistakes(&settings);
        let problems = mistakes.lines();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{part} is not in {problem}");
        }
    }

    #[test]
    fn required_keys_are_listed_together() {
        check(|_| {}, &[]);
        check(|s| *s = Settings::default(), &["model.aligned", "data.train", "asft.direction"]);
        check(|s| s.model.unaligned = None, &["one of `model.unaligned` and `asft.direction`"]);
        check(
            |s| s.model.unaligned = Some("chat".to_string()),
            &["`model.unaligned` and `model.aligned` are the same"],
        );
        check(|s| (s.model.unaligned, s.asft.lambda) = (Some("chat".to_string()), 0.0.into()), &[]);
        for penalize in [crate::method::Penalize::None, crate::method::Penalize::All] {
            check(|s| (s.model.unaligned, s.asft.penalize) = (None, penalize), &[]);
        }
        check(|s| (s.model.unaligned, s.asft.direction) = (None, Some("d.safetensors".to_string())), &[]);
    }

    #[test]
    fn ranges_are_checked_and_all_reported() {
        let lora = ["lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules"];
        let none = Targets::List(vec![]);
        let change = |s: &mut Settings| {
            (s.lora.rank, s.lora.alpha, s.lora.dropout, s.lora.target_modules) = (0, 0, 1.0, none);
        };
        check(change, &lora);
        check(|s| (s.asft.lambda, s.data.max_length) = (f64::INFINITY.into(), 1), &["asft.lambda", "data.max_length"]);
        check(|s| (s.train.epochs, s.train.learning_rate) = (0.0, f64::NAN), &["train.epochs", "train.learning_rate"]);
        check(|s| (s.train.gamma, s.train.adam_betas) = (1.5, [0.9, 1.0]), &["train.gamma", "train.adam_betas"]);
        check(|s| (s.train.batch_size, s.train.max_steps) = (0, Some(0)), &["train.batch_size", "train.max_steps"]);
        check(|s| s.data.validation = Some(Validation::Share(1.0)), &["data.validation"]);
        check(|s| s.data.cache = Cache::Folder(String::new()), &["`data.cache` is empty"]);
        let some: Sources = serde_json::from_value(serde_json::json!({"path": "a", "count": 3})).unwrap();
        check(|s| s.data.train = some.clone(), &[]);
        let change = |s: &mut Settings| (s.data.train, s.data.validation) = (some, Some(Validation::Share(0.1)));
        check(change, &["`data.validation` is a share of"]);
        let mix = |prefix: &str| vec![Source { path: "a".into(), prefix: prefix.into(), ..Source::default() }];
        check(|s| s.data.mix = vec![Source::default()], &["data.mix needs a `path`"]);
        check(|s| (s.data.mix, s.data.format) = (mix(""), Format::Text), &[]);
        check(|s| (s.data.mix, s.data.format) = (mix("x"), Format::Text), &["has none of these"]);
        check(|s| s.train.warmup_ratio = Some(1.5), &["train.warmup_ratio"]);
    }

    #[test]
    fn lora_s_finer_settings_are_checked() {
        let map = |value| std::collections::BTreeMap::from([("q_proj".to_string(), value)]);
        check(|s| s.lora.layers_to_transform = Some(vec![]), &["`lora.layers_to_transform` is empty"]);
        check(|s| s.lora.rank_pattern = map(0), &["`lora.rank_pattern` of `q_proj` must be at least 1"]);
        check(|s| s.lora.loraplus_lr_ratio = Some(0.0), &["lora.loraplus_lr_ratio"]);
        check(|s| (s.lora.alpha_pattern, s.lora.init_adapter) = (map(4), Some("old".into())), &["have no use"]);
        let full = |s: &mut Settings| {
            (s.train.method, s.lora.rank_pattern, s.lora.loraplus_lr_ratio) = (Tuning::Full, map(4), Some(16.0));
        };
        check(full, &["lora.rank_pattern", "lora.loraplus_lr_ratio"]);
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        check(|s| (s.train.warmup_steps, s.train.warmup_ratio) = (Some(3), Some(0.1)), &["exclude each other"]);
        check(|s| s.output.eval_every_steps = Some(5), &["needs `data.validation`"]);
        check(
            |s| (s.output.save_best, s.train.patience) = (true, Some(2)),
            &["`output.save_best`", "`train.patience`"],
        );
        let none = |s: &mut Settings| {
            (s.output.save_every_steps, s.output.keep_last, s.train.max_bad_steps) = (Some(0), 0, 0);
        };
        check(none, &["output.save_every_steps", "output.keep_last", "train.max_bad_steps"]);
        let full = |s: &mut Settings| {
            (s.train.method, s.lora.init_adapter, s.asft.scaled) = (Tuning::Full, Some("old".to_string()), true);
        };
        check(full, &["lora.init_adapter", "asft.scaled"]);
        check(|s| s.eval.every = Some(5), &["`eval.every` needs `eval.suite`"]);
        check(
            |s| (s.eval.suite, s.eval.every) = (Some(String::new()), Some(0)),
            &["`eval.suite` is empty", "eval.every"],
        );
        check(|s| s.asft.subspace_rank = Some(4), &["subspace"]);
    }

    #[test]
    fn defences_have_what_they_need_and_nothing_without_effect() {
        let full = |kind| move |s: &mut Settings| (s.train.method, s.defence.kind) = (Tuning::Full, kind);
        check(
            full(DefenceKind::ConstrainedSft),
            &["`defence.kind = \"constrained_sft\"` needs `train.method = \"lora\"`"],
        );
        let needs = "needs `defence.alignment_data`";
        check(full(DefenceKind::SafeGrad), &["`defence.kind = \"safe_grad\"` needs `train.method", needs]);
        for kind in [DefenceKind::Lisa, DefenceKind::Kl, DefenceKind::SafeGrad] {
            check(|s| s.defence.kind = kind, &[needs]);
        }
        check(|s| s.defence.alignment_data = Some("a".to_string()), &["`defence.alignment_data` has no effect"]);
        check(|s| s.defence.kind = DefenceKind::Anchor, &["needs `defence.prompts`"]);
        let tokenized = |s: &mut Settings| {
            (s.defence.kind, s.defence.prompts, s.data.format) =
                (DefenceKind::Anchor, Some("p".to_string()), Format::Tokenized);
        };
        check(tokenized, &["says neither with which template"]);
        check(|s| s.defence.prompts = Some("p".to_string()), &["`defence.prompts` has no effect"]);
        check(|s| (s.defence.weight, s.defence.batch_size) = (0.0, 0), &["defence.weight", "defence.batch_size"]);
        check(|s| (s.defence.kind, s.defence.rho) = (DefenceKind::Kl, 0.0), &[needs, "leaves nothing"]);
        check(full(DefenceKind::NullSpace), &["needs `train.method = \"lora\"`", "needs `defence.prompts`"]);
        check(full(DefenceKind::Ema), &[]);
        check(|s| (s.defence.energy, s.defence.decay) = (0.0, 1.0), &["defence.energy", "defence.decay"]);
        check(|s| (s.defence.energy, s.defence.decay) = (1.5, f64::NAN), &["defence.energy", "defence.decay"]);
        check(|s| (s.defence.betas, s.defence.rho) = (vec![], -1.0), &["defence.betas", "defence.rho"]);
    }
}
