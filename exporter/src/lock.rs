//! A mutex comes in, its guard goes out.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Also after a panic of another holder: what is shared here is whole at any time.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
