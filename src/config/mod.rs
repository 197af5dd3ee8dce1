//! The settings of a run: a TOML file and `--set` overrides in, validated settings out.
//!
//! Each section is declared once, beside the code it configures; here they are composed. Key names, types and the
//! suggestions for misspelt keys come from the sections' JSON schema. Relative paths stay as written: they are relative
//! to the directory in which asft is run, not to the config file.

mod commented;
mod load;
mod overrides;
pub mod suggest;
mod validate;

use crate::adapter::LoraOptions;
use crate::data::DataOptions;
use crate::eval::Suite;
use crate::method::AsftOptions;
use crate::model::ModelOptions;
use crate::outputs::Outputs;
use crate::report::LoggingOptions;
use crate::toml_reader::Schema;
use crate::train::{DefenceOptions, EvalOptions, ExportOptions, OutputOptions, TrainOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Every setting of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The two checkpoints and where the arithmetic happens.
    pub model: ModelOptions,
    /// The adapter's shape and place.
    pub lora: LoraOptions,
    /// What the penalty shrinks, and how much.
    pub asft: AsftOptions,
    /// Defences beside the penalty.
    pub defence: DefenceOptions,
    /// Where the samples come from and how they become label tokens.
    pub data: DataOptions,
    /// How long and how fast to train.
    pub train: TrainOptions,
    /// What is measured of the model besides its losses.
    pub eval: EvalOptions,
    /// Where the results go.
    pub output: OutputOptions,
    /// How the result is written.
    pub export: ExportOptions,
    /// What is written besides.
    pub logging: LoggingOptions,
}

impl Settings {
    /// The JSON schema of the config (draft 2020-12), for editors and other tools.
    pub fn json_schema() -> serde_json::Value {
        Schema::of::<Self>().into_json("Config of an asft training run")
    }

    /// Whether the penalty depends on V, so that there must be one.
    pub fn penalises_by_direction(&self) -> bool {
        self.asft.is_active() && self.asft.needs_direction()
    }

    /// Adds the files and folders that a run reads.
    pub fn declare_inputs(&self, outputs: Outputs) -> Outputs {
        let Self { model, lora, asft, data, eval, .. } = self;
        // A suite that cannot be read is reported where it is read for the run.
        let suite = eval.suite.as_ref().and_then(|path| Suite::load(Path::new(path)).ok());
        let evaluations = suite.into_iter().flat_map(|suite| suite.eval);
        let outputs = evaluations
            .fold(outputs.reads("eval.suite", &eval.suite), |outputs, evaluation| evaluation.declare_inputs(outputs));
        let outputs = outputs.reads("model.aligned", [&model.aligned]).reads("model.unaligned", &model.unaligned);
        let outputs = outputs.reads("model.tokenizer", &model.tokenizer);
        let outputs = outputs.reads("lora.init_adapter", &lora.init_adapter).reads("asft.direction", &asft.direction);
        let outputs = outputs.reads("data.template", [&data.template]).reads("data.validation", data.validation_file());
        let sources = data.sources();
        let outputs =
            sources.iter().fold(outputs, |outputs, listed| outputs.reads(listed.key.name(), [&listed.source.path]));
        outputs.reads("defence", self.defence.files())
    }

    /// Whether a run reads or computes a direction: for its penalty, or to measure updates by.
    pub fn uses_direction(&self) -> bool {
        let has_one = self.asft.direction.is_some() || self.model.unaligned.is_some();
        self.penalises_by_direction() || (has_one && self.output.log_modules_every.is_some())
    }
}
