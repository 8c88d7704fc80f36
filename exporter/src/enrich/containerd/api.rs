//! containerd's API, as far as it is wanted: questions go out, its messages come in.
//!
//! Fields by `api/services/{namespaces,containers,tasks,images,events}/v1/*.proto`, `api/types/{event,descriptor}.proto`,
//! `api/types/task/task.proto` and `api/types/runc/options/oci.proto` of containerd.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::enrich::grpc::Client;

/// How long the daemon may take to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// Of the namespace that a question is about.
const NAMESPACE: &str = "containerd-namespace";
/// The namespace of Docker, who names its containers itself.
pub const DOCKER: &str = "moby";
/// `Status.STOPPED` of `task.proto`.
const STOPPED: i32 = 3;

/// The topics that are subscribed to, but for Docker's.
const EVENTS: [&str; 7] = [
    r#"namespace!="moby",topic=="/containers/create""#,
    r#"namespace!="moby",topic=="/containers/update""#,
    r#"namespace!="moby",topic=="/containers/delete""#,
    r#"namespace!="moby",topic=="/tasks/create""#,
    r#"namespace!="moby",topic=="/tasks/start""#,
    r#"namespace!="moby",topic=="/tasks/exit""#,
    r#"namespace!="moby",topic=="/tasks/delete""#,
];

#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(map = "string, string", tag = "2")]
    pub labels: HashMap<String, String>,
    #[prost(string, tag = "3")]
    pub image: String,
    #[prost(message, optional, tag = "4")]
    pub runtime: Option<Runtime>,
    #[prost(message, optional, tag = "5")]
    pub spec: Option<Any>,
    #[prost(map = "string, message", tag = "10")]
    pub extensions: HashMap<String, Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Runtime {
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}

/// `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, Message)]
pub struct RuncOptions {
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

/// The requests that name one thing, all of them in their first field.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    id: String,
}

/// The requests that list all there is.
#[derive(Clone, PartialEq, Message)]
struct All {}

#[derive(Clone, PartialEq, Message)]
struct Filters {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct OneContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct OneTask {
    #[prost(message, optional, tag = "1")]
    process: Option<Task>,
}

#[derive(Clone, PartialEq, Message)]
struct Tasks {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<Task>,
}

/// `containerd.v1.types.Process`. A list has the id in its second field only.
#[derive(Clone, PartialEq, Message)]
struct Task {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint32, tag = "3")]
    pid: u32,
    #[prost(int32, tag = "4")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct OneImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(string, tag = "2")]
    digest: String,
}

#[derive(Clone)]
pub struct Api(pub Client);

impl Api {
    /// All namespaces but Docker's.
    pub async fn namespaces(&self) -> Result<Vec<String>, Status> {
        let path = "/containerd.services.namespaces.v1.Namespaces/List";
        let Namespaces { namespaces } = self.0.ask(path, Request::new(All {}), ANSWER).await?;
        Ok(namespaces.into_iter().map(|namespace| namespace.id).filter(|name| name != DOCKER).collect())
    }

    pub async fn container(&self, namespace: &str, id: &str) -> Result<Option<Container>, Status> {
        let path = "/containerd.services.containers.v1.Containers/Get";
        let answer = self.0.ask(path, of(namespace, named(id))?, ANSWER).await;
        Ok(found(answer)?.and_then(|OneContainer { container }| container))
    }

    /// Those that run and those that do not.
    pub fn containers(
        &self,
        namespace: &str,
    ) -> Result<impl Stream<Item = Result<Option<Container>, Status>> + Send + use<>, Status> {
        let path = "/containerd.services.containers.v1.Containers/ListStream";
        Ok(self.0.stream(path, of(namespace, All {})?).map_ok(|OneContainer { container }| container))
    }

    /// The first process of a container, if it has processes.
    pub async fn pid(&self, namespace: &str, id: &str) -> Result<Option<u32>, Status> {
        let path = "/containerd.services.tasks.v1.Tasks/Get";
        let answer = self.0.ask(path, of(namespace, named(id))?, ANSWER).await;
        Ok(found(answer)?.and_then(|OneTask { process }| process?.alive()))
    }

    /// The first process of each container that has processes, by the container's id.
    pub async fn pids(&self, namespace: &str, limit: Duration) -> Result<HashMap<String, u32>, Status> {
        let path = "/containerd.services.tasks.v1.Tasks/List";
        let Tasks { tasks } = self.0.ask(path, of(namespace, All {})?, limit).await?;
        Ok(tasks.into_iter().filter_map(|task| Some((task.alive()?, task.id))).map(|(pid, id)| (id, pid)).collect())
    }

    /// The digest that an image's name stands for at the moment.
    pub async fn digest(&self, namespace: &str, image: &str) -> Result<Option<String>, Status> {
        let path = "/containerd.services.images.v1.Images/Get";
        let answer = self.0.ask(path, of(namespace, named(image))?, ANSWER).await;
        let digest = found(answer)?.and_then(|OneImage { image }| Some(image?.target?.digest));
        Ok(digest.filter(|digest| !digest.is_empty()))
    }

    pub fn events(&self) -> impl Stream<Item = Result<Envelope, Status>> + Send + use<> {
        let filters = EVENTS.iter().map(ToString::to_string).collect();
        self.0.stream("/containerd.services.events.v1.Events/Subscribe", Request::new(Filters { filters }))
    }
}

impl Task {
    fn alive(&self) -> Option<u32> {
        (self.status != STOPPED && self.pid > 0).then_some(self.pid)
    }
}

fn named(id: &str) -> Named {
    Named { id: id.to_owned() }
}

fn of<Q>(namespace: &str, question: Q) -> Result<Request<Q>, Status> {
    let namespace = MetadataValue::try_from(namespace)
        .map_err(|_| Status::invalid_argument(format!("{namespace:?} is no name of a namespace")))?;
    let mut request = Request::new(question);
    request.metadata_mut().insert(NAMESPACE, namespace);
    Ok(request)
}

fn found<A>(answer: Result<A, Status>) -> Result<Option<A>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
