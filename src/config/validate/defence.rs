//! `[defence]`: each kind's own options, and what it needs of the others.

use crate::config::Settings;
use crate::toml_reader::Mistakes;
use crate::train::{DefenceKind, Tuning};

pub fn mistakes(settings: &Settings, found: &mut Mistakes) {
    let defence = &settings.defence;
    let (kind, named) = (defence.kind, |file: &Option<String>| file.as_ref().is_some_and(|file| !file.is_empty()));
    let betas = !defence.betas.is_empty() && defence.betas.iter().all(|beta| *beta > 0.0 && beta.is_finite());
    found.range(betas, "defence.betas", "one or more numbers above 0", &defence.betas);
    found.unless(
        !kind.needs_adapter() || settings.train.method == Tuning::Lora,
        format!(
            "`defence.kind = \"{kind}\"` needs `train.method = \"lora\"`: it is about an adapter, or the model without one"
        ),
    );
    found.unless(
        !kind.needs_alignment_data() || named(&defence.alignment_data),
        format!("`defence.kind = \"{kind}\"` needs `defence.alignment_data`: a file of safety samples"),
    );
    found.unless(
        kind.needs_alignment_data() || defence.alignment_data.is_none(),
        "`defence.alignment_data` has no effect without a `defence.kind` of \"lisa\", \"kl\" or \"safe_grad\"",
    );
    found.unless(
        !kind.needs_prompts() || named(&defence.prompts),
        format!("`defence.kind = \"{kind}\"` needs `defence.prompts`: a file of prompts whose answers are to stay as they are"),
    );
    found.unless(
        kind.needs_prompts() || defence.prompts.is_none(),
        "`defence.prompts` has no effect without a `defence.kind` of \"anchor\", \"activations\" or \"null_space\"",
    );
    found.unless(
        !kind.needs_prompts() || !settings.data.is_tokenized(),
        format!(
            "`defence.kind = \"{kind}\"` reads its prompts as `data.train` is read, and `data.format = \"tokenized\"` says \
             neither with which template nor where an answer begins"
        ),
    );
    found.at_least_one("defence.rank", defence.rank);
    let energy = defence.energy;
    found.range(energy > 0.0 && energy <= 1.0, "defence.energy", "above 0 and at most 1", energy);
    let decay = defence.decay;
    found.range(decay > 0.0 && decay < 1.0, "defence.decay", "above 0 and below 1", decay);
    let weight = defence.weight;
    found.range(weight > 0.0 && weight.is_finite(), "defence.weight", "above 0 and finite", weight);
    found.at_least_one("defence.batch_size", defence.batch_size);
    found.at_least_one("defence.alignment_steps", defence.alignment_steps);
    found.at_least_one("defence.finetune_steps", defence.finetune_steps);
    found.range(defence.rho >= 0.0 && defence.rho.is_finite(), "defence.rho", "0 or more and finite", defence.rho);
    found.unless(
        kind != DefenceKind::Kl || defence.rho != 0.0,
        "`defence.rho = 0` leaves nothing of `defence.kind = \"kl\"`; leave the defence out",
    );
    let after = defence.proximal_after;
    found.range((0.0..=1.0).contains(&after), "defence.proximal_after", "between 0 and 1", after);
}
