//! JSON without second meanings: a field that is there twice is an error, and so is one that nobody asked for.
//!
//! serde's derived types let some of that through: maps keep the last of two equal keys, and a list passes for a struct.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

pub(super) use crate::error::quoted;

/// Why a document is refused, in a line.
pub(super) type Result<T> = std::result::Result<T, String>;

/// A JSON value. Of numbers only whole ones matter.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool,
    Integer(i64),
    Fraction,
    Text(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

/// Reads one document. Its depth is bounded by `serde_json`, its length by whoever calls.
pub(super) fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool => "a boolean",
            Value::Integer(_) | Value::Fraction => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Object(_) => "an object",
        }
    }

    /// The text, or why there is none; `what` names the place.
    pub(super) fn text(self, what: &str) -> Result<String> {
        match self {
            Value::Text(text) => Ok(text),
            other => Err(format!("{what} is {}, not a string", other.kind())),
        }
    }

    /// The list, or why there is none.
    pub(super) fn list(self, what: &str) -> Result<Vec<Value>> {
        match self {
            Value::List(list) => Ok(list),
            other => Err(format!("{what} is {}, not a list", other.kind())),
        }
    }

    /// The object, or why there is none.
    pub(super) fn object(self, what: &str) -> Result<Fields> {
        match self {
            Value::Object(fields) => Ok(Fields { what: what.into(), fields }),
            other => Err(format!("{what} is {}, not an object", other.kind())),
        }
    }
}

/// The fields of an object that nobody took yet.
#[derive(Debug)]
pub(super) struct Fields {
    what: String,
    fields: BTreeMap<String, Value>,
}

impl Fields {
    /// Where the object stands, for messages.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name)
    }

    pub(super) fn need(&mut self, name: &str) -> Result<Value> {
        self.take(name).ok_or_else(|| format!("{} has no {name}", self.what))
    }

    /// The place of a field.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}.{name}", self.what)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String> {
        let place = self.place(name);
        self.need(name)?.text(&place)
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        let place = self.place(name);
        self.need(name)?.list(&place)
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Fields> {
        let place = self.place(name);
        self.need(name)?.object(&place)
    }

    /// Ends the object: what is left is not known.
    pub(super) fn done(self) -> Result<()> {
        match self.fields.into_keys().next() {
            Some(name) => Err(format!("{} has a field {} that is not known", self.what, quoted(&name))),
            None => Ok(()),
        }
    }
}

impl IntoIterator for Fields {
    type Item = (String, Value);
    type IntoIter = std::collections::btree_map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.fields.into_iter()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::Fraction, Value::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Value, E> {
        Ok(Value::Fraction)
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {} is there twice", quoted(&name))));
            }
            let value = access.next_value()?;
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}
