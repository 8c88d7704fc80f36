//! A daemon's gRPC API on its Unix socket: questions go out, answers come in, each within its time.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use futures_util::stream::once;
use futures_util::{Stream, TryStreamExt};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::runtime::Lost;
use crate::ship::chain;

/// Largest message that is read, in bytes; what containerd and CRI-O send at most.
const MESSAGE_MAX: usize = 16 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection; clones share it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, Lost> {
        let Some(path) = socket.to_str() else {
            return Err(Lost::Runtime("the path of its socket is not UTF-8".to_owned()));
        };
        let endpoint = Endpoint::from_shared(format!("unix:{path}")).map_err(|error| Lost::Runtime(chain(&error)))?;
        let Ok(channel) = timeout(CONNECT, endpoint.connect()).await else {
            return Err(Lost::Runtime(format!("no connection within {CONNECT:?}")));
        };
        channel.map(|channel| Self { channel }).map_err(|error| refused(&error))
    }

    /// One question, one answer. `path`: `/package.Service/Method`.
    pub async fn ask<Q, A>(&self, path: &'static str, question: Request<Q>, limit: Duration) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let answer = async {
            let mut grpc = self.ready().await?;
            grpc.unary(question, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await
        };
        let late = |_| Status::deadline_exceeded(format!("no answer to {path} within {limit:?}"));
        timeout(limit, answer).await.map_err(late)?.map(Response::into_inner)
    }

    /// One question, many answers, for as long as the daemon likes. The question is put when the stream is first polled;
    /// Go's servers begin to answer with the first message.
    pub fn stream<Q, A>(
        &self,
        path: &'static str,
        question: Request<Q>,
    ) -> impl Stream<Item = Result<A, Status>> + Send + use<Q, A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let client = self.clone();
        let answers = async move {
            let mut grpc = client.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.server_streaming(question, PathAndQuery::from_static(path), codec).await.map(Response::into_inner)
        };
        once(answers).try_flatten()
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
        Ok(grpc)
    }
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Self::Runtime(reason(&status))
    }
}

/// A status in one line, with its sources.
pub fn reason(status: &Status) -> String {
    let sources = status.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{}: {}{sources}", status.code(), status.message())
}

fn refused(error: &tonic::transport::Error) -> Lost {
    match io_kind(error) {
        Some(ErrorKind::NotFound) => Lost::Absent("there is no such socket".to_owned()),
        Some(ErrorKind::PermissionDenied) => Lost::Runtime("no permission to use its socket".to_owned()),
        _ => Lost::Runtime(chain(error)),
    }
}

fn io_kind(error: &tonic::transport::Error) -> Option<ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
pub mod tests;
