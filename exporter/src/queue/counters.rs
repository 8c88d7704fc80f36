//! Where every accepted and every recovered record went. A record is a log record or a span.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lock::lock;

/// At rest, `accepted + recovered = exported + rejected + dropped (all reasons) + queued + in_flight + spooled`, of which
/// `queued` is [`Depth::records`](super::Depth::records), and `recovered` and `spooled` are 0 without a spool.
///
/// A record belongs to `spooled` while it is on disk and in no memory, and once the queue is closed and it was not sent: the
/// next run recovers it. A batch of which a part was settled in that last moment is recovered as a whole.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    exported: AtomicU64,
    rejected: AtomicU64,
    in_flight: AtomicU64,
    retries: AtomicU64,
    dropped: Mutex<BTreeMap<Reason, u64>>,
    spool: Option<SpoolCounters>,
    timer: Timer,
}

/// Told of each batch that a sender is done with: how long that took from the first request to the last answer, what was
/// wrong, and what was answered last.
pub type Timed = dyn Fn(Duration, Option<Fault>, Option<Answer>) + Send + Sync;

#[derive(Default)]
struct Timer(Mutex<Option<Arc<Timed>>>);

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}

/// Why a batch, or a part of it, was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// By the collector, in a partial success.
    Rejected,
    Dropped(Reason),
}

#[derive(Debug, Default)]
struct SpoolCounters {
    recovered: AtomicU64,
    spooled: AtomicU64,
    bytes: AtomicU64,
    segments: AtomicU64,
    errors: AtomicU64,
    cuts: AtomicU64,
}

/// The counters at one moment; records, but for `retries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Given to the queue.
    pub accepted: u64,
    /// Accepted by the collector.
    pub exported: u64,
    /// Refused by the collector in a partial success.
    pub rejected: u64,
    /// Taken from the queue, not settled yet.
    pub in_flight: u64,
    /// Requests that had to be sent again.
    pub retries: u64,
    pub dropped: BTreeMap<Reason, u64>,
    /// `None` without a spool.
    pub spool: Option<Spooled>,
}

impl Snapshot {
    /// With what an earlier queue of this name has counted. What that one had left on disk, and this one has found there, is
    /// no news.
    #[must_use]
    pub fn and(mut self, earlier: &Self) -> Self {
        self.accepted += earlier.accepted;
        self.exported += earlier.exported;
        self.rejected += earlier.rejected;
        self.in_flight += earlier.in_flight;
        self.retries += earlier.retries;
        for (reason, records) in &earlier.dropped {
            *self.dropped.entry(*reason).or_default() += records;
        }
        self.spool = match (self.spool, earlier.spool) {
            (Some(own), Some(earlier)) => {
                let found = earlier.records.min(own.recovered);
                Some(Spooled {
                    recovered: earlier.recovered + own.recovered - found,
                    records: own.records + earlier.records - found,
                    errors: own.errors + earlier.errors,
                    cuts: own.cuts + earlier.cuts,
                    ..own
                })
            }
            (own, earlier) => own.or(earlier),
        };
        self
    }
}

/// What the spool has to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spooled {
    /// Records that were there at the start.
    pub recovered: u64,
    /// Records on disk and in no memory; at the end, those left for the next run.
    pub records: u64,
    /// Of all segments, with what is settled in them.
    pub bytes: u64,
    pub segments: u64,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Segments that ended within a batch, or in garbage, at the start.
    pub cuts: u64,
}

/// Why records were dropped. `Display` gives a stable name for an attribute value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The oldest went when the queue was full.
    QueueFull,
    /// The collector's answer forbids to send them again.
    Permanent(Answer),
    /// Sent again until `retry_max_elapsed` was over.
    RetryExpired,
    /// The collector takes no request of that size, nor its halves.
    TooLarge,
    /// The endpoint takes nothing of the signal at all.
    Unimplemented,
    /// Still there when the drain's deadline was over.
    Shutdown,
    /// Could not be brought into the destination's form.
    Encoding,
    /// The oldest of the last class went when the spool was full.
    SpoolFull,
    /// On disk for longer than the spool's `max_age`.
    SpoolExpired,
    /// What is on disk is not what was written.
    SpoolCorrupt,
}

/// A collector's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// gRPC status code, 0 to 16.
    Grpc(i32),
    /// HTTP status code.
    Http(u16),
}

impl Counters {
    pub(super) fn of_spool() -> Self {
        Self { spool: Some(SpoolCounters::default()), ..Self::default() }
    }

    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            accepted: self.accepted.load(Relaxed),
            exported: self.exported.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            retries: self.retries.load(Relaxed),
            dropped: lock(&self.dropped).clone(),
            spool: self.spool.as_ref().map(|spool| Spooled {
                recovered: spool.recovered.load(Relaxed),
                records: spool.spooled.load(Relaxed),
                bytes: spool.bytes.load(Relaxed),
                segments: spool.segments.load(Relaxed),
                errors: spool.errors.load(Relaxed),
                cuts: spool.cuts.load(Relaxed),
            }),
        }
    }

    /// Nobody else is told from now on.
    pub(crate) fn time_with(&self, timed: Arc<Timed>) {
        *lock(&self.timer.0) = Some(timed);
    }

    pub(crate) fn timed(&self, took: Duration, fault: Option<Fault>, answer: Option<Answer>) {
        let timed = lock(&self.timer.0).clone();
        if let Some(timed) = timed {
            timed(took, fault, answer);
        }
    }

    pub(super) fn accept(&self, records: u32) {
        self.accepted.fetch_add(records.into(), Relaxed);
    }

    pub(super) fn take(&self, records: u32) {
        self.in_flight.fetch_add(records.into(), Relaxed);
    }

    /// No longer taken: it is elsewhere again.
    pub(super) fn put_back(&self, records: u32) {
        self.in_flight.fetch_sub(records.into(), Relaxed);
    }

    /// Drops what was not in flight.
    pub(super) fn discard(&self, reason: Reason, records: impl Into<u64>) {
        let records = records.into();
        if records > 0 {
            *lock(&self.dropped).entry(reason).or_default() += records;
        }
    }

    /// Settles records in flight: `rejected` of them refused, the others delivered.
    pub(super) fn deliver(&self, records: u32, rejected: u32) {
        self.exported.fetch_add((records - rejected).into(), Relaxed);
        self.rejected.fetch_add(rejected.into(), Relaxed);
        self.in_flight.fetch_sub(records.into(), Relaxed);
    }

    /// Settles records in flight: lost.
    pub(super) fn lose(&self, reason: Reason, records: u32) {
        self.discard(reason, records);
        self.in_flight.fetch_sub(records.into(), Relaxed);
    }

    pub(crate) fn retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Found on disk at the start.
    pub(super) fn recover(&self, records: u64) {
        self.spool_with(|spool| spool.recovered.fetch_add(records, Relaxed));
    }

    /// On disk and in no memory.
    pub(super) fn set_spooled(&self, records: u64) {
        self.spool_with(|spool| spool.spooled.store(records, Relaxed));
    }

    /// How large what is on disk is.
    pub(super) fn set_size(&self, bytes: u64, segments: u64) {
        self.spool_with(|spool| {
            spool.bytes.store(bytes, Relaxed);
            spool.segments.store(segments, Relaxed);
        });
    }

    pub(super) fn spool_error(&self) {
        self.spool_with(|spool| spool.errors.fetch_add(1, Relaxed));
    }

    pub(super) fn spool_cut(&self) {
        self.spool_with(|spool| spool.cuts.fetch_add(1, Relaxed));
    }

    /// Without a spool there is nothing to count.
    fn spool_with<T>(&self, count: impl FnOnce(&SpoolCounters) -> T) {
        self.spool.as_ref().map(count);
    }
}

impl Snapshot {
    /// Records dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected => f.write_str("rejected"),
            Self::Dropped(reason) => reason.fmt(f),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull => f.write_str("queue_full"),
            Self::Permanent(Answer::Grpc(code)) => {
                write!(f, "permanent:{}", GRPC_CODES.get(usize::try_from(*code).unwrap_or(2)).unwrap_or(&"UNKNOWN"))
            }
            Self::Permanent(Answer::Http(status)) => write!(f, "permanent:{status}"),
            Self::RetryExpired => f.write_str("retry_expired"),
            Self::TooLarge => f.write_str("too_large"),
            Self::Unimplemented => f.write_str("unimplemented"),
            Self::Shutdown => f.write_str("shutdown"),
            Self::Encoding => f.write_str("encoding"),
            Self::SpoolFull => f.write_str("spool_full"),
            Self::SpoolExpired => f.write_str("spool_expired"),
            Self::SpoolCorrupt => f.write_str("spool_corrupt"),
        }
    }
}

pub(crate) const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_queue_left_on_disk_and_the_next_has_found_there_is_counted_once() {
        let of = |accepted, exported, recovered, records| Snapshot {
            accepted,
            exported,
            spool: Some(Spooled { recovered, records, bytes: records, ..Spooled::default() }),
            ..Snapshot::default()
        };
        let first = of(10, 3, 2, 9);
        assert_eq!(of(5, 12, 9, 2).and(&first), of(15, 15, 2, 2));
        // Somebody has taken four away meanwhile.
        let second = of(5, 8, 5, 2).and(&first);
        let spool = second.spool.unwrap();
        assert_eq!((spool.recovered, spool.records, spool.bytes), (2, 6, 2));
        assert_eq!(second.accepted + spool.recovered, second.exported + spool.records);
    }

    #[test]
    fn reasons_have_stable_names() {
        let name = |reason: Reason| reason.to_string();
        assert_eq!(name(Reason::Permanent(Answer::Grpc(3))), "permanent:INVALID_ARGUMENT");
        assert_eq!(name(Reason::Permanent(Answer::Grpc(-7))), "permanent:UNKNOWN");
        assert_eq!(name(Reason::Permanent(Answer::Http(400))), "permanent:400");
        assert_eq!(name(Reason::QueueFull), "queue_full");
        let spool = [Reason::SpoolFull, Reason::SpoolExpired, Reason::SpoolCorrupt].map(name);
        assert_eq!(spool, ["spool_full", "spool_expired", "spool_corrupt"]);
    }
}
