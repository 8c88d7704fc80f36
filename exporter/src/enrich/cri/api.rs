//! The Container Runtime Interface, as far as it is wanted: questions go out, its messages come in.
//!
//! Fields by `pkg/apis/runtime/v1/api.proto` of k8s.io/cri-api, service `runtime.v1.RuntimeService`.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::Stream;
use prost::Message;
use tonic::{Code, Request, Status};

use crate::enrich::grpc::Client;

/// How long the daemon may take to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to list its containers.
const LIST: Duration = Duration::from_secs(10);

/// `ContainerState`: a container of others has no processes.
const CONTAINER_ALIVE: [i32; 2] = [0, 1];
/// `PodSandboxState`.
const SANDBOX_READY: i32 = 0;

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "2")]
    runtime_name: String,
}

/// `ListContainersResponse`.
#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    items: Vec<ListedContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct ListedContainer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "6")]
    state: i32,
}

/// `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<ListedSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct ListedSandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "3")]
    state: i32,
}

/// `ContainerStatusRequest` and `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

/// `ContainerStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(message, optional, tag = "1")]
    pub status: Option<ContainerStatus>,
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(message, optional, tag = "8")]
    pub image: Option<ImageSpec>,
    #[prost(string, tag = "9")]
    pub image_ref: String,
    #[prost(map = "string, string", tag = "12")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "13")]
    pub annotations: HashMap<String, String>,
    #[prost(string, tag = "17")]
    pub image_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
    #[prost(string, tag = "18")]
    pub user_specified_image: String,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Sandbox {
    #[prost(message, optional, tag = "1")]
    pub status: Option<SandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SandboxMetadata>,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "8")]
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// `ContainerEventResponse`; of a sandbox too.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "EventType", tag = "2")]
    pub kind: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum EventType {
    Created = 0,
    Started = 1,
    Stopped = 2,
    Deleted = 3,
}

#[derive(Clone)]
pub struct Api(pub Client);

impl Api {
    /// What the runtime calls itself: `containerd`, `cri-o`, ...
    pub async fn runtime_name(&self) -> Result<String, Status> {
        let version: Version =
            self.0.ask("/runtime.v1.RuntimeService/Version", Request::new(Nothing {}), ANSWER).await?;
        Ok(version.runtime_name)
    }

    /// Ids of all containers that have processes or will have, pod sandboxes first.
    pub async fn alive(&self) -> Result<Vec<String>, Status> {
        let all = || Request::new(Nothing {});
        let sandboxes: Sandboxes = self.0.ask("/runtime.v1.RuntimeService/ListPodSandbox", all(), LIST).await?;
        let containers: Containers = self.0.ask("/runtime.v1.RuntimeService/ListContainers", all(), LIST).await?;
        let sandboxes = sandboxes.items.into_iter().filter(|item| item.state == SANDBOX_READY).map(|item| item.id);
        let containers = containers.items.into_iter().filter(|item| CONTAINER_ALIVE.contains(&item.state));
        Ok(sandboxes.chain(containers.map(|item| item.id)).collect())
    }

    pub async fn container(&self, id: &str) -> Result<Option<Container>, Status> {
        let question = StatusRequest { id: id.to_owned(), verbose: true };
        let answer: Result<Container, _> =
            self.0.ask("/runtime.v1.RuntimeService/ContainerStatus", Request::new(question), ANSWER).await;
        // A runtime takes the beginning of an id for it.
        Ok(found(answer)?.filter(|answer| answer.status.as_ref().is_some_and(|status| status.id == id)))
    }

    pub async fn sandbox(&self, id: &str, verbose: bool) -> Result<Option<Sandbox>, Status> {
        let question = StatusRequest { id: id.to_owned(), verbose };
        let answer: Result<Sandbox, _> =
            self.0.ask("/runtime.v1.RuntimeService/PodSandboxStatus", Request::new(question), ANSWER).await;
        Ok(found(answer)?.filter(|answer| answer.status.as_ref().is_some_and(|status| status.id == id)))
    }

    pub fn events(&self) -> impl Stream<Item = Result<Event, Status>> + Send + use<> {
        self.0.stream("/runtime.v1.RuntimeService/GetContainerEvents", Request::new(Nothing {}))
    }
}

impl ContainerStatus {
    pub fn alive(&self) -> bool {
        CONTAINER_ALIVE.contains(&self.state)
    }
}

impl SandboxStatus {
    pub fn alive(&self) -> bool {
        self.state == SANDBOX_READY
    }
}

fn found<A>(answer: Result<A, Status>) -> Result<Option<A>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
