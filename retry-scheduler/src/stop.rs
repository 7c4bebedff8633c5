//! Tells a thread to end, and wakes it when it waits.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How a thread is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Finish what is in flight, within the drain deadline.
    Drain,
    /// At once, as if the process had been killed.
    Abort,
}

/// Shared between the thread and who ends it.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    ending: Mutex<Option<Ending>>,
    changed: Condvar,
}

impl Stop {
    /// Asks the thread to end. An abort is not taken back.
    pub(crate) fn request(&self, ending: Ending) {
        let mut current = self.lock();
        if *current != Some(Ending::Abort) {
            *current = Some(ending);
        }
        self.changed.notify_all();
    }

    /// Whether the thread is to end, and how.
    pub(crate) fn requested(&self) -> Option<Ending> {
        *self.lock()
    }

    /// Waits for `duration`, or until the thread is to end.
    pub(crate) fn wait(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        let mut current = self.lock();
        while current.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            current = self.changed.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The critical sections are plain assignments: a panic cannot leave one half done.
    fn lock(&self) -> MutexGuard<'_, Option<Ending>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
