//! One signal's collector: how a batch is seen through to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Code;

use super::ShipError;
use super::link::{Delivery, Failing, Link, weaker, weakest};
use super::outcome::Outcome;
use super::proxy::Proxies;
use super::retry::{Backoff, Pace};
use crate::config::{Compression, Export, Protocol};
use crate::queue::{Answer, Batch, InFlight, Queue, Reason, SealError};

/// No agent should stay silent for a day because one answer said so.
const QUIET_MAX: Duration = Duration::from_secs(3600);

/// The specification's limit for a client.
const REQUEST_MAX: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Destination {
    queue: Arc<Queue>,
    pace: Pace,
    proxies: Proxies,
    /// How it is reached: replaced with the settings.
    link: watch::Sender<Arc<Link>>,
}

/// A batch under way, as a whole or in parts.
struct Journey {
    taken: InFlight,
    link: watch::Receiver<Arc<Link>>,
    deadline: Deadline,
    first_attempt: Option<Instant>,
    /// When it was first sent, wherever to.
    began: Option<Instant>,
    /// What was answered last; `None`: nothing.
    answer: Option<Answer>,
    /// What it is sent in after the collector did not say why it refused it in a stronger compression.
    lowered: Option<Compression>,
    /// It was refused in each: so it was not the compression.
    exhausted: bool,
}

/// How a batch, or a part of it, ended.
enum End {
    Delivered {
        rejected: u32,
    },
    Lost(Reason),
    /// Its records are not as they should be: some or all.
    Refused {
        answer: Answer,
        reason: String,
    },
    TooLarge {
        reason: String,
    },
    /// The drain was over first.
    Drained,
}

impl Destination {
    pub(super) fn new(export: &Export, queue: Arc<Queue>, pace: Pace, proxies: Proxies) -> Result<Self, ShipError> {
        let link = Link::new(export, queue.signal(), pace.refusal, &proxies)?;
        Ok(Self { queue, pace, proxies, link: watch::Sender::new(Arc::new(link)) })
    }

    pub(super) fn prepare(&self, export: &Export) -> Result<Arc<Link>, ShipError> {
        Ok(Arc::new(Link::new(export, self.queue.signal(), self.pace.refusal, &self.proxies)?))
    }

    pub(super) fn replace(&self, link: Arc<Link>) {
        self.link.send_replace(link);
    }

    pub(super) fn state(&self) -> Delivery {
        self.link.borrow().delivery()
    }

    pub(super) fn form(&self) -> (Protocol, Compression) {
        let link = self.link.borrow();
        (link.protocol, link.compression())
    }

    pub(super) async fn work(&self) {
        while let Some(taken) = self.queue.pop().await {
            self.settle(taken).await;
        }
    }

    async fn settle(&self, taken: InFlight) {
        let batch = taken.batch().clone();
        let mut journey = Journey {
            taken,
            link: self.link.subscribe(),
            deadline: self.queue.deadline(),
            first_attempt: None,
            began: None,
            answer: None,
            lowered: None,
            exhausted: false,
        };
        match self.see_through(&mut journey, &batch).await {
            End::TooLarge { reason } => self.halve(&mut journey, &batch, &reason).await,
            End::Refused { answer, reason } => self.isolate(&mut journey, batch, answer, &reason).await,
            End::Delivered { .. } | End::Lost(_) | End::Drained => {}
        }
        // What is kept was not settled: it has no time yet, and nothing was dropped.
        if let Some(began) = journey.began.filter(|_| !journey.taken.goes_back()) {
            self.queue.counters().timed(began.elapsed(), journey.taken.fault(), journey.answer);
        }
    }

    /// At most once: a collector that refuses halves too would have us send every record by itself.
    async fn halve(&self, journey: &mut Journey, batch: &Batch, reason: &str) {
        match batch.halves() {
            Ok(Some((left, right))) => {
                tracing::debug!(reason, records = batch.records(), "sent again in halves");
                for half in [left, right] {
                    match self.see_through(journey, &half).await {
                        End::TooLarge { reason } => journey.too_large(&half, &reason),
                        End::Refused { answer, reason } => self.isolate(journey, half, answer, &reason).await,
                        End::Delivered { .. } | End::Lost(_) | End::Drained => {}
                    }
                }
            }
            Ok(None) => journey.too_large(batch, reason),
            Err(error) => journey.too_large(batch, &format!("{reason}; {error}")),
        }
    }

    /// Finds the records that made the collector refuse this batch, by halves: what is refused is halved again. The requests
    /// that this may take suffice to find two. Of more, the last halves are lost as they are.
    async fn isolate(&self, journey: &mut Journey, batch: Batch, answer: Answer, reason: &str) {
        let link = journey.current();
        if batch.records() < 2 || !link.isolates() {
            link.losing(reason);
            journey.taken.lose(Reason::Permanent(answer), batch.records());
            return;
        }
        journey.exhausted = true;
        let mut requests = 4 * (batch.records().ilog2() + 1);
        let (mut taken, mut lost) = (0, 0);
        let mut suspects = vec![batch];
        while !suspects.is_empty() {
            let mut refused = Vec::new();
            for suspect in suspects {
                let halves = if requests < 2 { Ok(None) } else { suspect.halves() };
                let Ok(Some((left, right))) = halves else {
                    lost += suspect.records();
                    journey.taken.lose(Reason::Permanent(answer), suspect.records());
                    continue;
                };
                requests -= 2;
                for half in [left, right] {
                    match self.see_through(journey, &half).await {
                        End::Delivered { .. } => taken += half.records(),
                        End::Refused { .. } => refused.push(half),
                        End::TooLarge { reason } => journey.too_large(&half, &reason),
                        End::Lost(_) | End::Drained => {}
                    }
                }
            }
            suspects = refused;
        }
        match (taken, lost) {
            (_, 0) => {}
            (0, 1..) => link.isolated_in_vain(reason),
            (1.., 1..) => link.isolated(lost, reason),
        }
    }

    /// Settles this part of the batch, unless it may be tried in halves or there is no time left.
    async fn see_through(&self, journey: &mut Journey, part: &Batch) -> End {
        let mut link = journey.current();
        let mut failing = None;
        let end = self.attempt(journey, part, &mut link, &mut failing).await;
        drop(failing);
        match &end {
            End::Delivered { rejected } => {
                journey.taken.deliver(part.records(), *rejected);
                link.recovered();
            }
            End::Lost(reason) => journey.taken.lose(*reason, part.records()),
            End::Refused { .. } | End::TooLarge { .. } | End::Drained => {}
        }
        end
    }

    /// What is on disk can wait for a collector that does not serve this signal yet, or is being replaced.
    fn may_wait(&self, journey: &Journey) -> bool {
        let waited = journey.first_attempt.map_or(Duration::ZERO, |first| first.elapsed());
        self.queue.keeps().is_some_and(|age| waited <= age)
    }

    /// Sends until there is a verdict, the batch is too old, or the drain is over.
    async fn attempt(
        &self,
        journey: &mut Journey,
        part: &Batch,
        link: &mut Arc<Link>,
        failing: &mut Option<Failing>,
    ) -> End {
        let mut backoff = Backoff::new(self.pace);
        let mut converted: Option<Batch> = None;
        loop {
            let current = journey.current();
            if !Arc::ptr_eq(link, &current) {
                *link = current;
                *failing = None;
                // Nor does the time that the old one took count.
                journey.first_attempt = None;
                journey.lowered = None;
                backoff.reset();
            }
            let refuses_until = link.refuses_until();
            if refuses_until.is_some() && !self.may_wait(journey) {
                return End::Lost(Reason::Unimplemented);
            }
            if let Some(wake) = refuses_until.or_else(|| link.quiet()) {
                if journey.pause(wake).await == Pause::Drained {
                    return End::Drained;
                }
                continue;
            }
            let compression =
                journey.lowered.map_or(link.compression(), |lowered| weakest(lowered, link.compression()));
            let sent = match sendable(part, link, compression, &mut converted) {
                Ok(sent) => sent,
                Err(end) => return end,
            };
            let Some((started, outcome)) = journey.send(link, sent).await else { return End::Drained };
            let (after, reason) = match outcome {
                Outcome::Accepted => {
                    link.delivered(compression, journey.given_up(compression));
                    return End::Delivered { rejected: 0 };
                }
                Outcome::Partial { rejected, message } => {
                    link.delivered(compression, journey.given_up(compression));
                    let rejected = u32::try_from(rejected).unwrap_or(u32::MAX).min(part.records());
                    link.partial(rejected, &message);
                    return End::Delivered { rejected };
                }
                Outcome::Permanent { answer, reason } => {
                    // Some receivers take a compression they do not know for garbage.
                    if answer == Answer::Http(400)
                        && !journey.exhausted
                        && !link.trusts(compression)
                        && may_be_undecoded(&reason)
                        && let Some(weaker) = weaker(compression)
                    {
                        journey.lowered = Some(weaker);
                        continue;
                    }
                    if is_about_records(answer) {
                        return End::Refused { answer, reason };
                    }
                    link.losing(&reason);
                    return End::Lost(Reason::Permanent(answer));
                }
                Outcome::TooLarge { reason } => return End::TooLarge { reason },
                Outcome::Unimplemented { reason } => {
                    link.refused(&reason);
                    if self.may_wait(journey) {
                        continue;
                    }
                    return End::Lost(Reason::Unimplemented);
                }
                Outcome::EncodingRefused { reason } => {
                    link.refused_encoding(compression, &reason);
                    continue;
                }
                Outcome::Retry { after, reason } => (after, reason),
            };
            failing.get_or_insert_with(|| Failing::on(link));
            link.failing(&reason);
            // To try again at once is no instruction: dates in the past come of clocks.
            let after = after.filter(|after| !after.is_zero());
            let delay = after.map_or_else(|| backoff.next(), |after| after.min(QUIET_MAX));
            let wake = Instant::now() + delay;
            // Before this batch is given up for it: the others wait.
            if after.is_some() {
                link.keep_quiet(wake);
            }
            let kept = self.queue.keeps().map(|age| (age, Reason::SpoolExpired));
            let (at_most, expired) = kept.unwrap_or((link.retry_max_elapsed, Reason::RetryExpired));
            if started.elapsed().saturating_add(delay) > at_most {
                link.losing(&reason);
                return End::Lost(expired);
            }
            self.queue.counters().retry();
            if after.is_some() {
                continue;
            }
            match journey.pause(wake).await {
                Pause::Over => {}
                // There is little time left.
                Pause::Hurried => backoff.reset(),
                Pause::Drained => return End::Drained,
            }
        }
    }
}

/// The batch as it is sent, or what becomes of one that never can be.
fn sendable<'a>(
    part: &'a Batch,
    link: &Link,
    compression: Compression,
    converted: &'a mut Option<Batch>,
) -> Result<&'a Batch, End> {
    let sent = in_form(part, link.protocol, compression, converted).map_err(|error| {
        tracing::error!(%error, "{} are lost", link.items);
        End::Lost(Reason::Encoding)
    })?;
    if sent.body().len() > REQUEST_MAX {
        return Err(End::TooLarge { reason: format!("no request may have more than {} MiB", REQUEST_MAX >> 20) });
    }
    Ok(sent)
}

/// The batch as the collector takes it. `converted`: keeps it for the next attempt.
fn in_form<'a>(
    batch: &'a Batch,
    protocol: Protocol,
    compression: Compression,
    converted: &'a mut Option<Batch>,
) -> Result<&'a Batch, SealError> {
    let is_in_form = |batch: &Batch| (batch.protocol(), batch.compression()) == (protocol, compression);
    if is_in_form(batch) {
        return Ok(batch);
    }
    let kept = converted.take().filter(is_in_form);
    let known = match kept {
        Some(batch) => batch,
        None => batch.convert(protocol, compression)?,
    };
    Ok(converted.insert(known))
}

/// Whether a refusal may be about the compression: it gives no reason at all, or one about reading the request. Any other
/// one is about the records, of which some may have been taken.
fn may_be_undecoded(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    !reason.contains(": ")
        || ["compress", "encod", "decod", "gzip", "zstd", "proto", "wire"].iter().any(|w| reason.contains(w))
}

/// Whether other records may be taken.
fn is_about_records(answer: Answer) -> bool {
    answer == Answer::Http(400) || answer == Answer::Grpc(Code::InvalidArgument.into())
}

/// When the drain is over; `None` while the queue is open.
type Deadline = watch::Receiver<Option<Instant>>;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    Over,
    /// There is something else to be done first: the queue was closed, or the settings are others.
    Hurried,
    /// The drain would be over before.
    Drained,
}

impl Journey {
    fn current(&mut self) -> Arc<Link> {
        Arc::clone(&self.link.borrow_and_update())
    }

    /// What came of it, and when it was tried first. `None`: the drain was over first.
    async fn send(&mut self, link: &Link, sent: &Batch) -> Option<(Instant, Outcome)> {
        let now = Instant::now();
        let started = *self.first_attempt.get_or_insert(now);
        self.began.get_or_insert(now);
        self.answer = None;
        let (outcome, answer) = until(&mut self.deadline, link.transport.send(sent)).await?;
        self.answer = answer;
        Some((started, outcome))
    }

    fn too_large(&mut self, part: &Batch, reason: &str) {
        self.current().losing(&format!("too large for the collector, which says {reason}"));
        self.taken.lose(Reason::TooLarge, part.records());
    }

    /// The compression that was refused before this one was tried, if that was why.
    fn given_up(&self, taken: Compression) -> Option<Compression> {
        if self.exhausted || self.lowered != Some(taken) {
            return None;
        }
        [Compression::Zstd, Compression::Gzip].into_iter().find(|&stronger| weaker(stronger) == Some(taken))
    }

    async fn pause(&mut self, wake: Instant) -> Pause {
        let end = *self.deadline.borrow_and_update();
        if end.is_some_and(|end| wake >= end) {
            return Pause::Drained;
        }
        tokio::select! {
            () = sleep_until(wake) => Pause::Over,
            () = changed(&mut self.deadline) => Pause::Hurried,
            () = changed(&mut self.link) => Pause::Hurried,
        }
    }
}

/// `None`: the drain was over first.
async fn until<T>(deadline: &mut Deadline, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let end = *deadline.borrow_and_update();
        if let Some(end) = end {
            // Nothing is begun that has no time to end.
            return if Instant::now() < end { timeout_at(end, work).await.ok() } else { None };
        }
        tokio::select! {
            done = &mut work => return Some(done),
            () = changed(deadline) => {}
        }
    }
}

async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        // Nobody is left to change it.
        std::future::pending::<()>().await;
    }
}
