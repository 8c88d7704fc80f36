//! Text of one value comes in, the value goes out, or a phrase of what was expected.

use std::net::SocketAddr;
use std::path::PathBuf;

use namespan_ebpf::settings::PATH_PREFIX_MAX;
use tracing::level_filters::LevelFilter;

use super::{Arguments, Compression, Console, Destination, LogFormat, Protocol, Reach, RuntimeName, Scope};

mod endpoint;
mod guard;
mod pairs;
mod quantity;
mod selector;
mod spans;
mod uprobe;

pub(super) use endpoint::{EndpointKind, LOGS_PATH, METRICS_PATH, TRACES_PATH, endpoint, printable_endpoint};
pub(super) use guard::{action, description, kills, lease, mode, origin, text, without_lsm};
pub(super) use pairs::{Headers, attributes, headers, pairs, put};
pub(super) use quantity::{
    args_limit, batch_bytes, bytes, cache_entries, count, duration, limit, limit_count, millis, positive_duration,
    positive_millis, ring_bytes, ring_delay, spool_bytes,
};
pub(super) use selector::selector;
pub(super) use spans::{executable, exit_code, max_per_trace, ratio, sampler, trust};
pub(super) use uprobe::{burst, expression, kind, max_string, pid, rate, sample, severity, uprobe_name};

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
    one_of(
        text,
        &[("table", Console::Table), ("tree", Console::Tree), ("jsonl", Console::Jsonl), ("none", Console::None)],
    )
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

pub(super) fn log_format(text: &str) -> Result<LogFormat, Expected> {
    one_of(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

/// As the specification has it: the case does not matter.
pub(super) fn boolean(text: &str) -> Result<bool, Expected> {
    one_of(&text.to_ascii_lowercase(), &[("true", true), ("false", false)])
}

/// What `OTEL_LOGS_EXPORTER` or `OTEL_TRACES_EXPORTER` asks for.
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

/// Whether `OTEL_METRICS_EXPORTER`, or a signal's `exporter` in the file, asks for OTLP.
pub(super) fn otlp(text: &str) -> Result<bool, Expected> {
    one_of(text, &[("otlp", true), ("none", false)])
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
    spans::pattern(text, "a label key")
}

pub(super) fn non_empty(text: &str) -> Result<String, Expected> {
    if text.trim().is_empty() { expected("a text: it is empty") } else { Ok(text.to_owned()) }
}

pub(super) fn file_path(text: &str) -> Result<PathBuf, Expected> {
    non_empty(text).map(PathBuf::from)
}

/// Of the spool, which must not depend on where Namespan is started.
pub(super) fn directory(text: &str) -> Result<PathBuf, Expected> {
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(text.into());
    }
    expected("the absolute path of a directory such as /var/lib/namespan")
}

/// Where to listen. Port 0: the kernel chooses one.
pub(super) fn address(text: &str) -> Result<SocketAddr, Expected> {
    text.trim().parse().or_else(|_| expected("an IP address and a port such as 127.0.0.1:9464 or [::1]:9464"))
}

/// Longest name of a destination: it is part of metrics and of file names.
const NAME_MAX: usize = 32;

pub(super) fn destination_name(text: &str) -> Result<String, Expected> {
    let is_ours = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if text == Destination::MAIN {
        return expected("free for use: it is the name of what flags, OTEL_* variables and `export` set");
    }
    if (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_ours) {
        return Ok(text.to_owned());
    }
    Err(Expected(format!("a name of 1 to {NAME_MAX} lower-case letters, digits, `-` and `_`")))
}

/// How a runtime is reached.
pub(super) fn reach(text: &str) -> Result<Reach, Expected> {
    match text {
        "auto" => Ok(Reach::Auto),
        "none" => Ok(Reach::Off),
        path if path.starts_with('/') => Ok(Reach::At(path.into())),
        _ => expected("the absolute path of a Unix socket such as /var/run/docker.sock, auto, or none"),
    }
}

/// `NAME=PATH`, `NAME=auto` or `NAME=none`.
pub(super) fn runtime(text: &str) -> Result<(RuntimeName, Reach), Expected> {
    let (name, place) = text.split_once('=').unwrap_or((text, ""));
    match (RuntimeName::ALL.into_iter().find(|runtime| runtime.name() == name), reach(place)) {
        (Some(name), Ok(reach)) => Ok((name, reach)),
        (Some(_), Err(Expected(place))) => Err(Expected(format!("{name}= and {place}"))),
        (None, _) => {
            let names = RuntimeName::ALL.map(RuntimeName::name).join(", ");
            Err(Expected(format!("NAME=PATH, NAME=auto or NAME=none, with one of {names} for NAME")))
        }
    }
}

pub(super) fn docker_host(text: &str) -> Result<Reach, Expected> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(Reach::At(path.into())),
        _ => expected(
            "unix:// with the absolute path of a socket: Namespan asks the Docker of its own host, so name its socket \
             with --runtime docker=PATH, or use --runtime docker=none",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::quantity::size;
    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".*", insecure: bool) {
            drop(duration(&text));
            drop(millis(&text));
            drop(size(&text));
            drop((ring_bytes(&text), args_limit(&text), batch_bytes(&text)));
            drop((ring_delay(&text), spool_bytes(&text), directory(&text)));
            drop((address(&text), destination_name(&text)));
            drop(attributes(&text));
            drop(pairs(&text).and_then(headers));
            drop(printable_endpoint(&text));
            for protocol in [Protocol::Grpc, Protocol::HttpJson] {
                drop(endpoint(&format!("unix:{text}"), EndpointKind::Base, LOGS_PATH, protocol, insecure));
                drop(endpoint(&text, EndpointKind::Base, LOGS_PATH, protocol, insecure));
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
                drop(endpoint(&url, kind, LOGS_PATH, Protocol::Grpc, true));
                drop(endpoint(&url, kind, LOGS_PATH, Protocol::HttpProtobuf, true));
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
