//! containerd's word on containers, by its own API: its lists, its events and its answers come in, updates go out.
//!
//! The messages are written out here, as far as they are wanted: the crates that have all of them need `protoc` where this
//! is built, and compile every service for the sake of six.

pub(crate) mod api;
pub(crate) mod decode;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::ANY_PATH;
use super::How;
use super::container::{Labels, is_full_id, key};
use super::grpc::{Client, reason};
use super::runtime::{Line, Lost, Runtime};
use super::told::{Seen, Told};
use api::{Api, Envelope};
use decode::{Happened, Record};

/// As [`ContainerRef::runtime`](super::cgroup::ContainerRef::runtime) has it.
const RUNTIME: &str = "containerd";
/// Most namespaces that are asked for an id.
const NAMESPACES: usize = 64;
/// Most events kept while the lists are under way.
const EARLY_EVENTS: usize = 4096;
/// How long the daemon may take to list all that runs. It asks each container's shim, and waits for each up to 2 s.
const LIST: Duration = Duration::from_secs(30);

/// A containerd of root's, with the containers of nerdctl, ctr, Kubernetes and whoever else uses it, but for Docker.
pub struct Containerd {
    socket: PathBuf,
    labels: Labels,
    capacity: NonZeroUsize,
    told: Told,
}

impl Containerd {
    /// Remembers so many containers.
    #[must_use]
    pub fn new(socket: PathBuf, labels: Labels, capacity: NonZeroUsize) -> Self {
        Self { socket, labels, capacity, told: Told::new(capacity) }
    }
}

#[async_trait]
impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        RUNTIME
    }

    fn place(&self) -> String {
        self.socket.display().to_string()
    }

    fn answers_for(&self) -> &'static [&'static str] {
        // A cgroup named by nothing but an id is taken for Docker's.
        &[RUNTIME, "docker", ANY_PATH]
    }

    async fn session(&mut self, line: &mut Line) -> Lost {
        let client = match Client::connect(&self.socket).await {
            Ok(client) => client,
            Err(lost) => return lost,
        };
        let mut session = Session { api: Api(client), containerd: self, line, namespaces: BTreeSet::new() };
        match session.watch().await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }
}

/// One connection to the daemon. It is asked one thing at a time, in the order of its events, so that no answer overtakes
/// what has happened since.
struct Session<'a> {
    api: Api,
    containerd: &'a mut Containerd,
    line: &'a mut Line,
    namespaces: BTreeSet<String>,
}

impl Session<'_> {
    async fn watch(&mut self) -> Result<Infallible, Lost> {
        let mut events = pin!(self.api.events());
        let (early, running) = self.list(events.as_mut()).await?;
        let told = &mut self.containerd.told;
        told.only(&running.iter().map(|seen| seen.container.key().into_owned()).collect());
        for seen in running {
            told.seen(seen, How::RuntimeApi);
        }
        self.tell().await?;
        self.line.connected().await?;
        for event in early {
            self.happened(event).await?;
        }
        loop {
            self.tell().await?;
            tokio::select! {
                event = events.next() => self.happened(readable(event)?).await?,
                lookup = self.line.lookups.recv() => match lookup {
                    Some(id) => self.look_up(id).await?,
                    None => return Err(Lost::Listener),
                },
            }
        }
    }

    /// Lists what runs, with the events already flowing: the two overlap, so nothing falls between.
    async fn list(
        &mut self,
        mut events: Pin<&mut impl Stream<Item = Result<Envelope, Status>>>,
    ) -> Result<(Vec<Envelope>, Vec<Seen>), Lost> {
        let Containerd { labels, capacity, .. } = &*self.containerd;
        let mut lists = pin!(timeout(LIST, running(&self.api, labels, capacity.get())));
        let mut early = Vec::new();
        loop {
            tokio::select! {
                biased;
                event = events.next(), if early.len() < EARLY_EVENTS => early.push(readable(event)?),
                lists = &mut lists => {
                    let (namespaces, running) = lists.map_err(|_| Lost::Runtime(format!("no list within {LIST:?}")))??;
                    self.namespaces = namespaces;
                    return Ok((early, running));
                }
            }
        }
    }

    async fn happened(&mut self, envelope: Envelope) -> Result<(), Lost> {
        let Some(happened) = decode::event(&envelope) else { return Ok(()) };
        let namespace = envelope.namespace;
        let key = |id: &str| key(RUNTIME, Some(&namespace), None, id).into_owned();
        let told = &mut self.containerd.told;
        match &happened {
            Happened::Removed { id } => told.removed(&key(id)),
            Happened::Ended { id } => told.ended(&key(id)),
            Happened::Created { id } => self.describe(&namespace, id, None, true).await?,
            Happened::Updated { id } => {
                if let Some(running) = told.running(&key(id)) {
                    self.describe(&namespace, id, None, running).await?;
                }
            }
            Happened::Started { id, pid } => {
                if !told.started(&key(id), *pid) {
                    self.describe(&namespace, id, *pid, true).await?;
                }
            }
        }
        if self.namespaces.len() < NAMESPACES {
            self.namespaces.insert(namespace);
        }
        Ok(())
    }

    async fn describe(&mut self, namespace: &str, id: &str, pid: Option<u32>, running: bool) -> Result<(), Lost> {
        let container = unless_late(self.api.container(namespace, id).await)?.flatten();
        if let Some(record) = container.and_then(Record::new) {
            let mut describer = Describer::new(&self.api, namespace, &self.containerd.labels);
            let seen = describer.describe(record, pid, running).await?;
            self.containerd.told.seen(seen, How::RuntimeEvent);
        }
        Ok(())
    }

    async fn look_up(&mut self, key: String) -> Result<(), Lost> {
        if self.containerd.told.again(&key) {
            return Ok(());
        }
        let (namespaces, id): (Vec<_>, _) = match in_namespace(&key) {
            Some((namespace, id)) => (vec![namespace], id),
            None if is_full_id(key.as_bytes()) => (self.namespaces.iter().map(String::as_str).collect(), key.as_str()),
            None => (Vec::new(), ""),
        };
        let mut sure = true;
        for namespace in namespaces {
            match unless_late(self.api.container(namespace, id).await)? {
                Some(Some(container)) => {
                    let Some(record) = Record::new(container) else { continue };
                    let pid = unless_late(self.api.pid(namespace, id).await)?.flatten();
                    let mut describer = Describer::new(&self.api, namespace, &self.containerd.labels);
                    let seen = describer.describe(record, pid, pid.is_some()).await?;
                    self.containerd.told.seen(seen, How::RuntimeApi);
                    return Ok(());
                }
                Some(None) => {}
                None => sure = false,
            }
        }
        if sure {
            self.containerd.told.unknown(key);
        }
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), Lost> {
        for update in self.containerd.told.take_updates() {
            self.line.tell(update).await?;
        }
        Ok(())
    }
}

fn readable(event: Option<Result<Envelope, Status>>) -> Result<Envelope, Lost> {
    event.ok_or_else(|| Lost::Runtime("the event stream has ended".to_owned()))?.map_err(Lost::from)
}

/// The namespace and the id in the [key](key()) of a container whose id does not say it all. Docker's are not asked for.
fn in_namespace(key: &str) -> Option<(&str, &str)> {
    let (namespace, id) = key.strip_prefix("containerd/")?.split_once('/')?;
    (!namespace.is_empty() && !id.is_empty() && namespace != api::DOCKER).then_some((namespace, id))
}

/// What the daemon cannot say of one container is no reason to leave it; that it does not answer is one.
fn unless_late<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::DeadlineExceeded => Err(status),
        Err(status) => {
            tracing::debug!(error = reason(&status), "containerd does not describe a container");
            Ok(None)
        }
    }
}

/// The namespaces, and all containers with processes in them, up to `most`.
async fn running(api: &Api, labels: &Labels, most: usize) -> Result<(BTreeSet<String>, Vec<Seen>), Status> {
    let mut namespaces = BTreeSet::new();
    let mut running = Vec::new();
    for namespace in api.namespaces().await?.into_iter().take(NAMESPACES) {
        let mut describer = Describer::new(api, &namespace, labels);
        let pids = api.pids(&namespace, LIST).await?;
        let mut containers = pin!(api.containers(&namespace)?);
        while running.len() < most
            && !pids.is_empty()
            && let Some(container) = containers.try_next().await?
        {
            if let Some(record) = container.and_then(Record::new)
                && let Some(pid) = pids.get(record.id())
            {
                running.push(describer.describe(record, Some(*pid), true).await?);
            }
        }
        namespaces.insert(namespace);
    }
    Ok((namespaces, running))
}

/// Asks for what a container's own record leaves open, once for all containers that share it.
struct Describer<'a> {
    api: &'a Api,
    namespace: &'a str,
    labels: &'a Labels,
    /// By the image's name.
    digests: HashMap<String, Option<String>>,
    /// By the sandbox's id.
    pods: HashMap<String, HashMap<String, String>>,
}

impl<'a> Describer<'a> {
    fn new(api: &'a Api, namespace: &'a str, labels: &'a Labels) -> Self {
        Self { api, namespace, labels, digests: HashMap::new(), pods: HashMap::new() }
    }

    async fn describe(&mut self, record: Record, pid: Option<u32>, running: bool) -> Result<Seen, Status> {
        let digest = match record.stored_image() {
            Some(image) => self.digest(image).await?,
            None => None,
        };
        let pod = match record.sandbox() {
            Some(sandbox) => self.pod(sandbox).await?,
            None => HashMap::new(),
        };
        Ok(record.seen(self.namespace, pid, running, digest, pod, self.labels))
    }

    async fn digest(&mut self, image: &str) -> Result<Option<String>, Status> {
        if let Some(known) = self.digests.get(image) {
            return Ok(known.clone());
        }
        let digest = unless_late(self.api.digest(self.namespace, image).await)?.flatten();
        Ok(self.digests.entry(image.to_owned()).or_insert(digest).clone())
    }

    async fn pod(&mut self, sandbox: &str) -> Result<HashMap<String, String>, Status> {
        if let Some(known) = self.pods.get(sandbox) {
            return Ok(known.clone());
        }
        let record = unless_late(self.api.container(self.namespace, sandbox).await)?.flatten();
        let labels = record.and_then(Record::new).map(Record::pod_labels).unwrap_or_default();
        Ok(self.pods.entry(sandbox.to_owned()).or_insert(labels).clone())
    }
}

#[cfg(test)]
mod tests;
