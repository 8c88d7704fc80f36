//! Each row of the specification's tables, one answer at a time.

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
        Code::InvalidArgument,
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
    for status in [301, 307, 400, 401, 403, 405, 408, 415, 422, 500, 501, 505] {
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

#[tokio::test]
async fn a_refused_compression_is_switched_off() {
    let go = "grpc: Decompressor is not installed for grpc-encoding \"zstd\"";
    for (protocol, answer) in [
        (Protocol::Grpc, Answer::grpc(12).header("grpc-message", go)),
        (Protocol::Grpc, Answer::grpc(12).header("grpc-accept-encoding", "identity, gzip")),
        (Protocol::HttpProtobuf, Answer::http(415)),
        (Protocol::HttpJson, Answer::http(400)),
    ] {
        let collector = Collector::start([answer]).await;
        let mut ship = Ship::to(collector.address, protocol);
        ship.export.compression = Compression::Zstd;
        let shipping = ship.start();
        shipping.push(4);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 4).await;
        shipping.push(3);
        assert_eq!(shipping.finish().await.exported, 7);
        let received = collector.received();
        let compressed: Vec<_> =
            received.iter().map(|r| r.headers.keys().any(|k| k.as_str().ends_with("-encoding"))).collect();
        assert_eq!(compressed, [true, false, false]);
        assert_eq!(received.iter().map(Received::records).collect::<Vec<_>>(), [4, 4, 3]);
    }
}

#[tokio::test]
async fn a_400_for_a_compression_that_worked_is_permanent() {
    let collector = Collector::start([Answer::Success, Answer::http(400)]).await;
    let mut ship = Ship::to(collector.address, Protocol::HttpProtobuf);
    ship.export.compression = Compression::Gzip;
    let shipping = ship.start();
    shipping.push(1);
    poll("delivered", || shipping.queue.counters().snapshot().exported == 1).await;
    shipping.push(2);
    let counts = shipping.finish().await;
    assert_eq!(dropped(&counts), [(Reason::Permanent(queue::Answer::Http(400)), 2)]);
    assert_eq!(collector.received().len(), 2);
}

#[tokio::test]
async fn a_400_for_both_forms_is_permanent() {
    let collector = Collector::start([Answer::http(400), Answer::http(400)]).await;
    let mut ship = Ship::to(collector.address, Protocol::HttpProtobuf);
    ship.export.compression = Compression::Gzip;
    let shipping = ship.start();
    shipping.push(2);
    poll("refused", || shipping.queue.counters().snapshot().dropped_total() == 2).await;
    shipping.push(3);
    assert_eq!(shipping.finish().await.exported, 3);
    let encodings: Vec<_> = collector.received().iter().map(|r| r.header("content-encoding").is_some()).collect();
    assert_eq!(encodings, [true, false, true]);
}
