//! Uprobes beside the straight line: their ring, the thread that attaches them, and what both have to say.

use std::future::pending;
use std::io;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot};

use crate::attach::refusal::shortened;
use crate::config::Config;
use crate::enrich::Resident;
use crate::enrich::container::Container;
use crate::enrich::procfs;
use crate::list::host::Hierarchies;
use crate::ring::Ring;
use crate::uprobe::attach::{Limits, UprobeError, Uprobes};
use crate::uprobe::follow::{Answer, Follower, Sighting, Totals, Who};
use crate::uprobe::place::Places;
use crate::uprobe::spec::{Target, Uprobe};

/// All probes of the settings at work.
pub(super) struct Uprobing {
    ring: Ring,
    answers: mpsc::Receiver<Answer>,
    counting: Option<oneshot::Receiver<Totals>>,
    /// As last heard.
    totals: Totals,
}

/// The way from what is seen to who is probed.
pub(super) struct Prober {
    follower: Follower,
    pub(super) places: Places,
    /// Some probe is for processes outside containers.
    wants_host: bool,
}

/// What happens beside the hits.
pub(super) enum Next {
    /// Many wait.
    Hits(io::Result<()>),
    Answer(Answer),
}

/// Why there are no uprobes.
#[derive(Debug, thiserror::Error)]
pub enum UprobingError {
    #[error("uprobes: {}", shortened(.0.to_string()))]
    Load(#[from] UprobeError),
    #[error("uprobes' ring buffer can't be watched: {0}")]
    Ring(#[source] io::Error),
    #[error("uprobes' thread can't be started: {0}")]
    Thread(#[source] io::Error),
}

impl Uprobing {
    /// Loads the programs and attaches to what is there. Within a tokio runtime only.
    pub(super) fn start(config: &Config, residents: Vec<Resident>) -> Result<(Self, Prober), UprobingError> {
        raise_open_files();
        let (uprobes, ring) = Uprobes::load(&Limits::default())?;
        let (ring, places) = (Ring::new(ring).map_err(UprobingError::Ring)?, Places::default());
        let (follower, answers) = Follower::start(uprobes, places.clone()).map_err(UprobingError::Thread)?;
        let mut prober = Prober { follower, places, wants_host: wants_host(&config.uprobes) };
        let hierarchies = Hierarchies::of_this_process();
        let sightings = residents.into_iter().filter_map(|Resident { pid, stat, container }| {
            if container.is_none() && !prober.wants_host {
                return None;
            }
            let cgroup = hierarchies.key_of(&procfs::cgroups(pid)?);
            Some(Sighting { container, cgroup, process: Who::Elder(pid, stat) })
        });
        let sightings = sightings.collect();
        // Who is there is known before there is anything to attach.
        prober.follower.residents(sightings);
        prober.settings(&config.uprobes);
        Ok((Self { ring, answers, counting: None, totals: Totals::default() }, prober))
    }

    /// Waits until many hits wait, or the thread has something to say; for ever, if there are no uprobes.
    pub(super) async fn next(uprobing: &mut Option<Self>) -> Next {
        let Some(Self { ring, answers, .. }) = uprobing else { return pending().await };
        tokio::select! {
            result = ring.wait() => Next::Hits(result),
            Some(answer) = answers.recv() => Next::Answer(answer),
        }
    }

    /// As [`Ring::read`].
    pub(super) fn read(&mut self, most: usize, each: impl FnMut(&[u8])) -> usize {
        self.ring.read(most, each)
    }

    /// Asks for what was counted, and takes in what was asked for before.
    pub(super) fn look(&mut self, prober: &mut Prober) {
        if let Some(counting) = &mut self.counting {
            match counting.try_recv() {
                Ok(totals) => self.totals = totals,
                Err(oneshot::error::TryRecvError::Empty) => return,
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        self.counting = Some(prober.follower.count());
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Ends all probes; there are no hits any more but those in the ring.
    pub(super) async fn end(&mut self, prober: Prober) {
        if let Some(totals) = prober.follower.end().await {
            self.totals = totals;
        } else {
            tracing::error!("uprobes are being attached and do not end: their last hits are not counted");
        }
    }
}

/// A place takes two descriptors, or four, and the usual soft limit is 1024.
fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it may not be raised, attaching says so.
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn wants_host(probes: &[Uprobe]) -> bool {
    probes.iter().any(|probe| probe.target == Target::Host)
}

impl Prober {
    pub(super) fn settings(&mut self, probes: &[Uprobe]) {
        self.wants_host = wants_host(probes);
        self.follower.settings(probes);
    }

    /// A process has exec'd.
    pub(super) fn seen(&mut self, seen: Sighting) {
        if seen.container.is_some() || self.wants_host {
            self.follower.seen(seen);
        }
    }

    pub(super) fn described(&mut self, container: Arc<Container>) {
        self.follower.described(container);
    }
}
