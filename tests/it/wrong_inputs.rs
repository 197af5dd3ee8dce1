//! A hundred mistakes that users make, and what each is told.

use crate::support::command::{ASFT, stderr};
use crate::support::files::root;
use asft::checkpoint::save_tensors;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A command line, the exit code, and what standard error must hold.
type Row = (&'static str, i32, &'static [&'static str]);

/// What stands for what in a row; `{DIR}` is a scratch folder.
const SHORT: [(&str, &str); 5] = [
    ("{PAIR}", "--aligned tests/tiny/aligned --unaligned tests/tiny/unaligned"),
    ("{EVAL}", "--model tests/tiny/aligned --data tests/tiny/train.jsonl"),
    ("{ASK}", "--model tests/tiny/aligned --prompt hi"),
    ("{SET}", "--config configs/tiny.toml --set"),
    ("{RUN}", "--config configs/tiny.toml --set output.dir={DIR}/run --set"),
];

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Commands and flags.
    ("finetune --config configs/tiny.toml", 2, &["unrecognized subcommand 'finetune'", "'train'"]),
    ("evaluate --model m", 2, &["'eval'"]),
    ("trian --config configs/tiny.toml", 2, &["unrecognized subcommand 'trian'", "'train'"]),
    ("train", 2, &["--config <FILE>"]),
    ("train --confg configs/tiny.toml", 2, &["unexpected argument '--confg'", "'--config'"]),
    ("train --config configs/tiny.toml --resume --overwrite", 2, &["'--resume' cannot be used with '--overwrite'"]),
    ("train --config configs/tiny.toml --json", 2, &["--dry-run"]),
    ("train --config configs/tiny.toml --gpu h100", 2, &["--dry-run"]),
    ("train --config configs/tiny.toml --device cuda", 2, &["--dry-run"]),
    ("train --config configs/tiny.toml --dry-run --gpu h101", 2, &["invalid value 'h101' for '--gpu <CARD>'", "h100, h100-nvl"]),
    ("data --config configs/tiny.toml --show many", 2, &["invalid value 'many' for '--show <N>'"]),
    ("eval --model tests/tiny/aligned", 2, &["--suite", "--data"]),
    ("eval --model tests/tiny/aligned --data d.jsonl --suite s.toml", 2, &["cannot be used with"]),
    ("generate --model tests/tiny/aligned", 2, &["--prompt", "--data"]),
    ("generate --model tests/tiny/aligned --prompt hi --quiet --verbose", 2, &["'--quiet' cannot be used with '--verbose'"]),
    ("inspect --direction d.safetensors", 2, &["--adapter <DIR>", "--model"]),
    ("inspect --model tests/tiny/aligned --direction d.safetensors", 2, &["--base <ID|DIR>"]),
    ("init", 2, &["<MODEL>"]),
    ("init m --unaligned a --direction b", 2, &["cannot be used with"]),
    ("man", 2, &["<DIR>"]),
    ("schema suit", 2, &["invalid value 'suit'", "'suite'"]),
    ("completions csh", 2, &["invalid value 'csh'", "bash"]),
    // Values of flags.
    ("direction {PAIR} --out {DIR}/d.st --rank 0", 2, &["--rank must be at least 1"]),
    ("direction {PAIR} --out {DIR}/d.st --tolerance -1", 2, &["--tolerance must be at least 0 and below 1, got -1"]),
    ("direction {PAIR} --out {DIR}/d.st --tolerance 0.1 --rank 3", 2, &["cannot be used with"]),
    ("eval {EVAL} --metric los", 2, &["invalid value 'los'", "'loss'"]),
    ("eval {EVAL} --batch-size 0", 2, &["--batch-size should be at least 1"]),
    ("eval {EVAL} --limit 0", 2, &["limit should be at least 1"]),
    ("eval {EVAL} --baseline", 2, &["--adapter <DIR>"]),
    ("eval {EVAL} --metric refusal --match exact", 2, &["`match` has no effect on the metric refusal"]),
    ("eval {EVAL} --metric judge", 2, &["needs `judge`"]),
    ("eval {EVAL} --column instruction", 2, &["expected FIELD=COLUMN"]),
    ("eval {EVAL} --samples {DIR}/samples.jsonl", 2, &["--samples has nothing to write", "--metric"]),
    ("generate {ASK} --temperature -1", 2, &["--temperature should be 0", "got -1"]),
    ("generate {ASK} --top-p 0", 2, &["--top-p should be above 0 and at most 1"]),
    ("generate {ASK} --max-new-tokens 0", 2, &["--max-new-tokens should be at least 1"]),
    ("generate {ASK} --device tpu", 2, &["invalid value 'tpu'", "cpu"]),
    ("generate {ASK} --dtype int8", 2, &["invalid value 'int8'", "f32, bf16, f16"]),
    ("project --adapter {DIR}/good --direction {DIR}/d.st --out {DIR}/p --threshold -2", 2, &["--threshold should be a cosine, -1 to 1, got -2"]),
    ("project --adapter {DIR}/good --direction {DIR}/d.st --out {DIR}/p --threshold 0.1 --layers 2", 2, &["cannot be used with"]),
    // Keys of a config.
    ("train --check --config {DIR}/unknown.toml", 2, &["2 problems", "`modle` in {DIR}/unknown.toml:1; did you mean `model`?", "`train.batchsize` in {DIR}/unknown.toml:4; did you mean `train.batch_size`?"]),
    ("train --check --config {DIR}/broken.toml", 2, &["{DIR}/broken.toml:1 is not valid TOML"]),
    ("train --check {SET} asft.lamda=1", 2, &["unknown key `asft.lamda`", "did you mean `asft.lambda`?"]),
    ("train --check {SET} lambda=1", 2, &["unknown key `lambda`", "did you mean `asft.lambda`?"]),
    ("train --check {SET} asft.lambda", 2, &["expected key=value, for example --set asft.lambda=0.1"]),
    // Values of a config.
    ("train --check {SET} asft.lambda=-1", 2, &[r#"asft.lambda must be a number >= 0 or "auto", got -1"#]),
    ("train --check {SET} asft.lambda=atuo", 2, &["wrong value for `asft.lambda`", r#"did you mean "auto"?"#]),
    ("train --check {SET} asft.penalize=ortogonal", 2, &["wrong value for `asft.penalize`", r#"did you mean "orthogonal"?"#]),
    ("train --check {SET} asft.projector=relaesed", 2, &["wrong value for `asft.projector`", r#"did you mean "released"?"#]),
    ("train --check {SET} asft.tolerance=2", 2, &["asft.tolerance must be at least 0 and below 1, got 2"]),
    ("train --check {SET} train.schedule=cosin", 2, &["wrong value for `train.schedule`", r#""cosine", "linear", "constant" or "step""#, r#"did you mean "cosine"?"#]),
    ("train --check {SET} train.method=lorra", 2, &["wrong value for `train.method`", r#"did you mean "lora"?"#]),
    ("train --check {SET} data.format=alpacca", 2, &["wrong value for `data.format`", r#"did you mean "alpaca"?"#]),
    ("train --check {SET} train.schedule=3", 2, &["wrong type for `train.schedule`", "found integer 3"]),
    ("train --check {SET} train.batch_size=2.5", 2, &["wrong type for `train.batch_size`", "a whole number of 0 or more, found float 2.5"]),
    ("train --check {SET} train.gradient_checkpointing=maybe", 2, &[r#"expected true or false, found string "maybe""#]),
    ("train --check {SET} train.adam_betas=[0.9]", 2, &["a list of 2 numbers"]),
    ("train --check {SET} train.epochs=0", 2, &["`train.epochs` must be above 0"]),
    ("train --check {SET} train.batch_size=0", 2, &["`train.batch_size` must be at least 1"]),
    ("train --check {SET} train.learning_rate=-1", 2, &["`train.learning_rate` must be above 0"]),
    ("train --check {SET} train.learning_rate=nan", 2, &["`train.learning_rate` must be above 0 and finite"]),
    ("train --check {SET} train.warmup_ratio=1.5", 2, &["`train.warmup_ratio` must be between 0 and 1, found 1.5"]),
    ("train --check {SET} lora.rank=0", 2, &["`lora.rank` must be at least 1"]),
    ("train --check {SET} lora.dropout=1", 2, &["`lora.dropout` must be at least 0 and below 1"]),
    ("train --check {SET} lora.target_modules=[]", 2, &["`lora.target_modules` must name at least one layer"]),
    ("train --check {SET} data.max_length=1", 2, &["`data.max_length` must be at least 2"]),
    ("train --check {SET} data.validation=1.5", 2, &["`data.validation` must be above 0 and below 1, or a file"]),
    (r#"train --dry-run {SET} 'lora.target_modules=["q_porj"]'"#, 2, &["nothing matches `q_porj` (did you mean `q_proj`?)"]),
    ("train --dry-run {SET} lora.target_modules=(((", 2, &[r#"target_modules = "(((" is not a valid regular expression"#]),
    ("train --dry-run {SET} lora.target_modules=q_proj", 2, &["matches no module", "names go in a list"]),
    ("data {SET} data.columns.instuction=question", 2, &["there is no field `instuction`", "did you mean `instruction`?"]),
    // Paths.
    ("train --check --config configs/tiny.tml", 2, &["cannot read config configs/tiny.tml", "did you mean configs/tiny.toml?"]),
    ("train --check --config tests/tiny", 2, &["cannot read config tests/tiny"]),
    ("train {SET} output.dir=tests/tiny/train.jsonl", 2, &["output.dir", "is an input", "data.train"]),
    ("train {RUN} lora.init_adapter={DIR}/goood", 2, &["lora.init_adapter", "did you mean {DIR}/good?"]),
    ("train --dry-run {SET} data.train=tests/tiny/trian.jsonl", 2, &["data.train", "trian.jsonl does not exist", "did you mean tests/tiny/train.jsonl?"]),
    ("eval --model tests/tiny/aligned --suite {DIR}/sute.toml", 2, &["cannot read suite", "did you mean {DIR}/suite.toml?"]),
    ("eval {EVAL} --metric refusal --phrases {DIR}/none.txt", 2, &["cannot read phrases {DIR}/none.txt"]),
    ("report {DIR}/none", 2, &["{DIR}/none is not a run's folder"]),
    ("report tests/tiny", 2, &["tests/tiny is not a run's folder"]),
    ("compare --config {DIR}/comparee.toml", 2, &["cannot read comparison", "did you mean {DIR}/compare.toml?"]),
    // Data.
    ("train --dry-run {SET} data.train={DIR}/empty.jsonl", 2, &["empty.jsonl is empty"]),
    ("train --dry-run {SET} data.train={DIR}/broken.jsonl", 2, &["broken.jsonl:2: malformed JSON"]),
    ("train --dry-run {SET} data.train={DIR}/text.jsonl", 2, &["text.jsonl:1", "`instruction` is missing", "fields found: text"]),
    ("data {SET} data.format=chat", 2, &["train.jsonl:1", "`messages` is missing"]),
    ("eval {EVAL} --format chat", 2, &["train.jsonl:1", "`messages` is missing"]),
    ("generate --model tests/tiny/aligned --data {DIR}/empty.jsonl", 2, &["empty.jsonl is empty"]),
    // Models.
    ("train --dry-run {SET} model.aligned=tests/tiny/alined", 2, &["did you mean tests/tiny/aligned?"]),
    ("train --dry-run {SET} model.aligned=sandbox/alined", 2, &["model.aligned: sandbox/alined", "did you mean sandbox/aligned?", "sandbox/alined@main"]),
    ("train --dry-run {SET} model.aligned=sanbdox/aligned", 2, &["did you mean sandbox/aligned?"]),
    ("train --dry-run {SET} model.aligned=tests/tiny/train.jsonl", 2, &["is a file; expected a model folder, a GGUF file (.gguf) or a hub id"]),
    ("train --dry-run {SET} data.template_variables.messages=1", 2, &["`data.template_variables`: `messages` is set by asft itself"]),
    ("train --dry-run {SET} data.train_on=last", 2, &["wrong value for `data.train_on`", "\"last_response\""]),
    ("train --dry-run {SET} data.train=tests/tiny/*.csv", 2, &["data.train: tests/tiny/*.csv matches no file"]),
    ("train --dry-run {SET} data.train=configs", 2, &["data.train: the folder configs: it has no data file that can be read here"]),
    ("eval {EVAL} --template-variable x", 2, &["--template-variable x: expected NAME=VALUE"]),
    ("train --dry-run {SET} output.dir=tests/tiny/aligned", 2, &["output.dir tests/tiny/aligned is not empty, and not an earlier run"]),
    ("train --dry-run {SET} output.dir=tests/tiny/aligned/run", 2, &["lies in an input folder"]),
    ("train --dry-run {SET} model.unaligned=sandbox/unaligned", 2, &["model.unaligned: ", "in the aligned model", "in sandbox/unaligned"]),
    ("train --dry-run {SET} model.aligned=tests/tiny", 2, &["cannot read tests/tiny/config.json"]),
    ("init sandbox/alined --out {DIR}/init.toml", 2, &["did you mean sandbox/aligned?"]),
    ("init tests/tiny --out {DIR}/init.toml", 2, &["tests/tiny/config.json"]),
    ("generate --model org/model@ --prompt hi", 2, &["cannot be a revision"]),
    ("generate --model nowhere/model --prompt hi", 2, &["there is no such folder", "HF_HUB_OFFLINE"]),
    ("direction --aligned tests/tiny/aligned --unaligned tests/fixtures/qwen3/model --out {DIR}/d.st", 2, &["no targeted matrix in common", "[48, 48], unaligned [80, 48]"]),
    ("direction --aligned tests/tiny/aligned --unaligned sandbox/unalined --out {DIR}/d.st", 2, &["--unaligned", "did you mean sandbox/unaligned?"]),
    ("direction {PAIR} --out {DIR}/d.st --target-modules q_porj", 2, &["nothing matches `q_porj` (did you mean `q_proj`?)"]),
    // Adapters and directions.
    ("eval {EVAL} --adapter {DIR}/goood", 2, &["adapter folder {DIR}/goood does not exist (did you mean {DIR}/good?)"]),
    ("eval {EVAL} --adapter tests/tiny", 2, &["tests/tiny is no PEFT adapter folder"]),
    ("eval {EVAL} --adapter tests/fixtures/llama_gqa/adapter", 2, &["was made for fixtures/llama_gqa, not for this model", "its model.layers.0.mlp.down_proj is [48, 56], this model's [48, 112]", "3 of its"]),
    ("eval {EVAL} --adapter {DIR}/zzz", 2, &["`target_modules` in adapter_config.json says", "q_proj is not named there"]),
    ("generate {ASK} --adapter {DIR}/invalid", 2, &[r#"`target_modules` = "(((" is not a valid regular expression"#]),
    ("eval {EVAL} --adapter {DIR}/excluded", 2, &["q_proj is named in `exclude_modules`"]),
    ("eval {EVAL} --adapter {DIR}/dora", 2, &["`use_dora` = true is not supported"]),
    ("eval {EVAL} --adapter {DIR}/zero", 2, &["`r` should be a positive number, got 0"]),
    ("eval {EVAL} --adapter {DIR}/rankless", 2, &["`r` should be a positive number, found none"]),
    ("merge --model tests/tiny/aligned --adapter {DIR}/zzz --out {DIR}/merged", 2, &["q_proj is not named there"]),
    ("merge --model tests/fixtures/qwen3/model --adapter tests/fixtures/llama_gqa/adapter --out {DIR}/merged", 2, &["was made for fixtures/llama_gqa, not for this model"]),
    ("project --adapter {DIR}/good --direction {DIR}/none.st --out {DIR}/p", 2, &["direction file {DIR}/none.st does not exist"]),
    ("inspect --adapter {DIR}/good --direction tests/tiny/aligned/model.safetensors", 2, &["is not a direction file", r#"`format` = "pt""#]),
    ("landscape --model tests/tiny/aligned --direction {DIR}/none.st --data tests/tiny/train.jsonl --out {DIR}/l", 2, &["{DIR}/none.st does not exist"]),
    // Suites and comparisons.
    ("eval --model tests/tiny/aligned --suite {DIR}/suite.toml", 2, &["2 problems", "wrong value for `metric`", r#"did you mean "refusal"?"#, "unknown key `nmae`", "did you mean `name`?"]),
    ("eval --model tests/tiny/aligned --suite {DIR}/empty.toml", 2, &["missing key `eval`"]),
    ("compare --config {DIR}/compare.toml", 2, &["4 problems", "missing key `suite`", "did you mean `config`?"]),
    ("compare --config configs/tiny.toml", 2, &["missing key `method`", "unknown key `model` in configs/tiny.toml"]),
];

#[test]
fn every_mistake_is_named_on_one_error_line() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    prepare(scratch.path());
    let filled = |text: &str| {
        let long = SHORT.iter().fold(text.to_string(), |text, (short, long)| text.replace(short, long));
        long.replace("{DIR}", dir)
    };
    let before = listing(scratch.path());
    let wrong: Vec<String> = ROWS
        .par_iter()
        .filter_map(|(line, code, needles)| {
            let arguments = shlex::split(&filled(line)).unwrap();
            let mut command = Command::new(ASFT);
            let output = command.current_dir(root()).env("HF_HUB_OFFLINE", "1").args(arguments).output().unwrap();
            let told = stderr(&output);
            let mut problems: Vec<String> =
                needles.iter().map(|needle| filled(needle)).filter(|needle| !told.contains(needle)).collect();
            if output.status.code() != Some(*code) {
                problems.push(format!("exit code {:?}", output.status.code()));
            }
            if told.lines().filter(|line| line.starts_with("error")).count() != 1 {
                problems.push("one error line".to_string());
            }
            // Debug prints and panics are for programmers.
            problems.extend(
                ["Some(", "None", "panicked", "Number("]
                    .into_iter()
                    .filter(|word| told.contains(word))
                    .map(String::from),
            );
            (!problems.is_empty()).then(|| format!("asft {line}\n  {}\n  {told}", problems.join("; ")))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
    assert_eq!(listing(scratch.path()), before, "a refused command wrote something");
    assert!(ROWS.len() >= 100, "{}", ROWS.len());
}

/// The files that the rows name.
fn prepare(dir: &Path) {
    for (name, text) in [
        ("unknown.toml", "[modle]\naligned = 'x'\n[train]\nbatchsize = 3\n"),
        ("broken.toml", "this is = not [toml\n"),
        ("empty.toml", ""),
        ("empty.jsonl", ""),
        ("broken.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \n"),
        ("text.jsonl", "{\"text\": \"a\"}\n"),
        (
            "suite.toml",
            "[[eval]]\nname = 'a'\ndata = 'tests/tiny/train.jsonl'\nmetric = 'refusl'\n[[eval]]\nnmae = 'b'\n",
        ),
        ("compare.toml", "confg = 'configs/tiny.toml'\n[[method]]\nname = 'a'\n"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    for (name, changes) in [
        ("good", json!({})),
        ("zzz", json!({"target_modules": "zzz"})),
        ("invalid", json!({"target_modules": "((("})),
        ("excluded", json!({"exclude_modules": ".*q_proj"})),
        ("dora", json!({"use_dora": true})),
        ("zero", json!({"r": 0})),
        ("rankless", json!({"r": null})),
    ] {
        adapter(&dir.join(name), &changes);
    }
}

/// An adapter of the tiny model's first q_proj, its config changed.
fn adapter(dir: &Path, changes: &Value) {
    fs::create_dir(dir).unwrap();
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let matrix = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight");
    let tensors = BTreeMap::from([(name("A"), matrix((2, 48))), (name("B"), matrix((48, 2)))]);
    save_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
}

/// What is in a folder, by name.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
