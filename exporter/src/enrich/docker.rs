//! The Docker daemon's word on containers: its list, its events and its answers come in, updates go out.

mod book;
mod decode;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EventMessage, ImageInspect};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;

use super::{How, Link, Update};
use crate::config::Enrich;
use book::{Book, ImageAnswer, Inspection, Question};
use decode::{Happened, Labels};

/// Most events kept while the list of containers is under way.
const EARLY_EVENTS: usize = 4096;
/// How long the daemon may take to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to list its containers.
const LIST: Duration = Duration::from_secs(30);
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Clone, Debug)]
pub struct Settings {
    pub socket: PathBuf,
    /// Allowed label keys; `*` at the end matches any rest.
    pub labels: Vec<String>,
    /// Most containers remembered.
    pub capacity: NonZeroUsize,
    /// How long somebody who looks a container up waits for all that there is to know of it.
    pub patience: Duration,
}

impl Settings {
    /// `None`: Docker is switched off.
    #[must_use]
    pub fn from_config(config: &Enrich) -> Option<Self> {
        Some(Self {
            socket: config.docker_socket.clone()?,
            labels: config.labels.clone(),
            capacity: config.cache_entries,
            // Before its records are told without any name at all.
            patience: config.wait * 3 / 4,
        })
    }
}

/// Tells of all containers of the daemon, and of those whose ids come through `lookups`, until nobody listens any
/// more. A daemon that is not there, or goes away, is tried again for ever.
pub async fn watch(settings: Settings, mut lookups: Receiver<String>, updates: Sender<Update>) {
    let labels = Labels(settings.labels);
    let mut book = Book::new(settings.capacity, settings.patience);
    let mut since = None;
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        let mut connected = false;
        let lost = match connect(&settings.socket).await {
            Ok(docker) => {
                let mut session = Session {
                    docker,
                    labels: &labels,
                    book: &mut book,
                    updates: &updates,
                    since: &mut since,
                    connected: &mut connected,
                    in_flight: FuturesUnordered::new(),
                };
                session.run(&mut lookups).await
            }
            Err(error) => Lost::Daemon(error.to_string()),
        };
        let Lost::Daemon(reason) = lost else { return };
        book.forget_questions();
        for update in book.take_updates() {
            if updates.send(update).await.is_err() {
                return;
            }
        }
        if connected {
            backoff = Backoff::default();
        }
        if connected || !told {
            told = true;
            if updates.send(Update::State(Link::Lost { reason })).await.is_err() {
                return;
            }
        }
        if timeout(backoff.next(), updates.closed()).await.is_ok() {
            return;
        }
    }
}

async fn connect(socket: &Path) -> Result<Docker, Error> {
    let path = socket.to_str().ok_or_else(|| Error::SocketNotFoundError(socket.display().to_string()))?;
    let docker = Docker::connect_with_unix(path, ANSWER.as_secs(), API_DEFAULT_VERSION)?;
    timeout(ANSWER, docker.negotiate_version()).await.map_err(|_| Error::RequestTimeoutError)?
}

/// Why a session is over.
enum Lost {
    Daemon(String),
    /// Nobody takes the updates.
    Listener,
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Daemon(error.to_string())
    }
}

enum Answer {
    Container { id: String, answer: Result<Box<ContainerInspectResponse>, Error> },
    Image { reference: String, generation: u64, answer: Result<Box<ImageInspect>, Error> },
}

/// One connection to the daemon.
struct Session<'a> {
    docker: Docker,
    labels: &'a Labels,
    book: &'a mut Book,
    updates: &'a Sender<Update>,
    /// When the last event happened, by the daemon's clock, in nanoseconds.
    since: &'a mut Option<i64>,
    connected: &'a mut bool,
    in_flight: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Session<'_> {
    async fn run(&mut self, lookups: &mut Receiver<String>) -> Lost {
        match self.watch(lookups).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn watch(&mut self, lookups: &mut Receiver<String>) -> Result<std::convert::Infallible, Lost> {
        let docker = self.docker.clone();
        let wanted = self.events_wanted();
        let mut events = pin!(docker.events(Some(wanted)));
        let early = self.list(events.as_mut()).await?;
        for event in early {
            self.happened(event);
        }
        self.tell().await?;
        self.send(Update::State(Link::Connected)).await?;
        *self.connected = true;
        loop {
            self.ask();
            self.tell().await?;
            let due = self.book.next_due();
            tokio::select! {
                event = events.next() => {
                    let event = self.readable(event)?;
                    self.happened(event);
                }
                Some(answer) = self.in_flight.next() => self.answered(answer),
                lookup = lookups.recv(), if self.book.takes_lookups() => match lookup {
                    Some(id) => self.book.look_up(id, Instant::now()),
                    None => return Err(Lost::Listener),
                },
                () = sleep_until(due) => self.book.publish_due(Instant::now()),
                () = self.updates.closed() => return Err(Lost::Listener),
            }
        }
    }

    /// Lists what runs, with the events already flowing: the two overlap, so nothing falls between.
    async fn list(
        &mut self,
        mut events: std::pin::Pin<&mut impl Stream<Item = Result<EventMessage, Error>>>,
    ) -> Result<Vec<EventMessage>, Lost> {
        let docker = self.docker.clone().with_timeout(LIST);
        let mut list = pin!(timeout(LIST, docker.list_containers(None::<ListContainersOptions>)));
        let mut early = Vec::new();
        let running = loop {
            tokio::select! {
                biased;
                event = events.next(), if early.len() < EARLY_EVENTS => early.push(self.readable(event)?),
                list = &mut list => break list.map_err(|_| Error::RequestTimeoutError)??,
            }
        };
        self.book.list(running.into_iter().filter_map(|summary| decode::summary(summary, self.labels)));
        Ok(early)
    }

    /// From the last event seen, or from now: the daemon replays what happened before it took the subscription.
    fn events_wanted(&mut self) -> EventsOptions {
        let since = *self.since.get_or_insert_with(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
        });
        let wanted = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        EventsOptions {
            since: Some(format!("{}.{:09}", since / 1_000_000_000, since % 1_000_000_000)),
            until: None,
            filters: Some(HashMap::from([
                ("type".to_owned(), wanted(&["container", "image"])),
                // Without those of `docker exec` and health checks, which carry whole command lines.
                ("event".to_owned(), wanted(&decode::EVENTS)),
            ])),
        }
    }

    fn readable(&mut self, event: Option<Result<EventMessage, Error>>) -> Result<EventMessage, Lost> {
        match event {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                // What cannot be read would come again; the next list makes up for it.
                if matches!(error, Error::JsonDataError { .. } | Error::JsonSerdeError { .. }) {
                    *self.since = None;
                }
                Err(error.into())
            }
            None => Err(Lost::Daemon("the event stream has ended".to_owned())),
        }
    }

    fn happened(&mut self, event: EventMessage) {
        *self.since = event.time_nano.filter(|ns| *ns > 0).or(*self.since);
        match decode::event(event, self.labels) {
            Some(Happened::Described(seen)) => self.book.describe(*seen, How::RuntimeEvent),
            Some(Happened::Died { id }) => self.book.end(&id, false),
            Some(Happened::Destroyed { id }) => self.book.end(&id, true),
            Some(Happened::ImagesChanged) => self.book.forget_images(),
            None => {}
        }
    }

    fn ask(&mut self) {
        while let Some((question, generation)) = self.book.next_question(self.in_flight.len()) {
            let docker = self.docker.clone();
            self.in_flight.push(match question {
                Question::Container(id) => async move {
                    let answer = timeout(ANSWER, docker.inspect_container(&id, None::<InspectContainerOptions>)).await;
                    Answer::Container { id, answer: answer.unwrap_or(Err(Error::RequestTimeoutError)).map(Box::new) }
                }
                .boxed(),
                Question::Image(reference) => async move {
                    let answer = timeout(ANSWER, docker.inspect_image(&reference)).await;
                    let answer = answer.unwrap_or(Err(Error::RequestTimeoutError)).map(Box::new);
                    Answer::Image { reference, generation, answer }
                }
                .boxed(),
            });
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Container { id, answer } => {
                let answer = match answer.map(|container| decode::inspected(*container, self.labels)) {
                    // The daemon takes names too, and a container may be named like another one's id.
                    Ok(Some((seen, running))) if seen.container.id == id => {
                        Inspection::Found { seen: Box::new(seen), running }
                    }
                    Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Inspection::Missing,
                    Err(error) => {
                        tracing::debug!(%id, %error, "docker does not describe a container");
                        Inspection::Failed
                    }
                };
                self.book.inspected(&id, answer, Instant::now());
            }
            Answer::Image { reference, generation, answer } => {
                let answer = match answer {
                    Ok(image) => ImageAnswer::Found(decode::image(*image)),
                    Err(Error::DockerResponseServerError { status_code: 404, .. }) => ImageAnswer::Missing,
                    Err(error) => {
                        tracing::debug!(reference, %error, "docker does not describe an image");
                        ImageAnswer::Failed
                    }
                };
                self.book.image(&reference, generation, answer);
            }
        }
    }

    async fn tell(&mut self) -> Result<(), Lost> {
        for update in self.book.take_updates() {
            self.send(update).await?;
        }
        Ok(())
    }

    async fn send(&mut self, update: Update) -> Result<(), Lost> {
        self.updates.send(update).await.map_err(|_| Lost::Listener)
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Doubles up to its limit, with a jitter of a quarter to either side.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let base = BACKOFF.0.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF.1);
        self.attempts = self.attempts.saturating_add(1);
        let dice = RandomState::new().hash_one(self.attempts) % 1000;
        (base * 3 / 4 + base / 2 * u32::try_from(dice).unwrap_or(0) / 1000).clamp(BACKOFF.0, BACKOFF.1)
    }
}
