//! The metrics of a queue with a spool.

use super::*;

#[tokio::test]
async fn a_spool_tells_what_it_has_and_a_queue_without_one_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = config::Spool::at(directory.path().join("spool"));
    let open = || Arc::new(Queue::open(Signal::Logs, "main", config::Queue::default(), Some(&settings)).unwrap());
    let push = |queue: &Queue, records| {
        let batch = Batch::seal(Class::Exec, records, &[0; 100], Protocol::HttpProtobuf, config::Compression::None);
        queue.push(batch.unwrap());
    };
    let queue = open();
    push(&queue, 5);
    queue.finished().await;
    assert_eq!(queue.counters().snapshot().spool.unwrap().records, 5);

    let collector = Collector::start([]).await;
    let queue = open();
    push(&queue, 3);
    poll("on disk", || queue.depth().spool_bytes == 64 + 2 * 164).await;
    let queues = [Arc::clone(&queue), Arc::new(Queue::new(Signal::Traces, config::Queue::default()))];
    queue.pop().await.unwrap().deliver(5, 0);
    queue.finished().await;
    start(&config(collector.address, Protocol::HttpProtobuf), &queues).finish(Duration::from_secs(20)).await;
    let values = values(&decoded(&collector.received()[0]));
    let of_spool: Vec<_> = values.iter().filter(|(name, _)| name.starts_with("namespan.spool.")).collect();
    assert!(of_spool.iter().all(|(name, _)| name.contains("\"main\"") && name.contains("\"logs\"")), "{of_spool:#?}");
    let numbers: Vec<_> = of_spool
        .iter()
        .map(|(name, value)| (name.split('{').next().unwrap().trim_start_matches("namespan.spool."), **value))
        .collect();
    let expected =
        [("cuts", 0), ("errors", 0), ("recovered", 5), ("segments", 1), ("size", 3), ("usage", 64 + 2 * 164)];
    assert_eq!(numbers, expected);
}
