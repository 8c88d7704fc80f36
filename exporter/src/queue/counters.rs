//! Where every accepted record went. A record is a log record or a span.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// At rest, `accepted = exported + rejected + dropped (all reasons) + queued + in_flight`.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    exported: AtomicU64,
    rejected: AtomicU64,
    in_flight: AtomicU64,
    retries: AtomicU64,
    dropped: Mutex<BTreeMap<Reason, u64>>,
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
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            accepted: self.accepted.load(Relaxed),
            exported: self.exported.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            retries: self.retries.load(Relaxed),
            dropped: self.dropped.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(super) fn accept(&self, records: u32) {
        self.accepted.fetch_add(records.into(), Relaxed);
    }

    pub(super) fn take(&self, records: u32) {
        self.in_flight.fetch_add(records.into(), Relaxed);
    }

    /// Drops what was not in flight.
    pub(super) fn discard(&self, reason: Reason, records: u32) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += u64::from(records);
    }

    /// Settles records in flight: `rejected` of them refused, the others delivered.
    pub(crate) fn deliver(&self, records: u32, rejected: u32) {
        self.exported.fetch_add((records - rejected).into(), Relaxed);
        self.rejected.fetch_add(rejected.into(), Relaxed);
        self.in_flight.fetch_sub(records.into(), Relaxed);
    }

    /// Settles records in flight: lost.
    pub(crate) fn lose(&self, reason: Reason, records: u32) {
        self.discard(reason, records);
        self.in_flight.fetch_sub(records.into(), Relaxed);
    }

    pub(crate) fn retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }
}

impl Snapshot {
    /// Records dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
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
    fn reasons_have_stable_names() {
        let name = |reason: Reason| reason.to_string();
        assert_eq!(name(Reason::Permanent(Answer::Grpc(3))), "permanent:INVALID_ARGUMENT");
        assert_eq!(name(Reason::Permanent(Answer::Grpc(-7))), "permanent:UNKNOWN");
        assert_eq!(name(Reason::Permanent(Answer::Http(400))), "permanent:400");
        assert_eq!(name(Reason::QueueFull), "queue_full");
    }
}
