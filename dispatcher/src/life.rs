//! The phases of the dispatcher's life, read by its threads.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicU8, Ordering},
};

/// A phase; they only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Records are taken and delivered.
    Running,
    /// No record is taken; attempts under way finish, their outcomes are produced and progress is committed.
    Draining,
    /// Everything is done or given up: commit a last time and leave the groups.
    Leaving,
    /// The dispatcher was dropped without a drain: stop at once and commit nothing more, as in a crash.
    Abandoned,
}

/// The current phase.
#[derive(Debug, Default)]
pub(crate) struct Life {
    phase: AtomicU8,
    /// Held for reading while a record is taken, so that the end of taking can be waited for.
    taking: RwLock<()>,
}

impl Life {
    /// Enters `phase`, unless a later one was entered before.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Enters [`Phase::Draining`] and waits for records that are just being taken: when it returns, no delivery begins any more.
    /// A delivery that began later would be made, and made again by the next owner.
    pub(crate) fn stop_taking(&self) {
        self.enter(Phase::Draining);
        drop(self.taking.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes a record or a part of one; `None` when no more are taken. `take` must not wait for anything.
    pub(crate) fn while_running<T>(&self, take: impl FnOnce() -> T) -> Option<T> {
        let _taking = self.taking.read().unwrap_or_else(PoisonError::into_inner);
        self.is_running().then(take)
    }

    /// The current phase.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            2 => Phase::Leaving,
            _ => Phase::Abandoned,
        }
    }

    /// Whether records are taken.
    pub(crate) fn is_running(&self) -> bool {
        self.phase() == Phase::Running
    }
}
