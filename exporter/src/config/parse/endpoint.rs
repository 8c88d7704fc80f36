//! The text of an endpoint comes in, the URL to send to goes out: `http`, `https`, or `unix` with a socket's path.

use url::Url;

use super::{Expected, expected};
use crate::config::Protocol;

pub(in crate::config) const LOGS_PATH: &str = "v1/logs";
pub(in crate::config) const TRACES_PATH: &str = "v1/traces";
pub(in crate::config) const METRICS_PATH: &str = "v1/metrics";

/// How the path of an HTTP endpoint is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum EndpointKind {
    /// The signal's path is appended.
    Base,
    /// The signal's path is appended, in place of that of any signal.
    OwnBase,
    /// As it is.
    Exact,
}

/// For the signal of this path.
pub(in crate::config) fn endpoint(
    text: &str,
    kind: EndpointKind,
    signal: &str,
    protocol: Protocol,
    insecure: bool,
) -> Result<Url, Expected> {
    const HTTP: &str = "an http:// or https:// URL such as http://localhost:4318, or unix:PATH of a socket";
    const GRPC: &str = "an http:// or https:// URL or HOST:PORT, such as http://localhost:4317 (without a scheme it is \
                        https, unless OTEL_EXPORTER_OTLP_INSECURE is true), or unix:PATH of a socket";
    let text = text.trim();
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(path.strip_prefix("//").unwrap_or(path));
    }
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
            let bases = [LOGS_PATH, TRACES_PATH, METRICS_PATH].map(|path| whole.strip_suffix(path));
            Some(bases.into_iter().flatten().find(|base| base.ends_with('/')).unwrap_or(url.path()))
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

/// Longest path of a socket, without its final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The path is the URL's as it was written, so that nobody has to decode it; an HTTP request's path is the signal's.
fn socket(path: &str) -> Result<Url, Expected> {
    let is_a_file = path.starts_with('/') && !path.ends_with('/') && path.len() <= SOCKET_PATH_MAX;
    let is_plain = |url: &Url| url.path() == path && url.as_str().ends_with(path) && !path.contains('%');
    let url = Url::parse(&format!("unix://{path}")).ok().filter(|url| is_a_file && is_plain(url));
    url.ok_or_else(|| {
        Expected(format!(
            "unix: and the absolute path of a socket such as unix:/run/otel.sock, of at most {SOCKET_PATH_MAX} plain \
             characters"
        ))
    })
}

/// An endpoint without what may be secret in it.
pub(in crate::config) fn printable_endpoint(text: &str) -> String {
    let text = text.split_once('?').map_or(text, |(before, _)| before);
    let Some((before, after)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}…@{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = endpoint(text, kind, LOGS_PATH, protocol, insecure);
            assert_eq!(found.as_ref().map(Url::as_str), Ok(url), "{text} {kind:?} {protocol:?}");
        }
    }

    #[test]
    fn the_endpoint_of_one_signal_tells_that_of_another() {
        use EndpointKind::{Base, Exact, OwnBase};
        let cases = [
            ("http://c:4318", Base, METRICS_PATH, "http://c:4318/v1/metrics"),
            ("http://c/v1/logs", Base, METRICS_PATH, "http://c/v1/logs/v1/metrics"),
            ("http://c/x", OwnBase, METRICS_PATH, "http://c/x/v1/metrics"),
            ("http://c/x/v1/logs/", OwnBase, METRICS_PATH, "http://c/x/v1/metrics"),
            ("http://c/v1/logs", OwnBase, METRICS_PATH, "http://c/v1/metrics"),
            ("http://c/v1/metrics", OwnBase, METRICS_PATH, "http://c/v1/metrics"),
            ("http://c/xv1/logs", OwnBase, METRICS_PATH, "http://c/xv1/logs/v1/metrics"),
            ("http://c/y", Exact, METRICS_PATH, "http://c/y"),
            ("http://c/v1/logs", OwnBase, TRACES_PATH, "http://c/v1/traces"),
            ("http://c/v1/traces", OwnBase, TRACES_PATH, "http://c/v1/traces"),
            ("http://c/v1/traces", OwnBase, LOGS_PATH, "http://c/v1/logs"),
            ("http://c/x/v1/traces/?k=v", OwnBase, LOGS_PATH, "http://c/x/v1/logs?k=v"),
            ("http://c/v1/metrics", OwnBase, LOGS_PATH, "http://c/v1/logs"),
        ];
        for (text, kind, path, url) in cases {
            let found = endpoint(text, kind, path, Protocol::HttpProtobuf, false);
            assert_eq!(found.as_ref().map(Url::as_str), Ok(url), "{text} {kind:?} {path}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused() {
        for text in ["localhost:4318", "", "c", "ftp://c", "unix", "http://", "http://c:99999", "http://c/#x"] {
            assert!(endpoint(text, EndpointKind::Base, LOGS_PATH, Protocol::HttpProtobuf, true).is_err(), "{text}");
        }
        for text in ["", "c:x", "c/path", "u@c:4317", "http://u:p@c:4317", "a b"] {
            assert!(endpoint(text, EndpointKind::Base, LOGS_PATH, Protocol::Grpc, true).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_has_an_absolute_path_and_nothing_is_appended() {
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson] {
            for kind in [EndpointKind::Base, EndpointKind::OwnBase, EndpointKind::Exact] {
                for text in ["unix:/run/otel.sock", "unix:///run/otel.sock", " unix:/run/otel.sock "] {
                    let url = endpoint(text, kind, LOGS_PATH, protocol, false).unwrap();
                    assert_eq!((url.scheme(), url.path()), ("unix", "/run/otel.sock"), "{text}");
                    assert_eq!((url.host_str(), url.query(), url.port()), (None, None, None), "{text}");
                    assert_eq!(url.as_str(), "unix:///run/otel.sock");
                }
                let longest = format!("unix:/{}", "a".repeat(106));
                assert!(endpoint(&longest, kind, LOGS_PATH, protocol, false).is_ok());
                let longer = format!("{longest}a");
                for text in [
                    "unix:",
                    "unix:otel.sock",
                    "unix://run/otel.sock",
                    "unix://host:1/otel.sock",
                    "unix:/",
                    "unix:/run/",
                    "unix:/run/../x",
                    "unix:/run/a b",
                    "unix:/run/a%20b",
                    "unix:/run/é",
                    "unix:/run/x?y",
                    "unix:/run/x#y",
                    "unix:@abstract",
                    &longer,
                ] {
                    assert!(endpoint(text, kind, LOGS_PATH, protocol, true).is_err(), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_printed_endpoint_has_no_secrets() {
        assert_eq!(printable_endpoint("http://u:p@ss@c:1/x?key=s"), "http://…@c:1/x");
        assert_eq!(printable_endpoint("u:p@c:1"), "…@c:1");
        assert_eq!(printable_endpoint("http://c:1"), "http://c:1");
    }
}
