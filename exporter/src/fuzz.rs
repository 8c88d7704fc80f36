//! Doors to readers of foreign bytes that are nobody else's business: for `exporter/fuzz`, which no part of the program is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use prost::Message as _;

use crate::config::Compression;
use crate::enrich::container::{Container, Labels};
use crate::enrich::runtime::Place;
use crate::enrich::{containerd, cri, docker};
use crate::queue::Class;
use crate::queue::spool::segment;
use crate::ship::outcome::Outcome;

/// What a collector's answer is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub means: &'static str,
    pub rejected: u64,
    /// What is shown of it.
    pub text: String,
    pub after: Option<Duration>,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        let says = |means, text| Self { means, rejected: 0, text, after: None };
        match outcome {
            Outcome::Accepted => says("accepted", String::new()),
            Outcome::Partial { rejected, message } => Self { rejected, ..says("partial", message) },
            Outcome::Retry { after, reason } => Self { after, ..says("retry", reason) },
            Outcome::Permanent { answer: _, reason } => says("permanent", reason),
            Outcome::TooLarge { reason } => says("too large", reason),
            Outcome::Unimplemented { reason } => says("unimplemented", reason),
            Outcome::EncodingRefused { reason } => says("encoding refused", reason),
        }
    }
}

#[must_use]
pub fn http_answer(status: StatusCode, headers: &HeaderMap, body: &[u8], sent: Compression) -> Answer {
    Outcome::from_http(status, headers, body, sent).into()
}

#[must_use]
pub fn grpc_answer(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
    message: &[u8],
    sent: Compression,
) -> Answer {
    Outcome::from_grpc(status, headers, trailers, message, sent).0.into()
}

/// One message of a Docker daemon, taken for each kind of message in turn.
#[must_use]
pub fn docker(json: &[u8], labels: &Labels) -> Vec<Container> {
    let described = |happened| match happened {
        docker::decode::Happened::Described(seen) => Some(seen.container),
        docker::decode::Happened::Died { .. }
        | docker::decode::Happened::Destroyed { .. }
        | docker::decode::Happened::ImagesChanged => None,
    };
    let event = serde_json::from_slice(json).ok().and_then(|message| docker::decode::event("docker", message, labels));
    let summary = serde_json::from_slice(json).ok().and_then(|one| docker::decode::summary("docker", one, labels));
    let inspected = serde_json::from_slice(json).ok().and_then(|one| docker::decode::inspected("docker", one, labels));
    let _facts = serde_json::from_slice(json).ok().map(docker::decode::image);
    let seen = [summary, inspected.map(|(seen, _)| seen)].into_iter().flatten().map(|seen| seen.container);
    event.and_then(described).into_iter().chain(seen).collect()
}

/// The status of a container, and that of a sandbox, as the CRI has them in protobuf.
#[must_use]
pub fn cri(container: &[u8], sandbox: &[u8], labels: &Labels) -> Vec<(Container, Place)> {
    let sandbox = || cri::api::Sandbox::decode(sandbox).ok();
    let own = sandbox().and_then(|sandbox| cri::decode::sandbox("cri-o", sandbox, labels));
    let container = cri::api::Container::decode(container).ok().and_then(cri::decode::Record::new);
    let container = container.map(|record| record.seen("cri-o", sandbox().and_then(|sandbox| sandbox.status), labels));
    own.into_iter().chain(container).map(|seen| (seen.container, seen.place)).collect()
}

/// The record of a container, and that of its sandbox, as containerd has them in protobuf.
#[must_use]
pub fn containerd(container: &[u8], sandbox: &[u8], labels: &Labels) -> Option<(Container, Place)> {
    let record = |bytes| containerd::api::Container::decode(bytes).ok().and_then(containerd::decode::Record::new);
    let pod = record(sandbox).map_or_else(HashMap::new, containerd::decode::Record::pod_labels);
    let seen = record(container)?.seen("k8s.io", Some(1), true, None, pod, labels);
    Some((seen.container, seen.place))
}

/// One event of containerd in protobuf; the container it is of.
#[must_use]
pub fn containerd_event(envelope: &[u8]) -> Option<String> {
    use containerd::decode::Happened;
    match containerd::decode::event(&containerd::api::Envelope::decode(envelope).ok()?)? {
        Happened::Created { id }
        | Happened::Updated { id }
        | Happened::Removed { id }
        | Happened::Started { id, .. }
        | Happened::Ended { id } => Some(id),
    }
}

/// A segment of a spool as it was found and mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of it that are left.
    pub len: u64,
    pub written: u64,
    pub settled: u64,
    /// Records that wait.
    pub waiting: u64,
    /// Records that are gone.
    pub lost: u64,
    /// Bytes that were cut off.
    pub cut: u64,
}

pub fn segment(file: &File, class: Class, boot: u128) -> io::Result<Option<Segment>> {
    segment::Segment::find(file, class, 1, boot).map(|found| found.map(segment::Found::told))
}
