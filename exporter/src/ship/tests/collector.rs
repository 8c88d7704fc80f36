//! A collector on a real socket that answers from a script and remembers what it was sent.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::config::Signal;

const ANY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// What is answered to one request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Success in the form that fits the request.
    Success,
    Grpc {
        status: i32,
        headers: Vec<(&'static str, String)>,
        message: Vec<u8>,
    },
    Http {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    /// Never answers.
    Stall,
    /// Closes the connection; over HTTP/2, resets the stream.
    Disconnect,
    /// Begins a success of which one byte comes now and then, without end.
    Drip,
    /// Begins a success, and breaks off.
    BreakOff,
    /// Success when notified.
    Hold(Arc<Notify>),
    /// Success, and no more on this connection: over HTTP/2, by a GOAWAY.
    GoAway,
}

impl Answer {
    pub(crate) fn grpc(status: i32) -> Self {
        Self::Grpc { status, headers: Vec::new(), message: Vec::new() }
    }

    pub(crate) fn http(status: u16) -> Self {
        Self::Http { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Grpc { headers, .. } | Self::Http { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    pub(crate) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        if let Self::Grpc { message: body, .. } | Self::Http { body, .. } = &mut self {
            *body = bytes.into();
        }
        self
    }
}

/// The signal's response with partial success.
pub(crate) fn partial_success(signal: Signal, rejected: i64, message: &str) -> Vec<u8> {
    let error_message = message.into();
    match signal {
        Signal::Logs => {
            let partial = ExportLogsPartialSuccess { rejected_log_records: rejected, error_message };
            ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        }
        Signal::Traces => {
            let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message };
            ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        }
    }
}

/// A message with gRPC's prefix.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&[0][..], &len.to_be_bytes(), message].concat()
}

/// A request of either signal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sent {
    Logs(ExportLogsServiceRequest),
    Traces(ExportTraceServiceRequest),
}

impl Sent {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Logs(request) => request.encode_to_vec(),
            Self::Traces(request) => request.encode_to_vec(),
        }
    }

    fn records(&self) -> usize {
        match self {
            Self::Logs(request) => {
                let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
                scopes.map(|scope| scope.log_records.len()).sum()
            }
            Self::Traces(request) => {
                let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
                scopes.map(|scope| scope.spans.len()).sum()
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Whose it is; `None` if it is of neither.
    pub(crate) fn signal(&self) -> Option<Signal> {
        match self.path.as_str() {
            "/v1/logs" | "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => Some(Signal::Logs),
            "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => Some(Signal::Traces),
            _ => None,
        }
    }

    /// Undone exactly as the headers and the gRPC flag say.
    pub(crate) fn request(&self) -> Sent {
        let content_type = self.header("content-type").unwrap();
        let (message, encoding) = if content_type == "application/grpc" {
            let (prefix, message) = self.body.split_at(5);
            assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
            let encoding = self.header("grpc-encoding");
            assert_eq!(prefix[0], u8::from(encoding.is_some()));
            (message, encoding)
        } else {
            (&self.body[..], self.header("content-encoding"))
        };
        let mut plain = Vec::new();
        match encoding {
            None => plain.extend_from_slice(message),
            Some("gzip") => drop(GzDecoder::new(message).read_to_end(&mut plain).unwrap()),
            Some("zstd") => plain = zstd::decode_all(message).unwrap(),
            Some(other) => panic!("encoding {other}"),
        }
        match self.signal() {
            Some(Signal::Logs) => Sent::Logs(decode(content_type, &plain)),
            Some(Signal::Traces) => Sent::Traces(decode(content_type, &plain)),
            None => panic!("path {}", self.path),
        }
    }

    pub(crate) fn records(&self) -> usize {
        self.request().records()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Answered as where there is no such service.
    lacks: Option<Signal>,
    script: Mutex<VecDeque<Answer>>,
    /// Asked when the script is over.
    judge: Option<Judge>,
    tls: Mutex<Option<TlsAcceptor>>,
    connections: AtomicUsize,
    received: Mutex<Vec<Received>>,
}

impl Shared {
    fn of(script: impl IntoIterator<Item = Answer>) -> Self {
        Self { script: Mutex::new(script.into_iter().collect()), ..Self::default() }
    }
}

type Judge = Box<dyn Fn(&Received) -> Answer + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("received", &self.received).finish_non_exhaustive()
    }
}

impl Collector {
    /// Answers with each of the script once, then with success.
    pub(crate) async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::start_at(ANY, script).await
    }

    pub(crate) async fn start_at(address: SocketAddr, script: impl IntoIterator<Item = Answer>) -> Self {
        Self::listen(address, Shared::of(script)).await
    }

    /// Answers to each as it is judged.
    pub(crate) async fn start_with(judge: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen(ANY, Shared { judge: Some(Box::new(judge)), ..Shared::default() }).await
    }

    /// Takes all but this signal.
    pub(crate) async fn start_without(signal: Signal) -> Self {
        Self::listen(ANY, Shared { lacks: Some(signal), ..Shared::default() }).await
    }

    pub(crate) async fn start_tls(tls: TlsAcceptor, script: impl IntoIterator<Item = Answer>) -> Self {
        Self::listen(ANY, Shared { tls: Mutex::new(Some(tls)), ..Shared::of(script) }).await
    }

    pub(crate) fn start_unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let collector = Self { address: ANY, shared: Arc::default() };
        let serving = collector.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().talk(stream));
            }
        });
        collector
    }

    async fn listen(address: SocketAddr, shared: Shared) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), shared: Arc::new(shared) };
        tokio::spawn(collector.clone().serve(listener));
        collector
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// With a TLS handshake, if there is one to be made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }

    /// For connections from now on.
    pub(crate) fn set_tls(&self, tls: TlsAcceptor) {
        *self.shared.tls.lock().unwrap() = Some(tls);
    }

    async fn serve(self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let collector = self.clone();
            let tls = self.shared.tls.lock().unwrap().clone();
            tokio::spawn(async move {
                match tls {
                    None => collector.talk(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            collector.talk(stream).await;
                        }
                    }
                }
            });
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.shared.connections.fetch_add(1, Relaxed);
        let enough = Arc::new(Notify::new());
        let told = Arc::clone(&enough);
        let service = service_fn(move |request| self.clone().answer(request, Arc::clone(&told)));
        let builder = auto::Builder::new(TokioExecutor::new());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // Ends with an error where the script says to disconnect.
            _ = &mut connection => return,
            () = enough.notified() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.ok();
    }

    async fn answer(self, request: Request<Incoming>, enough: Arc<Notify>) -> Result<Reply, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let grpc = head.headers.get("content-type").is_some_and(|value| value == "application/grpc");
        let (path, headers) = (head.uri.path().into(), head.headers);
        let received = Received { at: Instant::now(), path, headers, body };
        let lacking = self.shared.lacks.is_some() && received.signal() == self.shared.lacks;
        let judged = self.shared.judge.as_ref().map(|judge| judge(&received));
        self.shared.received.lock().unwrap().push(received);
        let answer = match self.shared.script.lock().unwrap().pop_front().or(judged) {
            Some(answer) => answer,
            None if lacking && grpc => Answer::grpc(12).header("grpc-message", "unknown service"),
            None if lacking => Answer::http(404),
            None => Answer::Success,
        };
        match answer {
            Answer::Hold(open) => {
                open.notified().await;
                Ok(success(grpc))
            }
            Answer::GoAway => {
                enough.notify_one();
                Ok(success(grpc))
            }
            Answer::Success => Ok(success(grpc)),
            Answer::Grpc { status, headers, message } => Ok(grpc_response(status, &headers, message)),
            Answer::Http { status, headers, body } => Ok(http_response(status, &headers, body)),
            Answer::Stall => std::future::pending().await,
            Answer::Disconnect => Err(io::ErrorKind::ConnectionAborted.into()),
            Answer::Drip => Ok(trickle(grpc, usize::MAX)),
            Answer::BreakOff => Ok(trickle(grpc, 1)),
        }
    }
}

fn decode<T: Message + Default + DeserializeOwned>(content_type: &str, plain: &[u8]) -> T {
    if content_type == "application/json" { serde_json::from_slice(plain).unwrap() } else { T::decode(plain).unwrap() }
}

/// Waits for what must become true.
pub(crate) async fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn header_map(headers: &[(&'static str, String)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

/// With a message, its status follows in trailers; else it is in the headers.
fn grpc_response(status: i32, headers: &[(&'static str, String)], message: Vec<u8>) -> Reply {
    let mut trailers = header_map(headers);
    trailers.insert("grpc-status", status.into());
    let builder = Response::builder().header("content-type", "application/grpc");
    if message.is_empty() {
        let mut response = builder.body(whole(Vec::new())).unwrap();
        response.headers_mut().extend(trailers);
        return response;
    }
    let body = Full::new(Bytes::from(message)).with_trailers(async move { Some(Ok(trailers)) });
    builder.body(body.map_err(|never: Infallible| match never {}).boxed()).unwrap()
}

fn http_response(status: u16, headers: &[(&'static str, String)], body: Vec<u8>) -> Reply {
    let mut response = Response::new(whole(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().extend(header_map(headers));
    response
}

type Reply = Response<BoxBody<Bytes, io::Error>>;

fn whole(body: Vec<u8>) -> BoxBody<Bytes, io::Error> {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

fn success(grpc: bool) -> Reply {
    if grpc { grpc_response(0, &[], framed(&[])) } else { http_response(200, &[], Vec::new()) }
}

/// One byte at a time, and then an error.
fn trickle(grpc: bool, bytes: usize) -> Reply {
    let frames = futures_util::stream::unfold(0, move |sent| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let frame =
            if sent < bytes { Ok(Frame::data(Bytes::from_static(&[0]))) } else { Err(io::ErrorKind::Other.into()) };
        Some((frame, sent + 1))
    });
    let content_type = if grpc { "application/grpc" } else { "application/x-protobuf" };
    let body = BodyExt::boxed(StreamBody::new(frames));
    Response::builder().header("content-type", content_type).body(body).unwrap()
}
