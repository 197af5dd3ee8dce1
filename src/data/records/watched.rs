//! JSON values as serde_json reads them, and word of a key that occurs twice in an object, of which serde_json would
//! silently keep the last.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};
use std::fmt;

/// Reads one value. `twice` becomes the path of the first repeated key, such as `messages[1].content`.
pub struct Watched<'a> {
    pub twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Watched<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Watched<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::from(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = vec![];
        loop {
            let known = self.twice.is_some();
            let Some(value) = list.next_element_seed(Watched { twice: self.twice })? else { break };
            if let Some(path) = self.twice.as_mut().filter(|_| !known) {
                let dot = if path.starts_with('[') { "" } else { "." };
                path.insert_str(0, &format!("[{}]{dot}", values.len()));
            }
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let known = self.twice.is_some();
            let value = object.next_value_seed(Watched { twice: self.twice })?;
            if let Some(path) = self.twice.as_mut().filter(|_| !known) {
                let dot = if path.starts_with('[') { "" } else { "." };
                path.insert_str(0, &format!("{key}{dot}"));
            }
            match fields.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(value);
                }
                Entry::Occupied(mut earlier) => {
                    self.twice.get_or_insert_with(|| earlier.key().clone());
                    earlier.insert(value);
                }
            }
        }
        Ok(Value::Object(fields))
    }
}
