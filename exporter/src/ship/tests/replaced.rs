//! Settings that change while batches wait and are under way.

use tokio::sync::Notify;

use super::*;

fn export(collector: &Collector, protocol: Protocol, compression: Compression) -> Export {
    Export { compression, ..Ship::to(collector.address, protocol).export }
}

fn unreachable() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn what_waits_goes_to_the_new_endpoint_at_once_and_in_its_form() {
    for (signal, from) in ways() {
        for to in PROTOCOLS {
            let mut ship = Ship::of(signal, unreachable(), from);
            ship.pace.first = Duration::from_secs(100_000);
            ship.export.retry_max_elapsed = Duration::MAX;
            ship.export.compression = Compression::Zstd;
            let shipping = ship.start();
            for records in 1..=4 {
                shipping.push(records);
            }
            poll("tried in vain", || shipping.queue.counters().snapshot().retries == 2).await;
            assert!(matches!(shipping.shipper.state(), Delivery::Failing { .. }));
            let collector = Collector::start([]).await;
            let mut new = Ship::of(signal, collector.address, to).export;
            new.compression = Compression::Gzip;
            shipping.replace(&new);
            poll("delivered", || shipping.queue.counters().snapshot().exported == 10).await;
            assert_eq!(shipping.shipper.form(), (to, Compression::Gzip));
            assert_eq!(shipping.finish().await.exported, 10);
            let mut received: Vec<_> = collector
                .received()
                .iter()
                .map(|one| {
                    let encoding = if to == Protocol::Grpc { "grpc-encoding" } else { "content-encoding" };
                    assert_eq!((one.header(encoding), one.signal()), (Some("gzip"), Some(signal)));
                    one.records()
                })
                .collect();
            received.sort_unstable();
            assert_eq!(received, [1, 2, 3, 4], "{signal:?} {from:?} {to:?}");
        }
    }
}

#[tokio::test]
async fn what_is_under_way_ends_where_it_began() {
    for protocol in PROTOCOLS {
        let open = Arc::new(Notify::new());
        let old = Collector::start([Answer::Hold(Arc::clone(&open))]).await;
        let new = Collector::start([]).await;
        let shipping = Ship::to(old.address, protocol).start();
        shipping.push(2);
        poll("under way", || old.received().len() == 1).await;
        shipping.replace(&export(&new, protocol, Compression::None));
        shipping.push(3);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 3).await;
        open.notify_one();
        let counts = shipping.finish().await;
        assert_eq!((counts.exported, counts.retries), (5, 0));
        let records = |collector: &Collector| collector.received().iter().map(Received::records).collect::<Vec<_>>();
        assert_eq!((records(&old), records(&new)), (vec![2], vec![3]), "{protocol:?}");
    }
}

#[tokio::test]
async fn what_was_learnt_of_the_old_endpoint_is_forgotten() {
    let old = Collector::start([Answer::http(415), Answer::Success, Answer::http(404)]).await;
    let mut ship = Ship::to(old.address, Protocol::HttpProtobuf);
    ship.export.compression = Compression::Zstd;
    let shipping = ship.start();
    assert_eq!(shipping.shipper.state(), Delivery::Untried);
    shipping.push(1);
    poll("delivered", || shipping.queue.counters().snapshot().exported == 1).await;
    assert_eq!(shipping.shipper.state(), Delivery::Delivering);
    shipping.push(2);
    poll("refused", || shipping.queue.counters().snapshot().dropped_total() == 2).await;
    assert!(matches!(shipping.shipper.state(), Delivery::Refused { reason, .. } if reason.contains("404")));
    let new = Collector::start([Answer::http(503).header("retry-after", "600")]).await;
    shipping.replace(&export(&new, Protocol::HttpProtobuf, Compression::Zstd));
    assert_eq!(shipping.shipper.state(), Delivery::Untried);
    // Told to be quiet for longer than it may be kept, that one is given up.
    shipping.push(3);
    poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 5).await;
    assert!(matches!(shipping.shipper.state(), Delivery::Losing { reason, .. } if reason.contains("503")));
    shipping.replace(&export(&new, Protocol::Grpc, Compression::Zstd));
    shipping.push(4);
    poll("delivered", || shipping.queue.counters().snapshot().exported == 5).await;
    assert_eq!(new.received()[1].header("grpc-encoding"), Some("zstd"));
    let counts = shipping.finish().await;
    assert_eq!(dropped(&counts), [(Reason::RetryExpired, 3), (Reason::Unimplemented, 2)]);
}

#[tokio::test]
async fn the_quiet_that_one_collector_asked_for_is_not_for_the_next() {
    let old = Collector::start([Answer::http(503).header("retry-after", "250")]).await;
    let new = Collector::start([]).await;
    let shipping = Ship::to(old.address, Protocol::HttpProtobuf).start();
    shipping.push(1);
    poll("refused", || shipping.queue.counters().snapshot().retries == 1).await;
    for records in 2..=3 {
        shipping.push(records);
    }
    shipping.replace(&export(&new, Protocol::HttpProtobuf, Compression::None));
    poll("delivered", || shipping.queue.counters().snapshot().exported == 6).await;
    assert_eq!(shipping.finish().await.exported, 6);
    assert_eq!((old.received().len(), new.received().len()), (1, 3));
}

#[tokio::test]
async fn settings_that_cannot_be_used_change_nothing() {
    for protocol in PROTOCOLS {
        let collector = Collector::start([]).await;
        let shipping = Ship::to(collector.address, protocol).start();
        let mut bad = export(&collector, Protocol::HttpJson, Compression::Zstd);
        bad.endpoint = "https://localhost".parse().unwrap();
        bad.ca_file = Some("/nonexistent/ca.pem".into());
        let error = shipping.shipper.prepare(&bad)().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
        shipping.push(2);
        assert_eq!(shipping.shipper.form(), (protocol, Compression::None));
        assert_eq!(shipping.finish().await.exported, 2);
    }
}

#[tokio::test]
async fn a_failing_batch_does_not_count_against_the_new_endpoint() {
    let old = Collector::start(vec![Answer::http(503); 1]).await;
    let new = Collector::start([]).await;
    let mut ship = Ship::to(old.address, Protocol::HttpProtobuf);
    ship.pace.first = Duration::from_secs(100_000);
    ship.export.retry_max_elapsed = Duration::MAX;
    let shipping = ship.start();
    shipping.push(1);
    poll("failing", || matches!(shipping.shipper.state(), Delivery::Failing { .. })).await;
    shipping.replace(&export(&new, Protocol::HttpProtobuf, Compression::None));
    poll("delivering", || shipping.shipper.state() == Delivery::Delivering).await;
    shipping.push(2);
    assert_eq!(shipping.finish().await.exported, 3);
}
