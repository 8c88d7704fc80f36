//! Connections for gRPC: over TCP or a Unix socket, through a proxy or not, with TLS or without.

use std::error::Error;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::proxy::Proxies;
use super::tls::Tls;
use super::{ShipError, tls, unix_path};
use crate::config::Export;

/// Goes to the endpoint it was made for, whatever it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    target: Target,
}

#[derive(Clone, Debug)]
enum Target {
    Unix(Arc<PathBuf>),
    Tcp(Arc<Tcp>),
}

#[derive(Debug)]
struct Tcp {
    /// With a port.
    uri: Uri,
    proxy: Option<Intercept>,
    connector: HttpConnector,
    /// Where the endpoint has TLS.
    tls: Option<Tls>,
    /// Where the proxy has TLS.
    tls_to_proxy: Option<Tls>,
}

/// A connection of any kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Stream = TokioIo<Box<dyn Io>>;

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

impl Connector {
    pub(super) fn new(export: &Export, proxies: &Proxies) -> Result<Self, ShipError> {
        if let Some(path) = unix_path(&export.endpoint)? {
            return Ok(Self { target: Target::Unix(Arc::new(path)) });
        }
        let url = &export.endpoint;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(ShipError::Endpoint { reason: "the endpoint has no host".into() });
        };
        let uri = format!("{}://{host}:{port}", url.scheme())
            .parse()
            .map_err(|error: http::uri::InvalidUri| ShipError::Endpoint { reason: error.to_string() })?;
        let proxy = proxies.towards(url)?;
        let mut connector = HttpConnector::new();
        // By its name, it would refuse https.
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(export.timeout);
        let config = |needed: bool, alpn: &[&[u8]]| {
            if needed { tls::config(export, alpn).map(Some) } else { Ok(None) }
        };
        let tls = config(url.scheme() == "https", &[tls::HTTP_2])?;
        let proxy_is_https = proxy.as_ref().is_some_and(|proxy| proxy.uri().scheme_str() == Some("https"));
        let tls_to_proxy = config(proxy_is_https, &[tls::HTTP_1])?;
        Ok(Self { target: Target::Tcp(Arc::new(Tcp { uri, proxy, connector, tls, tls_to_proxy })) })
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Connecting {
        let target = self.target.clone();
        Box::pin(async move {
            match target {
                Target::Unix(path) => Ok(boxed(UnixStream::connect(&*path).await?)),
                Target::Tcp(tcp) => tcp.connect().await,
            }
        })
    }
}

impl Tcp {
    async fn connect(&self) -> Result<Stream, BoxError> {
        let first = |tls: &Option<Tls>| Door { connector: self.connector.clone(), tls: tls.clone() };
        let Some(proxy) = &self.proxy else { return first(&self.tls).call(self.uri.clone()).await };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), first(&self.tls_to_proxy));
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        let stream = tunnel.call(self.uri.clone()).await.map_err(|error| format!("proxy: {}", super::chain(&error)))?;
        match &self.tls {
            Some(tls) => secured(stream.into_inner(), &self.uri, tls).await,
            None => Ok(stream),
        }
    }
}

/// The first hop.
struct Door {
    connector: HttpConnector,
    tls: Option<Tls>,
}

impl Service<Uri> for Door {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let (connecting, tls) = (self.connector.call(uri.clone()), self.tls.clone());
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            match tls {
                Some(tls) => secured(stream, &uri, &tls).await,
                None => Ok(boxed(stream)),
            }
        })
    }
}

async fn secured(stream: impl Io + 'static, uri: &Uri, Tls { config, files }: &Tls) -> Result<Stream, BoxError> {
    let host = uri.host().unwrap_or_default();
    // An IPv6 address has brackets in a URL only.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(host.to_owned())?;
    let needs_http_2 = config.alpn_protocols == [tls::HTTP_2];
    files.follow().await;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
    if needs_http_2 && stream.get_ref().1.alpn_protocol() != Some(tls::HTTP_2) {
        return Err("the server does not offer HTTP/2, which gRPC needs".into());
    }
    Ok(boxed(stream))
}

fn boxed(stream: impl Io + 'static) -> Stream {
    TokioIo::new(Box::new(stream))
}
