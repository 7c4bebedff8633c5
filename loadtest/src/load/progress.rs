//! How far a run is, for somebody who watches it.

use std::sync::atomic::AtomicU64;

/// Counters from the start of the run, warm-up included. The run writes them, anybody may read them at any time.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events sent.
    pub sent: AtomicU64,
    /// Events acknowledged.
    pub accepted: AtomicU64,
    /// Events that got another answer or none.
    pub failed: AtomicU64,
    /// Requests that are due and wait for a connection.
    pub backlog: AtomicU64,
    /// Requests that were dropped because the backlog was full.
    pub dropped: AtomicU64,
    /// Microseconds that 99 % of the answers took at most, in the last second that is complete; 0 if there were none.
    pub p99_micros: AtomicU64,
}
