//! The collectors that take logs and spans.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::report::Check;
use crate::attach::refusal::shortened;
use crate::config::{Config, Destination, Export};
use crate::ship;

/// How long the collector may take, unless it is given less.
const REACH: Duration = Duration::from_secs(5);

/// One check for each place that something is shipped to; without any, one that is skipped. What is of a further
/// destination has its name, behind a dot: that is in no name.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    const LOGS: &str = "collector";
    let Config { logs, traces, destinations, .. } = config;
    let waiting = match config.spool {
        Some(_) => "wait in the queue and on disk, and the oldest are lost when both are full",
        None => "wait in the queue, and the oldest are lost when it is full",
    };
    let mut checks = Vec::new();
    match (logs, traces) {
        (None, None) if destinations.is_empty() => {
            let skipped = Check::skip(LOGS, "no endpoint in use");
            checks.push(skipped.means("nothing is shipped: events are only printed"));
        }
        (None, None) => {
            checks.push(Check::skip(LOGS, "no endpoint in use").means("only the further destinations are shipped to"));
        }
        (None, Some(_)) => {
            checks.push(Check::skip(LOGS, "no endpoint in use for logs").means("only spans are shipped"));
        }
        (Some(_), _) => {}
    }
    let main = places([LOGS, "collector_traces"].map(str::to_owned), logs.as_ref(), traces.as_ref());
    let others = destinations.iter().flat_map(|Destination { name, logs, traces }| {
        let names = [format!("{LOGS}.{name}"), format!("{LOGS}.{name}.traces")];
        places(names, logs.as_ref(), traces.as_ref())
    });
    let tried =
        main.into_iter().chain(others).map(async |(name, what, export)| collector(&name, what, export, waiting).await);
    checks.extend(join_all(tried).await);
    checks
}

/// What is tried: the check's name, what is shipped there, and how.
type Place<'a> = (String, &'static str, &'a Export);

/// Of one destination: one place where logs and spans are shipped alike.
fn places<'a>(
    [of_logs, of_spans]: [String; 2],
    logs: Option<&'a Export>,
    traces: Option<&'a Export>,
) -> Vec<Place<'a>> {
    match (logs, traces) {
        (Some(logs), Some(traces)) if reached_alike(logs, traces) => vec![(of_logs, "logs and spans", logs)],
        (logs, traces) => {
            let logs = logs.map(|logs| (of_logs, "logs", logs));
            logs.into_iter().chain(traces.map(|traces| (of_spans, "spans", traces))).collect()
        }
    }
}

/// Whether one is reached as the other is.
fn reached_alike(one: &Export, other: &Export) -> bool {
    let how = |export: &Export| {
        let (files, place) = ((export.ca_file.clone(), export.client.clone()), ship::place(&export.endpoint));
        (place, export.protocol, files)
    };
    how(one) == how(other)
}

async fn collector(name: &str, what: &str, export: &Export, waiting: &str) -> Check {
    let place = ship::place(&export.endpoint);
    let place = place.split_once("://").map_or(place.as_str(), |(_, host_and_port)| host_and_port);
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
    Check::fail(name, shortened(found)).means(format!("{what} {waiting}")).remedy(
        "start the collector; or mend host, port or scheme of the endpoint, its CA file, our certificate and key, or \
             the proxy or firewall between",
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
    use crate::config::{ClientIdentity, Spool};

    /// Different addresses at which nobody listens any more.
    fn deserted<const N: usize>() -> [String; N] {
        let listeners = std::array::from_fn::<_, N, _>(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        listeners.map(|listener| listener.local_addr().unwrap().to_string())
    }

    fn to(address: &str, path: &str) -> Export {
        Export::to(format!("http://{address}/{path}").parse().unwrap())
    }

    fn shipping(logs: Option<&Export>, traces: Option<&Export>) -> Config {
        Config { logs: logs.cloned(), traces: traces.cloned(), ..Config::default() }
    }

    fn elsewhere(name: &str, logs: Option<&Export>, traces: Option<&Export>) -> Destination {
        Destination { name: name.to_owned(), logs: logs.cloned(), traces: traces.cloned() }
    }

    /// Name, status, and whether the consequence begins so.
    fn assert_found(checks: &[Check], wanted: &[(&str, Status, &str)]) {
        assert_eq!(checks.len(), wanted.len(), "{checks:?}");
        for (check, (name, status, start)) in checks.iter().zip(wanted) {
            let means = check.consequence.as_deref().unwrap();
            assert_eq!((check.name.as_str(), check.status), (*name, *status), "{check:?}");
            assert!(means.starts_with(start), "{means}");
        }
    }

    #[tokio::test]
    async fn no_endpoint_is_no_failure() {
        let checks = checks(&Config::default()).await;
        let found: Vec<_> =
            checks.iter().map(|check| (check.name.as_str(), check.status, check.found.as_str())).collect();
        assert_eq!(found, [("collector", Status::Skip, "no endpoint in use")]);
    }

    #[tokio::test]
    async fn each_place_is_checked_once() {
        let [one, other] = deserted();
        let (logs, traces, apart) = (to(&one, "v1/logs"), to(&one, "v1/traces"), to(&other, "v1/traces"));
        let cases = [
            (Some(&logs), None, vec![("collector", Status::Fail, "logs wait")]),
            (Some(&logs), Some(&traces), vec![("collector", Status::Fail, "logs and spans wait")]),
            (
                Some(&logs),
                Some(&apart),
                vec![("collector", Status::Fail, "logs wait"), ("collector_traces", Status::Fail, "spans wait")],
            ),
            (
                None,
                Some(&traces),
                vec![("collector", Status::Skip, "only spans"), ("collector_traces", Status::Fail, "spans wait")],
            ),
        ];
        for (logs, traces, wanted) in cases {
            assert_found(&checks(&shipping(logs, traces)).await, &wanted);
        }
    }

    #[tokio::test]
    async fn further_destinations_are_checked_by_name() {
        let [one, other] = deserted();
        let (logs, traces, apart) = (to(&one, "v1/logs"), to(&one, "v1/traces"), to(&other, "v1/traces"));
        let identified =
            Export { client: Some(ClientIdentity { certificate: "/c".into(), key: "/k".into() }), ..traces.clone() };
        let destinations = vec![
            elsewhere("a", Some(&logs), Some(&traces)),
            elsewhere("b", Some(&logs), Some(&apart)),
            elsewhere("c", None, Some(&traces)),
            elsewhere("d", Some(&logs), Some(&identified)),
        ];
        let spool = Some(Spool::at("/spool".into()));
        let checks = checks(&Config { destinations, spool, ..Config::default() }).await;
        assert_found(
            &checks,
            &[
                ("collector", Status::Skip, "only the further destinations"),
                ("collector.a", Status::Fail, "logs and spans wait in the queue and on disk"),
                ("collector.b", Status::Fail, "logs wait"),
                ("collector.b.traces", Status::Fail, "spans wait"),
                ("collector.c.traces", Status::Fail, "spans wait"),
                ("collector.d", Status::Fail, "logs wait"),
                ("collector.d.traces", Status::Fail, "spans wait"),
            ],
        );
    }

    #[test]
    fn a_socket_is_one_place_for_both_signals() {
        let [one, other] = ["unix:///run/a.sock", "unix:///run/b.sock"].map(|url| Export::to(url.parse().unwrap()));
        assert!(reached_alike(&one, &one.clone()));
        assert!(!reached_alike(&one, &other));
    }

    #[tokio::test]
    async fn a_collector_that_says_nothing_is_waited_for_only_so_long() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let export = Export { timeout: Some(Duration::from_millis(50)), ..to(&address, "v1/logs") };
        let check = collector("collector", "logs", &export, "wait").await;
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("no answer within 50ms"), "{}", check.found);
    }

    #[tokio::test]
    async fn a_collector_that_is_down_fails_with_host_and_port() {
        let [address] = deserted();
        let check = collector("collector", "logs", &to(&address, "v1/logs"), "wait").await;
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains(&address), "{}", check.found);
    }
}
