//! Each row of the specification's tables, one answer at a time.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::queue;

/// `grpc-status-details-bin` with a `RetryInfo` in it.
fn retry_info(code: Code, delay: Option<Duration>) -> String {
    STANDARD_NO_PAD.encode(Status::with_error_details(code, "later", ErrorDetails::with_retry_info(delay)).details())
}

#[tokio::test]
async fn transient_grpc_codes_are_sent_again() {
    for code in
        [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::Unavailable, Code::DataLoss]
    {
        let (counts, received) = ship_one(Protocol::Grpc, [Answer::grpc(code.into()), Answer::grpc(code.into())]).await;
        assert_eq!((counts.exported, counts.retries, received.len()), (4, 2, 3), "{code:?}");
        assert_eq!(received[0].body, received[2].body);
    }
}

#[tokio::test]
async fn permanent_grpc_codes_are_dropped_at_once() {
    for code in [
        Code::Unknown,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::FailedPrecondition,
        Code::Internal,
        Code::Unauthenticated,
    ] {
        let (counts, received) = ship_one(Protocol::Grpc, [Answer::grpc(code.into())]).await;
        let reason = Reason::Permanent(queue::Answer::Grpc(code.into()));
        assert_eq!((dropped(&counts), received.len()), (vec![(reason, 4)], 1), "{code:?}");
    }
}

#[tokio::test]
async fn transient_http_codes_are_sent_again() {
    for protocol in [Protocol::HttpProtobuf, Protocol::HttpJson] {
        for status in [429, 502, 503, 504] {
            let (counts, received) = ship_one(protocol, [Answer::http(status), Answer::http(status)]).await;
            assert_eq!((counts.exported, counts.retries, received.len()), (4, 2, 3), "{status}");
            assert_eq!(received[0].body, received[2].body);
        }
    }
}

#[tokio::test]
async fn other_http_codes_are_dropped_at_once() {
    for status in [301, 307, 401, 403, 405, 408, 415, 422, 500, 501, 505] {
        let answer = Answer::http(status).header("location", "/elsewhere").body("no\nthanks");
        let (counts, received) = ship_one(Protocol::HttpProtobuf, [answer]).await;
        let reason = Reason::Permanent(queue::Answer::Http(status));
        assert_eq!((dropped(&counts), received.len()), (vec![(reason, 4)], 1), "{status}");
    }
}

#[tokio::test]
async fn an_http_status_without_a_grpc_one_is_mapped() {
    for status in [429, 502, 503, 504] {
        let (counts, _) = ship_one(Protocol::Grpc, [Answer::http(status)]).await;
        assert_eq!((counts.exported, counts.retries), (4, 1), "{status}");
    }
    for (status, code) in [(400, 13), (401, 16), (403, 7), (500, 2), (200, 2)] {
        let (counts, _) = ship_one(Protocol::Grpc, [Answer::http(status).body("<html>")]).await;
        assert_eq!(dropped(&counts), [(Reason::Permanent(queue::Answer::Grpc(code)), 4)], "{status}");
    }
}

#[tokio::test]
async fn resource_exhausted_is_sent_again_only_with_retry_info() {
    let delay = Duration::from_millis(80);
    for code in [Code::ResourceExhausted, Code::Unavailable] {
        let answer = Answer::grpc(code.into()).header("grpc-status-details-bin", retry_info(code, Some(delay)));
        let (counts, received) = ship_one(Protocol::Grpc, [answer]).await;
        assert_eq!((counts.exported, received.len()), (4, 2));
        assert!(received[1].at - received[0].at >= delay, "{:?}", received[1].at - received[0].at);
    }
    let quota = Answer::grpc(Code::ResourceExhausted.into());
    let (counts, received) = ship_one(Protocol::Grpc, [quota]).await;
    assert_eq!((dropped(&counts), received.len()), (vec![(Reason::Permanent(queue::Answer::Grpc(8)), 4)], 1));
    let too_large = || {
        let message = "grpc: received message larger than max (5000000 vs. 4194304)";
        Answer::grpc(Code::ResourceExhausted.into()).header("grpc-message", message)
    };
    let (counts, received) = ship_one(Protocol::Grpc, [too_large(), too_large(), too_large()]).await;
    assert_eq!((dropped(&counts), received.len()), (vec![(Reason::TooLarge, 4)], 3));
}

#[tokio::test]
async fn retry_after_is_waited_for_by_all_batches() {
    let collector = Collector::start([Answer::http(503).header("retry-after", "1")]).await;
    let shipping = Ship::to(collector.address, Protocol::HttpProtobuf).start();
    shipping.push(1);
    poll("refused", || shipping.queue.counters().snapshot().retries == 1).await;
    shipping.push(2);
    shipping.push(3);
    assert_eq!(shipping.finish().await.exported, 6);
    let received = collector.received();
    assert_eq!(received.len(), 4);
    assert!(received[1].at - received[0].at >= Duration::from_millis(990));
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    let (counts, received) = ship_one(Protocol::HttpJson, [Answer::http(429).header("retry-after", date)]).await;
    assert_eq!((counts.exported, received.len()), (4, 2));
    // Dates have whole seconds: of the two, one is left at least.
    assert!(received[1].at - received[0].at >= Duration::from_millis(800));
}

#[tokio::test]
async fn a_delay_beyond_the_age_limit_gives_up_at_once() {
    let (counts, received) = ship_one(Protocol::HttpJson, [Answer::http(429).header("retry-after", "301")]).await;
    assert_eq!((dropped(&counts), received.len()), (vec![(Reason::RetryExpired, 4)], 1));
}

#[tokio::test]
async fn a_delay_beyond_the_age_limit_holds_back_the_other_batches() {
    let collector = Collector::start([Answer::http(429).header("retry-after", "301")]).await;
    let shipping = Ship::to(collector.address, Protocol::HttpProtobuf).start();
    shipping.push(4);
    poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 4).await;
    shipping.push(2);
    // It is not even tried before the drain, which is shorter than the delay.
    let counts = shipping.finish().await;
    assert_eq!(dropped(&counts), [(Reason::RetryExpired, 4), (Reason::Shutdown, 2)]);
    assert_eq!(collector.received().len(), 1);
}

#[tokio::test]
async fn partial_success_is_counted_and_never_sent_again() {
    for (signal, member) in SIGNALS.into_iter().zip(["rejectedLogRecords", "rejectedSpans"]) {
        let protobuf = partial_success(signal, 3, "m");
        let json = |count: &str| {
            let body = format!(r#"{{"partialSuccess":{{"{member}":{count},"errorMessage":"m"}}}}"#);
            Answer::http(200).header("content-type", "application/json").body(body)
        };
        for (protocol, answer) in [
            (Protocol::Grpc, Answer::grpc(0).body(framed(&protobuf))),
            (Protocol::HttpProtobuf, Answer::http(200).body(protobuf)),
            (Protocol::HttpJson, json("\"3\"")),
            (Protocol::HttpJson, json("3")),
        ] {
            let (counts, received) = ship_one_of(signal, protocol, [answer]).await;
            let seen = (counts.exported, counts.rejected, received.len());
            assert_eq!(seen, (1, 3, 1), "{signal:?} {protocol:?}");
        }
    }
}

#[tokio::test]
async fn partial_success_is_no_more_than_the_batch() {
    for (rejected, exported) in [(0, 4), (-5, 4), (99, 0), (i64::MAX, 0)] {
        let answer = Answer::grpc(0).body(framed(&partial_success(Signal::Logs, rejected, "m")));
        let (counts, _) = ship_one(Protocol::Grpc, [answer]).await;
        assert_eq!((counts.exported, counts.rejected), (exported, 4 - exported), "{rejected}");
    }
}

#[tokio::test]
async fn any_2xx_is_success_with_or_without_a_body() {
    for status in [200, 202, 204] {
        let (counts, received) = ship_one(Protocol::HttpProtobuf, [Answer::http(status)]).await;
        assert_eq!((counts.exported, received.len()), (4, 1), "{status}");
    }
    for body in [&b"\xff\xff garbage"[..], b"<html>", &vec![b'x'; 1 << 20]] {
        for protocol in [Protocol::HttpProtobuf, Protocol::HttpJson] {
            let (counts, received) = ship_one(protocol, [Answer::http(200).body(body)]).await;
            assert_eq!((counts.exported, received.len()), (4, 1));
        }
        let (counts, _) = ship_one(Protocol::Grpc, [Answer::grpc(0).body(body)]).await;
        assert_eq!(counts.exported, 4);
    }
}

#[tokio::test]
async fn an_oversized_batch_is_sent_in_halves() {
    let too_large = [
        (Protocol::HttpProtobuf, Answer::http(413)),
        (Protocol::HttpJson, Answer::http(413)),
        (Protocol::Grpc, Answer::grpc(8).header("grpc-message", "received message larger than max")),
        (Protocol::Grpc, Answer::grpc(11).header("grpc-message", "decoded message length too large")),
    ];
    for (signal, (protocol, answer)) in
        SIGNALS.into_iter().flat_map(|signal| too_large.clone().map(|row| (signal, row)))
    {
        let (counts, received) = ship_one_of(signal, protocol, [answer.clone()]).await;
        assert_eq!(counts.exported, 4);
        assert_eq!(received.iter().map(Received::records).collect::<Vec<_>>(), [4, 2, 2]);

        // One half passes, after a retry; the other is refused again.
        let transient = if protocol == Protocol::Grpc { Answer::grpc(14) } else { Answer::http(503) };
        let (counts, received) =
            ship_one_of(signal, protocol, [answer.clone(), transient, Answer::Success, answer]).await;
        assert_eq!((counts.exported, dropped(&counts)), (2, vec![(Reason::TooLarge, 2)]));
        assert_eq!(received.iter().map(Received::records).collect::<Vec<_>>(), [4, 2, 2, 2]);
    }
}

#[tokio::test]
async fn one_record_that_is_too_large_is_dropped() {
    let collector = Collector::start([Answer::http(413)]).await;
    let shipping = Ship::to(collector.address, Protocol::HttpJson).start();
    shipping.push(1);
    assert_eq!(dropped(&shipping.finish().await), [(Reason::TooLarge, 1)]);
    assert_eq!(collector.received().len(), 1);
}

#[tokio::test]
async fn an_endpoint_without_the_signal_is_left_alone_for_a_while() {
    let unknown = Answer::grpc(12).header("grpc-message", "unknown service");
    for (signal, protocol, answer) in [
        (Signal::Logs, Protocol::Grpc, unknown.clone()),
        (Signal::Logs, Protocol::HttpProtobuf, Answer::http(404)),
        (Signal::Traces, Protocol::Grpc, unknown),
        (Signal::Traces, Protocol::HttpJson, Answer::http(404)),
    ] {
        let collector = Collector::start([answer]).await;
        let ship = Ship::of(signal, collector.address, protocol);
        // Long enough for a slow machine to look in between.
        let pace = Pace { refusal: Duration::from_secs(2), ..ship.pace };
        let shipping = Ship { pace, ..ship }.start();
        shipping.push(1);
        let lost = || shipping.queue.counters().snapshot().dropped_total();
        poll("refused", || lost() == 1).await;
        shipping.push(2);
        poll("not even sent", || lost() == 3).await;
        assert_eq!(collector.received().len(), 1);
        let mut pushed = 3;
        poll("asked again", || {
            shipping.push(1);
            pushed += 1;
            shipping.queue.counters().snapshot().exported > 0
        })
        .await;
        let counts = shipping.finish().await;
        assert_eq!(dropped(&counts), [(Reason::Unimplemented, pushed - counts.exported)]);
    }
}

#[tokio::test]
async fn an_endpoint_without_one_signal_is_told_of_once_and_gets_the_other() {
    for (lacking, other, expected) in [
        (Signal::Logs, Signal::Traces, ["no logs", "log records are lost", "spans go on", "OTEL_LOGS_EXPORTER=none"]),
        (
            Signal::Traces,
            Signal::Logs,
            ["no traces", "spans are lost", "log records go on", "OTEL_TRACES_EXPORTER=none"],
        ),
    ] {
        for protocol in PROTOCOLS {
            let logged = Logged::start();
            let collector = Collector::start_without(lacking).await;
            // Asked again for every batch.
            let pace = Pace { refusal: Duration::ZERO, ..PACE };
            let [refused, taken] =
                [lacking, other].map(|signal| Ship { pace, ..Ship::of(signal, collector.address, protocol) }.start());
            for records in 1..=10 {
                refused.push(records);
                taken.push(records);
            }
            assert_eq!(dropped(&refused.finish().await), [(Reason::Unimplemented, 55)], "{lacking:?} {protocol:?}");
            assert_eq!(taken.finish().await.exported, 55);
            let lines = logged.lines();
            let [line] = &lines[..] else { panic!("{lines:#?}") };
            assert!(line.contains("ERROR") && expected.iter().all(|words| line.contains(words)), "{line}");
            let came = |signal| collector.received().iter().filter(|one| one.signal() == Some(signal)).count();
            assert_eq!((came(lacking), came(other)), (10, 10));
        }
    }
}

/// Of each request: its compression and its records.
fn sent(collector: &Collector) -> Vec<(&'static str, usize)> {
    let encoding = |received: &Received| match received.header("grpc-encoding").or(received.header("content-encoding"))
    {
        Some("zstd") => "zstd",
        Some("gzip") => "gzip",
        Some(other) => panic!("{other}"),
        None => "",
    };
    collector.received().iter().map(|received| (encoding(received), received.records())).collect()
}

#[tokio::test]
async fn where_a_compression_is_refused_the_next_weaker_is_used() {
    let go = "grpc: Decompressor is not installed for grpc-encoding \"zstd\"";
    for (protocol, answer) in [
        (Protocol::Grpc, Answer::grpc(12).header("grpc-message", go)),
        (Protocol::Grpc, Answer::grpc(12).header("grpc-accept-encoding", "identity")),
        (Protocol::HttpProtobuf, Answer::http(415)),
        (Protocol::HttpJson, Answer::http(400)),
    ] {
        for (refusals, expected) in
            [(1, &[("zstd", 4), ("gzip", 4), ("gzip", 3)][..]), (2, &[("zstd", 4), ("gzip", 4), ("", 4), ("", 3)])]
        {
            let collector = Collector::start(vec![answer.clone(); refusals]).await;
            let mut ship = Ship::to(collector.address, protocol);
            ship.export.compression = Compression::Zstd;
            let shipping = ship.start();
            assert_eq!(shipping.shipper.form(), (protocol, Compression::Zstd));
            shipping.push(4);
            poll("delivered", || shipping.queue.counters().snapshot().exported == 4).await;
            let known = if refusals == 1 { Compression::Gzip } else { Compression::None };
            assert_eq!(shipping.shipper.form(), (protocol, known));
            shipping.push(3);
            assert_eq!(shipping.finish().await.exported, 7);
            assert_eq!(sent(&collector), expected, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn a_400_for_a_compression_that_worked_is_about_the_records() {
    let collector = Collector::start([Answer::Success, Answer::http(400), Answer::http(400)]).await;
    let mut ship = Ship::to(collector.address, Protocol::HttpProtobuf);
    ship.export.compression = Compression::Gzip;
    let shipping = ship.start();
    shipping.push(1);
    poll("delivered", || shipping.queue.counters().snapshot().exported == 1).await;
    shipping.push(2);
    let counts = shipping.finish().await;
    assert_eq!((counts.exported, dropped(&counts)), (2, vec![(Reason::Permanent(queue::Answer::Http(400)), 1)]));
    assert_eq!(sent(&collector), [("gzip", 1), ("gzip", 2), ("gzip", 1), ("gzip", 1)]);
}

#[tokio::test]
async fn a_400_for_each_compression_is_about_the_records() {
    let collector = Collector::start(vec![Answer::http(400); 4]).await;
    let mut ship = Ship::to(collector.address, Protocol::HttpProtobuf);
    ship.export.compression = Compression::Zstd;
    let shipping = ship.start();
    shipping.push(2);
    poll("settled", || shipping.queue.counters().snapshot().exported == 1).await;
    shipping.push(3);
    let counts = shipping.finish().await;
    assert_eq!((counts.exported, dropped(&counts)), (4, vec![(Reason::Permanent(queue::Answer::Http(400)), 1)]));
    // The parts go as the whole went last; for the next batch, the compression is as good as before.
    assert_eq!(sent(&collector), [("zstd", 2), ("gzip", 2), ("", 2), ("", 1), ("", 1), ("zstd", 3)]);
}

/// The numbers of the records that came in, refused requests too.
fn numbers(received: &Received) -> Vec<u64> {
    match received.request() {
        Sent::Logs(request) => {
            let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
            scopes.flat_map(|scope| &scope.log_records).map(|record| record.time_unix_nano).collect()
        }
        Sent::Traces(request) => {
            let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            scopes.flat_map(|scope| &scope.spans).map(|span| span.start_time_unix_nano).collect()
        }
    }
}

#[tokio::test]
async fn of_a_refused_batch_only_the_bad_records_are_lost() {
    for (signal, protocol) in ways() {
        let refusal = match protocol {
            Protocol::Grpc => Answer::grpc(3).header("grpc-message", "bad record"),
            Protocol::HttpProtobuf | Protocol::HttpJson => Answer::http(400).body("bad record"),
        };
        // Records, the bad ones, how many are lost, requests.
        for (records, bad, lost, requests) in [
            (512, &[1][..], 1, 19),
            (512, &[512], 1, 19),
            (512, &[200], 1, 19),
            (512, &[100, 300], 2, 35),
            (7, &[3], 1, 7),
            (2, &[1, 2], 2, 3),
            (1, &[1], 1, 1),
            // For more there are not enough requests: the last parts are lost as they are.
            (512, &[60, 180, 300, 420], 28, 41),
        ] {
            let taken = Arc::new(Mutex::new(Vec::new()));
            let (recorded, wrong, refusal) = (Arc::clone(&taken), bad.to_vec(), refusal.clone());
            let collector = Collector::start_with(move |received| {
                let numbers = numbers(received);
                if numbers.iter().any(|number| wrong.contains(number)) {
                    return refusal.clone();
                }
                recorded.lock().unwrap().extend(numbers);
                Answer::Success
            })
            .await;
            let shipping = Ship::of(signal, collector.address, protocol).start();
            shipping.push(records);
            let counts = shipping.finish().await;
            let case = format!("{signal:?} {protocol:?} {records} {bad:?}");
            let reason = Reason::Permanent(match protocol {
                Protocol::Grpc => queue::Answer::Grpc(3),
                Protocol::HttpProtobuf | Protocol::HttpJson => queue::Answer::Http(400),
            });
            let settled = (counts.exported, dropped(&counts), collector.received().len());
            assert_eq!(settled, (u64::from(records) - lost, vec![(reason, lost)], requests), "{case}");
            let mut taken = taken.lock().unwrap().clone();
            taken.sort_unstable();
            let before = taken.len();
            taken.dedup();
            assert_eq!((taken.len(), taken.len() as u64), (before, counts.exported), "{case}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_refuses_every_record_is_soon_asked_no_more_for_parts() {
    let logged = Logged::start();
    let refusing = Arc::new(AtomicBool::new(true));
    let refuses = Arc::clone(&refusing);
    let collector = Collector::start_with(move |_| {
        if refuses.load(Relaxed) { Answer::http(400).body("no: never") } else { Answer::Success }
    })
    .await;
    let shipping = Ship::to(collector.address, Protocol::HttpProtobuf).start();
    let mut lost = 0;
    for _ in 0..50 {
        lost += 64;
        shipping.push(64);
        poll("lost", || shipping.queue.counters().snapshot().dropped_total() == lost).await;
    }
    // Three were looked into, with 28 requests each at most.
    let requests = collector.received().len();
    assert!((50..=50 + 3 * 28).contains(&requests), "{requests}");
    assert!(matches!(shipping.shipper.state(), Delivery::Losing { reason, .. } if reason.contains("no: never")));
    refusing.store(false, Relaxed);
    shipping.push(5);
    let counts = shipping.finish().await;
    assert_eq!((counts.exported, dropped(&counts)), (5, vec![(Reason::Permanent(queue::Answer::Http(400)), lost)]));
    let lines = logged.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_final() {
    let too_much = vec![0; (4 << 20) + 1];
    let (counts, received) = ship_one(Protocol::HttpProtobuf, [Answer::http(503).body(too_much.clone())]).await;
    assert_eq!((dropped(&counts), received.len()), (vec![(Reason::Permanent(queue::Answer::Http(503)), 4)], 1));
    let (counts, received) = ship_one(Protocol::Grpc, [Answer::grpc(0).body(too_much)]).await;
    assert_eq!((dropped(&counts), received.len()), (vec![(Reason::Permanent(queue::Answer::Grpc(8)), 4)], 1));
}

#[tokio::test]
async fn a_retry_after_that_says_nothing_is_backed_off_from() {
    let past = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3600));
    for value in [past.as_str(), "0", "soon", "-5", "1.5", "Mon, 99 Nov 2026 00:00:00 GMT"] {
        let answer = Answer::http(429).header("retry-after", value);
        let (counts, received) = ship_one(Protocol::HttpProtobuf, [answer]).await;
        assert_eq!((counts.exported, counts.retries, received.len()), (4, 1, 2), "{value}");
    }
    // Not OTLP's: what gRPC libraries tell each other.
    let answer = Answer::grpc(14).header("grpc-retry-pushback-ms", "600000");
    let (counts, received) = ship_one(Protocol::Grpc, [answer]).await;
    assert_eq!((counts.exported, received.len()), (4, 2));
}

#[tokio::test]
async fn a_redirect_leaks_neither_headers_nor_records() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Collector::start([]).await;
        let answer = Answer::http(status).header("location", format!("http://{}/v1/logs", elsewhere.address));
        for protocol in PROTOCOLS {
            let (counts, received) = ship_one(protocol, [answer.clone()]).await;
            assert_eq!((counts.exported, counts.dropped_total(), received.len()), (0, 4, 1), "{status}");
        }
        assert_eq!(elsewhere.received().len(), 0);
    }
}

#[tokio::test]
async fn a_proxy_that_asks_for_credentials_is_not_the_collector() {
    let (counts, received) = ship_one(Protocol::HttpProtobuf, [Answer::http(407)]).await;
    assert_eq!((counts.exported, counts.retries, received.len()), (4, 1, 2));
}

#[tokio::test]
async fn a_request_beyond_our_own_limit_is_sent_in_halves() {
    let Sent::Logs(mut request) = request(Signal::Logs, 2) else { panic!() };
    for record in &mut request.resource_logs[0].scope_logs[0].log_records {
        record.event_name = "x".repeat(33 << 20);
    }
    let collector = Collector::start([]).await;
    let shipping = Ship::to(collector.address, Protocol::HttpProtobuf).start();
    let protobuf = Sent::Logs(request).encode();
    let mut batch = Batch::seal(Class::Exec, 2, &protobuf, Protocol::HttpProtobuf, Compression::Zstd).unwrap();
    // Small in the queue, and large as this collector takes it.
    assert!(batch.body().len() < 1 << 20);
    shipping.queue.push(batch.clone());
    poll("delivered", || shipping.queue.counters().snapshot().exported == 2).await;
    assert_eq!(sent(&collector), [("", 1), ("", 1)]);
    batch = batch.convert(Protocol::HttpProtobuf, Compression::None).unwrap();
    assert!(batch.body().len() > 64 << 20);
    assert_eq!(shipping.finish().await.exported, 2);
}
