//! OTLP attributes as maps that can be compared with plain values.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

pub type Attributes = BTreeMap<String, Value>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
    Double(f64),
    Bool(bool),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    Map(Attributes),
    Empty,
}

impl Value {
    #[must_use]
    pub fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("{self:?} is no text") };
        text
    }

    #[must_use]
    pub fn int(&self) -> i64 {
        let Self::Int(number) = self else { panic!("{self:?} is no integer") };
        *number
    }

    #[must_use]
    pub fn list(&self) -> &[Self] {
        let Self::List(list) = self else { panic!("{self:?} is no list") };
        list
    }

    /// Of text and of bytes.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        if let Self::Bytes(bytes) = self { bytes } else { self.text().as_bytes() }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<const N: usize> From<[&str; N]> for Value {
    fn from(texts: [&str; N]) -> Self {
        Self::List(texts.map(Self::from).into())
    }
}

impl From<AnyValue> for Value {
    fn from(value: AnyValue) -> Self {
        match value.value {
            None => Self::Empty,
            Some(any_value::Value::StringValue(text)) => Self::Text(text),
            Some(any_value::Value::BoolValue(value)) => Self::Bool(value),
            Some(any_value::Value::IntValue(number)) => Self::Int(number),
            Some(any_value::Value::DoubleValue(number)) => Self::Double(number),
            Some(any_value::Value::BytesValue(bytes)) => Self::Bytes(bytes),
            Some(any_value::Value::ArrayValue(array)) => Self::List(array.values.into_iter().map(Self::from).collect()),
            Some(any_value::Value::KvlistValue(list)) => Self::Map(attributes(list.values)),
            Some(any_value::Value::StringValueStrindex(_)) => panic!("an index into a table is no log's"),
        }
    }
}

/// Panics where a key stands twice: OTLP forbids it.
#[must_use]
pub fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let count = pairs.len();
    let map: Attributes =
        pairs.into_iter().map(|pair| (pair.key, pair.value.map_or(Value::Empty, Value::from))).collect();
    assert_eq!(map.len(), count, "keys are unique: {map:?}");
    map
}

/// All of these, each with this value.
pub fn has(attributes: &Attributes, what: &str, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(attributes.get(*key), Some(value), "{key} of {what}: {attributes:#?}");
    }
}
