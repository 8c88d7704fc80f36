//! A gRPC server that says what a test wants it to say, as another daemon might.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{iter, pending};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::enrich::runtime::{Link, Runtime, Update, follow};

pub enum Answer {
    Message(Vec<u8>),
    /// Messages, and the stream stays open.
    Stream(Vec<Vec<u8>>),
    Status(tonic::Code),
    Silence,
}

/// Goes away when it is dropped.
pub struct Server {
    directory: TempDir,
    _connections: JoinSet<()>,
}

impl Server {
    /// `answer`: by the path of a question and its message.
    pub fn start(answer: impl Fn(&str, &[u8]) -> Answer + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::of(move |stream| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let answer = Arc::clone(&answer);
                    async move { Ok::<_, Infallible>(respond(request, &*answer).await) }
                });
                Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.ok();
            }
        })
    }

    /// Says the same to whoever connects.
    pub fn babbling(bytes: &'static [u8]) -> Self {
        Self::of(move |mut stream| async move {
            stream.write_all(bytes).await.ok();
            std::future::pending::<()>().await;
        })
    }

    fn of<F: Future<Output = ()> + Send>(serve: impl Fn(tokio::net::UnixStream) -> F + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = futures_util::stream::FuturesUnordered::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => open.push(serve(stream)),
                    Some(()) = open.next() => {}
                }
            }
        });
        Self { directory, _connections: connections }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

async fn respond(
    request: http::Request<Incoming>,
    answer: &(impl Fn(&str, &[u8]) -> Answer + Sync),
) -> http::Response<UnsyncBoxBody<Bytes, Infallible>> {
    let path = request.uri().path().to_owned();
    let question = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (messages, code) = match answer(&path, question.get(5..).unwrap_or_default()) {
        Answer::Message(message) => (vec![message], Some(tonic::Code::Ok)),
        Answer::Stream(messages) => (messages, None),
        Answer::Status(code) => (Vec::new(), Some(code)),
        Answer::Silence => std::future::pending().await,
    };
    let frames = iter(messages).map(|message| framed(&message));
    let body = match code {
        Some(code) => {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), i32::from(code).into())]);
            frames.chain(iter([Frame::trailers(trailers)])).left_stream()
        }
        None => frames.chain(pending()).right_stream(),
    };
    let body = http_body_util::StreamBody::new(body.map(Ok)).boxed_unsync();
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn framed(message: &[u8]) -> Frame<Bytes> {
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    Frame::data([&[0][..], &len, message].concat().into())
}

/// A runtime that is followed.
pub struct Followed {
    pub told: mpsc::Receiver<(usize, Update)>,
    pub lookups: mpsc::Sender<String>,
}

impl Followed {
    pub fn start(runtime: impl Runtime + 'static) -> Self {
        let (lookups, asked) = mpsc::channel(16);
        let (updates, told) = mpsc::channel(64);
        tokio::spawn(follow(Box::new(runtime), crate::enrich::runtime::Line::new(0, asked, updates)));
        Self { told, lookups }
    }

    pub async fn next(&mut self) -> Update {
        timeout(Duration::from_secs(30), self.told.recv()).await.unwrap().unwrap().1
    }

    pub async fn lost(&mut self) -> String {
        loop {
            match self.next().await {
                Update::State(Link::Lost { reason }) => return reason,
                Update::State(link) => panic!("{link:?}"),
                Update::Known { .. } | Update::Unknown { .. } | Update::Gone { .. } => {}
            }
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: &str) -> Text {
    Text { text: text.to_owned() }
}

const PATH: &str = "/a.B/C";
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn questions_are_answered_one_by_one_and_many_by_one() {
    let server = Server::start(|path, question| match path {
        PATH => Answer::Message(question.to_vec()),
        _ => Answer::Stream(vec![text("b").encode_to_vec(), text("c").encode_to_vec()]),
    });
    let client = Client::connect(&server.socket()).await.unwrap();
    let answer: Text = client.ask(PATH, Request::new(text("a")), PATIENCE).await.unwrap();
    assert_eq!(answer, text("a"));
    let answers = client.stream::<_, Text>("/a.B/D", Request::new(text("a"))).take(2).try_collect::<Vec<_>>();
    assert_eq!(answers.await.unwrap(), [text("b"), text("c")]);
}

#[tokio::test]
async fn no_answer_and_no_good_one_are_errors() {
    let server = Server::start(|path, _| match path {
        PATH => Answer::Silence,
        "/a.B/D" => Answer::Message(vec![0x0a, 9]),
        _ => Answer::Status(tonic::Code::NotFound),
    });
    let client = Client::connect(&server.socket()).await.unwrap();
    let asked = |path, limit| client.ask::<_, Text>(path, Request::new(text("a")), limit);
    let late = asked(PATH, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(asked("/a.B/D", PATIENCE).await.unwrap_err().code(), tonic::Code::Internal);
    assert_eq!(asked("/a.B/E", PATIENCE).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_read() {
    let server = Server::start(|_, _| Answer::Message(text(&"a".repeat(MESSAGE_MAX)).encode_to_vec()));
    let client = Client::connect(&server.socket()).await.unwrap();
    let answer = client.ask::<_, Text>(PATH, Request::new(text("a")), PATIENCE).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::OutOfRange);
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_absent_and_one_that_nobody_serves_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    assert!(matches!(Client::connect(&socket).await, Err(Lost::Absent(_))));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let Err(Lost::Runtime(reason)) = Client::connect(&socket).await else { panic!() };
    assert!(reason.contains("refused"), "{reason}");
}
