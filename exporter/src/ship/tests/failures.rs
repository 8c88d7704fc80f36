//! What goes over the wire, and what happens when there is no answer at all.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn every_protocol_and_compression_arrives_as_sealed() {
    for (signal, protocol) in ways() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let collector = Collector::start([]).await;
            let mut ship = Ship::of(signal, collector.address, protocol);
            ship.export.compression = compression;
            let shipping = ship.start();
            shipping.push(100);
            assert_eq!(shipping.finish().await.exported, 100);
            let received = collector.received().remove(0);
            assert_eq!(received.request(), request(signal, 100), "{protocol:?} {compression:?}");
            assert_eq!(received.header("x-tenant"), Some("t"));
            let version = env!("CARGO_PKG_VERSION");
            let agent = format!("Namespan/{version} OTel-OTLP-Exporter-Rust/{version}");
            assert!(received.header("user-agent").unwrap().starts_with(&agent));
            if protocol == Protocol::Grpc {
                assert_eq!(received.header("grpc-timeout"), Some("10000m"));
                assert_eq!(received.header("te"), Some("trailers"));
            }
        }
    }
}

#[tokio::test]
async fn a_collector_that_stalls_is_asked_again() {
    for protocol in PROTOCOLS {
        let collector = Collector::start([Answer::Stall]).await;
        let mut ship = Ship::to(collector.address, protocol);
        ship.export.timeout = Some(Duration::from_millis(200));
        let shipping = ship.start();
        shipping.push(2);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 2).await;
        assert_eq!(shipping.finish().await.retries, 1);
    }
}

#[tokio::test]
async fn a_collector_that_disconnects_is_asked_again() {
    for protocol in PROTOCOLS {
        let (counts, received) = ship_one(protocol, [Answer::Disconnect, Answer::Disconnect]).await;
        assert_eq!((counts.exported, received.len()), (4, 3), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_peer_that_talks_something_else_is_asked_again_until_the_batch_expires() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.read_u8().await.ok();
                stream.write_all(b"220 mail.example ESMTP\r\n").await.ok();
            });
        }
    });
    for protocol in PROTOCOLS {
        let mut ship = Ship::to(address, protocol);
        ship.export.retry_max_elapsed = Duration::from_millis(100);
        let shipping = ship.start();
        shipping.push(3);
        let queue = shipping.queue.clone();
        poll("given up", || queue.counters().snapshot().dropped_total() == 3).await;
        let counts = shipping.finish().await;
        assert_eq!(dropped(&counts), [(Reason::RetryExpired, 3)], "{protocol:?}");
        assert!(counts.retries > 1);
    }
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_all_that_is_queued() {
    for protocol in PROTOCOLS {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let shipping = Ship::to(address, protocol).start();
        for records in 1..=10 {
            shipping.push(records);
        }
        poll("tried in vain", || shipping.queue.counters().snapshot().retries > 4).await;
        let collector = Collector::start_at(address, []).await;
        poll("delivered", || shipping.queue.counters().snapshot().exported == 55).await;
        shipping.finish().await;
        let mut records: Vec<_> = collector.received().iter().map(Received::records).collect();
        records.sort_unstable();
        assert_eq!(records, (1..=10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_outage_costs_the_oldest_beyond_the_queue_and_each_is_counted() {
    for (signal, protocol) in ways() {
        let collector = Collector::start([Answer::Stall, Answer::Stall]).await;
        let mut ship = Ship::of(signal, collector.address, protocol);
        ship.queue.max_records = Some(20);
        ship.export.timeout = Some(Duration::from_millis(500));
        let shipping = ship.start();
        shipping.push(1);
        shipping.push(2);
        poll("in flight", || collector.received().len() == 2).await;
        for _ in 0..10 {
            shipping.push(6);
        }
        let (counts, queued) = (shipping.queue.counters().snapshot(), shipping.queue.depth().records);
        assert_eq!((counts.in_flight, queued), (3, 18), "{signal:?} {protocol:?}");
        assert_eq!(counts.accepted, counts.dropped_total() + queued + counts.in_flight);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 21).await;
        let counts = shipping.finish().await;
        assert_eq!((counts.accepted, dropped(&counts)), (63, vec![(Reason::QueueFull, 42)]));
    }
}

#[tokio::test]
async fn a_full_queue_is_said_in_the_words_of_its_signal() {
    let logged = Logged::start();
    for (signal, words) in SIGNALS.into_iter().zip(["the oldest log records are", "the oldest spans are"]) {
        let mut ship = Ship::of(signal, "127.0.0.1:1".parse().unwrap(), Protocol::Grpc);
        ship.queue.max_records = Some(3);
        let queue = Queue::new(signal, ship.queue);
        for _ in 0..9 {
            let batch = Batch::seal(signal, 2, &request(signal, 2).encode(), Protocol::Grpc, Compression::None);
            queue.push(batch.unwrap());
        }
        let lines = logged.lines();
        assert!(lines.last().unwrap().contains(words), "{lines:#?}");
    }
    assert_eq!(logged.lines().len(), SIGNALS.len());
}

#[tokio::test]
async fn the_drain_ends_at_its_deadline_whatever_the_collector_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let absent = listener.local_addr().unwrap();
    drop(listener);
    for protocol in PROTOCOLS {
        let stalling = Collector::start(vec![Answer::Stall; 9]).await;
        let throttling = Collector::start(vec![Answer::http(503).header("retry-after", "30"); 5_000]).await;
        for address in [absent, stalling.address, throttling.address] {
            let mut ship = Ship::to(address, protocol);
            ship.queue.drain = Duration::from_millis(200);
            let shipping = ship.start();
            for _ in 0..5 {
                shipping.push(2);
            }
            let started = Instant::now();
            let counts = shipping.finish().await;
            assert_eq!(dropped(&counts), [(Reason::Shutdown, 10)]);
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
    }
}

#[tokio::test]
async fn closing_the_queue_cuts_the_backoff_short() {
    let collector = Collector::start([Answer::http(503)]).await;
    let ship = Ship::to(collector.address, Protocol::HttpProtobuf);
    let pace = Pace { first: Duration::from_secs(100_000), ..ship.pace };
    let shipping = Ship { export: Export { retry_max_elapsed: Duration::MAX, ..ship.export }, pace, ..ship }.start();
    shipping.push(2);
    poll("refused", || shipping.queue.counters().snapshot().retries == 1).await;
    assert_eq!(shipping.finish().await.exported, 2);
}

#[tokio::test]
async fn our_log_has_one_line_for_an_outage_and_one_for_its_end() {
    let logged = Logged::start();
    let collector = Collector::start(vec![Answer::http(503).body("over\nloaded"); 6]).await;
    let shipping = Ship::to(collector.address, Protocol::HttpProtobuf).start();
    for _ in 0..3 {
        shipping.push(1);
    }
    poll("delivered", || shipping.queue.counters().snapshot().exported == 3).await;
    shipping.finish().await;
    let lines = logged.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("HTTP 503 Service Unavailable: over loaded"), "{lines:#?}");
    assert!(lines[1].contains("INFO") && lines[1].contains("delivered again"), "{lines:#?}");
}

#[tokio::test]
async fn a_probe_says_whether_the_endpoint_can_be_reached_and_sends_no_telemetry() {
    for protocol in PROTOCOLS {
        let collector = Collector::start([Answer::http(405)]).await;
        let mut export = Ship::to(collector.address, protocol).export;
        super::super::probe(&export).await.unwrap();
        assert!(collector.received().iter().all(|received| received.body.is_empty()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        export.endpoint.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        drop(listener);
        let error = super::super::probe(&export).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn a_ca_file_is_checked_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for protocol in PROTOCOLS {
        for (path, expected) in [(empty.clone(), "no PEM certificate"), (dir.path().join("none.pem"), "cannot read")] {
            let mut export = Ship::to("127.0.0.1:1".parse().unwrap(), protocol).export;
            export.endpoint = "https://localhost/".parse().unwrap();
            export.ca_file = Some(path);
            let queue = Arc::new(Queue::new(Signal::Logs, config::Queue::default()));
            let error = spawn_at(&export, queue, PACE).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
