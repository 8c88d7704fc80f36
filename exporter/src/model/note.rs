//! What Namespan has to say of itself, as the bytes of one OTLP `LogRecord`.

use super::text::{decimal, iso_8601};
use super::uid::Uids;
use super::{proto, semconv};

pub const INFO: u8 = 9;
pub const WARN: u8 = 13;
pub const ERROR: u8 = 17;

/// What an attribute holds.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Left out if empty.
    Text(&'a str),
    /// Left out if empty.
    Texts(&'a [String]),
    Count(u64),
    /// Nanoseconds since the Unix epoch; sent as ISO 8601, as other times are.
    Time(u64),
}

/// Fields of `LogRecord`, in the order in which they are written.
mod field {
    pub const TIME: u32 = 1;
    pub const SEVERITY: u32 = 2;
    pub const BODY: u32 = 5;
    pub const ATTRIBUTES: u32 = 6;
    pub const OBSERVED_TIME: u32 = 11;
    pub const EVENT_NAME: u32 = 12;
}

/// Appends the fields of one `LogRecord`, without tag and length of the record itself. Its attributes make its body, and that
/// its uid.
pub fn encode(
    event: &str,
    severity: u8,
    unix_ns: u64,
    attributes: &[(&str, Value<'_>)],
    uids: Option<&Uids>,
    out: &mut Vec<u8>,
) {
    let told = || attributes.iter().filter(|(_, value)| !matches!(value, Value::Text("") | Value::Texts([])));
    let name = event.rsplit_once('.').map_or(event, |(_, name)| name);
    let mut body = name.as_bytes().to_vec();
    for (index, (_, value)) in told().enumerate() {
        body.extend_from_slice(if index == 0 { b": " } else { b", " });
        value.append(&mut body);
    }
    proto::fixed64_field(out, field::TIME, unix_ns);
    proto::varint_field(out, field::SEVERITY, u64::from(severity));
    proto::any_field(out, field::BODY, proto::Value::Text(&body));
    let mut text = Vec::new();
    for (key, value) in told() {
        let value = match value {
            Value::Count(count) => proto::Value::Int(i64::try_from(*count).unwrap_or(i64::MAX)),
            Value::Texts(texts) => {
                text.clear();
                for element in *texts {
                    proto::element(&mut text, proto::Value::Text(element.as_bytes()));
                }
                proto::Value::Array(&text)
            }
            Value::Text(_) | Value::Time(_) => {
                text.clear();
                value.append(&mut text);
                proto::Value::Text(&text)
            }
        };
        proto::key_value(out, field::ATTRIBUTES, key, value);
    }
    if let Some(uids) = uids {
        let uid = uids.of_note(event, unix_ns, &body);
        proto::key_value(out, field::ATTRIBUTES, semconv::LOG_RECORD_UID, proto::Value::Text(uid.as_bytes()));
    }
    proto::fixed64_field(out, field::OBSERVED_TIME, unix_ns);
    proto::len_field(out, field::EVENT_NAME, event.as_bytes());
}

impl Value<'_> {
    fn append(self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::Texts(texts) => out.extend_from_slice(texts.join("; ").as_bytes()),
            Self::Count(count) => decimal(out, count),
            Self::Time(unix_ns) => iso_8601(out, unix_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, any_value};
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_note_is_a_record_of_its_own_kind() {
        let mut bytes = Vec::new();
        let attributes = [
            ("a", Value::Text("docker")),
            ("b", Value::Text("")),
            ("c", Value::Count(35)),
            ("d", Value::Time(1_764_000_000_120_000_000)),
            ("e", Value::Texts(&["one".to_owned(), "two".to_owned()])),
            ("f", Value::Texts(&[])),
        ];
        let uids = Uids::of_boot([7; 16]);
        encode("namespan.attribution.degraded", WARN, 7, &attributes, Some(&uids), &mut bytes);
        let record = LogRecord::decode(&*bytes).unwrap();
        assert_eq!(record.encode_to_vec(), bytes);
        assert_eq!((record.event_name.as_str(), record.severity_number), ("namespan.attribution.degraded", 13));
        assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (7, 7));
        let values = record.attributes.iter().map(|pair| {
            let value = pair.value.as_ref().unwrap().value.clone().unwrap();
            (pair.key.as_str(), value)
        });
        let text = |text: &str| any_value::Value::StringValue(text.into());
        let time = "2025-11-24T16:00:00.120Z";
        let body = format!("degraded: docker, 35, {time}, one; two");
        let uid = uids.of_note("namespan.attribution.degraded", 7, body.as_bytes());
        let uid = str::from_utf8(uid.as_bytes()).unwrap();
        let list = ["one", "two"].map(|element| AnyValue { value: Some(text(element)) });
        let list = ArrayValue { values: list.to_vec() };
        let expected = [
            ("a", text("docker")),
            ("c", any_value::Value::IntValue(35)),
            ("d", text(time)),
            ("e", any_value::Value::ArrayValue(list)),
            ("log.record.uid", text(uid)),
        ];
        assert_eq!(values.collect::<Vec<_>>(), expected);
        assert_eq!(record.body.unwrap().value.unwrap(), text(&body));
    }
}
