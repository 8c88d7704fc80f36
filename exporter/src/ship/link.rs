//! One way to a collector, and what is known of it: how it fares, what it refuses, and until when it wants quiet.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::proxy::Proxies;
use super::{ShipError, Transport, encoding_name, place};
use crate::config::{Compression, Export, Protocol, Signal};
use crate::lock::lock;
use crate::queue::items;

/// How delivery to a collector fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing was answered so far.
    Untried,
    Delivering,
    /// Tried again and again since then; nothing is lost by it yet.
    Failing {
        since: std::time::Instant,
        reason: String,
    },
    /// Records were lost since then.
    Losing {
        since: std::time::Instant,
        reason: String,
    },
    /// It takes nothing of the signal, and is asked now and then.
    Refused {
        since: std::time::Instant,
        reason: String,
    },
}

#[derive(Debug)]
pub(super) struct Link {
    /// For our log.
    pub(super) name: String,
    /// For our log: what batches hold.
    pub(super) items: &'static str,
    pub(super) transport: Transport,
    pub(super) protocol: Protocol,
    pub(super) retry_max_elapsed: Duration,
    signal: Signal,
    /// How long it is left alone when it takes nothing of the signal.
    refusal: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    health: Health,
    since: Instant,
    reason: String,
    /// Batches that failed at least once and have not ended: while there are any, nothing has recovered.
    failing: usize,
    /// The strongest that it may take.
    compression: Compression,
    /// It has taken that.
    is_trusted: bool,
    /// The collector asked for quiet until then.
    not_before: Option<Instant>,
    /// It takes nothing of the signal; asked again then.
    refused_until: Option<Instant>,
    warned_of_partial: bool,
    warned_of_isolated: bool,
    /// Times in a row that no record of a refused batch was taken by itself.
    vain_isolations: u32,
}

/// What was last said in our log: one line for each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Untried,
    Working,
    Failing,
    Losing,
    Refused,
}

/// A collector that refuses every record is not asked for each.
const VAIN_MAX: u32 = 3;

/// Counts as failing until dropped.
#[derive(Debug)]
pub(super) struct Failing(Arc<Link>);

impl Link {
    pub(super) fn new(
        export: &Export,
        signal: Signal,
        refusal: Duration,
        proxies: &Proxies,
    ) -> Result<Self, ShipError> {
        Ok(Self {
            name: place(&export.endpoint),
            items: items(signal),
            transport: Transport::new(export, signal, proxies)?,
            protocol: export.protocol,
            retry_max_elapsed: export.retry_max_elapsed,
            signal,
            refusal,
            state: Mutex::new(State {
                health: Health::Untried,
                since: Instant::now(),
                reason: String::new(),
                failing: 0,
                compression: export.compression,
                is_trusted: false,
                not_before: None,
                refused_until: None,
                warned_of_partial: false,
                warned_of_isolated: false,
                vain_isolations: 0,
            }),
        })
    }

    pub(super) fn delivery(&self) -> Delivery {
        let state = self.state();
        let (since, reason) = (state.since.into_std(), state.reason.clone());
        match state.health {
            Health::Untried => Delivery::Untried,
            Health::Working => Delivery::Delivering,
            Health::Failing => Delivery::Failing { since, reason },
            Health::Losing => Delivery::Losing { since, reason },
            Health::Refused => Delivery::Refused { since, reason },
        }
    }

    pub(super) fn compression(&self) -> Compression {
        self.state().compression
    }

    /// Whether what it was sent in this compression was read for sure.
    pub(super) fn trusts(&self, compression: Compression) -> bool {
        let state = self.state();
        state.is_trusted && state.compression == compression
    }

    /// Until when the collector is taken at its word that it takes nothing of this signal.
    pub(super) fn refuses_until(&self) -> Option<Instant> {
        self.state().refused_until.filter(|&until| Instant::now() < until)
    }

    /// Until when nothing may be sent.
    pub(super) fn quiet(&self) -> Option<Instant> {
        self.state().not_before.filter(|&wake| wake > Instant::now())
    }

    /// For all batches.
    pub(super) fn keep_quiet(&self, until: Instant) {
        let mut state = self.state();
        state.not_before = state.not_before.max(Some(until));
    }

    /// Whether it is worth it to look for the records that made it refuse a batch.
    pub(super) fn isolates(&self) -> bool {
        self.state().vain_isolations < VAIN_MAX
    }

    pub(super) fn failing(&self, reason: &str) {
        if self.worsened(Health::Failing, reason) {
            tracing::warn!(endpoint = self.name, reason, "{} cannot be delivered for now; they are kept", self.items);
        }
    }

    pub(super) fn losing(&self, reason: &str) {
        if self.worsened(Health::Losing, reason) {
            tracing::error!(endpoint = self.name, reason, "{} cannot be delivered and are lost", self.items);
        }
    }

    pub(super) fn refused(&self, reason: &str) {
        let again = Instant::now() + self.refusal;
        let known = self.state().refused_until.replace(again).is_some();
        if !known {
            let (signal, other, exporter, elsewhere) = match self.signal {
                Signal::Logs => ("logs", "spans", "OTEL_LOGS_EXPORTER", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"),
                Signal::Traces => {
                    ("traces", "log records", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
                }
            };
            tracing::error!(
                endpoint = self.name,
                reason,
                "this endpoint takes no {signal}: it is none of OTLP, or its receiver has no {signal} pipeline; {} are \
                 lost, {other} go on as before; set {exporter}=none, or {elsewhere} to one that takes them",
                self.items
            );
        }
        self.worsened(Health::Refused, reason);
    }

    /// This compression will not be used again.
    pub(super) fn refused_encoding(&self, refused: Compression, reason: &str) {
        let Some(next) = weaker(refused) else { return };
        let mut state = self.state();
        if strength(state.compression) <= strength(next) {
            return;
        }
        state.compression = next;
        state.is_trusted = false;
        drop(state);
        let instead = encoding_name(next).unwrap_or("none");
        tracing::warn!(endpoint = self.name, reason, instead, "the compression is refused");
    }

    /// What it was sent in this compression was read. `stronger`: in which it was refused before.
    pub(super) fn delivered(&self, compression: Compression, stronger: Option<Compression>) {
        if let Some(stronger) = stronger {
            self.refused_encoding(stronger, "only the request in another was taken");
        }
        let mut state = self.state();
        state.is_trusted |= state.compression == compression;
        state.vain_isolations = 0;
    }

    pub(super) fn partial(&self, rejected: u32, message: &str) {
        let known = std::mem::replace(&mut self.state().warned_of_partial, true);
        if known {
            tracing::debug!(endpoint = self.name, rejected, message, "partial success");
        } else if rejected > 0 {
            tracing::error!(endpoint = self.name, rejected, message, "the collector rejects some {}", self.items);
        } else {
            tracing::warn!(endpoint = self.name, message, "the collector took the {} with a warning", self.items);
        }
    }

    /// Some of a batch are lost, while others of it were taken.
    pub(super) fn isolated(&self, lost: u32, reason: &str) {
        let known = std::mem::replace(&mut self.state().warned_of_isolated, true);
        if known {
            tracing::debug!(endpoint = self.name, lost, reason, "isolated");
        } else {
            let items = self.items;
            tracing::error!(
                endpoint = self.name,
                lost,
                reason,
                "the collector refuses some {items}, which are lost; the others of their batch were taken"
            );
        }
    }

    pub(super) fn isolated_in_vain(&self, reason: &str) {
        self.state().vain_isolations += 1;
        self.losing(reason);
    }

    pub(super) fn recovered(&self) {
        let mut state = self.state();
        state.refused_until = None;
        if state.failing > 0 || state.health == Health::Working {
            return;
        }
        let before = std::mem::replace(&mut state.health, Health::Working);
        state.since = Instant::now();
        state.reason.clear();
        drop(state);
        if before != Health::Untried {
            tracing::info!(endpoint = self.name, "{} are delivered again", self.items);
        }
    }

    fn worsened(&self, to: Health, reason: &str) -> bool {
        let mut state = self.state();
        let worse = state.health < to;
        if worse {
            state.health = to;
            state.since = Instant::now();
            reason.clone_into(&mut state.reason);
        }
        worse
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Failing {
    pub(super) fn on(link: &Arc<Link>) -> Self {
        link.state().failing += 1;
        Self(Arc::clone(link))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.state().failing -= 1;
    }
}

/// What is tried where a compression is refused.
pub(super) fn weaker(compression: Compression) -> Option<Compression> {
    match compression {
        Compression::Zstd => Some(Compression::Gzip),
        Compression::Gzip => Some(Compression::None),
        Compression::None => None,
    }
}

pub(super) fn weakest(one: Compression, other: Compression) -> Compression {
    if strength(one) < strength(other) { one } else { other }
}

fn strength(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Gzip => 1,
        Compression::Zstd => 2,
    }
}
