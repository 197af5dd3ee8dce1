//! Jinja's `namespace`, whose attributes a template may set, without values that take more than they seem to.
//!
//! minijinja's own may contain itself, or endlessly nested lists, one for each turn of a loop; comparing, printing or
//! dropping those overflows any stack. It cannot be replaced where `{% set ns.x = ... %}` is executed, so that
//! statement becomes a call of this one's method [`SET`] (statements.rs).

use minijinja::value::{Object, ObjectRepr, Value as Jinja, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Sets an attribute: its name, its value.
pub const SET: &str = "_set";
/// How deep a value may be nested, and how many values it may consist of, counting shared ones each time.
const DEPTH: usize = 64;
const VALUES: usize = 1 << 20;
/// Values visited per unit of fuel.
const VALUES_PER_FUEL: usize = 16;

#[derive(Debug, Default)]
struct Namespace(Mutex<BTreeMap<String, Jinja>>);

impl Namespace {
    fn set(&self, state: &State, name: &str, value: &Jinja) -> Result<Jinja, Error> {
        let mut left = VALUES;
        measure(value, 0, &mut left)?;
        state.consume_fuel(((VALUES - left) / VALUES_PER_FUEL) as u64)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), value.clone());
        Ok(Jinja::from(()))
    }
}

impl Object for Namespace {
    // A map would be compared and printed with all its contents, which may include itself.
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key.as_str()?).cloned()
    }

    fn call_method(self: &Arc<Self>, state: &mut State, method: &str, args: &[Jinja]) -> Result<Jinja, Error> {
        match (method, args, self.get_value(&Jinja::from(method))) {
            (SET, [name, value], _) => self.set(state, name.as_str().unwrap_or_default(), value),
            (_, _, Some(value)) => value.call(state, args),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<namespace>")
    }
}

/// Counts down `left` by the number of values that `value` consists of.
fn measure(value: &Jinja, depth: usize, left: &mut usize) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_string()));
    if depth > DEPTH {
        return refuse("the value set in a namespace is nested too deeply");
    }
    let Some(fewer) = left.checked_sub(1) else { return refuse("the value set in a namespace is too large") };
    *left = fewer;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                measure(&item, depth + 1, left)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                measure(&key, depth + 1, left)?;
                measure(&value.get_item(&key)?, depth + 1, left)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// `namespace(defaults={}, **values)`
pub fn namespace(state: &State, defaults: Option<ValueOrKwargs>) -> Result<Jinja, Error> {
    let namespace = Namespace::default();
    if let Some(defaults) = defaults.map(ValueOrKwargs::into_value) {
        for key in defaults.try_iter()? {
            namespace.set(state, key.as_str().unwrap_or_default(), &defaults.get_item(&key)?)?;
        }
    }
    Ok(Jinja::from_object(namespace))
}
