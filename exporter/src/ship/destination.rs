//! One signal's collector, and what is known of it: how a batch is seen through to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::outcome::Outcome;
use super::retry::{Backoff, Pace};
use super::{ShipError, Transport};
use crate::config::{Compression, Export, Signal};
use crate::queue::{Answer, Batch, Queue, Reason, items};

/// No agent should stay silent for a day because one answer said so.
const QUIET_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Destination {
    /// For our log: without credentials, path and query.
    name: String,
    /// For our log: what batches hold.
    items: &'static str,
    transport: Transport,
    queue: Arc<Queue>,
    pace: Pace,
    retry_max_elapsed: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    health: Health,
    /// Batches that failed at least once and have not ended: while there are any, nothing has recovered.
    failing: usize,
    compression: Trust,
    /// The collector asked for quiet until then.
    not_before: Option<Instant>,
    /// It takes nothing of the signal; asked again then.
    refused_until: Option<Instant>,
    warned_of_partial: bool,
}

/// What was last said in our log: one line for each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    #[default]
    Working,
    Failing,
    Losing,
}

/// What is known of the destination and the compression of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Untried,
    Works,
    Refused,
}

/// Whether a refusal may be about the compression: it gives no reason at all, or one about reading the request. Any other
/// one is about the records, of which some may have been taken.
fn may_be_undecoded(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    !reason.contains(": ")
        || ["compress", "encod", "decod", "gzip", "zstd", "proto", "wire"].iter().any(|w| reason.contains(w))
}

/// How a batch ended.
enum End {
    Delivered { rejected: u32 },
    Lost(Reason),
    TooLarge { reason: String },
}

impl Destination {
    pub(super) fn new(export: &Export, queue: Arc<Queue>, pace: Pace) -> Result<Self, ShipError> {
        let url = &export.endpoint;
        Ok(Self {
            name: match (url.host_str(), url.port_or_known_default()) {
                (Some(host), Some(port)) => format!("{}://{host}:{port}", url.scheme()),
                (Some(host), None) => host.into(),
                (None, _) => url.scheme().into(),
            },
            items: items(queue.signal()),
            transport: Transport::new(export)?,
            queue,
            pace,
            retry_max_elapsed: export.retry_max_elapsed,
            state: Mutex::default(),
        })
    }

    pub(super) async fn work(&self) {
        while let Some(batch) = self.queue.pop().await {
            self.settle(batch).await;
        }
    }

    /// Split at most once: a collector that refuses halves too would have us send every record by itself.
    async fn settle(&self, batch: Batch) {
        let End::TooLarge { reason } = self.see_through(&batch).await else { return };
        match batch.halves() {
            Ok(Some((left, right))) => {
                tracing::debug!(endpoint = self.name, reason, records = batch.records(), "sent again in halves");
                for half in [left, right] {
                    if let End::TooLarge { reason } = self.see_through(&half).await {
                        self.too_large(&half, &reason);
                    }
                }
            }
            Ok(None) => self.too_large(&batch, &reason),
            Err(error) => self.too_large(&batch, &format!("{reason}; {error}")),
        }
    }

    fn too_large(&self, batch: &Batch, reason: &str) {
        self.losing(&format!("too large for the collector, which says {reason}"));
        self.queue.counters().lose(Reason::TooLarge, batch.records());
    }

    /// Settles the batch, unless it may be tried in halves.
    async fn see_through(&self, batch: &Batch) -> End {
        let mut failing = false;
        let end = self.attempt(batch, &mut failing).await;
        self.state().failing -= usize::from(failing);
        let counters = self.queue.counters();
        match &end {
            End::Delivered { rejected } => {
                counters.deliver(batch.records(), *rejected);
                self.recovered();
            }
            End::Lost(reason) => counters.lose(*reason, batch.records()),
            End::TooLarge { .. } => {}
        }
        end
    }

    /// Sends until there is a verdict, the batch is too old, or the drain is over.
    async fn attempt(&self, batch: &Batch, failing: &mut bool) -> End {
        let (mut plain, mut resealed) = (false, None);
        let mut backoff = Backoff::new(self.pace);
        let mut first_attempt = None;
        let mut deadline = self.queue.deadline();
        loop {
            if self.state().refused_until.is_some_and(|until| Instant::now() < until) {
                return End::Lost(Reason::Unimplemented);
            }
            if !self.keep_quiet(&mut deadline).await {
                return End::Lost(Reason::Shutdown);
            }
            plain |= self.state().compression == Trust::Refused;
            if plain && batch.compression() != Compression::None && resealed.is_none() {
                match batch.reseal(Compression::None) {
                    Ok(uncompressed) => resealed = Some(uncompressed),
                    Err(error) => {
                        tracing::error!(%error, "{} are lost", self.items);
                        return End::Lost(Reason::Encoding);
                    }
                }
            }
            let sent = resealed.as_ref().unwrap_or(batch);
            let started = *first_attempt.get_or_insert_with(Instant::now);
            let Some(outcome) = until(&mut deadline, self.transport.send(sent)).await else {
                return End::Lost(Reason::Shutdown);
            };
            let (after, reason) = match outcome {
                Outcome::Accepted => {
                    self.delivered(resealed.is_some());
                    return End::Delivered { rejected: 0 };
                }
                Outcome::Partial { rejected, message } => {
                    self.delivered(resealed.is_some());
                    let rejected = u32::try_from(rejected).unwrap_or(u32::MAX).min(batch.records());
                    self.partial(rejected, &message);
                    return End::Delivered { rejected };
                }
                // Some receivers take a compression they do not know for garbage.
                Outcome::Permanent { answer: Answer::Http(400), ref reason }
                    if sent.compression() != Compression::None
                        && self.state().compression == Trust::Untried
                        && may_be_undecoded(reason) =>
                {
                    plain = true;
                    continue;
                }
                Outcome::Permanent { answer, reason } => {
                    self.losing(&reason);
                    return End::Lost(Reason::Permanent(answer));
                }
                Outcome::TooLarge { reason } => return End::TooLarge { reason },
                Outcome::Unimplemented { reason } => {
                    self.refused(&reason);
                    return End::Lost(Reason::Unimplemented);
                }
                Outcome::EncodingRefused { reason } => {
                    self.refused_encoding(&reason);
                    continue;
                }
                Outcome::Retry { after, reason } => (after, reason),
            };
            if !std::mem::replace(failing, true) {
                self.state().failing += 1;
            }
            self.failing(&reason);
            let delay = after.map_or_else(|| backoff.next(), |after| after.min(QUIET_MAX));
            if started.elapsed().saturating_add(delay) > self.retry_max_elapsed {
                self.losing(&reason);
                return End::Lost(Reason::RetryExpired);
            }
            self.queue.counters().retry();
            let wake = Instant::now() + delay;
            if after.is_some() {
                let mut state = self.state();
                state.not_before = state.not_before.max(Some(wake));
            } else if !pause(wake, &mut deadline, &mut backoff).await {
                return End::Lost(Reason::Shutdown);
            }
        }
    }

    /// Waits out what the collector asked for, which holds for all batches. `false`: the drain would be over before.
    async fn keep_quiet(&self, deadline: &mut Deadline) -> bool {
        loop {
            let Some(wake) = self.state().not_before.filter(|&wake| wake > Instant::now()) else { return true };
            let end = *deadline.borrow_and_update();
            if end.is_some_and(|end| wake >= end) {
                return false;
            }
            tokio::select! {
                () = sleep_until(wake) => {}
                () = changed(deadline) => {}
            }
        }
    }

    fn failing(&self, reason: &str) {
        if self.worsened(Health::Failing) {
            tracing::warn!(endpoint = self.name, reason, "{} cannot be delivered for now; they are kept", self.items);
        }
    }

    fn losing(&self, reason: &str) {
        if self.worsened(Health::Losing) {
            tracing::error!(endpoint = self.name, reason, "{} cannot be delivered and are lost", self.items);
        }
    }

    fn refused(&self, reason: &str) {
        let again = Instant::now() + self.pace.refusal;
        let known = self.state().refused_until.replace(again).is_some();
        if !known {
            let (signal, other, exporter, elsewhere) = match self.queue.signal() {
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
        self.worsened(Health::Losing);
    }

    fn refused_encoding(&self, reason: &str) {
        let known = std::mem::replace(&mut self.state().compression, Trust::Refused);
        if known != Trust::Refused {
            tracing::warn!(endpoint = self.name, reason, "the compression is refused; sending without");
        }
    }

    fn delivered(&self, plain_instead: bool) {
        if plain_instead {
            self.refused_encoding("only the uncompressed request was taken");
        } else {
            self.state().compression = Trust::Works;
        }
    }

    fn partial(&self, rejected: u32, message: &str) {
        let known = std::mem::replace(&mut self.state().warned_of_partial, true);
        if known {
            tracing::debug!(endpoint = self.name, rejected, message, "partial success");
        } else if rejected > 0 {
            tracing::error!(endpoint = self.name, rejected, message, "the collector rejects some {}", self.items);
        } else {
            tracing::warn!(endpoint = self.name, message, "the collector took the {} with a warning", self.items);
        }
    }

    fn recovered(&self) {
        let mut state = self.state();
        state.refused_until = None;
        if state.failing > 0 {
            return;
        }
        let before = std::mem::take(&mut state.health);
        drop(state);
        if before != Health::Working {
            tracing::info!(endpoint = self.name, "{} are delivered again", self.items);
        }
    }

    fn worsened(&self, to: Health) -> bool {
        let mut state = self.state();
        let worse = state.health < to;
        state.health = state.health.max(to);
        worse
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the drain is over; `None` while the queue is open.
type Deadline = watch::Receiver<Option<Instant>>;

/// Waits for the next attempt; closing the queue ends the wait and starts the backoff anew, for there is little time
/// left. `false`: the drain would be over before.
async fn pause(wake: Instant, deadline: &mut Deadline, backoff: &mut Backoff) -> bool {
    let end = *deadline.borrow_and_update();
    if let Some(end) = end {
        let in_time = wake < end;
        if in_time {
            sleep_until(wake).await;
        }
        return in_time;
    }
    tokio::select! {
        () = sleep_until(wake) => {}
        () = changed(deadline) => backoff.reset(),
    }
    true
}

/// `None`: the drain was over first.
async fn until<T>(deadline: &mut Deadline, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let end = *deadline.borrow_and_update();
        if let Some(end) = end {
            return timeout_at(end, work).await.ok();
        }
        tokio::select! {
            done = &mut work => return Some(done),
            () = changed(deadline) => {}
        }
    }
}

async fn changed(deadline: &mut Deadline) {
    if deadline.changed().await.is_err() {
        // The queue is gone without being closed: no deadline will come.
        std::future::pending::<()>().await;
    }
}
