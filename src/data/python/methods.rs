//! Python's methods of strings, dicts and lists: minijinja's own set, and here those it lacks or does differently.

use super::strings::string_method;
use super::value::charge;
use minijinja::value::{Value as Jinja, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// `value.method(*args)`
pub fn methods(state: &mut State, value: &Jinja, method: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    let texts = std::iter::once(value).chain(args).filter_map(Jinja::as_str);
    charge(state, texts.map(str::len).sum())?;
    if let Some(text) = value.as_str() {
        if let Some(found) = string_method(state, text, method, args)? {
            return Ok(found);
        }
    } else {
        // Each of these methods visits the items once.
        state.consume_fuel(value.len().unwrap_or(0) as u64)?;
    }
    match (value.kind(), method) {
        (ValueKind::Map | ValueKind::Seq, "copy") => {
            let () = from_args(args)?;
            // Values cannot be changed, so one is as good as its copy.
            Ok(value.clone())
        }
        (ValueKind::Seq, "index") => {
            let (item,): (&Jinja,) = from_args(args)?;
            let found = value.try_iter()?.position(|other| other == *item);
            found
                .map(Jinja::from)
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the value is not in the list"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}
