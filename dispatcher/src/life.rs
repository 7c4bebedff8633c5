//! The phases of the dispatcher's life, read by its threads.

use std::sync::atomic::{AtomicU8, Ordering};

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
pub(crate) struct Life(AtomicU8);

impl Life {
    /// Enters `phase`, unless a later one was entered before.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// The current phase.
    pub(crate) fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
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
