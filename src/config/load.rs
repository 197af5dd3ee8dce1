//! From TOML text and `key=value` overrides to [`Settings`], with every wrong key and type reported with its line.

use super::{Settings, overrides, validate};
use crate::invalid;
use crate::toml_reader::{Document, Mistakes, Schema, text_of};
use anyhow::Result;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

impl Settings {
    /// Reads and validates a config file, with `key=value` overrides on top.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML; unknown keys, wrong types or values out of range, all of a kind in
    /// one message.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_toml(&text_of(path, "config")?, &path.display().to_string(), overrides)
    }

    /// As [`Settings::load`], for work on the samples alone: the settings may leave open where the direction comes from.
    pub fn load_for_data(path: &Path, overrides: &[String]) -> Result<Self> {
        let settings = Self::read(&text_of(path, "config")?, &path.display().to_string(), overrides)?;
        validate::mistakes_of_data(&settings).refuse("the config cannot be used")?;
        Ok(settings)
    }

    /// As [`Settings::load`], from TOML text; `origin` names it in messages.
    pub fn from_toml(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let settings = Self::read(text, origin, overrides)?;
        validate::mistakes(&settings).refuse("the config cannot be used")?;
        Ok(settings)
    }

    /// Checks keys and types only.
    fn read(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let mut document = Document::<Self>::parse(text, origin)?;
        let mut mistakes = Mistakes::default();
        for text in overrides {
            match overrides::parse(document.schema(), text) {
                Ok((path, value)) => document.set(path, value, &format!("--set {text}")),
                Err(mistake) => mistakes.add(mistake),
            }
        }
        document.read("config", mistakes)
    }

    /// The value of every dotted key that is set.
    pub fn by_key(&self) -> Result<BTreeMap<String, Json>> {
        let Json::Object(sections) = serde_json::to_value(self)? else { anyhow::bail!("settings without sections") };
        let mut values = BTreeMap::new();
        for (section, keys) in sections {
            for (key, value) in keys.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
                values.insert(format!("{section}.{key}"), value.clone());
            }
        }
        Ok(values)
    }

    /// Checks that `key` is a valid key, such as `train.epochs`.
    pub fn check_key(key: &str) -> Result<()> {
        let schema = Schema::of::<Self>();
        if schema.keys().iter().any(|known| known == key) {
            return Ok(());
        }
        Err(invalid!("unknown key `{key}`{}", schema.hint(schema.root(), key)))
    }

    /// Every setting as TOML; reading it back gives equal settings. Optional keys that are not set are left out.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::names::Targets;

    const MINIMAL: &str = r#"
[model]
aligned = "chat"
unaligned = "base"

[data]
train = "train.jsonl"
"#;

    fn with(overrides: &[&str]) -> Result<Settings> {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        Settings::from_toml(MINIMAL, "run.toml", &overrides)
    }

    fn refusal(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let error = Settings::from_toml(text, "run.toml", &overrides).expect_err("must be refused");
        assert_eq!(exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let settings = with(&[]).unwrap();
        let mut expected = Settings::default();
        expected.model.aligned = "chat".to_string();
        expected.model.unaligned = Some("base".to_string());
        expected.data.train = "train.jsonl".into();
        assert_eq!(settings, expected);
    }

    #[test]
    fn every_setting_survives_a_round_trip() {
        let everything = [
            "model.tokenizer=chat",
            "model.device=cpu",
            "model.quantize=nf4",
            "lora.target_modules=all-linear",
            "lora.init_adapter=old",
            "lora.loraplus_lr_ratio=16",
            "asft.lambda=auto",
            "asft.max_orthogonal=0.01",
            "asft.projector=subspace",
            "asft.subspace_energy=0.3333333333333333",
            "asft.direction=d.safetensors",
            "defence.kind=lisa",
            "defence.alignment_data=safe.jsonl",
            "data.validation=0.05",
            "data.format=chat",
            "data.columns.messages=turns",
            "data.template_variables.enable_thinking=false",
            "data.train_on=last_response",
            "train.max_steps=7",
            "train.warmup_ratio=0.1",
            "train.adam_betas=[0.9, 0.95]",
            "train.schedule=step",
            "eval.suite=suite.toml",
            "eval.every=6",
            "output.eval_every_steps=3",
            "output.save_every_steps=5",
            "output.log_modules_every=10",
            "data.max_samples=7",
            "data.cache=cache",
            "export.fold_scale=true",
            "export.layout=wrapper",
            "data.mix=[{file=\"a.jsonl\", share=0.1}, {file=\"b.jsonl\", count=3, prefix=\"x \"}]",
            "data.train=[\"t.jsonl\", {path=\"u.jsonl\", format=\"sharegpt\", columns={conversations=\"c\"}, count=2}]",
            "train.patience=4",
        ];
        let settings = with(&everything).unwrap();
        let text = settings.to_toml().unwrap();
        assert_eq!(Settings::from_toml(&text, "config.toml", &[]).unwrap(), settings, "{text}");
        // Every key that has a value is written, defaults included.
        for key in Schema::of::<Settings>().keys() {
            let (section, name) = key.split_once('.').unwrap();
            let table: toml::Table = text.parse().unwrap();
            let unset = [
                "train.warmup_steps",
                "asft.subspace_rank",
                "defence.prompts",
                "lora.layers_to_transform",
                "lora.rank_pattern",
                "lora.alpha_pattern",
            ];
            let unset = unset.contains(&key.as_str());
            assert_eq!(table[section].get(name).is_some(), !unset, "{key} in\n{text}");
        }
    }

    #[test]
    fn overrides_are_toml_values_or_bare_words() {
        let settings = with(&[
            "asft.lambda=1",
            "data.train=a.jsonl",
            "output.dir=2026",
            "lora.target_modules=[\"q_proj\", \"o_proj\"]",
            "train.seed = 7",
            "train={batch_size = 2, epochs = 3}",
            "train.batch_size=4",
        ])
        .unwrap();
        assert_eq!(settings.asft.lambda, 1.0.into());
        assert_eq!(settings.data.train, "a.jsonl".into());
        assert_eq!(settings.output.dir, "2026");
        assert_eq!(settings.lora.target_modules, Targets::List(vec!["q_proj".into(), "o_proj".into()]));
        assert_eq!((settings.train.seed, settings.train.batch_size, settings.train.epochs), (7, 4, 3.0));
    }

    #[test]
    fn columns_are_set_one_by_one_or_together() {
        let text = format!("{MINIMAL}columns = {{ instruction = \"question\", output = \"answer\" }}\n");
        let sets = ["data.columns.input=context", "data.columns={output = \"reply\"}"].map(String::from);
        let settings = Settings::from_toml(&text, "run.toml", &sets).unwrap();
        let expected = ["instruction=question", "input=context", "output=reply"].map(String::from);
        let known = settings.data.format.fields();
        assert_eq!(settings.data.columns, crate::data::Columns::parse(&expected, known).unwrap());
        let section = format!("{MINIMAL}[data.columns]\nimput = \"context\"\n");
        let message = refusal(&section, &[]);
        assert!(message.contains("`data.columns`: there is no field `imput`"), "{message}");
        assert!(message.contains("did you mean `input`?"), "{message}");
        let message = refusal(MINIMAL, &["data.columns=3", "data.columns.a.b=c"]);
        for part in [
            "`data.columns` in --set data.columns=3: expected a table, found integer 3",
            "unknown key `data.columns.a.b`",
        ] {
            assert!(message.contains(part), "{part}\nis not in\n{message}");
        }
    }

    #[test]
    fn lists_and_patterns_are_typed() {
        let text = format!("{MINIMAL}[lora]\nrank_pattern = {{ q_proj = 4, \"layers.0.self_attn.v_proj\" = 2 }}\n");
        let sets = [
            "lora.layers_to_transform=[0, 2]",
            "lora.rank_pattern.\"layers.1.self_attn.v_proj\"=3",
            "lora.alpha_pattern={q_proj = 8}",
            "lora.loraplus_lr_ratio=16",
        ];
        let lora = Settings::from_toml(&text, "run.toml", &sets.map(String::from)).unwrap().lora;
        let ranks: Vec<(&str, usize)> = lora.rank_pattern.iter().map(|(key, rank)| (key.as_str(), *rank)).collect();
        assert_eq!(ranks, [("layers.0.self_attn.v_proj", 2), ("layers.1.self_attn.v_proj", 3), ("q_proj", 4)]);
        assert_eq!((lora.layers_to_transform, lora.loraplus_lr_ratio), (Some(vec![0, 2]), Some(16.0)));
        assert_eq!(lora.alpha_pattern["q_proj"], 8);
        let wrong = [
            "lora.layers_to_transform=[0, \"1\"]",
            "lora.layers_to_transform=3",
            "lora.rank_pattern.q_proj=high",
            "lora.rank_patern.q_proj=4",
            "lora.layers_to_transfrom=[1]",
            "lora.rank_pattern.\"q=3",
            "train.adam_betas=[0.9, 0.95, 0.99]",
        ];
        let message = refusal(&text, &wrong);
        for part in [
            "`lora.layers_to_transform` in --set lora.layers_to_transform=[0, \"1\"]: expected a list of whole numbers \
             of 0 or more, found array [0, \"1\"]",
            "expected a list of whole numbers of 0 or more, found integer 3",
            "`lora.rank_pattern.q_proj` in --set lora.rank_pattern.q_proj=high: expected a whole number of 0 or more",
            "unknown key `lora.rank_patern.q_proj`",
            "did you mean `lora.rank_pattern`?",
            "did you mean `lora.layers_to_transform`?",
            "`lora.rank_pattern.\"q` is not a key",
            "expected a list of 2 numbers, found array",
            "7 problems",
        ] {
            assert!(message.contains(part), "{part}\nis not in\n{message}");
        }
    }

    #[test]
    fn a_malformed_override_says_what_is_wanted() {
        assert!(refusal(MINIMAL, &["asft.lambda"]).contains("expected key=value"));
        // `--set lora.target_modules=["q_proj"]` after the shell has removed the quotes.
        assert!(refusal(MINIMAL, &["lora.target_modules=[q_proj]"]).contains("quote it for the shell"));
    }

    #[test]
    fn every_unknown_key_is_listed_with_line_and_suggestion() {
        let text = "[model]\naligned = \"a\"\n\n[train]\nlearnig_rate = 1e-4\nlambda = 2.0\n[lorra]\nrank = 4\n";
        let message = refusal(text, &["asft.lamda=3", "rank=4", "zzz.qqq=1", "data.mix=[{file=\"a\", shar=1}]"]);
        for part in [
            "unknown key `train.learnig_rate` in run.toml:5; did you mean `train.learning_rate`?",
            "unknown key `train.lambda` in run.toml:6; did you mean `asft.lambda`?",
            "unknown key `lorra` in run.toml:7; did you mean `lora`?",
            "unknown key `asft.lamda` in --set asft.lamda=3; did you mean `asft.lambda`?",
            "unknown key `rank` in --set rank=4; did you mean `lora.rank`?",
            "unknown key `zzz.qqq` in --set zzz.qqq=1",
            "unknown key `shar` in an item of `data.mix` in --set data.mix=[{file=\"a\", shar=1}]; did you mean `share`?",
        ] {
            assert!(message.contains(part), "{part}\nis not in\n{message}");
        }
        assert!(message.contains("7 problems"), "{message}");
    }

    #[test]
    fn a_wrong_type_names_key_line_expected_and_found() {
        let text = "[train]\nbatch_size = \"8\"\nadam_betas = [0.9]\nseed = -1\nepochs = true\nschedule = \"cosin\"\n";
        let message = refusal(text, &["model.dtype=int8", "lora=3", "asft.lambda=automatic"]);
        for part in [
            "wrong type for `train.batch_size` in run.toml:2: expected a whole number of 0 or more, found string \"8\"",
            "`train.adam_betas` in run.toml:3: expected a list of 2 numbers, found array [0.9]",
            "`train.seed` in run.toml:4: expected a whole number of 0 or more, found integer -1",
            "`train.epochs` in run.toml:5: expected a number, found boolean true",
            "expected \"cosine\", \"linear\", \"constant\" or \"step\", found \"cosin\"; did you mean \"cosine\"?",
            "`model.dtype` in --set model.dtype=int8: expected \"f32\", \"bf16\" or \"f16\", found",
            "wrong value for `asft.lambda` in --set asft.lambda=automatic: expected a number or \"auto\", found \"automatic\"",
            "`lora` in --set lora=3: expected a table, found integer 3",
        ] {
            assert!(message.contains(part), "{part}\nis not in\n{message}");
        }
    }

    #[test]
    fn what_is_not_toml_is_reported_at_its_line() {
        let message = refusal("[train]\nseed = 1\nseed = \n", &[]);
        assert!(message.starts_with("run.toml:3 is not valid TOML"), "{message}");
        let message = refusal("[train]\nseed = 1\nseed = 2\n", &[]);
        assert!(message.starts_with("run.toml:3 is not valid TOML"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Settings::load(Path::new("no/such.toml"), &[]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("no/such.toml"), "{error}");
    }
}
