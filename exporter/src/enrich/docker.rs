//! The Docker daemon's word on containers: its list, its events and its answers come in, updates go out.

mod book;
pub(crate) mod decode;
pub(crate) mod wire;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EventMessage, ImageInspect};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::timeout;

use super::How;
use super::container::Labels;
use super::runtime::{Line, Lost, Runtime};
use book::{Book, ImageAnswer, Inspection, Question};
use decode::Happened;

/// Most events kept while the list of containers is under way.
const EARLY_EVENTS: usize = 4096;
/// How long the daemon may take to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to list its containers.
const LIST: Duration = Duration::from_secs(30);

/// A daemon that speaks Docker's API: Docker's own, or Podman's.
pub struct Daemon {
    runtime: &'static str,
    socket: PathBuf,
    labels: Labels,
    book: Book,
    /// When the last event happened, by the daemon's clock, in nanoseconds.
    since: Option<i64>,
}

impl Daemon {
    /// `runtime`: `docker` or `podman`. Remembers so many containers. Whoever looks a container up waits for `patience` for
    /// all that there is to know of it.
    #[must_use]
    pub fn new(
        runtime: &'static str,
        socket: PathBuf,
        labels: Labels,
        capacity: NonZeroUsize,
        patience: Duration,
    ) -> Self {
        Self { runtime, socket, labels, book: Book::new(runtime, capacity, patience), since: None }
    }
}

#[async_trait]
impl Runtime for Daemon {
    fn name(&self) -> &'static str {
        self.runtime
    }

    fn place(&self) -> String {
        self.socket.display().to_string()
    }

    fn answers_for(&self) -> &'static [&'static str] {
        // cri-dockerd's containers may look like containerd's.
        if self.runtime == "docker" { &["docker", "containerd"] } else { &["podman"] }
    }

    async fn session(&mut self, line: &mut Line) -> Lost {
        let lost = match connect(&self.socket).await {
            Ok(docker) => {
                let mut session = Session { docker, daemon: self, line, in_flight: FuturesUnordered::new() };
                match session.watch().await {
                    Ok(never) => match never {},
                    Err(lost) => lost,
                }
            }
            Err(error) if !self.socket.exists() => Lost::Absent(error.to_string()),
            Err(error) => error.into(),
        };
        self.book.forget_questions();
        for update in self.book.take_updates() {
            if line.tell(update).await.is_err() {
                return Lost::Listener;
            }
        }
        lost
    }
}

async fn connect(socket: &Path) -> Result<Docker, Error> {
    let docker = wire::client(socket, ANSWER)?;
    timeout(ANSWER, docker.negotiate_version()).await.map_err(|_| Error::RequestTimeoutError)?
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Runtime(error.to_string())
    }
}

enum Answer {
    Container { id: String, answer: Result<Box<ContainerInspectResponse>, Error> },
    Image { reference: String, generation: u64, answer: Result<Box<ImageInspect>, Error> },
}

/// One connection to the daemon.
struct Session<'a> {
    docker: Docker,
    daemon: &'a mut Daemon,
    line: &'a mut Line,
    in_flight: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Session<'_> {
    async fn watch(&mut self) -> Result<std::convert::Infallible, Lost> {
        let docker = self.docker.clone();
        let wanted = self.events_wanted();
        let mut events = pin!(docker.events(Some(wanted)));
        let early = self.list(events.as_mut()).await?;
        for event in early {
            self.happened(event);
        }
        self.tell().await?;
        self.line.connected().await?;
        loop {
            self.ask();
            self.tell().await?;
            let due = self.daemon.book.next_due();
            let asks = self.daemon.book.takes_lookups();
            tokio::select! {
                event = events.next() => {
                    let event = self.readable(event)?;
                    self.happened(event);
                }
                Some(answer) = self.in_flight.next() => self.answered(answer),
                lookup = self.line.lookups.recv(), if asks => match lookup {
                    Some(id) => self.daemon.book.look_up(id, Instant::now()),
                    None => return Err(Lost::Listener),
                },
                () = sleep_until(due) => self.daemon.book.publish_due(Instant::now()),
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
        let Daemon { runtime, labels, book, .. } = &mut *self.daemon;
        book.list(running.into_iter().filter_map(|summary| decode::summary(runtime, summary, labels)));
        Ok(early)
    }

    /// From the last event seen, or from now: the daemon replays what happened before it took the subscription.
    fn events_wanted(&mut self) -> EventsOptions {
        let since = *self.daemon.since.get_or_insert_with(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
        });
        let wanted = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        EventsOptions {
            since: Some(format!("{}.{:09}", since / 1_000_000_000, since % 1_000_000_000)),
            until: None,
            // Podman takes several values of a filter as if all of them had to hold at once.
            filters: (self.daemon.runtime == "docker").then(|| {
                HashMap::from([
                    ("type".to_owned(), wanted(&["container", "image"])),
                    // Without those of `docker exec` and health checks, which carry whole command lines.
                    ("event".to_owned(), wanted(&decode::EVENTS)),
                ])
            }),
        }
    }

    fn readable(&mut self, event: Option<Result<EventMessage, Error>>) -> Result<EventMessage, Lost> {
        match event {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                // What cannot be read would come again; the next list makes up for it.
                if matches!(error, Error::JsonDataError { .. } | Error::JsonSerdeError { .. }) {
                    self.daemon.since = None;
                }
                Err(error.into())
            }
            None => Err(Lost::Runtime("the event stream has ended".to_owned())),
        }
    }

    fn happened(&mut self, event: EventMessage) {
        let Daemon { runtime, labels, since, .. } = &mut *self.daemon;
        *since = event.time_nano.filter(|ns| *ns > 0).or(*since);
        match decode::event(runtime, event, labels) {
            Some(Happened::Described(seen)) => self.daemon.book.describe(*seen, How::RuntimeEvent),
            Some(Happened::Died { id }) => self.daemon.book.end(&id, false),
            Some(Happened::Destroyed { id }) => self.daemon.book.end(&id, true),
            Some(Happened::ImagesChanged) => self.daemon.book.forget_images(),
            None => {}
        }
    }

    fn ask(&mut self) {
        while let Some((question, generation)) = self.daemon.book.next_question(self.in_flight.len()) {
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
                let Daemon { runtime, labels, .. } = &*self.daemon;
                let answer = match answer.map(|container| decode::inspected(runtime, *container, labels)) {
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
                self.daemon.book.inspected(&id, answer, Instant::now());
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
                self.daemon.book.image(&reference, generation, answer);
            }
        }
    }

    async fn tell(&mut self) -> Result<(), Lost> {
        for update in self.daemon.book.take_updates() {
            self.line.tell(update).await?;
        }
        Ok(())
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
