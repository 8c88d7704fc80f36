//! A third-party collector between namespan and the sink: what comes out of it, another implementation has understood.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::Process;
use crate::sink::{Record, Sink};
use crate::span::Span;
use crate::watched::poll;
use crate::{PATIENCE, needs};

#[derive(Debug)]
pub struct Rotel {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Rotel {
    /// Forwards to the sink. Ready when it returns.
    #[must_use]
    pub fn start(sink: &Sink) -> Self {
        Self::start_at(sink, free_addresses())
    }

    /// Of gRPC and HTTP.
    #[must_use]
    pub fn start_at(sink: &Sink, [grpc, http]: [SocketAddr; 2]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(needs::rotel());
        command
            .args(["start", "--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", &sink.endpoint()])
            .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
            .args(["--batch-timeout", "50ms", "--otlp-exporter-retry-initial-backoff", "100ms"])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .arg("--log-file")
            .arg(directory.path().join("log"))
            .current_dir(directory.path());
        let process = Process::start(command);
        for address in [grpc, http] {
            let up = poll(PATIENCE, || TcpStream::connect(address).ok());
            assert!(up.is_some(), "rotel does not listen on {address}");
        }
        Self { grpc, http, process, _directory: directory }
    }

    /// Ends it as an operator does; what it took, it forwards before.
    pub fn stop(self) {
        self.process.signal(Signal::TERM);
        let _ended = self.process.finish(PATIENCE);
    }

    #[must_use]
    pub fn endpoint(&self, protocol: &str) -> String {
        format!("http://{}", if protocol == "grpc" { self.grpc } else { self.http })
    }

    /// The records of the sink, when all that namespan says it has exported are there.
    #[must_use]
    pub fn delivered(&self, sink: &Sink, exported: u64) -> Vec<Record> {
        sink.wait_for_count(exported.try_into().unwrap(), Duration::from_secs(20))
    }

    /// The same, of spans.
    #[must_use]
    pub fn delivered_spans(&self, sink: &Sink, exported: u64) -> Vec<Span> {
        sink.wait_for_span_count(exported.try_into().unwrap(), Duration::from_secs(20))
    }
}

/// Nobody listens there now; all are different.
#[must_use]
pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let listeners: [_; N] = std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}
