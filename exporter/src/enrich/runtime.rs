//! What every container runtime has in common: a session that tells of its containers, over and over for as long as
//! somebody listens.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;

use super::How;
use super::container::Container;

const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A container runtime on this host, or what it leaves on disk.
#[async_trait]
pub trait Runtime: Send {
    /// As in messages, settings and metrics: `docker`, `containerd`, `cri-o`, `podman`, ...
    fn name(&self) -> &'static str;

    /// Where it is reached: the path of its socket or folder.
    fn place(&self) -> String;

    /// One session, from its beginning to its end: says by [`Line::connected`] that it has begun and that all containers
    /// that run have been told of, tells of containers as they come and go, and answers the keys that come through
    /// [`Line::lookups`]. Remembers what it must between sessions.
    async fn session(&mut self, line: &mut Line) -> Lost;

    /// Whose containers it can describe, as [`ContainerRef::runtime`](super::cgroup::ContainerRef::runtime) has them.
    fn answers_for(&self) -> &'static [&'static str];
}

/// Why a session is over.
#[derive(Debug)]
pub enum Lost {
    /// There is no such runtime: no socket, no folder.
    Absent(String),
    /// The runtime does not answer (any more), or not so that it is understood.
    Runtime(String),
    /// Nobody takes the updates.
    Listener,
}

/// What a runtime tells.
#[derive(Clone, Debug)]
pub enum Update {
    /// A container is there, or has changed.
    Known {
        container: Arc<Container>,
        how: How,
        place: Place,
    },
    /// The runtime has no container of this [key](Container::key).
    Unknown {
        key: String,
    },
    /// The processes of the container of this [key](Container::key) have ended.
    Gone {
        key: String,
    },
    State(Link),
}

/// Where a container's processes are, as its runtime says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Absolute path of its cgroup from the hierarchy's root, the same in each hierarchy; `None`: not said, or said in
    /// systemd's form.
    pub cgroup: Option<String>,
    /// Its first process, in the PID namespace of the host.
    pub pid: Option<u32>,
}

/// The connection to a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Connected; what already runs has been told.
    Connected,
    /// It was never there.
    Absent {
        reason: String,
    },
    Lost {
        reason: String,
    },
}

/// A runtime's way to those who listen.
#[derive(Debug)]
pub struct Line {
    /// [Keys](Container::key) that are asked for; closed when nobody listens any more.
    pub lookups: Receiver<String>,
    updates: Sender<(usize, Update)>,
    /// Which of the runtimes it is.
    source: usize,
    connected: bool,
}

impl Line {
    #[must_use]
    pub fn new(source: usize, lookups: Receiver<String>, updates: Sender<(usize, Update)>) -> Self {
        Self { lookups, updates, source, connected: false }
    }

    pub async fn tell(&self, update: Update) -> Result<(), Lost> {
        self.updates.send((self.source, update)).await.map_err(|_| Lost::Listener)
    }

    /// What runs has been told of; from now on it is told what changes.
    pub async fn connected(&mut self) -> Result<(), Lost> {
        self.connected = true;
        self.tell(Update::State(Link::Connected)).await
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.updates.closed().await;
    }
}

/// Session after session, until nobody listens any more. A runtime that is not there, or goes away, is tried again for
/// ever.
pub async fn follow(mut runtime: Box<dyn Runtime>, mut line: Line) {
    let mut backoff = Backoff::default();
    let mut told = None;
    loop {
        line.connected = false;
        let state = match runtime.session(&mut line).await {
            Lost::Listener => return,
            Lost::Absent(reason) => Link::Absent { reason },
            Lost::Runtime(reason) => Link::Lost { reason },
        };
        if line.connected {
            backoff = Backoff::default();
            told = None;
        }
        let kind = std::mem::discriminant(&state);
        if told != Some(kind) {
            told = Some(kind);
            if line.tell(Update::State(state)).await.is_err() {
                return;
            }
        }
        if timeout(backoff.next(), line.closed()).await.is_ok() {
            return;
        }
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
