//! What ties a run to its settings and inputs, so that it continues with the same ones.

use crate::config::Settings;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Settings that change where and when files are written and evaluations made, but nothing that is trained.
const FREE_KEYS: [&str; 10] = [
    "export.fold_scale",
    "export.layout",
    "data.cache",
    "eval.every",
    "eval.batch_size",
    "output.dir",
    "output.save_every_steps",
    "output.keep_last",
    "output.log_modules_every",
    "logging.tensorboard",
];

/// Settings that are built into a checkpoint's tensors.
const FIXED_KEYS: [&str; 9] = [
    "train.method",
    "lora.rank",
    "lora.alpha",
    "lora.use_rslora",
    "lora.target_modules",
    "lora.layers_to_transform",
    "lora.rank_pattern",
    "lora.alpha_pattern",
    "lora.init_adapter",
];

/// What a run depends on: every setting by its key, and the content hash (BLAKE3) of each input by the key that names
/// it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub settings: BTreeMap<String, Value>,
    pub inputs: BTreeMap<String, String>,
}

impl Origin {
    /// Refuses to continue with settings other than the run's, unless each is among `allowed`. Returns whether any
    /// differ.
    pub fn check_settings(&self, now: &Settings, allowed: &[String]) -> Result<bool> {
        let now = now.by_key()?;
        let show = |value: Option<&Value>| value.map_or("not set".to_string(), Value::to_string);
        let keys: BTreeSet<&String> = self.settings.keys().chain(now.keys()).collect();
        let differs = |key: &&String| !FREE_KEYS.contains(&key.as_str()) && self.settings.get(*key) != now.get(*key);
        let changes: Vec<(&String, String)> = keys
            .into_iter()
            .filter(differs)
            .map(|key| (key, format!("was {}, is {}", show(self.settings.get(key)), show(now.get(key)))))
            .collect();
        refuse("settings", &changes, allowed)?;
        Ok(!changes.is_empty())
    }

    /// The same for the content of the inputs.
    pub fn check_inputs(&self, now: &BTreeMap<String, String>, allowed: &[String]) -> Result<()> {
        let differs = |(key, hash): &(&String, &String)| self.inputs.get(*key).is_some_and(|old| old != *hash);
        let changes: Vec<(&String, String)> =
            now.iter().filter(differs).map(|(key, _)| (key, "its content has changed".to_string())).collect();
        refuse("inputs", &changes, allowed)
    }
}

fn refuse(what: &str, changes: &[(&String, String)], allowed: &[String]) -> Result<()> {
    let refused: Vec<&(&String, String)> = changes.iter().filter(|(key, _)| !allowed.contains(key)).collect();
    ensure_valid!(
        refused.is_empty(),
        "the run to resume had other {what}:\n  {}\nput them back, or go on all the same with {}",
        refused.iter().map(|(key, change)| format!("{key}: {change}")).collect::<Vec<_>>().join("\n  "),
        refused.iter().map(|(key, _)| format!("--allow-change {key}")).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

/// Refuses `--allow-change` with something that is not a key, or with one that a run cannot change.
pub fn check_allowed(allowed: &[String]) -> Result<()> {
    for key in allowed {
        Settings::check_key(key).map_err(|e| invalid!("--allow-change {key}: {e}"))?;
        ensure_valid!(
            !FIXED_KEYS.contains(&key.as_str()),
            "--allow-change {key}: the checkpoints are made for one value of it; start another run in another \
             output.dir (lora.init_adapter can build on this one's adapter)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_keys_are_listed_unless_allowed() {
        let mut settings = Settings::default();
        let origin = Origin { settings: settings.by_key().unwrap(), inputs: BTreeMap::new() };
        settings.output.dir = "elsewhere".into();
        assert!(!origin.check_settings(&settings, &[]).unwrap());
        (settings.train.learning_rate, settings.train.max_steps) = (1e-3, Some(9));
        let allowed = ["train.max_steps".to_string()];
        let message = origin.check_settings(&settings, &allowed).unwrap_err().to_string();
        assert!(message.contains("train.learning_rate: was 0.00005, is 0.001"), "{message}");
        assert!(message.ends_with("--allow-change train.learning_rate"), "{message}");
        let allowed = ["train.max_steps".to_string(), "train.learning_rate".to_string()];
        assert!(origin.check_settings(&settings, &allowed).unwrap());
        let refused = |key: &str| check_allowed(&[key.to_string()]).unwrap_err().to_string();
        assert!(refused("train.max_step").contains("did you mean `train.max_steps`?"));
        assert!(refused("lora.rank").contains("start another run"));
        check_allowed(&allowed).unwrap();
    }
}
