//! Locks without poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. What we guard is whole at every moment, so that somebody panicked while holding it says nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
