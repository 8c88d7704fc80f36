//! What goes over the wire, and what happens when there is no answer at all.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
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
    let address = serve(|mut stream| async move {
        stream.read_u8().await.ok();
        stream.write_all(b"220 mail.example ESMTP\r\n").await.ok();
    })
    .await;
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
            let batch = Batch::seal(
                super::class_of(signal),
                2,
                &request(signal, 2).encode(),
                Protocol::Grpc,
                Compression::None,
            );
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

/// What a peer that is no good collector does with a connection.
#[derive(Clone, Copy, Debug)]
enum Peer {
    /// Accepts and says nothing.
    Silent,
    /// Resets the connection in the middle of a request.
    Resets,
    /// Closes it there.
    Closes,
    /// Answers one byte at a time, never to the end of the headers.
    Drips,
}

async fn start(peer: Peer) -> SocketAddr {
    serve(move |mut stream| async move {
        stream.read_exact(&mut [0; 64]).await.ok();
        match peer {
            Peer::Silent => std::future::pending().await,
            Peer::Resets => stream.set_zero_linger().unwrap(),
            Peer::Closes => {}
            Peer::Drips => {
                for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x')) {
                    if stream.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    })
    .await
}

/// Does this with each connection, to the end of the test.
async fn serve<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(each(stream));
        }
    });
    address
}

#[tokio::test]
async fn no_peer_holds_records_longer_than_they_may_be_kept() {
    for (peer, protocol) in [Peer::Silent, Peer::Resets, Peer::Closes, Peer::Drips]
        .into_iter()
        .flat_map(|peer| PROTOCOLS.map(|protocol| (peer, protocol)))
    {
        let mut ship = Ship::to(start(peer).await, protocol);
        ship.export.timeout = Some(Duration::from_millis(50));
        ship.export.retry_max_elapsed = Duration::from_millis(200);
        let shipping = ship.start();
        let started = Instant::now();
        for records in 1..=3 {
            shipping.push(records);
        }
        poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 6).await;
        assert!(started.elapsed() < Duration::from_secs(3), "{peer:?} {protocol:?} {:?}", started.elapsed());
        assert!(matches!(shipping.shipper.state(), Delivery::Losing { .. }));
        let counts = shipping.finish().await;
        assert_eq!(dropped(&counts), [(Reason::RetryExpired, 6)], "{peer:?} {protocol:?}");
        assert!(counts.retries >= 3, "{peer:?} {protocol:?}");
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_is_worth_its_status() {
    for (protocol, answer) in
        PROTOCOLS.into_iter().flat_map(|protocol| [(protocol, Answer::Drip), (protocol, Answer::BreakOff)])
    {
        let collector = Collector::start([answer.clone()]).await;
        let mut ship = Ship::to(collector.address, protocol);
        ship.export.timeout = Some(Duration::from_millis(300));
        let shipping = ship.start();
        shipping.push(4);
        let counts = shipping.finish().await;
        // Of gRPC, the status comes last: without it, nobody knows.
        let requests = if protocol == Protocol::Grpc { 2 } else { 1 };
        assert_eq!((counts.exported, collector.received().len()), (4, requests), "{protocol:?} {answer:?}");
    }
}

#[tokio::test]
async fn a_connection_that_the_collector_ends_is_made_anew() {
    for protocol in PROTOCOLS {
        let collector = Collector::start(vec![Answer::GoAway; 4]).await;
        let shipping = Ship::to(collector.address, protocol).start();
        for records in 1..=5 {
            shipping.push(records);
            let sum = u64::from(records * (records + 1) / 2);
            poll("delivered", || shipping.queue.counters().snapshot().exported == sum).await;
        }
        assert_eq!(shipping.finish().await.exported, 15);
        assert!(collector.connections() >= 2, "{protocol:?} {}", collector.connections());
        // One that breaks off may have come in: then it comes again.
        assert!(collector.received().len() >= 5);
    }
}

/// Any of the answers there are; and of how many records it may be a success.
fn any_answer(random: &mut fastrand::Rng, received: &Received) -> (Answer, u64) {
    let records = received.records() as u64;
    let is_grpc = received.header("content-type") == Some("application/grpc");
    match random.u8(..12) {
        0..=3 => (Answer::Success, records),
        4 => (Answer::GoAway, records),
        5 => (Answer::BreakOff, records),
        6 => (Answer::Drip, records),
        7 => (Answer::Stall, 0),
        8 => (Answer::Disconnect, 0),
        9 => {
            let rejected = random.u64(..=records);
            let body = partial_success(received.signal().unwrap(), rejected.try_into().unwrap(), "m");
            let answer = if is_grpc { Answer::grpc(0).body(framed(&body)) } else { Answer::http(200).body(body) };
            (answer, records - rejected)
        }
        _ if is_grpc => (Answer::grpc(random.i32(1..=16)).header("grpc-message", "size: larger than"), 0),
        _ => {
            let statuses = [307, 400, 404, 407, 413, 415, 429, 500, 502, 503, 504];
            (Answer::http(statuses[random.usize(..statuses.len())]).header("retry-after", "0"), 0)
        }
    }
}

#[tokio::test]
async fn whatever_happens_every_record_is_settled_once() {
    for (seed, (signal, protocol)) in ways().enumerate() {
        let random = Mutex::new(fastrand::Rng::with_seed(seed as u64));
        let taken = Arc::new(AtomicU64::new(0));
        let sum = Arc::clone(&taken);
        let collector = Collector::start_with(move |received| {
            let (answer, taken) = any_answer(&mut random.lock().unwrap(), received);
            sum.fetch_add(taken, Relaxed);
            answer
        })
        .await;
        let mut ship = Ship::of(signal, collector.address, protocol);
        ship.export.timeout = Some(Duration::from_millis(30));
        ship.export.compression = Compression::Zstd;
        ship.pace.refusal = Duration::ZERO;
        let shipping = ship.start();
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let mut accepted = 0;
        for step in 0..60 {
            let records = random.u32(1..40);
            accepted += u64::from(records);
            shipping.push(records);
            if step % 10 == 9 {
                let protocol = PROTOCOLS[random.usize(..PROTOCOLS.len())];
                let export = Ship::of(signal, collector.address, protocol).export;
                shipping.replace(&Export { timeout: Some(Duration::from_millis(30)), ..export });
                poll("half of it is settled", || shipping.queue.depth().batches < 5).await;
            }
        }
        let counts = shipping.finish().await;
        let case = format!("{signal:?} {protocol:?} {counts:?}");
        assert_eq!(counts.accepted, accepted, "{case}");
        assert!(counts.exported > 0 && counts.exported <= taken.load(Relaxed), "{case}");
        let reasons: Vec<_> = counts.dropped.keys().map(ToString::to_string).collect();
        assert!(!reasons.iter().any(|reason| reason == "shutdown" || reason == "retry_expired"), "{case}");
    }
}

#[tokio::test]
async fn a_unix_socket_takes_each_signal_by_each_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a socket");
    let absent: url::Url = format!("unix://{}/none", dir.path().display()).parse().unwrap();
    let collector = Collector::start_unix(&path);
    for (signal, protocol) in ways() {
        let mut ship = Ship::of(signal, "127.0.0.1:1".parse().unwrap(), protocol);
        ship.proxies = Proxies::of(Matcher::builder().all("http://127.0.0.1:1").build());
        ship.export.endpoint = absent.clone();
        let error = super::super::probe(&ship.export).await.unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        ship.export.endpoint = format!("unix:{}", path.display()).parse().unwrap();
        super::super::probe(&ship.export).await.unwrap();
        let shipping = ship.start();
        shipping.push(3);
        assert_eq!(shipping.finish().await.exported, 3, "{signal:?} {protocol:?}");
        let received = collector.received().pop().unwrap();
        assert_eq!((received.signal(), received.records()), (Some(signal), 3));
    }
    for endpoint in ["unix:relative", "unix://host/run/otel.sock", "unix:"] {
        for protocol in PROTOCOLS {
            let mut export = Ship::to(ANYWHERE, protocol).export;
            export.endpoint = endpoint.parse().unwrap();
            let error = super::super::probe(&export).await.unwrap_err().to_string();
            assert!(error.contains("absolute path"), "{endpoint} {error}");
        }
    }
}

const ANYWHERE: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
