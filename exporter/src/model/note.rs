//! What Namespan has to say of itself, as the bytes of one OTLP `LogRecord`.

use super::proto;

pub const INFO: u8 = 9;
pub const WARN: u8 = 13;

/// Fields of `LogRecord`, in the order in which they are written.
mod field {
    pub const TIME: u32 = 1;
    pub const SEVERITY: u32 = 2;
    pub const BODY: u32 = 5;
    pub const ATTRIBUTES: u32 = 6;
    pub const OBSERVED_TIME: u32 = 11;
    pub const EVENT_NAME: u32 = 12;
}

/// Appends the fields of one `LogRecord`, without tag and length of the record itself. Attributes without a value are left
/// out; those that are there make its body.
pub fn encode(event: &str, severity: u8, unix_ns: u64, attributes: &[(&str, &str)], out: &mut Vec<u8>) {
    let told = || attributes.iter().filter(|(_, value)| !value.is_empty());
    let values: Vec<_> = told().map(|(_, value)| *value).collect();
    let name = event.rsplit_once('.').map_or(event, |(_, name)| name);
    proto::fixed64_field(out, field::TIME, unix_ns);
    proto::varint_field(out, field::SEVERITY, u64::from(severity));
    proto::any_field(out, field::BODY, proto::Value::Text(format!("{name}: {}", values.join(", ")).as_bytes()));
    for (key, value) in told() {
        proto::key_value(out, field::ATTRIBUTES, key, proto::Value::Text(value.as_bytes()));
    }
    proto::fixed64_field(out, field::OBSERVED_TIME, unix_ns);
    proto::len_field(out, field::EVENT_NAME, event.as_bytes());
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value;
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_note_is_a_record_of_its_own_kind() {
        let mut bytes = Vec::new();
        encode("namespan.attribution.degraded", WARN, 7, &[("a", "docker"), ("b", ""), ("c", "gone")], &mut bytes);
        let record = LogRecord::decode(&*bytes).unwrap();
        assert_eq!(record.encode_to_vec(), bytes);
        assert_eq!((record.event_name.as_str(), record.severity_number), ("namespan.attribution.degraded", 13));
        assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (7, 7));
        let keys: Vec<_> = record.attributes.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["a", "c"]);
        let body = record.body.unwrap().value.unwrap();
        assert_eq!(body, any_value::Value::StringValue("degraded: docker, gone".into()));
    }
}
