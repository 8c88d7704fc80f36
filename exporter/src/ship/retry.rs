//! When to try again: exponential backoff with full jitter, for as long as a batch is worth it.

use std::time::Duration;

/// The pace of retries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Most the first retry waits.
    pub(crate) first: Duration,
    pub(crate) factor: f64,
    /// Most any retry waits.
    pub(crate) max: Duration,
    /// How long an endpoint that takes nothing of a signal is left alone.
    pub(crate) refusal: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            factor: 1.5,
            max: Duration::from_secs(30),
            refusal: Duration::from_secs(60),
        }
    }
}

#[derive(Debug)]
pub(super) struct Backoff {
    pace: Pace,
    interval: Duration,
}

impl Backoff {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, interval: pace.first }
    }

    /// Anything up to the interval, so that agents which failed together do not come back together.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.interval.mul_f64(fastrand::f64());
        self.interval = self.interval.mul_f64(self.pace.factor).min(self.pace.max);
        wait
    }

    pub(super) fn reset(&mut self) {
        self.interval = self.pace.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_are_jittered() {
        let mut backoff = Backoff::new(Pace::default());
        let mut bound = Duration::from_secs(1);
        let mut waits = Vec::new();
        for _ in 0..20 {
            assert_eq!(backoff.interval, bound);
            let wait = backoff.next();
            assert!(wait <= bound);
            waits.push(wait);
            bound = bound.mul_f64(1.5).min(Duration::from_secs(30));
        }
        assert_eq!(bound, Duration::from_secs(30));
        waits.dedup();
        assert!(waits.len() > 15);
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
