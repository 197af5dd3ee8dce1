//! Chat templates: Jinja as transformers renders it.
//!
//! `trim_blocks` and `lstrip_blocks` are on, loop controls and Python's string methods work, `tojson` writes what
//! Python's `json.dumps(ensure_ascii=False)` writes, `{% generation %}` tells what it renders. The template sees
//! `messages`, `add_generation_prompt`, the special tokens, `tools` and `documents` (none unless given).
//! Templates come with downloaded models, so they are not trusted: their size, steps and output are limited, and what
//! these limits do not catch is abandoned in time (untrusted.rs).

use super::options::TemplateVariables;
use super::turns::{self, REASONING};
use super::{namespace, python, statements};
use crate::tokenizer::Tokenizer;
use crate::untrusted;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use indicatif::DecimalBytes;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value as Jinja, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::{Map, Value};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes a template may have; the largest in use have 30 kB. The parser recurses as deep as an expression is long.
const SOURCE_LIMIT: usize = 128 << 10;
/// Steps a rendering may take; a step also pays for 64 bytes, so this limits memory to 128 MiB. An ordinary turn takes
/// a few dozen. Fuzzing uses less: loops that use it all up would take most of the time.
const FUEL: u64 = if cfg!(fuzzing) { 20_000 } else { 2_000_000 };
/// Bytes a rendering may produce.
const OUTPUT_LIMIT: usize = 64 << 20;
/// Bytes of text that a conversation may have, so that its rendering has fuel enough: more than any model's context.
const TEXT_LIMIT: usize = 16 << 20;
const NAME: &str = "chat template";
/// Around what a generation block renders: noncharacters, which no text has (Unicode 16, section 23.7).
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The AsFT paper's prompts, which `task` chooses from: `data.template = "asft-TASK"`.
const PAPER: &str = include_str!("templates/asft-llama2.jinja");
const PAPER_PREFIX: &str = "asft-";
const PAPER_TASKS: [&str; 4] = ["sst2", "agnews", "gsm8k", "alpaca"];

/// A compiled chat template with the special tokens it may use.
pub struct Template {
    environment: Arc<Environment<'static>>,
    source: String,
    special_tokens: Vec<(String, String)>,
    variables: TemplateVariables,
    /// Whether the template marks what the assistant says.
    has_generation: bool,
}

/// What a template refused with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Template {
    /// The template that `data.template` asks for: `tokenizer` for the tokenizer's own, the name of a built-in one
    /// (`asft-sst2`, `asft-agnews`, `asft-gsm8k`, `asft-alpaca`), else a Jinja file.
    ///
    /// `variables`: values for the template's own.
    ///
    /// # Errors
    /// The tokenizer has none; the file cannot be read; the template does not compile.
    pub fn load(choice: &str, variables: &TemplateVariables, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { variables: variables.clone(), ..Self::find(choice, tokenizer)? })
    }

    /// The Jinja file that `data.template` names, if it asks for one.
    pub fn file(choice: &str) -> Option<&str> {
        let built_in = choice.strip_prefix(PAPER_PREFIX).is_some_and(|task| PAPER_TASKS.contains(&task));
        (choice != "tokenizer" && !built_in).then_some(choice)
    }

    fn find(choice: &str, tokenizer: &Tokenizer) -> Result<Self> {
        if choice == "tokenizer" {
            let source = tokenizer.chat_template().ok_or_else(|| {
                invalid!(
                    "the tokenizer has no chat template (a base model's often has none); give one with `data.template \
                     = \"FILE.jinja\"`, or use `data.format = \"prompt_completion\"`, which needs none"
                )
            })?;
            return Self::new(source, tokenizer.special_tokens());
        }
        if let Some(task) = choice.strip_prefix(PAPER_PREFIX).filter(|task| PAPER_TASKS.contains(task)) {
            let source = format!("{{%- set task = '{task}' -%}}{PAPER}");
            return Self::new(&source, tokenizer.special_tokens());
        }
        let path = Path::new(choice);
        ensure_valid!(
            path.is_file(),
            "data.template: {choice} does not exist; expected \"tokenizer\", {} or the path of a Jinja file",
            PAPER_TASKS.map(|task| format!("\"{PAPER_PREFIX}{task}\"")).join(", ")
        );
        let source = std::fs::read_to_string(path).map_err(|e| invalid!("data.template: cannot read {choice}: {e}"))?;
        Self::new(&source, tokenizer.special_tokens()).map_err(|e| invalid!("{choice}: {e}"))
    }

    /// Compiles `source`. `special_tokens`: (name, token), e.g. `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// A syntax error, with its line; a template larger than any in use.
    pub fn new(source: &str, special_tokens: &[(String, String)]) -> Result<Self> {
        ensure_valid!(
            source.len() <= SOURCE_LIMIT,
            "the chat template has {} bytes, expected at most {SOURCE_LIMIT}",
            source.len()
        );
        if let Some(what) = statements::unsupported(source) {
            return Err(invalid!("the chat template {what}, which cannot be followed here; use another template"));
        }
        // As Jinja's lexer reads it.
        let rewritten = statements::rewritten(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let environment = untrusted::run(move || compile(rewritten)).map_err(given_up)??;
        let (environment, source) = (Arc::new(environment), source.to_string());
        let (special_tokens, variables) = (special_tokens.to_vec(), TemplateVariables::default());
        let has_generation = source.contains("endgeneration");
        Ok(Self { environment, source, special_tokens, variables, has_generation })
    }

    /// Makes `messages` what this template can read: content that is given as parts becomes one text.
    ///
    /// # Errors
    /// A role that neither this template nor any other reads; a part that is not text.
    pub fn prepare(&self, messages: &mut [Value]) -> Result<()> {
        turns::check_roles(messages, |role| self.names(role))?;
        turns::join_parts(messages, self.names("text") || self.source.contains(".text"))
    }

    /// Whether the template marks what the assistant says with `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// A hash of all that the rendering of a conversation depends on, the day included where the template asks for it.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.source.as_bytes());
        if self.source.contains("strftime_now") {
            hasher.update(python::today().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Whether the text of the template has `word` in quotes.
    fn names(&self, word: &str) -> bool {
        ['"', '\''].iter().any(|quote| self.source.contains(&format!("{quote}{word}{quote}")))
    }

    /// The text of a conversation. `variables` go to the template with the usual ones, and override them.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`), fails on it, or exceeds its limits.
    pub fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<String> {
        let mut text = self.run(messages, add_generation_prompt, variables)?;
        if self.has_generation {
            text.retain(|c| !MARKS.contains(&c));
        }
        Ok(text)
    }

    /// The text of a whole conversation and, if the template has generation blocks, the bytes that they rendered.
    ///
    /// # Errors
    /// As [`Template::render`]; text that cannot be told from the marks around such blocks.
    pub fn render_marked(
        &self,
        messages: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<(String, Option<Vec<Range<usize>>>)> {
        let marked = self.run(messages, false, variables)?;
        if !self.has_generation {
            return Ok((marked, None));
        }
        let (mut text, mut blocks, mut open) = (String::with_capacity(marked.len()), vec![], None);
        for c in marked.chars() {
            match (MARKS.iter().position(|mark| *mark == c), open) {
                (None, _) => text.push(c),
                (Some(0), None) => open = Some(text.len()),
                (Some(1), Some(start)) => {
                    blocks.push(start..text.len());
                    open = None;
                }
                _ => return Err(unmarkable()),
            }
        }
        ensure_valid!(open.is_none(), "{}", unmarkable());
        Ok((text, Some(blocks)))
    }

    /// The rendered text, with marks around generation blocks.
    fn run(&self, messages: &[Value], add_generation_prompt: bool, variables: &Map<String, Value>) -> Result<String> {
        let bytes: usize = messages.iter().map(text_bytes).sum();
        ensure_valid!(
            bytes <= TEXT_LIMIT,
            "the conversation has {} of text, more than the {} that a chat template is given; split the record",
            DecimalBytes(bytes as u64),
            DecimalBytes(TEXT_LIMIT as u64)
        );
        let mut context: Vec<(&str, Jinja)> =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), Jinja::from(token))).collect();
        context.push(("messages", Jinja::from_iter(messages.iter().map(message))));
        context.push(("add_generation_prompt", Jinja::from(add_generation_prompt)));
        context.push(("tools", Jinja::from(())));
        context.push(("documents", Jinja::from(())));
        let variables = self.variables.iter().chain(variables);
        context.extend(variables.map(|(name, value)| (name.as_str(), python::to_jinja(value))));
        let (environment, context) = (self.environment.clone(), Jinja::from_pairs(context));
        untrusted::run(move || {
            let template = environment.get_template(NAME).map_err(|e| explain(&e))?;
            let mut output = Limited(vec![]);
            template.render_captured_to(context, &mut output).map_err(|e| explain(&e))?;
            Ok(String::from_utf8(output.0)?)
        })
        .map_err(given_up)?
    }
}

fn compile(source: String) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::methods);
    environment.set_formatter(python::print);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("trim", python::trim);
    environment.add_filter("int", python::int);
    environment.add_filter("float", python::float);
    environment.add_filter("center", python::center);
    environment.add_filter("striptags", minijinja_contrib::filters::striptags);
    environment.add_filter("truncate", python::truncate);
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, move |state: &State, value: &Jinja| python::escape(state, value, name));
    }
    for name in ["default", "d"] {
        environment.add_filter(name, python::default);
    }
    environment.add_filter(statements::ITERATED, python::iterated);
    environment.add_test("callable", |value: &Jinja| value.kind() == ValueKind::Plain);
    environment.add_filter("wordcount", python::wordcount);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("dict", python::dict);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_filter("generation", |body: Jinja| format!("{}{body}{}", MARKS[0], MARKS[1]));
    environment.add_function("raise_exception", |state: &State, message: Jinja| -> Result<Jinja, Error> {
        let message = python::to_str(state, &message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_function("namespace", namespace::namespace);
    environment.add_template_owned(NAME, source).map_err(|e| explain(&e))?;
    Ok(environment)
}

/// Bytes of the texts in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// A message as transformers passes it: null fields dropped, reasoning under each of its names.
fn message(message: &Value) -> Jinja {
    let Value::Object(fields) = message else { return python::to_jinja(message) };
    let mut fields: Map<String, Value> =
        fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
        // In the order in which transformers puts them.
        let mut named = Map::from_iter([("thinking".to_string(), reasoning.clone())]);
        named.extend(std::mem::take(&mut fields));
        named.insert(REASONING[0].to_string(), reasoning);
        fields = named;
    }
    python::to_jinja(&Value::Object(fields))
}

fn unmarkable() -> anyhow::Error {
    invalid!(
        "a generation block of the chat template is cut or holds another, or the text has one of the noncharacters U+FDD0 \
         and U+FDD1, which mark such blocks here"
    )
}

/// A template's failure as a user error: its own message if it raised one.
fn explain(error: &Error) -> anyhow::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return invalid!("the chat template refuses the conversation: {message:.1000}");
        }
        cause = current.source();
    }
    let line = error.line().map(|line| format!(" at its line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail:.1000}")).unwrap_or_default();
    let hint = if error.kind() == ErrorKind::OutOfFuel { " (it does not seem to end)" } else { "" };
    invalid!("the chat template fails{line}: {}{detail}{hint}", error.kind())
}

fn given_up(why: untrusted::GivenUp) -> anyhow::Error {
    why.error("the chat template")
}

/// Collects at most OUTPUT_LIMIT bytes.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(std::io::Error::other("the output is larger than 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod jinja;

#[cfg(test)]
mod tests;
