//! Text of one value comes in, the value goes out, or a phrase of what was expected.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use namespan_ebpf::settings::PATH_PREFIX_MAX;
use namespan_ebpf::wire::ARGS_MAX;
use percent_encoding::percent_decode_str;
use tracing::level_filters::LevelFilter;
use url::Url;

use super::{Arguments, Compression, Console, Protocol, Scope};

/// Completes the sentence "this value is not …".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected(pub String);

fn expected<T>(phrase: &str) -> Result<T, Expected> {
    Err(Expected(phrase.to_owned()))
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Expected> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
    Err(Expected(format!("one of {}", names.join(", "))))
}

pub(super) fn console(text: &str) -> Result<Console, Expected> {
    one_of(text, &[("table", Console::Table), ("jsonl", Console::Jsonl), ("none", Console::None)])
}

pub(super) fn scope(text: &str) -> Result<Scope, Expected> {
    one_of(text, &[("all", Scope::All), ("host", Scope::Host), ("containers", Scope::Containers)])
}

pub(super) fn arguments(text: &str) -> Result<Arguments, Expected> {
    one_of(text, &[("off", Arguments::Off), ("redacted", Arguments::Redacted), ("full", Arguments::Full)])
}

pub(super) fn protocol(text: &str) -> Result<Protocol, Expected> {
    one_of(
        text,
        &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf), ("http/json", Protocol::HttpJson)],
    )
}

pub(super) fn compression(text: &str) -> Result<Compression, Expected> {
    one_of(text, &[("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)])
}

pub(super) fn log_level(text: &str) -> Result<LevelFilter, Expected> {
    one_of(
        &text.to_ascii_lowercase(),
        &[
            ("none", LevelFilter::OFF),
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ],
    )
}

/// As the specification has it: the case does not matter.
pub(super) fn boolean(text: &str) -> Result<bool, Expected> {
    one_of(&text.to_ascii_lowercase(), &[("true", true), ("false", false)])
}

/// What `OTEL_LOGS_EXPORTER` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exporters {
    pub otlp: bool,
    pub console: bool,
}

pub(super) fn exporters(text: &str) -> Result<Exporters, Expected> {
    let mut exporters = Exporters::default();
    for name in text.split(',').map(str::trim) {
        match name {
            "otlp" => exporters.otlp = true,
            "console" => exporters.console = true,
            "none" if text.trim() == "none" => {}
            _ => return expected("one of otlp, console, none, or otlp,console"),
        }
    }
    Ok(exporters)
}

/// Whether `OTEL_METRICS_EXPORTER` asks for OTLP.
pub(super) fn metrics_exporter(text: &str) -> Result<bool, Expected> {
    one_of(text, &[("otlp", true), ("none", false)])
}

/// Longest duration there is: sums with the clock cannot overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parts of a number and a unit, such as `500ms`, `10s` and `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, Expected> {
    parts(text)
        .filter(|total| *total <= DURATION_MAX)
        .ok_or_else(|| Expected("a duration such as 500ms, 10s, 2m or 1h30m, of at most 365d".to_owned()))
}

fn parts(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = None;
    while !rest.is_empty() {
        let (number, after) = leading(rest, |c| c.is_ascii_digit());
        let (unit, after) = leading(after, |c| c.is_ascii_alphabetic());
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(24 * 3600)?),
            _ => return None,
        };
        total = Some(total.unwrap_or(Duration::ZERO).checked_add(part)?);
        rest = after;
    }
    total
}

fn leading(text: &str, of: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !of(c)).unwrap_or(text.len()))
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, Expected> {
    duration(text).and_then(positive)
}

/// Whole milliseconds, as the specification's variables have them.
pub(super) fn millis(text: &str) -> Result<Duration, Expected> {
    match text.trim().parse().map(Duration::from_millis) {
        Ok(value) if value <= DURATION_MAX => Ok(value),
        _ => expected("a whole number of milliseconds, of at most 365 days"),
    }
}

pub(super) fn positive_millis(text: &str) -> Result<Duration, Expected> {
    millis(text).and_then(positive)
}

fn positive(value: Duration) -> Result<Duration, Expected> {
    if value.is_zero() { expected("more than zero") } else { Ok(value) }
}

/// Zero: no limit.
pub(super) fn limit(value: Duration) -> Option<Duration> {
    Some(value).filter(|value| !value.is_zero())
}

/// Bytes; a unit is a power of 1024: `65536`, `32KiB`, `32K`, `8MiB`, `1G`.
pub(super) fn size(text: &str) -> Result<u64, Expected> {
    let (number, unit) = leading(text.trim(), |c| c.is_ascii_digit());
    let unit: Option<u64> = match unit.trim() {
        "" | "B" => Some(1),
        "K" | "KiB" => Some(1 << 10),
        "M" | "MiB" => Some(1 << 20),
        "G" | "GiB" => Some(1 << 30),
        _ => None,
    };
    number
        .parse()
        .ok()
        .zip(unit)
        .and_then(|(number, unit): (u64, u64)| number.checked_mul(unit))
        .ok_or_else(|| Expected("a size in bytes such as 65536, 32KiB or 8MiB".to_owned()))
}

pub(super) fn bytes(text: &str) -> Result<usize, Expected> {
    match size(text).map(usize::try_from)? {
        Ok(value @ 1..) => Ok(value),
        _ => expected("more than zero, and within this machine's memory"),
    }
}

/// Of the ring buffer.
pub(super) fn ring_bytes(text: &str) -> Result<u32, Expected> {
    let size = size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (4096..=1 << 30).contains(size))
        .ok_or_else(|| Expected("a power of two from 4KiB to 1GiB, such as 8MiB".to_owned()))
}

pub(super) fn args_limit(text: &str) -> Result<u32, Expected> {
    let size = size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| (1..=ARGS_MAX).contains(size))
        .ok_or_else(|| Expected(format!("a size from 1 to {ARGS_MAX} bytes, such as 32KiB")))
}

pub(super) fn batch_bytes(text: &str) -> Result<usize, Expected> {
    let size = bytes(text)?;
    if (64 << 10..=64 << 20).contains(&size) { Ok(size) } else { expected("a size from 64KiB to 64MiB, such as 3MiB") }
}

/// A number of things, at least one.
pub(super) fn count(text: &str) -> Result<usize, Expected> {
    match text.trim().parse() {
        Ok(value @ 1..) => Ok(value),
        _ => expected("a whole number above zero"),
    }
}

/// A number of characters or attributes; zero: none.
pub(super) fn limit_count(text: &str) -> Result<usize, Expected> {
    text.trim().parse().or_else(|_| expected("a whole number"))
}

pub(super) fn cache_entries(text: &str) -> Result<NonZeroUsize, Expected> {
    // The cache reserves its table at once.
    match text.trim().parse::<NonZeroUsize>() {
        Ok(value) if value.get() <= 1 << 20 => Ok(value),
        _ => expected("a whole number from 1 to 1048576"),
    }
}

pub(super) fn uid(text: &str) -> Result<u32, Expected> {
    // The last one is (uid_t) -1: no user, by every system call that takes one.
    match text.trim().parse() {
        Ok(value) if value < u32::MAX => Ok(value),
        _ => expected("a numeric user id such as 0 or 1000"),
    }
}

/// Longest comm of the kernel, without its final NUL.
const COMM_MAX: usize = 15;

pub(super) fn comm_prefix(text: &str) -> Result<String, Expected> {
    if (1..=COMM_MAX).contains(&text.len()) && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    Err(Expected(format!("a prefix of 1 to {COMM_MAX} bytes: the kernel keeps no more of a comm")))
}

pub(super) fn path_prefix(text: &str) -> Result<String, Expected> {
    if text.starts_with('/') && text.len() <= PATH_PREFIX_MAX && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    Err(Expected(format!("an absolute path such as /usr/bin/, of at most {PATH_PREFIX_MAX} bytes")))
}

pub(super) fn label(text: &str) -> Result<String, Expected> {
    let stem = text.strip_suffix('*').unwrap_or(text);
    if text.is_empty() || stem.contains('*') {
        return expected("a label key, with `*` nowhere but at its end");
    }
    Ok(text.to_owned())
}

pub(super) fn non_empty(text: &str) -> Result<String, Expected> {
    if text.trim().is_empty() { expected("a text: it is empty") } else { Ok(text.to_owned()) }
}

pub(super) fn file_path(text: &str) -> Result<PathBuf, Expected> {
    non_empty(text).map(PathBuf::from)
}

/// `none`: Docker is not asked.
pub(super) fn docker_socket(text: &str) -> Result<Option<PathBuf>, Expected> {
    match text {
        "none" => Ok(None),
        path if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        _ => expected("the absolute path of a Unix socket such as /var/run/docker.sock, or none"),
    }
}

pub(super) fn docker_host(text: &str) -> Result<Option<PathBuf>, Expected> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        _ => expected(
            "unix:// with the absolute path of a socket: Namespan asks the Docker of its own host, so name its socket \
             with --docker-socket, or use --no-docker",
        ),
    }
}

/// How the path of an HTTP endpoint is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointKind {
    /// The signal's path is appended.
    Base,
    /// The signal's path is appended, unless it is there, and in place of that of logs.
    OwnBase,
    /// As it is.
    Exact,
}

/// Of the path of logs, `v1/logs`, or of another signal.
pub(super) fn endpoint(
    text: &str,
    kind: EndpointKind,
    signal: &str,
    protocol: Protocol,
    insecure: bool,
) -> Result<Url, Expected> {
    const HTTP: &str = "an http:// or https:// URL such as http://localhost:4318";
    const GRPC: &str = "an http:// or https:// URL or HOST:PORT, such as http://localhost:4317 (without a scheme it is \
                        https, unless OTEL_EXPORTER_OTLP_INSECURE is true)";
    let text = text.trim();
    let grpc = protocol == Protocol::Grpc;
    let phrase = if grpc { GRPC } else { HTTP };
    let url = if text.contains("://") {
        Url::parse(text)
    } else if grpc && !text.contains(['/', '?', '#', '@']) {
        let scheme = if insecure { "http" } else { "https" };
        // `url` drops a port that is the scheme's default, so what was written has to be looked at.
        let has_port = text.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let port = if has_port { "" } else { ":4317" };
        Url::parse(&format!("{scheme}://{text}{port}"))
    } else {
        return expected(phrase);
    };
    let Ok(mut url) = url else { return expected(phrase) };
    if !matches!(url.scheme(), "http" | "https") || url.fragment().is_some() {
        return expected(phrase);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return expected("free of credentials: give them as a header, in OTEL_EXPORTER_OTLP_HEADERS or the file");
    }
    let whole = url.path().trim_end_matches('/');
    let base = match kind {
        EndpointKind::Base => Some(url.path()),
        EndpointKind::OwnBase if whole.ends_with(&format!("/{signal}")) => None,
        EndpointKind::OwnBase => {
            Some(whole.strip_suffix("v1/logs").filter(|base| base.ends_with('/')).unwrap_or(url.path()))
        }
        EndpointKind::Exact => None,
    };
    if let Some(base) = base.filter(|_| !grpc) {
        let slash = if base.ends_with('/') { "" } else { "/" };
        let path = format!("{base}{slash}{signal}");
        url.set_path(&path);
    }
    Ok(url)
}

/// An endpoint without what may be secret in it.
pub(super) fn printable_endpoint(text: &str) -> String {
    let text = text.split_once('?').map_or(text, |(before, _)| before);
    let Some((before, after)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}…@{after}")
}

/// `k1=v1,k2=v2`, percent-decoded; empty entries are skipped. An error names the entry, and its key where it has one.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
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
pub(super) fn attributes(text: &str) -> Result<Vec<(String, String)>, Expected> {
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
pub(super) fn put<K: PartialEq, V>(pairs: &mut Vec<(K, V)>, key: K, value: V) {
    match pairs.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => *known = value,
        None => pairs.push((key, value)),
    }
}

pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// Headers of raw names and values. An error never shows a value.
pub(super) fn headers<N: AsRef<str>, V: AsRef<[u8]>>(
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
    use proptest::prelude::*;

    use super::*;

    const LOGS: &str = "v1/logs";

    #[test]
    fn durations_are_numbers_with_units() {
        let cases = [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1s500ms", 1500),
            ("0", 0),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "10", "s", "1.5s", "-1s", "1y", "10 s", "1sms", "366d", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        let cases = [
            ("65536", 65_536),
            ("1B", 1),
            ("32K", 32_768),
            ("32KiB", 32_768),
            ("8 MiB", 8 << 20),
            ("1G", 1 << 30),
            ("0", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1KB", "1kb", "1.5M", "-1", "1T", "99999999999999999999", "18446744073709551615K"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_ring_is_a_power_of_two_within_bounds() {
        for (text, bytes) in [("4096", 4096), ("8MiB", 8 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(ring_bytes(text), Ok(bytes));
        }
        for text in ["2048", "5MiB", "2GiB", "4G", "0"] {
            assert!(ring_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_follow_the_specification() {
        use EndpointKind::{Base, Exact, OwnBase};
        use Protocol::{Grpc, HttpJson, HttpProtobuf};
        let cases = [
            ("http://c:4318", Base, HttpProtobuf, false, "http://c:4318/v1/logs"),
            ("http://c:4318/", Base, HttpJson, false, "http://c:4318/v1/logs"),
            ("http://loki:3100/otlp", Base, HttpProtobuf, false, "http://loki:3100/otlp/v1/logs"),
            ("http://loki:3100/otlp/", Base, HttpProtobuf, false, "http://loki:3100/otlp/v1/logs"),
            ("http://c/v1/logs", Base, HttpProtobuf, false, "http://c/v1/logs/v1/logs"),
            ("http://c/v1/logs", OwnBase, HttpProtobuf, false, "http://c/v1/logs"),
            ("http://c/a?b=c", Base, HttpProtobuf, false, "http://c/a/v1/logs?b=c"),
            ("http://c:4318", Exact, HttpProtobuf, false, "http://c:4318/"),
            ("https://c/x/", Exact, HttpProtobuf, true, "https://c/x/"),
            ("http://c:4317", Base, Grpc, false, "http://c:4317/"),
            ("https://c:4317", Base, Grpc, true, "https://c:4317/"),
            ("c:4317", Base, Grpc, true, "http://c:4317/"),
            ("c:4317", Base, Grpc, false, "https://c:4317/"),
            ("c", Base, Grpc, true, "http://c:4317/"),
            ("c:443", Base, Grpc, false, "https://c/"),
            ("c:80", Base, Grpc, true, "http://c/"),
            ("[::1]", Base, Grpc, true, "http://[::1]:4317/"),
            ("[::1]:55", Base, Grpc, true, "http://[::1]:55/"),
        ];
        for (text, kind, protocol, insecure, url) in cases {
            let found = endpoint(text, kind, LOGS, protocol, insecure);
            assert_eq!(found.as_ref().map(Url::as_str), Ok(url), "{text} {kind:?} {protocol:?}");
        }
    }

    #[test]
    fn the_endpoint_of_logs_tells_that_of_metrics() {
        use EndpointKind::{Base, Exact, OwnBase};
        let cases = [
            ("http://c:4318", Base, "http://c:4318/v1/metrics"),
            ("http://c/v1/logs", Base, "http://c/v1/logs/v1/metrics"),
            ("http://c/x", OwnBase, "http://c/x/v1/metrics"),
            ("http://c/x/v1/logs/", OwnBase, "http://c/x/v1/metrics"),
            ("http://c/v1/logs", OwnBase, "http://c/v1/metrics"),
            ("http://c/v1/metrics", OwnBase, "http://c/v1/metrics"),
            ("http://c/xv1/logs", OwnBase, "http://c/xv1/logs/v1/metrics"),
            ("http://c/y", Exact, "http://c/y"),
        ];
        for (text, kind, url) in cases {
            let found = endpoint(text, kind, "v1/metrics", Protocol::HttpProtobuf, false);
            assert_eq!(found.as_ref().map(Url::as_str), Ok(url), "{text} {kind:?}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused() {
        for text in ["localhost:4318", "", "c", "ftp://c", "unix:///run/x", "http://", "http://c:99999", "http://c/#x"]
        {
            assert!(endpoint(text, EndpointKind::Base, LOGS, Protocol::HttpProtobuf, true).is_err(), "{text}");
        }
        for text in ["", "c:x", "c/path", "u@c:4317", "http://u:p@c:4317", "a b"] {
            assert!(endpoint(text, EndpointKind::Base, LOGS, Protocol::Grpc, true).is_err(), "{text}");
        }
    }

    #[test]
    fn a_printed_endpoint_has_no_secrets() {
        assert_eq!(printable_endpoint("http://u:p@ss@c:1/x?key=s"), "http://…@c:1/x");
        assert_eq!(printable_endpoint("u:p@c:1"), "…@c:1");
        assert_eq!(printable_endpoint("http://c:1"), "http://c:1");
    }

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

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".*", insecure: bool) {
            drop(duration(&text));
            drop(millis(&text));
            drop(size(&text));
            drop((ring_bytes(&text), args_limit(&text), batch_bytes(&text)));
            drop(attributes(&text));
            drop(pairs(&text).and_then(headers));
            drop(printable_endpoint(&text));
            for protocol in [Protocol::Grpc, Protocol::HttpJson] {
                drop(endpoint(&text, EndpointKind::Base, LOGS, protocol, insecure));
            }
        }

        #[test]
        fn no_text_like_a_value_makes_a_parser_panic(
            number in "[0-9]{0,25}(ms|s|m|h|d|K|KiB|M|G)?[0-9]{0,25}(ms|s|d)?",
            list in "([a%=, é][0-9a-f%]{0,2}){0,12}",
            url in "(https?://)?[a\\[\\]:@é.]{0,6}(:[0-9]{0,6})?(/[a%/?#]{0,4})?",
        ) {
            drop(duration(&number));
            drop(size(&number));
            drop(millis(&number));
            drop(attributes(&list));
            drop(pairs(&list).and_then(headers));
            drop(printable_endpoint(&url));
            for kind in [EndpointKind::Base, EndpointKind::OwnBase, EndpointKind::Exact] {
                drop(endpoint(&url, kind, LOGS, Protocol::Grpc, true));
                drop(endpoint(&url, kind, LOGS, Protocol::HttpProtobuf, true));
            }
        }

        #[test]
        fn a_duration_written_in_any_units_is_their_sum(h in 0u64..100, m in 0u64..100, s in 0u64..100, ms in 0u64..5000) {
            let sum = Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms);
            prop_assert_eq!(duration(&format!("{h}h{m}m{s}s{ms}ms")), Ok(sum));
        }

        #[test]
        fn what_is_percent_encoded_comes_back(key in "[a-z.]{1,10}", value in ".*") {
            let encoded = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
            prop_assert_eq!(attributes(&format!("{key}={encoded}")), Ok(vec![(key, value)]));
        }
    }
}
