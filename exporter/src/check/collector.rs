//! The collectors that take logs and spans.

use std::time::Duration;

use tokio::time::timeout;

use super::report::Check;
use crate::attach::refusal::shortened;
use crate::config::Export;
use crate::ship;

/// How long the collector may take, unless it is given less.
const REACH: Duration = Duration::from_secs(5);

/// One check for each place that something is shipped to; without any, one that is skipped.
pub(super) async fn checks(logs: Option<&Export>, traces: Option<&Export>) -> Vec<Check> {
    const LOGS: &str = "collector";
    const SPANS: &str = "collector_traces";
    match (logs, traces) {
        (None, None) => {
            vec![Check::skip(LOGS, "no endpoint in use").means("nothing is shipped: events are only printed")]
        }
        (Some(logs), None) => vec![collector(LOGS, "logs", logs).await],
        (None, Some(traces)) => {
            let skipped = Check::skip(LOGS, "no endpoint in use for logs").means("only spans are shipped");
            vec![skipped, collector(SPANS, "spans", traces).await]
        }
        (Some(logs), Some(traces)) if reached_alike(logs, traces) => {
            vec![collector(LOGS, "logs and spans", logs).await]
        }
        (Some(logs), Some(traces)) => {
            let (logs, traces) = tokio::join!(collector(LOGS, "logs", logs), collector(SPANS, "spans", traces));
            vec![logs, traces]
        }
    }
}

/// Whether one is reached as the other is.
fn reached_alike(one: &Export, other: &Export) -> bool {
    let how = |export: &Export| (export.endpoint.origin(), export.protocol, export.ca_file.clone());
    how(one) == how(other)
}

async fn collector(name: &str, what: &str, export: &Export) -> Check {
    let host = export.endpoint.host_str().unwrap_or("no host");
    let place = match export.endpoint.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let patience = export.timeout.map_or(REACH, |timeout| timeout.min(REACH));
    let export = Export { timeout: Some(patience), ..export.clone() };
    let found = match timeout(patience, ship::probe(&export)).await {
        Ok(Ok(())) => {
            return Check::ok(name, format!("{place} is reached"))
                .means(format!("whether it takes {what} shows with the first batch: none is sent now"));
        }
        Ok(Err(error)) => format!("{place}: {}", with_source(&error)),
        Err(_) => format!("{place}: no answer within {patience:?}"),
    };
    Check::fail(name, shortened(found))
        .means(format!("{what} wait in the queue, and the oldest are lost when it is full"))
        .remedy(
            "start the collector; or mend host, port or scheme of the endpoint, its CA file, or the firewall between",
        )
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    /// Different addresses at which nobody listens any more.
    fn deserted<const N: usize>() -> [String; N] {
        let listeners = std::array::from_fn::<_, N, _>(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        listeners.map(|listener| listener.local_addr().unwrap().to_string())
    }

    fn to(address: &str, path: &str) -> Export {
        Export::to(format!("http://{address}/{path}").parse().unwrap())
    }

    #[tokio::test]
    async fn no_endpoint_is_no_failure() {
        let checks = checks(None, None).await;
        let found: Vec<_> =
            checks.iter().map(|check| (check.name.as_str(), check.status, check.found.as_str())).collect();
        assert_eq!(found, [("collector", Status::Skip, "no endpoint in use")]);
    }

    #[tokio::test]
    async fn each_place_is_checked_once() {
        let [one, other] = deserted();
        let (logs, traces, elsewhere) = (to(&one, "v1/logs"), to(&one, "v1/traces"), to(&other, "v1/traces"));
        let cases = [
            (Some(&logs), None, vec![("collector", Status::Fail, "logs wait")]),
            (Some(&logs), Some(&traces), vec![("collector", Status::Fail, "logs and spans wait")]),
            (
                Some(&logs),
                Some(&elsewhere),
                vec![("collector", Status::Fail, "logs wait"), ("collector_traces", Status::Fail, "spans wait")],
            ),
            (
                None,
                Some(&traces),
                vec![("collector", Status::Skip, "only spans"), ("collector_traces", Status::Fail, "spans wait")],
            ),
        ];
        for (logs, traces, wanted) in cases {
            let checks = checks(logs, traces).await;
            assert_eq!(checks.len(), wanted.len(), "{checks:?}");
            for (check, (name, status, start)) in checks.iter().zip(wanted) {
                let means = check.consequence.as_deref().unwrap();
                assert_eq!((check.name.as_str(), check.status), (name, status), "{check:?}");
                assert!(means.starts_with(start), "{means}");
            }
        }
    }

    #[tokio::test]
    async fn a_collector_that_says_nothing_is_waited_for_only_so_long() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let export = Export { timeout: Some(Duration::from_millis(50)), ..to(&address, "v1/logs") };
        let check = collector("collector", "logs", &export).await;
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("no answer within 50ms"), "{}", check.found);
    }

    #[tokio::test]
    async fn a_collector_that_is_down_fails_with_host_and_port() {
        let [address] = deserted();
        let check = collector("collector", "logs", &to(&address, "v1/logs")).await;
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains(&address), "{}", check.found);
    }
}
