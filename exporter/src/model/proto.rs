//! Numbers and bytes in, protobuf appended to a `Vec<u8>`: just what OTLP logs and spans need, without a tree of structs between.
//!
//! The output is what prost would write for the same message: fields in the order of their numbers are the caller's duty,
//! defaults are left out by the caller where proto3 says so.
//!
//! A string of OTLP is UTF-8, what the kernel hands out is any bytes. A text that is not UTF-8 is sent as `bytesValue`:
//! the data survive, and no receiver refuses the batch.
#![expect(clippy::inline_always, reason = "some thirty a record: a key whose length is known is copied without a call")]

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LEN: u32 = 2;
const FIXED32: u32 = 5;

/// Fields of `AnyValue`.
mod any {
    pub const STRING: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const INT: u32 = 3;
    pub const DOUBLE: u32 = 4;
    pub const ARRAY: u32 = 5;
    pub const BYTES: u32 = 7;
}

/// Most bytes of tag and length in front of a nested message of up to 2 GiB, with a field number below 16.
pub const NESTED_OVERHEAD: usize = 6;

/// What an attribute holds. An array is given as its elements, already written by [`element`].
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Array(&'a [u8]),
}

#[inline]
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_bits(value) | 0x80);
        value >>= 7;
    }
    out.push(low_bits(value));
}

fn low_bits(value: u64) -> u8 {
    (value & 0x7f) as u8
}

/// A varint field; written even if 0.
pub fn varint_field(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

/// A fixed64 field; written even if 0.
pub fn fixed64_field(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A fixed32 field; written even if 0.
pub fn fixed32_field(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A string, bytes or already written message field; written even if empty.
#[inline]
pub fn len_field(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    len_prefix(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// What stands before a message of a known length that the caller writes next.
#[inline(always)]
pub fn len_prefix(out: &mut Vec<u8>, field: u32, len: usize) {
    // Nearly all there are take a byte each: one write for both.
    if let (Ok(tag @ ..0x80), Ok(len @ ..0x80)) = (u8::try_from(field << 3 | LEN), u8::try_from(len)) {
        out.extend_from_slice(&[tag, len]);
    } else {
        tag(out, field, LEN);
        varint(out, len as u64);
    }
}

/// A field of type `AnyValue`.
pub fn any_field(out: &mut Vec<u8>, field: u32, value: Value<'_>) {
    len_prefix(out, field, any_len(value));
    any_value(out, value);
}

/// A field of type `KeyValue`. Where the key is known, its length is too, and it is no call that copies it.
#[inline(always)]
pub fn key_value(out: &mut Vec<u8>, field: u32, key: &str, value: Value<'_>) {
    let any_len = any_len(value);
    let pair_len = len_field_len(key.len()) + len_field_len(any_len);
    // Once for all, so that nothing below grows it.
    out.reserve(NESTED_OVERHEAD + pair_len);
    len_prefix(out, field, pair_len);
    len_field(out, 1, key.as_bytes());
    len_prefix(out, 2, any_len);
    any_value(out, value);
}

/// One element of an array: appended to the others before the array is written as a [`Value::Array`].
pub fn element(elements: &mut Vec<u8>, value: Value<'_>) {
    any_field(elements, 1, value);
}

/// Fields of an `AnyValue`.
#[inline(always)]
fn any_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Text(text) => {
            let field = if std::str::from_utf8(text).is_ok() { any::STRING } else { any::BYTES };
            len_field(out, field, text);
        }
        Value::Bool(value) => varint_field(out, any::BOOL, u64::from(value)),
        Value::Int(value) => varint_field(out, any::INT, value.cast_unsigned()),
        Value::Double(value) => fixed64_field(out, any::DOUBLE, value.to_bits()),
        Value::Array(elements) => len_field(out, any::ARRAY, elements),
    }
}

#[inline]
fn any_len(value: Value<'_>) -> usize {
    match value {
        Value::Text(bytes) | Value::Array(bytes) => len_field_len(bytes.len()),
        Value::Bool(_) => 2,
        Value::Int(value) => 1 + varint_len(value.cast_unsigned()),
        Value::Double(_) => 9,
    }
}

/// Bytes of a length-delimited field with a number below 16.
#[must_use]
pub const fn len_field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Seven bits a byte.
const fn varint_len(value: u64) -> usize {
    ((64 - (value | 1).leading_zeros()) as usize).div_ceil(7)
}

/// Bytes of the first of some length-delimited fields that were written here; `None` at their end.
#[must_use]
pub fn first_field_len(fields: &[u8]) -> Option<usize> {
    let mut len = 0_usize;
    let prefix = fields.get(1..)?.iter().take(5).position(|byte| *byte & 0x80 == 0)? + 1;
    for byte in fields[1..=prefix].iter().rev() {
        len = len << 7 | usize::from(byte & 0x7f);
    }
    let whole = 1 + prefix + len;
    (whole <= fields.len()).then_some(whole)
}

#[inline]
fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn key_value_bytes(key: &str, value: Value<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        key_value(&mut out, 6, key, value);
        out
    }

    fn oracle(key: &str, value: any_value::Value) -> Vec<u8> {
        let pair = KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 };
        let mut out = vec![6 << 3 | 2];
        pair.encode_length_delimited(&mut out).unwrap();
        out
    }

    fn text_value(text: &[u8]) -> any_value::Value {
        std::str::from_utf8(text).map_or_else(
            |_| any_value::Value::BytesValue(text.to_vec()),
            |text| any_value::Value::StringValue(text.to_owned()),
        )
    }

    proptest! {
        #[test]
        fn every_value_is_written_as_prost_writes_it(
            key in "[a-z.]{1,200}",
            text in prop::collection::vec(any::<u8>(), 0..20_000),
            int: i64,
            double: f64,
            flag: bool,
            array in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..100),
        ) {
            prop_assert_eq!(key_value_bytes(&key, Value::Text(&text)), oracle(&key, text_value(&text)));
            prop_assert_eq!(key_value_bytes(&key, Value::Int(int)), oracle(&key, any_value::Value::IntValue(int)));
            prop_assert_eq!(key_value_bytes(&key, Value::Double(double)), oracle(&key, any_value::Value::DoubleValue(double)));
            prop_assert_eq!(key_value_bytes(&key, Value::Bool(flag)), oracle(&key, any_value::Value::BoolValue(flag)));
            let mut elements = Vec::new();
            for text in &array {
                element(&mut elements, Value::Text(text));
            }
            let values = array.iter().map(|text| AnyValue { value: Some(text_value(text)) }).collect();
            prop_assert_eq!(
                key_value_bytes(&key, Value::Array(&elements)),
                oracle(&key, any_value::Value::ArrayValue(ArrayValue { values }))
            );
        }
    }

    #[test]
    fn lengths_of_varints_are_exact_at_their_bounds() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }
}
