//! A queue with a spool and its thread: what a collector did not take goes to the next run, whatever its settings are.

use std::path::Path;

use super::*;

/// Of a run, with what a test may want to set.
struct Spooled<'a> {
    directory: &'a Path,
    drain: Duration,
}

impl Spooled<'_> {
    fn start(&self, mut ship: Ship) -> Shipping {
        ship.queue.drain = self.drain;
        let settings = config::Spool::at(self.directory.join("spool"));
        let queue = Arc::new(Queue::open(ship.signal, "main", ship.queue, Some(&settings)).unwrap());
        let shipper = Idle::at(&ship.export, queue.clone(), ship.pace, ship.proxies.clone()).unwrap().start();
        Shipping { export: ship.export, queue, shipper }
    }
}

/// Everything is settled, or on disk.
async fn end(mut shipping: Shipping) -> Snapshot {
    shipping.queue.close();
    shipping.shipper.ended().await;
    shipping.queue.finished().await;
    let counts = shipping.queue.counters().snapshot();
    let spool = counts.spool.unwrap();
    let settled = counts.exported + counts.rejected + counts.dropped_total();
    assert_eq!(counts.accepted + spool.recovered, settled + spool.records, "{counts:?}");
    assert_eq!((shipping.queue.depth().records, counts.in_flight), (0, 0));
    counts
}

fn absent() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_outage_over_two_runs_costs_nothing_by_any_protocol_and_compression() {
    let forms = PROTOCOLS.into_iter().zip([Compression::Gzip, Compression::Zstd, Compression::None]);
    let forms: Vec<_> = forms.collect();
    for signal in SIGNALS {
        for (index, &(protocol, compression)) in forms.iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let mut spooled = Spooled { directory: directory.path(), drain: Duration::from_millis(50) };
            for run in [1, 2] {
                let mut ship = Ship::of(signal, absent(), protocol);
                ship.export.compression = compression;
                // It is kept all the same.
                ship.export.retry_max_elapsed = Duration::ZERO;
                let shipping = spooled.start(ship);
                for records in [run, 10 * run] {
                    shipping.push(records);
                }
                poll("failing", || shipping.queue.counters().snapshot().retries > 0).await;
                let counts = end(shipping).await;
                assert_eq!(counts.spool.unwrap().records, if run == 1 { 11 } else { 33 });
                assert_eq!(dropped(&counts), []);
            }
            // Another collector, by other settings.
            let (other, compression) = forms[(index + 1) % forms.len()];
            let collector = Collector::start([]).await;
            let mut ship = Ship::of(signal, collector.address, other);
            ship.export.compression = compression;
            spooled.drain = Duration::from_secs(20);
            let shipping = spooled.start(ship);
            shipping.push(3);
            let counts = end(shipping).await;
            assert_eq!((counts.exported, counts.spool.unwrap().recovered), (36, 33), "{signal:?} {protocol:?}");
            // Two are on their way at a time, so that neighbours may swap.
            let mut got: Vec<_> = collector.received().iter().map(Received::records).collect();
            got.sort_unstable();
            assert_eq!(got, [1, 2, 3, 10, 20]);
            for received in collector.received() {
                let records = u32::try_from(received.records()).unwrap();
                assert_eq!(received.request(), request(signal, records));
            }
        }
    }
}

#[tokio::test]
async fn a_collector_that_does_not_know_the_signal_yet_is_waited_for() {
    for (protocol, answer) in [(Protocol::Grpc, Answer::grpc(12)), (Protocol::HttpProtobuf, Answer::http(404))] {
        let directory = tempfile::tempdir().unwrap();
        let spooled = Spooled { directory: directory.path(), drain: Duration::from_secs(20) };
        let collector = Collector::start([answer.clone(), answer]).await;
        let ship = Ship::to(collector.address, protocol);
        let pace = Pace { refusal: Duration::from_millis(20), ..ship.pace };
        let shipping = spooled.start(Ship { pace, ..ship });
        for records in [1, 2, 4] {
            shipping.push(records);
        }
        poll("taken", || shipping.queue.counters().snapshot().exported == 7).await;
        assert_eq!(dropped(&end(shipping).await), [], "{protocol:?}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_not_sent_again() {
    let directory = tempfile::tempdir().unwrap();
    let spooled = Spooled { directory: directory.path(), drain: Duration::from_millis(100) };
    let collector =
        Collector::start([Answer::http(200), Answer::http(403), Answer::http(503).header("retry-after", "60")]).await;
    let shipping = spooled.start(Ship::to(collector.address, Protocol::HttpProtobuf));
    for (records, received) in [(1, 1), (2, 2), (4, 3)] {
        shipping.push(records);
        poll("sent", || collector.received().len() == received).await;
    }
    let counts = end(shipping).await;
    assert_eq!((counts.exported, counts.dropped_total(), counts.spool.unwrap().records), (1, 2, 4));

    let collector = Collector::start([]).await;
    let spooled = Spooled { drain: Duration::from_secs(20), ..spooled };
    let counts = end(spooled.start(Ship::to(collector.address, Protocol::HttpProtobuf))).await;
    assert_eq!((counts.exported, collector.received().len()), (4, 1));
}

#[tokio::test]
async fn what_fails_for_too_long_is_given_up_by_its_age() {
    let directory = tempfile::tempdir().unwrap();
    let max_age = Duration::from_millis(100);
    let settings = config::Spool { max_age, ..config::Spool::at(directory.path().join("spool")) };
    let ship = Ship::to(absent(), Protocol::HttpProtobuf);
    let queue = Arc::new(Queue::open(ship.signal, "main", ship.queue, Some(&settings)).unwrap());
    let shipper = Idle::at(&ship.export, queue.clone(), ship.pace, ship.proxies.clone()).unwrap().start();
    let shipping = Shipping { export: ship.export, queue, shipper };
    shipping.push(4);
    poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 4).await;
    assert_eq!(dropped(&end(shipping).await), [(Reason::SpoolExpired, 4)]);
}

#[tokio::test]
async fn a_backlog_larger_than_memory_is_delivered_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let spooled = Spooled { directory: directory.path(), drain: Duration::from_secs(30) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut ship = Ship::to(address, Protocol::Grpc);
    ship.queue.max_bytes = 4000;
    let shipping = spooled.start(ship);
    let mut pushed = 0;
    for records in 1..=60 {
        let before = shipping.queue.depth().spool_bytes;
        shipping.push(records);
        pushed += u64::from(records);
        // No faster than the disk.
        poll("on disk", || shipping.queue.depth().spool_bytes > before).await;
    }
    let depth = shipping.queue.depth();
    assert!(depth.bytes <= 4000 && depth.spooled > 0, "{depth:?}");
    let collector = Collector::start_at(address, []).await;
    let counts = end(shipping).await;
    assert_eq!((counts.exported, dropped(&counts)), (pushed, Vec::new()));
    assert_eq!(collector.received().len(), 60);
}

#[tokio::test]
async fn a_queue_that_nobody_ends_lets_its_directory_go() {
    let directory = tempfile::tempdir().unwrap();
    let settings = config::Spool::at(directory.path().to_owned());
    let open = || Queue::open(Signal::Logs, "main", config::Queue::default(), Some(&settings));
    let queue = open().unwrap();
    queue.push(Batch::seal(Class::Exec, 7, b"x", Protocol::Grpc, Compression::None).unwrap());
    assert!(matches!(open(), Err(crate::queue::SpoolError::InUse { .. })));
    drop(queue);
    let mut again = None;
    poll("unlocked", || {
        again = open().ok();
        again.is_some()
    })
    .await;
    assert_eq!(again.unwrap().counters().snapshot().spool.unwrap().recovered, 7);
}
