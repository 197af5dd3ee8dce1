//! `--set key=value` on top of a config file.

use crate::toml_reader::Schema;
use toml::{Table, Value};

/// The key and the value of one `key=value`. The value is TOML; a bare word that is not TOML is taken as a string.
pub fn parse(schema: &Schema, text: &str) -> Result<(Vec<String>, Value), String> {
    let Some((key, given)) = text.split_once('=') else {
        return Err(format!("--set {text}: expected key=value, for example --set asft.lambda=0.1"));
    };
    let (key, given) = (key.trim(), given.trim());
    let Some(path) = key_path(key) else {
        return Err(format!("--set {text}: `{key}` is not a key, for example asft.lambda"));
    };
    let word = Value::String(given.to_string());
    let value = match given.parse::<Value>() {
        // `--set output.dir=2026`: where only a string will do, a number is a word that looks like one.
        Ok(value) => match schema.get(&path) {
            Some(wanted) if is_word(&value) && !schema.accepts(wanted, &value) && schema.accepts(wanted, &word) => word,
            _ => value,
        },
        // A list whose quotes the shell has removed must not become a string.
        Err(_) if given.starts_with(['[', '{', '"', '\'']) => {
            return Err(format!(
                "--set {text}: the value is not valid TOML; quote it for the shell, as in \
                 --set 'lora.target_modules=[\"q_proj\"]'"
            ));
        }
        Err(_) => word,
    };
    Ok((path, value))
}

/// Whether what looks like a value may be meant as a word.
fn is_word(value: &Value) -> bool {
    !value.is_array() && !value.is_table()
}

/// The parts of a dotted key, which may be quoted as in TOML: `lora.rank_pattern."layers.0.self_attn.q_proj"`.
fn key_path(key: &str) -> Option<Vec<String>> {
    let mut path = vec![];
    let mut value = match format!("{key} = 0").parse::<Table>() {
        Ok(table) => Value::Table(table),
        // A key of bare words is taken as it is, to be compared with existing ones.
        Err(_) => return (!key.contains('"')).then(|| key.split('.').map(|part| part.trim().to_string()).collect()),
    };
    while let Value::Table(table) = value {
        let (name, inner) = table.into_iter().next()?;
        path.push(name);
        value = inner;
    }
    Some(path)
}
