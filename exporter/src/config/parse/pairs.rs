//! Lists of `key=value` come in, attributes and headers go out.

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::Expected;

/// `k1=v1,k2=v2`, percent-decoded; empty entries are skipped. An error names the entry, and its key where it has one.
pub(in crate::config) fn pairs(text: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
    let entries = text.split(',').map(str::trim).enumerate().filter(|(_, entry)| !entry.is_empty());
    entries
        .map(|(index, entry)| {
            let place = index + 1;
            let Some((key, value)) = entry.split_once('=') else {
                return Err(format!("entry {place} has no `=`; write key=value,key=value, and `,` in a value as %2C"));
            };
            let key = percent_decoded(key.trim()).and_then(|key| String::from_utf8(key).ok());
            let Some(key) = key.filter(|key| !key.is_empty()) else {
                return Err(format!("the key of entry {place} is empty or not percent-encoded UTF-8"));
            };
            let Some(value) = percent_decoded(value.trim()) else {
                return Err(format!(
                    "the value of {} is not percent-encoded; write `%` as %25",
                    shown_name(place, &key)
                ));
            };
            Ok((key, value))
        })
        .collect()
}

/// `None`: a `%` without two hexadecimal digits.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let is_hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    let stray = |(at, byte): (usize, &u8)| *byte == b'%' && !(is_hex(bytes.get(at + 1)) && is_hex(bytes.get(at + 2)));
    if bytes.iter().enumerate().any(stray) {
        return None;
    }
    Some(percent_decode_str(text).collect())
}

/// What is before `:` or a blank may be a name; anything else may be part of a secret.
fn shown_name(place: usize, key: &str) -> String {
    match key.split([':', ' ']).next().and_then(|name| HeaderName::try_from(name).ok()) {
        Some(name) => format!("entry {place}, `{name}`"),
        None => format!("entry {place}"),
    }
}

/// Resource attributes of `OTEL_RESOURCE_ATTRIBUTES`.
pub(in crate::config) fn attributes(text: &str) -> Result<Vec<(String, String)>, Expected> {
    let mut attributes = Vec::new();
    for (key, value) in pairs(text).map_err(|problem| Expected(format!("a list of key=value: {problem}")))? {
        let Ok(value) = String::from_utf8(value) else {
            return Err(Expected(format!("a list of key=value: the value of `{key}` is not UTF-8")));
        };
        put(&mut attributes, key, value);
    }
    Ok(attributes)
}

/// The last of several values of one key stays.
pub(in crate::config) fn put<K: PartialEq, V>(pairs: &mut Vec<(K, V)>, key: K, value: V) {
    match pairs.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => *known = value,
        None => pairs.push((key, value)),
    }
}

pub(in crate::config) type Headers = Vec<(HeaderName, HeaderValue)>;

/// Headers of raw names and values. An error never shows a value.
pub(in crate::config) fn headers<N: AsRef<str>, V: AsRef<[u8]>>(
    pairs: impl IntoIterator<Item = (N, V)>,
) -> Result<Headers, String> {
    let mut headers = Headers::new();
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        let (name, value) = header(index + 1, key.as_ref().trim(), value.as_ref())?;
        put(&mut headers, name, value);
    }
    Ok(headers)
}

fn header(place: usize, key: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    // What the protocol itself decides; HTTP/2 refuses the last ones.
    const OURS: [&str; 9] = [
        "content-type",
        "content-encoding",
        "content-length",
        "transfer-encoding",
        "te",
        "connection",
        "keep-alive",
        "upgrade",
        "proxy-connection",
    ];
    let shown = shown_name(place, key);
    let Ok(name) = HeaderName::try_from(key) else {
        return Err(format!("{shown}: a header's name has only letters, digits and !#$%&'*+-.^_`|~"));
    };
    if OURS.contains(&name.as_str()) {
        return Err(format!("{shown}: this header is set by OTLP itself; leave it out"));
    }
    let Ok(mut value) = HeaderValue::from_bytes(value) else {
        return Err(format!("{shown}: the value (not shown) has control characters such as a line's end"));
    };
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_trimmed_and_percent_decoded() {
        let found = pairs(" a = b%20c , d=e=f==,,g=, %61%2Cb=%00").unwrap();
        let wanted: [(&str, &[u8]); 4] = [("a", b"b c"), ("d", b"e=f=="), ("g", b""), ("a,b", b"\0")];
        assert_eq!(found, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_header_error_names_the_key_and_never_the_value() {
        let cases = [
            ("authorization Basic hunter2==", "`authorization`"),
            ("authorization:hunter2=", "`authorization`"),
            ("authorization=hunter2%zz", "`authorization`"),
            ("authorization=hunter2%0a", "`authorization`"),
            ("a=b,hunter2", "entry 2"),
            ("a=b,hunter2/x=", "entry 2"),
            ("content-type=hunter2", "`content-type`"),
        ];
        for (text, named) in cases {
            let problem = pairs(text).and_then(headers).unwrap_err();
            assert!(problem.contains(named) && !problem.contains("hunter2"), "{text}: {problem}");
        }
    }

    #[test]
    fn header_values_are_hidden_from_debug_output() {
        let found = headers([("X-Key", "hunter2")]).unwrap();
        assert!(!format!("{found:?}").contains("hunter2"));
        assert_eq!(found[0].0, "x-key");
        assert_eq!(found[0].1, "hunter2");
    }
}
