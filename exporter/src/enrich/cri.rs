//! A Kubernetes runtime's word on containers, by the CRI: its lists, its events and its answers come in, updates go out.
//!
//! For CRI-O, which has no other API, and true of any CRI. containerd's own API says more, and sooner.

pub(crate) mod api;
pub(crate) mod decode;

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tonic::{Code, Status};

use super::How;
use super::container::{Labels, is_full_id};
use super::grpc::{Client, reason};
use super::runtime::{Line, Lost, Runtime};
use super::told::{Seen, Told};
use api::{Api, Event, EventType};
use decode::Record;

/// Most questions to the daemon at any time.
const IN_FLIGHT: usize = 8;
/// No event and no lookup is taken in while so many questions wait to be asked.
const QUESTIONS: usize = 256;
/// How often the containers are listed: without events, that long may pass until the end of one is told. (The kubelet does
/// it every second.)
const RELIST: Duration = Duration::from_secs(10);

/// A runtime of the kubelet's.
pub struct Cri {
    runtime: &'static str,
    socket: PathBuf,
    labels: Arc<Labels>,
    capacity: NonZeroUsize,
    told: Told,
}

impl Cri {
    /// `runtime`: `cri-o` or `containerd`. Remembers so many containers.
    #[must_use]
    pub fn new(runtime: &'static str, socket: PathBuf, labels: Labels, capacity: NonZeroUsize) -> Self {
        Self { runtime, socket, labels: Arc::new(labels), capacity, told: Told::new(capacity) }
    }
}

#[async_trait]
impl Runtime for Cri {
    fn name(&self) -> &'static str {
        self.runtime
    }

    fn place(&self) -> String {
        self.socket.display().to_string()
    }

    fn answers_for(&self) -> &'static [&'static str] {
        if self.runtime == "cri-o" { &["cri-o"] } else { &["containerd"] }
    }

    async fn session(&mut self, line: &mut Line) -> Lost {
        let client = match Client::connect(&self.socket).await {
            Ok(client) => client,
            Err(lost) => return lost,
        };
        let api = Api(client);
        let (questions, in_flight) = (VecDeque::new(), FuturesUnordered::new());
        let mut session = Session { api, cri: self, line, questions, in_flight };
        match session.watch().await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }
}

/// A container that is to be described: by its id, and why.
type Question = (String, How);

enum Answer {
    Listed(Result<Vec<String>, Status>),
    Described { question: Question, answer: Result<Option<Box<Seen>>, Status> },
}

/// One connection to the daemon.
struct Session<'a> {
    api: Api,
    cri: &'a mut Cri,
    line: &'a mut Line,
    questions: VecDeque<Question>,
    in_flight: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Session<'_> {
    async fn watch(&mut self) -> Result<Infallible, Lost> {
        // containerd 1.7 tells each event to one subscriber only, and others need them.
        let mut eventful = self.api.runtime_name().await? != "containerd";
        let mut events = pin!(self.api.events());
        let mut relist = interval_at(Instant::now() + RELIST, RELIST);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut listing, mut connected) = (true, false);
        self.list();
        loop {
            self.ask();
            let room = self.questions.len() < QUESTIONS;
            tokio::select! {
                biased;
                event = events.next(), if eventful && room => match event {
                    Some(Ok(event)) => self.happened(event),
                    Some(Err(status)) if status.code() != Code::Unimplemented => return Err(status.into()),
                    // CRI-O ends the stream at once if it is not configured to have events.
                    Some(Err(_)) | None => eventful = false,
                },
                Some(answer) = self.in_flight.next() => match answer {
                    Answer::Listed(list) => {
                        self.listed(list?);
                        listing = false;
                    }
                    Answer::Described { question, answer } => self.described(question, answer),
                },
                lookup = self.line.lookups.recv(), if room => match lookup {
                    Some(id) => self.look_up(id),
                    None => return Err(Lost::Listener),
                },
                _ = relist.tick(), if !listing => {
                    listing = true;
                    self.list();
                }
            }
            self.tell().await?;
            if !connected && !listing && self.questions.is_empty() && self.in_flight.is_empty() {
                self.line.connected().await?;
                connected = true;
            }
        }
    }

    fn list(&mut self) {
        let api = self.api.clone();
        self.in_flight.push(async move { Answer::Listed(api.alive().await) }.boxed());
    }

    fn listed(&mut self, alive: Vec<String>) {
        let told = &mut self.cri.told;
        let alive: HashSet<_> = alive.into_iter().take(self.cri.capacity.get()).collect();
        told.only(&alive);
        let new = alive.into_iter().filter(|id| told.running(id) != Some(true));
        self.questions.extend(new.map(|id| (id, How::RuntimeApi)));
    }

    fn happened(&mut self, event: Event) {
        match event.kind() {
            EventType::Created | EventType::Started => self.questions.push_back((event.id, How::RuntimeEvent)),
            EventType::Stopped => self.cri.told.ended(&event.id),
            EventType::Deleted => self.cri.told.removed(&event.id),
        }
    }

    fn look_up(&mut self, key: String) {
        if self.cri.told.again(&key) {
            return;
        }
        if is_full_id(key.as_bytes()) {
            self.questions.push_back((key, How::RuntimeApi));
        } else {
            self.cri.told.unknown(key);
        }
    }

    fn ask(&mut self) {
        while self.in_flight.len() < IN_FLIGHT
            && let Some(question) = self.questions.pop_front()
        {
            let (api, runtime, labels) = (self.api.clone(), self.cri.runtime, Arc::clone(&self.cri.labels));
            self.in_flight.push(
                async move {
                    let answer = describe(&api, runtime, &question.0, &labels).await.map(|seen| seen.map(Box::new));
                    Answer::Described { question, answer }
                }
                .boxed(),
            );
        }
    }

    fn described(&mut self, (id, how): Question, answer: Result<Option<Box<Seen>>, Status>) {
        match answer {
            Ok(Some(seen)) => self.cri.told.seen(*seen, how),
            Ok(None) if how == How::RuntimeApi => self.cri.told.unknown(id),
            Ok(None) => {}
            Err(status) => tracing::debug!(%id, error = reason(&status), "the runtime does not describe a container"),
        }
    }

    async fn tell(&mut self) -> Result<(), Lost> {
        for update in self.cri.told.take_updates() {
            self.line.tell(update).await?;
        }
        Ok(())
    }
}

async fn describe(api: &Api, runtime: &'static str, id: &str, labels: &Labels) -> Result<Option<Seen>, Status> {
    let Some(record) = api.container(id).await?.and_then(Record::new) else {
        let sandbox = api.sandbox(id, true).await?;
        return Ok(sandbox.and_then(|sandbox| decode::sandbox(runtime, sandbox, labels)));
    };
    let sandbox = match record.sandbox() {
        Some(id) => api.sandbox(id, false).await?.and_then(|sandbox| sandbox.status),
        None => None,
    };
    Ok(Some(record.seen(runtime, sandbox, labels)))
}

#[cfg(test)]
mod tests;
