//! `nstest-traced [PROGRAM ARGUMENT...]`: an application with the OpenTelemetry SDK, which hands its context on to a child.
//!
//! Ships to `OTEL_EXPORTER_OTLP_ENDPOINT`; prints the ids of its trace and of its span.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write as _};
use std::process::{Command, ExitCode};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        // Of the last command some shells become the program themselves.
        arguments = ["sh", "-c", "true; grep -q x /dev/null; exit $?"].map(str::to_owned).into();
    }
    match serve(&arguments) {
        Ok(span) => {
            let printed = writeln!(io::stdout(), "{} {}", span.trace_id(), span.span_id());
            if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _closed = writeln!(io::stderr(), "nstest-traced: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One request, as it were, for which a program is run.
fn serve(arguments: &[String]) -> Result<SpanContext, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(Client { runtime })
        .build()?;
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
    let context = Context::new().with_span(provider.tracer("nstest").start("GET /report"));
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    let mut child = Command::new(&arguments[0]);
    child.args(&arguments[1..]);
    // The names of the specification's environment carrier.
    child.envs(carrier.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.to_uppercase(), value)));
    child.status()?;
    context.span().end();
    provider.force_flush()?;
    provider.shutdown()?;
    Ok(context.span().span_context().clone())
}

/// The SDK has none that takes no more than we have.
#[derive(Debug)]
struct Client {
    runtime: Runtime,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.block_on(send(request))
    }
}

/// Over a connection of its own.
async fn send(mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let authority = request.uri().authority().ok_or("an endpoint without a host")?.clone();
    let stream = TcpStream::connect(authority.as_str()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = request.uri().path_and_query().ok_or("an endpoint without a path")?.clone();
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}
