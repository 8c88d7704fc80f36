//! The proxy that leads to an endpoint, by the variables that curl knows.

use std::fmt;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use url::{Host, Url};

use super::ShipError;

/// What the environment says of proxies; credentials in it are never shown.
#[derive(Clone)]
pub(super) struct Proxies {
    matcher: Arc<Matcher>,
    /// Variables that are set, and are no URL of a proxy.
    malformed: Vec<&'static str>,
}

impl Proxies {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` for those that are not set, and `NO_PROXY` for the exceptions; in upper or
    /// lower case, of which the upper is looked at first.
    pub(super) fn from_env() -> Self {
        Self::by(|name| std::env::var(name).ok())
    }

    fn by(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut malformed = Vec::new();
        let mut value = |names: [&'static str; 2], is_malformed: fn(&str) -> bool| {
            let found = names.into_iter().find_map(|name| variable(name).map(|value| (name, value)));
            let (name, value) = found.unwrap_or_default();
            if is_malformed(&value) {
                malformed.push(name);
            }
            value
        };
        let matcher = Matcher::builder()
            .http(value(["HTTP_PROXY", "http_proxy"], is_malformed))
            .https(value(["HTTPS_PROXY", "https_proxy"], is_malformed))
            .all(value(["ALL_PROXY", "all_proxy"], is_malformed))
            .no(value(["NO_PROXY", "no_proxy"], |_| false))
            .build();
        Self { matcher: Arc::new(matcher), malformed }
    }

    #[cfg(test)]
    pub(super) fn of(matcher: Matcher) -> Self {
        Self { matcher: Arc::new(matcher), malformed: Vec::new() }
    }

    /// Never one to this host itself: a proxy elsewhere would take that for its own.
    pub(super) fn towards(&self, endpoint: &Url) -> Result<Option<Intercept>, ShipError> {
        if is_local(endpoint) {
            return Ok(None);
        }
        let of_scheme = |name: &str| {
            let kind = name.to_ascii_lowercase();
            kind == "all_proxy" || kind.strip_suffix("_proxy") == Some(endpoint.scheme())
        };
        if let Some(name) = self.malformed.iter().find(|name| of_scheme(name)) {
            let reason = format!("{name} is no URL of a proxy, such as http://proxy:3128");
            return Err(ShipError::Proxy { reason });
        }
        let target = endpoint
            .as_str()
            .parse()
            .map_err(|error: http::uri::InvalidUri| ShipError::Endpoint { reason: error.to_string() })?;
        let Some(proxy) = self.matcher.intercept(&target) else { return Ok(None) };
        match proxy.uri().scheme_str() {
            Some("http" | "https") => Ok(Some(proxy)),
            scheme => {
                let reason = format!("it is a {} proxy, and only http and https ones are known", scheme.unwrap_or(""));
                Err(ShipError::Proxy { reason })
            }
        }
    }
}

fn is_malformed(value: &str) -> bool {
    let any = http::Uri::from_static("http://any");
    !value.is_empty() && Matcher::builder().http(value).build().intercept(&any).is_none()
}

fn is_local(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        // A Unix socket.
        None => true,
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies").field("malformed", &self.malformed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn towards(proxies: &Proxies, endpoint: &str) -> Result<Option<String>, String> {
        match proxies.towards(&endpoint.parse().unwrap()) {
            Ok(proxy) => Ok(proxy.map(|proxy| proxy.uri().to_string())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_proxy_is_for_its_scheme_and_not_for_the_exceptions() {
        let matcher = Matcher::builder().http("http://one:1").https("two:2").no("near.test, 10.0.0.0/8").build();
        let proxies = Proxies::of(matcher);
        for (endpoint, expected) in [
            ("http://far.test:4318/v1/logs", Some("http://one:1/")),
            ("https://far.test", Some("http://two:2/")),
            ("https://near.test", None),
            ("https://sub.near.test:4317", None),
            ("http://10.1.2.3", None),
            ("http://11.1.2.3", Some("http://one:1/")),
            ("http://localhost:4318", None),
            ("http://127.0.0.2", None),
            ("http://[::1]:4317", None),
            ("unix:/run/otel.sock", None),
        ] {
            assert_eq!(towards(&proxies, endpoint), Ok(expected.map(str::to_owned)), "{endpoint}");
        }
    }

    #[test]
    fn variables_are_of_either_case_and_an_empty_one_is_no_proxy() {
        let by = |set: &'static [(&str, &str)]| {
            Proxies::by(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
        };
        let cases: [(&[_], _, _); 6] = [
            (&[], None, None),
            (&[("http_proxy", "a:1")], Some("http://a:1/"), None),
            (&[("HTTP_PROXY", "b:1"), ("http_proxy", "a:1")], Some("http://b:1/"), None),
            (&[("https_proxy", "https://u:p@c:1"), ("all_proxy", "d:1")], Some("http://d:1/"), Some("https://c:1/")),
            (&[("ALL_PROXY", "d:1"), ("no_proxy", "far.test")], None, None),
            (&[("HTTPS_PROXY", ""), ("https_proxy", "c:1")], None, None),
        ];
        for (set, http, https) in cases {
            for (endpoint, expected) in [("http://far.test", http), ("https://far.test", https)] {
                assert_eq!(towards(&by(set), endpoint), Ok(expected.map(str::to_owned)), "{set:?}");
            }
        }
        let error = towards(&by(&[("ALL_PROXY", "ftp://u:secret@d")]), "http://far.test").unwrap_err();
        assert!(error.contains("ALL_PROXY is no URL") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_said_without_its_secrets() {
        assert!(["ftp://p", "http://", "a b"].into_iter().all(is_malformed));
        assert!(!["", "p", "p:1", "http://u:p@p:1", "socks5://p"].into_iter().any(is_malformed));
        let malformed = Proxies { malformed: vec!["https_proxy"], ..Proxies::of(Matcher::builder().build()) };
        let error = towards(&malformed, "https://far.test").unwrap_err();
        assert!(error.contains("https_proxy is no URL"), "{error}");
        assert_eq!(towards(&malformed, "http://far.test"), Ok(None));
        let socks = Proxies::of(Matcher::builder().all("socks5://user:secret@p:1").build());
        let error = towards(&socks, "http://far.test").unwrap_err();
        assert!(error.contains("socks5") && !error.contains("secret"), "{error}");
    }
}
