//! A thousand containers as far as Namespan can tell: cgroups with names such as Docker gives them, and a daemon that knows what
//! runs in them. No real ones: they would take the most of an hour.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use namespan_integration::cgroup;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

pub struct Containers {
    ids: Arc<[String]>,
    cgroups: Vec<PathBuf>,
    setting: String,
    runtime: Option<Runtime>,
    _directory: TempDir,
}

impl Containers {
    pub fn new(count: usize) -> Result<Self> {
        let ids: Arc<[String]> =
            (0..count).map(|number| format!("{:064x}", (number as u128 + 1) << 64 | 0xbe7c4)).collect();
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("docker.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(async { UnixListener::bind(&socket) })?;
        runtime.spawn(listen(listener, ids.clone()));
        let parent = cgroup::unified().join("docker");
        let cgroups: Vec<_> = ids.iter().map(|id| parent.join(id)).collect();
        for cgroup in &cgroups {
            fs::create_dir_all(cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        }
        let setting = format!("docker={}", socket.display());
        Ok(Self { ids, cgroups, setting, runtime: Some(runtime), _directory: directory })
    }

    pub fn arguments(&self) -> [&str; 2] {
        ["--runtime", &self.setting]
    }

    /// One exec in each of them, and one on the way there.
    pub fn run_in_each(&self, program: &Path) -> Result<()> {
        for cgroup in &self.cgroups {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "echo $$ >\"$1/cgroup.procs\" && exec \"$2\"", "sh"]).arg(cgroup).arg(program);
            let status = command.stdin(Stdio::null()).status()?;
            ensure!(status.success(), "running in {}: {status}", cgroup.display());
        }
        Ok(())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for id in &*self.ids {
            cgroup::remove(&format!("docker/{id}"));
        }
    }
}

async fn listen(listener: UnixListener, ids: Arc<[String]>) {
    while let Ok((stream, _)) = listener.accept().await {
        let ids = ids.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, ids.clone()));
            // The client may hang up at any time.
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// What a daemon says of them; what it is not asked for here does not exist.
#[expect(clippy::unused_async, reason = "the server takes nothing else")]
async fn answer(request: Request<Incoming>, ids: Arc<[String]>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    // `/v1.41/...` once a version is agreed on.
    let path = path
        .strip_prefix("/v1.")
        .and_then(|rest| rest.split_once('/'))
        .map_or(path.trim_start_matches('/'), |(_, rest)| rest);
    let parts: Vec<_> = path.split('/').collect();
    let found = match parts[..] {
        ["version"] => {
            Some(json!({ "Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux" }))
        }
        ["containers", "json"] => Some(ids.iter().map(|id| summary(id)).collect()),
        ["containers", id, "json"] => ids.iter().any(|known| known == id).then(|| inspected(id)),
        ["images", _, "json"] => Some(json!({
            "Id": IMAGE, "RepoTags": ["shop/web:2.31"], "RepoDigests": [format!("shop/web@{IMAGE}")]
        })),
        // A stream in which nothing ever happens.
        ["events"] => return Ok(Response::new(Pending.boxed())),
        _ => None,
    };
    let (status, body) = match found {
        Some(body) => (StatusCode::OK, body),
        None => (StatusCode::NOT_FOUND, json!({ "message": "no such object" })),
    };
    let mut response = Response::new(Full::from(body.to_string()).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

const IMAGE: &str = "sha256:5b0bcabd1ed22e9fb1310cf6c2dec7cdef19f0ad69efa1f392e94a4333501270";

fn labels(id: &str) -> Value {
    json!({
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": format!("web-{}", &id[..8]),
        "com.docker.compose.container-number": "1",
        "org.opencontainers.image.version": "2.31",
        "maintainer": "somebody of the shop",
    })
}

fn summary(id: &str) -> Value {
    json!({
        "Id": id, "Names": [format!("/shop-web-{}", &id[40..])], "Image": "shop/web:2.31", "ImageID": IMAGE,
        "Labels": labels(id), "State": "running",
    })
}

fn inspected(id: &str) -> Value {
    json!({
        "Id": id, "Name": format!("/shop-web-{}", &id[40..]), "Image": IMAGE, "State": { "Status": "running", "Pid": 0 },
        "Config": { "Image": "shop/web:2.31", "Labels": labels(id), "Env": ["PATH=/usr/bin:/bin", "OTEL_SERVICE_NAME=web"] },
    })
}

struct Pending;

impl hyper::body::Body for Pending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}
