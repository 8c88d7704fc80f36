//! Other settings come in while everything runs; they are taken up whole, or not at all.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;

use super::guarding::{self, Guarding, GuardingError};
use super::handover::{Handover, Relief as GuardRelief};
use super::lane::{self, Prepared};
use super::selects::Selects;
use super::uprobing::{self, UprobingError};
use super::work::Traced;
use super::{Pipeline, PipelineError, REST, TURN, WATCHING};
use crate::attach::refusal::{chain, refusal};
use crate::attach::{AttachError, Attached, Unwanted, attach_idle};
use crate::check;
use crate::clock::boot_ns;
use crate::config::{Config, Probes};
use crate::ring::Ring;
use crate::telemetry::{self, Reloads};

/// What came of reading the settings anew.
pub enum Reload {
    /// They are no good.
    Refused,
    /// They are as before.
    Unchanged,
    /// They are to be taken up, and somebody waits to hear of it.
    Settings(Box<Config>, oneshot::Sender<Result<(), ReloadError>>),
}

#[derive(Debug, Error)]
pub enum ReloadError {
    #[error("whether logs and spans are made at all can't change while Namespan runs: restart it")]
    Signals,
    #[error("{}", refusal(.0))]
    Attach(#[from] AttachError),
    #[error("what the new settings need can't be loaded: {0}")]
    Loader(#[from] JoinError),
    #[error("the ring buffer can't be watched: {0}")]
    Ring(#[source] std::io::Error),
    #[error(transparent)]
    Uprobes(#[from] UprobingError),
    #[error(transparent)]
    Guard(#[from] GuardingError),
    #[error("{}", chain(.0))]
    Destination(#[from] PipelineError),
}

/// Programs with other settings, attached but idle.
struct Relief<R> {
    probes: Probes,
    attached: Attached,
    ring: R,
    unwanted: Option<Unwanted>,
}

/// What is to be loaded and opened.
struct Plans {
    /// What the programs that take over are loaded with; `None`: those at work stay.
    probes: Option<Probes>,
    /// The uprobes' programs are to be loaded too: there were none before.
    uprobes: bool,
    guard: NewGuard<Box<Config>>,
    logs: lane::Plan,
    spans: lane::Plan,
    /// Of our own metrics; `None`: they go where they went.
    metrics: Option<telemetry::Plan>,
}

/// Loaded and opened, and not at work yet.
struct Opened {
    /// `None`: the programs at work stay.
    relief: Option<Relief<RingBuf<MapData>>>,
    /// `None`: there are no uprobes, or there were some before.
    uprobes: Option<uprobing::Loaded>,
    guard: NewGuard<guarding::Loaded>,
    logs: Prepared,
    spans: Prepared,
    metrics: Option<telemetry::Prepared>,
}

/// What becomes of the guard.
enum NewGuard<T> {
    AsBefore,
    /// There are no policies any more.
    Nobody,
    /// This one, made of what is there now.
    Other(T),
}

/// What is to be taken up.
pub(super) struct Ready {
    config: Box<Config>,
    done: oneshot::Sender<Result<(), ReloadError>>,
    opened: Result<Opened, ReloadError>,
}

/// Loading takes a while, and so may a disk, in which everything at work goes on.
#[derive(Default)]
pub(super) struct Reloading(Option<Pin<Box<dyn Future<Output = Ready>>>>);

impl Reloading {
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    fn begin(
        &mut self,
        config: Box<Config>,
        done: oneshot::Sender<Result<(), ReloadError>>,
        plans: Result<Plans, ReloadError>,
    ) {
        self.0 = Some(Box::pin(async {
            let opened = match plans {
                Ok(plans) => plans.open().await,
                Err(error) => Err(error),
            };
            Ready { config, done, opened }
        }));
    }

    /// Never, if nothing was begun.
    pub(super) async fn ready(&mut self) -> Ready {
        let Some(loading) = &mut self.0 else { return pending().await };
        let ready = loading.await;
        self.0 = None;
        ready
    }
}

impl Plans {
    /// On a thread that may wait for disks.
    async fn open(self) -> Result<Opened, ReloadError> {
        let Self { probes, uprobes, guard, logs, spans, metrics } = self;
        let open = move || {
            let (logs, spans) = (logs.open()?, spans.open()?);
            let metrics = metrics.map(telemetry::Plan::open).transpose().map_err(PipelineError::from)?;
            let relief = probes.map(load).transpose()?;
            let uprobes = if uprobes { Some(uprobing::Loaded::load()?) } else { None };
            let guard = match guard {
                NewGuard::AsBefore => NewGuard::AsBefore,
                NewGuard::Nobody => NewGuard::Nobody,
                NewGuard::Other(config) => NewGuard::Other(guarding::Loaded::load(&config)?),
            };
            Ok(Opened { relief, uprobes, guard, logs, spans, metrics })
        };
        spawn_blocking(open).await?
    }
}

fn load(probes: Probes) -> Result<Relief<RingBuf<MapData>>, AttachError> {
    let (attached, ring, unwanted) = attach_idle(&probes)?;
    Ok(Relief { probes, attached, ring, unwanted })
}

impl Relief<RingBuf<MapData>> {
    /// Within a tokio runtime only.
    fn prepare(self) -> Result<Relief<Ring>, ReloadError> {
        let Self { probes, attached, ring, unwanted } = self;
        Ok(Relief { probes, attached, ring: Ring::new(ring).map_err(ReloadError::Ring)?, unwanted })
    }
}

impl Pipeline {
    pub(super) fn begin_reload(&mut self, reload: Reload, reloading: &mut Reloading) {
        self.lifecycle.reloading();
        match reload {
            Reload::Refused => self.reloaded(false),
            Reload::Unchanged => self.reloaded(true),
            Reload::Settings(config, done) => {
                let traced = Traced::new(&config, &self.work.console);
                let probes = traced.probes(&config);
                let plans = if traced == self.work.traced {
                    Ok(Plans {
                        probes: probes.loads_other_than(&self.probes).then_some(probes),
                        uprobes: self.uprobing.is_none() && !config.uprobes.is_empty(),
                        guard: self.new_guard(&config),
                        logs: self.work.logs.plan(&config),
                        spans: self.work.spans.lane.plan(&config),
                        metrics: self.telemetry.as_ref().and_then(|telemetry| telemetry.plan(&config)),
                    })
                } else {
                    Err(ReloadError::Signals)
                };
                reloading.begin(config, done, plans);
            }
        }
    }

    fn new_guard(&self, config: &Config) -> NewGuard<Box<Config>> {
        match &self.guarding {
            Some(guarding) if guarding.is_as(config) => NewGuard::AsBefore,
            None if config.guard.policies.is_empty() => NewGuard::AsBefore,
            Some(_) if config.guard.policies.is_empty() => NewGuard::Nobody,
            Some(_) | None => NewGuard::Other(Box::new(config.clone())),
        }
    }

    /// Takes up the settings, and says how that went.
    pub(super) async fn reload(&mut self, Ready { config, done, opened }: Ready) {
        let taken_up = match opened {
            Ok(opened) => Box::pin(self.take_up(&config, opened)).await,
            Err(error) => Err(error),
        };
        self.reloaded(taken_up.is_ok());
        // Who asked may be gone.
        done.send(taken_up).ok();
    }

    fn reloaded(&mut self, well: bool) {
        let Reloads { succeeded, failed } = &mut self.work.reloads;
        *(if well { succeeded } else { failed }) += 1;
        self.lifecycle.ready(WATCHING);
        self.looked = None;
    }

    /// Everything that may fail comes first.
    async fn take_up(&mut self, config: &Config, opened: Opened) -> Result<(), ReloadError> {
        let Opened { relief, uprobes, guard, logs, spans, metrics } = opened;
        // If the next step fails, they end with it.
        let probing = uprobes.map(uprobing::Loaded::prepare).transpose()?;
        let relief = relief.map(Relief::prepare).transpose()?;
        // A guard has more that may fail than the programs that are prepared.
        self.change_guard(guard).await?;
        if let Some(relief) = relief {
            self.relieve(relief).await?;
        }
        self.probes.ring_delay = config.probes.ring_delay;
        // What has happened so far goes where it would have gone.
        let deadline = Instant::now() + REST;
        while self.turn() == TURN && Instant::now() < deadline {}
        self.work.close();
        self.work.logs.reload(logs);
        self.work.spans.lane.reload(spans);
        self.work.arguments(config.arguments);
        if let Some((uprobing, prober)) = probing {
            self.uprobing = Some(uprobing);
            self.work.begin_probing(prober, config);
        } else if let Some(prober) = &mut self.work.prober {
            prober.settings(&config.uprobes);
        }
        if let (Some(telemetry), Some(metrics)) = (&mut self.telemetry, metrics) {
            telemetry.export(metrics);
        }
        self.work.tell_shortfalls(&check::shortfalls(config, &self.attached));
        self.tell_shipped();
        Ok(())
    }

    /// Our own metrics are of those that there are.
    pub(super) fn tell_shipped(&self) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.ship(self.work.logs.shipped().chain(self.work.spans.lane.shipped()).collect());
        }
    }

    /// The programs at work end, and the others begin where they end.
    async fn relieve(&mut self, relief: Relief<Ring>) -> Result<(), ReloadError> {
        let Relief { probes, mut attached, ring, unwanted } = relief;
        let at_boot_ns = attached.take_over(&mut self.attached)?;
        self.work.handover = Some(Handover::at(at_boot_ns));
        sleep(Duration::from_nanos(at_boot_ns.saturating_sub(boot_ns()))).await;
        if let Err(error) = self.attached.detach() {
            tracing::error!(%error, "detaching the programs that have ended failed");
        }
        self.read_rest(REST).await;
        match self.attached.counted() {
            Ok(counted) => self.retired += counted,
            Err(error) => tracing::error!(%error, "the counters of the programs that have ended can't be read"),
        }
        self.attached = attached;
        self.ring = ring;
        if let Some(handover) = &mut self.work.handover {
            handover.over();
        }
        self.work.selects = unwanted.map(|unwanted| Selects::new(probes.filters.clone(), unwanted));
        self.probes = probes;
        Ok(())
    }

    /// The guard at work ends, and the other begins where it ends.
    async fn change_guard(&mut self, guard: NewGuard<guarding::Loaded>) -> Result<(), ReloadError> {
        let new = match guard {
            NewGuard::AsBefore => return Ok(()),
            NewGuard::Nobody => None,
            NewGuard::Other(loaded) => {
                if loaded.needs_containers() {
                    self.meet_runtimes().await;
                }
                let Some(old) = &mut self.guarding else { return Ok(self.guard(loaded)?) };
                let (new, at_boot_ns) = Guarding::relieve(loaded, old, self.work.containers()).await?;
                self.work.relief = Some(GuardRelief::at(at_boot_ns));
                Some(new)
            }
        };
        if let (Some(old), None) = (&mut self.guarding, &new) {
            old.end_for_good();
        }
        // By the policies that it was decided by.
        self.read_rest(REST).await;
        if let Some(old) = self.guarding.take() {
            self.guarded += &old.totals();
        }
        if let Some(relief) = &mut self.work.relief {
            relief.over();
        }
        self.work.alarms.rearm(new.as_ref().map(Guarding::policies));
        self.work.note_guarding(new.as_ref().map(Guarding::status));
        self.guarding = new;
        Ok(())
    }
}
