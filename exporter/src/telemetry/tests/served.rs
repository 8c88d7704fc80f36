//! Requests in at a real socket, metrics and health out; whoever means harm gets nowhere.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Longer than a slow client is suffered.
const PATIENCE: Duration = Duration::from_secs(30);

async fn served() -> (Telemetry, SocketAddr) {
    let config = Config { listen: Some(ANY), ..Config::default() };
    let export = Export::to("http://a:4318/v1/logs".parse().unwrap());
    let shipped = vec![Shipped::new("main", &queue(Signal::Logs).await, &export, 1000)];
    let telemetry = Telemetry::start(&config, shipped).unwrap().unwrap();
    let address = telemetry.address().unwrap();
    (telemetry, address)
}

/// All that is answered to these bytes.
async fn answer(address: SocketAddr, request: &[u8]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may be refused before all of it is read.
        stream.write_all(request).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).unwrap()
    };
    timeout(PATIENCE, exchange).await.unwrap()
}

/// Status code and body.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = answer(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn metrics_are_served_without_any_collector() {
    let (telemetry, address) = served().await;
    telemetry.publish(status());
    let (status, body) = ask(address, "GET", "/metrics").await;
    assert_eq!(status, 200);
    let has = |line: &str| assert!(body.lines().any(|found| found == line), "{line}\n{body}");
    let scope = format!(
        "otel_scope_name=\"namespan.telemetry\",otel_scope_schema_url=\"{}\",otel_scope_version=\"{}\"",
        semconv::SCHEMA_URL,
        semconv::VERSION
    );
    has("# TYPE namespan_kernel_triggered_total counter");
    has(&format!("namespan_kernel_triggered_total{{namespan_program=\"exec\",{scope}}} 100"));
    has(&format!("namespan_container_count{{{scope}}} 5"));
    has("# TYPE namespan_queue_usage_bytes gauge");
    has(&format!(
        "otel_sdk_exporter_log_exported_total{{error_type=\"queue_full\",namespan_destination=\"main\",\
         otel_component_name=\"otlp_http_log_exporter/0\",otel_component_type=\"otlp_http_log_exporter\",{scope},\
         server_address=\"a\",server_port=\"4318\"}} 8"
    ));
    has("# TYPE process_cpu_time_seconds_total counter");
    assert!(body.starts_with("# HELP target_info"), "{body}");
    // Each name is declared once, and each series is there once.
    let mut declared: Vec<_> = body.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut series: Vec<_> =
        body.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0).collect();
    for lines in [&mut declared, &mut series] {
        let before = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), before);
    }
    telemetry.finish(PATIENCE).await;
    assert!(TcpStream::connect(address).await.is_err(), "still served");
}

#[tokio::test]
async fn only_what_is_there_is_answered() {
    let (_telemetry, address) = served().await;
    assert_eq!(ask(address, "GET", "/").await.0, 404);
    assert_eq!(ask(address, "POST", "/nothing").await.0, 404);
    assert_eq!(ask(address, "POST", "/metrics").await.0, 405);
    assert_eq!(ask(address, "HEAD", "/metrics").await, (200, String::new()));
    assert_eq!(ask(address, "GET", "/healthz").await, (200, "alive\n".into()));
    assert_eq!(ask(address, "GET", "/healthz?verbose").await.0, 200);
}

#[tokio::test]
async fn who_is_not_ready_says_why() {
    let (telemetry, address) = served().await;
    assert_eq!(ask(address, "GET", "/readyz").await.0, 200);
    let state = State::Losing { reason: "queue_full".into() };
    let deliveries = vec![Delivery { destination: "main".into(), signal: Signal::Logs, state }];
    telemetry.tell(Condition {
        deliveries,
        degraded: vec!["docker's socket: gone".into()],
        stopping: true,
        busy: None,
    });
    let text = "not attached: stopping\nnot attributing: docker's socket: gone\nnot delivering logs to main: losing: \
                queue_full\n";
    assert_eq!(ask(address, "GET", "/readyz").await, (503, text.into()));
    assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
    telemetry.tell(Condition::default());
    assert_eq!(ask(address, "GET", "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_pipeline_that_hangs_is_not_alive() {
    let (telemetry, address) = served().await;
    telemetry.alive(Instant::now().checked_sub(Duration::from_secs(60)).unwrap());
    let (status, text) = ask(address, "GET", "/healthz").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("not alive: the pipeline has made no progress for 60"), "{text}");
    telemetry.alive(Instant::now());
    assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
}

#[tokio::test]
async fn garbage_and_too_much_are_refused() {
    let (_telemetry, address) = served().await;
    let refused = |answer: &str| assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    refused(&answer(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await);
    refused(&answer(address, &b"x".repeat(1 << 20)).await);
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    refused(&answer(address, long.as_bytes()).await);
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    refused(&answer(address, many.as_bytes()).await);
    assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
}

#[tokio::test]
async fn who_is_slow_is_cut_off_and_the_others_are_served() {
    let (_telemetry, address) = served().await;
    // More than are served at a time: the others wait in the kernel.
    let mut slow = Vec::new();
    for begun in [&b"GET /metrics HTTP/1.1\r\nx: "[..], b"G", b""].into_iter().cycle().take(40) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
    let cut_off = async {
        for stream in &mut slow {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
            let rest = String::from_utf8(rest).unwrap();
            assert!(!rest.starts_with("HTTP/1.1 200"), "{rest}");
        }
    };
    timeout(PATIENCE, cut_off).await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_says_so() {
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap();
    let config = Config { listen: Some(address), ..Config::default() };
    let error = Telemetry::start(&config, Vec::new()).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("listen") && error.contains("in use"), "{error}");
}

#[tokio::test]
async fn nobody_is_told_where_nobody_asks() {
    assert!(Telemetry::start(&Config::default(), Vec::new()).unwrap().is_none());
}
