//! Uprobes beside the straight line: their ring, the thread that attaches them, and what both have to say.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::attach::refusal::shortened;
use crate::enrich::Resident;
use crate::enrich::container::Container;
use crate::enrich::procfs;
use crate::list::host::Hierarchies;
use crate::ring::Ring;
use crate::uprobe::attach::{Limits, UprobeError, Uprobes};
use crate::uprobe::detach::Detached;
use crate::uprobe::follow::{Answer, Follower, Sighting, Totals, Who};
use crate::uprobe::place::Places;
use crate::uprobe::spec::{Target, Uprobe};

/// Most that the end of what is attached is waited for.
const DETACHING: Duration = Duration::from_secs(2);

/// All probes of the settings at work.
pub(super) struct Uprobing {
    ring: Ring,
    answers: mpsc::Receiver<Answer>,
    counting: Option<oneshot::Receiver<Totals>>,
    /// As last heard.
    totals: Totals,
    /// Once they end.
    detached: Option<Detached>,
}

/// The way from what is seen to who is probed.
pub(super) struct Prober {
    follower: Follower,
    pub(super) places: Places,
    /// Some probe is for processes outside containers.
    wants_host: bool,
    hierarchies: Hierarchies,
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

/// The programs, loaded: nothing is attached yet.
pub(super) struct Loaded(Uprobes, RingBuf<MapData>);

impl Loaded {
    /// Takes up to 100 ms.
    pub(super) fn load() -> Result<Self, UprobingError> {
        raise_open_files();
        let (uprobes, ring) = Uprobes::load(&Limits::default())?;
        Ok(Self(uprobes, ring))
    }

    /// With a thread that waits for somebody to probe; dropping both ends it. Within a tokio runtime only.
    pub(super) fn prepare(self) -> Result<(Uprobing, Prober), UprobingError> {
        let Self(uprobes, ring) = self;
        let (ring, places) = (Ring::new(ring).map_err(UprobingError::Ring)?, Places::default());
        let (follower, answers) = Follower::start(uprobes, places.clone()).map_err(UprobingError::Thread)?;
        let prober = Prober { follower, places, wants_host: false, hierarchies: Hierarchies::of_this_process() };
        Ok((Uprobing { ring, answers, counting: None, totals: Totals::default(), detached: None }, prober))
    }
}

impl Uprobing {
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
        if let Some((totals, detached)) = prober.follower.end().await {
            (self.totals, self.detached) = (totals, Some(detached));
        } else {
            tracing::error!("uprobes are being attached and do not end: their last hits are not counted");
        }
    }

    /// Waits until nothing is attached any more: what still is when the process ends, the kernel takes one after the other.
    pub(super) async fn ended(&mut self) {
        if let Some(detached) = self.detached.take()
            && timeout(DETACHING, detached.wait()).await.is_err()
        {
            tracing::debug!("the kernel is still taking uprobes away");
        }
    }
}

/// A place takes up to four descriptors, and the usual soft limit is 1024.
fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it may not be raised, attaching says so.
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn wants_host(probes: &[Uprobe]) -> bool {
    probes.iter().any(|probe| probe.target == Target::Host)
}

impl Prober {
    /// Attaches to what is there.
    pub(super) fn begin(&mut self, probes: &[Uprobe], residents: Vec<Resident>) {
        self.wants_host = wants_host(probes);
        // Who is there is known before there is anything to attach.
        let sightings = self.sightings(residents).collect();
        self.residents(sightings);
        self.settings(probes);
    }

    pub(super) fn settings(&mut self, probes: &[Uprobe]) {
        self.wants_host = wants_host(probes);
        self.follower.settings(probes);
    }

    /// Those of them that may be probed.
    pub(super) fn sightings(&self, residents: Vec<Resident>) -> impl Iterator<Item = Sighting> {
        residents.into_iter().filter_map(|Resident { pid, stat, container, by_cgroup }| {
            // Where its cgroup does not decide of it, others of that cgroup are not of its container.
            if !by_cgroup || (container.is_none() && !self.wants_host) {
                return None;
            }
            let cgroup = self.hierarchies.key_of(&procfs::cgroups(pid)?);
            Some(Sighting { container, cgroup, process: Who::Elder(pid, stat) })
        })
    }

    /// Those that are there now.
    pub(super) fn residents(&mut self, sightings: Vec<Sighting>) {
        self.follower.residents(sightings);
    }

    /// As [`Follower::has_missed`].
    pub(super) fn has_missed(&mut self) -> bool {
        self.follower.has_missed()
    }

    /// A process has exec'd.
    pub(super) fn seen(&mut self, seen: Sighting) {
        if seen.container.is_some() || self.wants_host {
            self.follower.seen(seen);
        }
    }

    /// As [`Follower::busy`].
    pub(super) fn busy(&self) -> Option<(Duration, String)> {
        self.follower.busy()
    }

    pub(super) fn described(&mut self, container: Arc<Container>, first: Option<u32>) {
        self.follower.described(container, first);
    }
}
