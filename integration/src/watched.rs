//! A value that one thread changes and another waits for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // Whoever panicked has failed the test already; its end is not to be failed too.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The first answer that is not `None`; `None` when the time is over.
    pub fn wait<R>(&self, time: Duration, mut answer: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + time;
        let mut value = self.lock();
        loop {
            if let Some(found) = answer(&value) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            value = self.changed.wait_timeout(value, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// For what nobody tells of: asks again and again until the time is over.
pub fn poll<R>(time: Duration, mut answer: impl FnMut() -> Option<R>) -> Option<R> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = answer() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
