//! OTLP over gRPC with messages that are already encoded, compressed and framed.
//!
//! Not through tonic's client, whose codec would compress every attempt anew.

use std::future::poll_fn;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Buf as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use tonic::Code;
use tonic::body::Body;
use tonic::client::GrpcService as _;
use tonic::transport::{Channel, Endpoint, Uri};

use super::connect::Connector;
use super::outcome::{Body as Read, Outcome};
use super::proxy::Proxies;
use super::{ShipError, chain, encoding_name, user_agent};
use crate::config::{Export, Signal};
use crate::lock::lock;
use crate::queue::{Answer, Batch, PREFIX_LEN};

/// Where an answer has no time limit, a connection that says nothing this long is asked whether it is alive. Servers take
/// more frequent questions for abuse.
const PING_INTERVAL: Duration = Duration::from_secs(300);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Grpc {
    route: Route,
    channel: Mutex<Channel>,
    headers: HeaderMap,
    timeout: Option<Duration>,
}

impl Grpc {
    pub(super) fn new(export: &Export, proxies: &Proxies) -> Result<Self, ShipError> {
        let route = Route::new(export, proxies)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &export.headers {
            headers.append(name, value.clone());
        }
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        headers.insert(header::TE, TE);
        if let Some(timeout) = export.timeout {
            headers.insert("grpc-timeout", grpc_timeout(timeout)?);
        }
        let channel = Mutex::new(route.channel());
        Ok(Self { route, channel, headers, timeout: export.timeout })
    }

    pub(super) async fn send(&self, batch: &Batch) -> (Outcome, Option<Answer>) {
        let channel = lock(&self.channel).clone();
        let answer = self.exchange(channel, batch);
        let Some(timeout) = self.timeout else { return answer.await };
        tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
            // The connection may be dead without a sign of it; the next attempt should not wait on it too.
            *lock(&self.channel) = self.route.channel();
            (Outcome::unanswered(format!("no answer within {timeout:?}")), None)
        })
    }

    async fn exchange(&self, mut channel: Channel, batch: &Batch) -> (Outcome, Option<Answer>) {
        let mut request = Request::new(Body::new(Full::new(batch.body().clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(path(batch.signal()));
        *request.headers_mut() = self.headers.clone();
        if let Some(encoding) = encoding_name(batch.compression()) {
            request.headers_mut().insert("grpc-encoding", HeaderValue::from_static(encoding));
        }
        if let Err(error) = poll_fn(|cx| channel.poll_ready(cx)).await {
            return (Outcome::unanswered(chain(&error)), None);
        }
        match channel.call(request).await {
            Ok(response) => read(response, batch).await,
            Err(error) => (Outcome::unanswered(chain(&error)), None),
        }
    }
}

fn path(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    }
}

/// Any answer will do. Only that shows whether a client certificate is taken, and whether HTTP/2 is spoken at all.
pub(super) async fn probe(export: &Export, proxies: &Proxies) -> Result<(), ShipError> {
    let unreachable = |error: tonic::transport::Error| ShipError::Unreachable { reason: chain(&error) };
    let Route { endpoint, connector } = Route::new(export, proxies)?;
    let mut channel = endpoint.connect_with_connector(connector).await.map_err(unreachable)?;
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/grpc.health.v1.Health/Check");
    request.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    request.headers_mut().insert(header::TE, TE);
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(unreachable)?;
    channel.call(request).await.map_err(unreachable)?;
    Ok(())
}

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const TE: HeaderValue = HeaderValue::from_static("trailers");

/// What makes channels to one endpoint.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    pub(super) connector: Connector,
}

impl Route {
    pub(super) fn new(export: &Export, proxies: &Proxies) -> Result<Self, ShipError> {
        let connector = Connector::new(export, proxies)?;
        let origin = match export.endpoint.scheme() {
            "unix" => "http://localhost",
            _ => export.endpoint.as_str(),
        };
        let endpoint = Endpoint::from_shared(origin.to_owned())
            .map_err(|error| ShipError::Endpoint { reason: error.to_string() })?;
        let mut endpoint =
            endpoint.user_agent(user_agent()).map_err(|error| ShipError::Endpoint { reason: chain(&error) })?;
        endpoint = match export.timeout {
            Some(timeout) => endpoint.connect_timeout(timeout),
            None => endpoint.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT),
        };
        Ok(Self { endpoint, connector })
    }

    /// Connects when it is first used. Within a tokio runtime only.
    pub(super) fn channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector.clone())
    }
}

/// The status ends a response: without it, whether the records were taken is not known.
async fn read(response: Response<Body>, batch: &Batch) -> (Outcome, Option<Answer>) {
    let (head, mut body) = response.into_parts();
    let (mut data, mut trailers) = (Read::default(), None);
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(chunk)) => {
                if !data.take(&chunk) {
                    let answer = Answer::Grpc(Code::ResourceExhausted.into());
                    return (Outcome::answer_too_large(answer), Some(answer));
                }
            }
            Ok(Err(frame)) => trailers = frame.into_trailers().ok().or(trailers),
            Err(status) => return (Outcome::unanswered(chain(&status)), None),
        }
    }
    let message = unframe(data.bytes());
    let (outcome, code) =
        Outcome::from_grpc(head.status, &head.headers, trailers.as_ref(), message, batch.compression());
    (outcome, Some(Answer::Grpc(code.into())))
}

/// The message in a response body; what cannot be one is returned as it is, and will not decode.
fn unframe(mut data: &[u8]) -> &[u8] {
    if let Some((&[0, a, b, c, d], message)) = data.split_first_chunk::<PREFIX_LEN>()
        && usize::try_from(u32::from_be_bytes([a, b, c, d])).is_ok_and(|len| len == message.len())
    {
        data.advance(PREFIX_LEN);
    }
    data
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> Result<HeaderValue, ShipError> {
    let text = match timeout.as_millis() {
        millis @ ..100_000_000 => format!("{millis}m"),
        _ => format!("{}S", timeout.as_secs().min(99_999_999)),
    };
    HeaderValue::try_from(text).map_err(|error| ShipError::Endpoint { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_at_most_eight_digits() {
        let text = |timeout| grpc_timeout(timeout).unwrap().to_str().unwrap().to_owned();
        assert_eq!(text(Duration::from_secs(10)), "10000m");
        assert_eq!(text(Duration::from_secs(100_000)), "100000S");
        assert_eq!(text(Duration::MAX), "99999999S");
    }

    #[test]
    fn only_a_whole_uncompressed_message_is_unframed() {
        assert_eq!(unframe(&[0, 0, 0, 0, 2, 7, 8]), [7, 8]);
        assert!(unframe(&[0, 0, 0, 0, 0]).is_empty());
        for other in [&[1, 0, 0, 0, 1, 7][..], &[0, 0, 0, 0, 9, 7], &[0, 0], b"garbage"] {
            assert_eq!(unframe(other), other);
        }
        assert!(unframe(&[]).is_empty());
    }
}
