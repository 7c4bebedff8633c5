//! How far the demo has come, in one line.

use crate::report::count;

/// How far the demo has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Events to send.
    pub events: u64,
    /// Events that ingest acknowledged.
    pub accepted: u64,
    /// Deliveries that the receiver answered with a 2xx.
    pub delivered: u64,
    /// Failed attempts that are tried again.
    pub retried: u64,
    /// Dead letters.
    pub dead: u64,
    /// Deliveries that have not ended.
    pub pending: u64,
}

impl Snapshot {
    /// The line.
    pub fn text(&self) -> String {
        format!(
            "accepted {}/{}, delivered {}, retried {}, dead {}, pending {}",
            count(self.accepted),
            count(self.events),
            count(self.delivered),
            count(self.retried),
            count(self.dead),
            count(self.pending),
        )
    }
}
