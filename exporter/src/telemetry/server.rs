//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1, for whoever is let near the port: a client that is slow, many or
//! hostile costs a bounded number of connections and bytes, for a bounded time.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::prometheus::{self, Scrape};
use super::{Shared, health, lock};

/// Those beyond wait for one to end.
const CONNECTIONS: usize = 16;
/// For a request's headers; whoever is slower is cut off.
const HEADERS_WITHIN: Duration = Duration::from_secs(2);
/// For all of a connection, which has one request.
const SERVED_WITHIN: Duration = Duration::from_secs(5);
/// Of a request's headers.
const BYTES: usize = 8 << 10;
const HEADERS: usize = 64;
/// What was rendered is good for so long, however often it is asked for.
const FRESH: Duration = Duration::from_millis(500);
/// After an accept that failed, which is for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Served {
    shared: Arc<Shared>,
    scrape: Scrape,
    rendered: Mutex<Option<(Instant, Bytes)>>,
}

impl Server {
    /// Within a tokio runtime only.
    pub(super) fn start(address: SocketAddr, shared: Arc<Shared>, scrape: Scrape) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let served = Arc::new(Served { shared, scrape, rendered: Mutex::default() });
        Ok(Self { address, task: tokio::spawn(serve(listener, served)) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: tokio::net::TcpListener, served: Arc<Served>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the metrics can't be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let response = served.answer(request.method(), request.uri().path());
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .max_buf_size(BYTES)
                .max_headers(HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            // Whatever went wrong is the client's business.
            let _ended = timeout(SERVED_WITHIN, connection).await;
            drop(slot);
        });
    }
}

impl Served {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let answer: fn(&Self) -> Response<Full<Bytes>> = match path {
            "/metrics" => |served| response(StatusCode::OK, prometheus::CONTENT_TYPE, served.metrics()),
            "/healthz" => |served| verdict(health::alive(&served.shared, Instant::now())),
            "/readyz" => |served| verdict(health::ready(&served.shared, Instant::now())),
            _ => return plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
        };
        // Of an answer to HEAD, hyper leaves out the body.
        if method == Method::GET || method == Method::HEAD {
            return answer(self);
        }
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refusal
    }

    fn metrics(&self) -> Bytes {
        let mut rendered = lock(&self.rendered);
        let now = Instant::now();
        match &*rendered {
            Some((at, bytes)) if now.saturating_duration_since(*at) < FRESH => bytes.clone(),
            _ => {
                let bytes = Bytes::from(self.scrape.text());
                *rendered = Some((now, bytes.clone()));
                bytes
            }
        }
    }
}

fn verdict((is_well, text): health::Answer) -> Response<Full<Bytes>> {
    plain(if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
