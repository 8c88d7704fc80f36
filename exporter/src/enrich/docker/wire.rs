//! A daemon's socket comes in, a client of its API goes out, whose answers have bounds.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Bytes of an answer that tells of one container or image.
const OF_ONE: usize = 4 << 20;
/// Bytes of one that tells of all of them, or of what happens: the daemon is asked anew after so many.
const OF_ALL: usize = 64 << 20;

/// A client of the daemon there, which is asked by a connection for each question. `timeout`: until an answer begins.
pub fn client(socket: &Path, timeout: Duration) -> Result<Docker, Error> {
    if !socket.exists() {
        return Err(Error::SocketNotFoundError(socket.display().to_string()));
    }
    let socket: Arc<Path> = socket.into();
    let ask = move |request| ask(Arc::clone(&socket), request);
    Docker::connect_with_custom_transport(ask, Some("http://daemon"), timeout.as_secs(), API_DEFAULT_VERSION)
}

async fn ask(socket: Arc<Path>, mut request: BollardRequest) -> Result<Response<Incoming>, Error> {
    let path = request.uri().path();
    let most = if path.ends_with("/containers/json") || path.ends_with("/events") { OF_ALL } else { OF_ONE };
    // A server is asked for a path; whose it is stands in a header.
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = Uri::try_from(target).map_err(|error| failed(io::Error::other(error)))?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("daemon"));
    let stream = UnixStream::connect(&socket).await.map_err(failed)?;
    let io = TokioIo::new(Bounded { stream, left: most, most });
    let (mut sender, connection) = http1::handshake(io).await?;
    // It ends with the answer, or when nobody wants that any more.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

fn failed(err: io::Error) -> Error {
    Error::IOError { err }
}

/// What can be read of it has a bound.
struct Bounded {
    stream: UnixStream,
    left: usize,
    most: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        match self.left.checked_sub(read) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Err(io::Error::other(format!("an answer of more than {} bytes", self.most)))),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
