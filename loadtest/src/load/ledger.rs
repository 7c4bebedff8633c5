//! What became of every event of a run: one bit per state and event.

/// The ledger of a run. Every connection numbers its events from 0; an event's id is
/// `<run>-<connection>-<number>`.
#[derive(Debug, Default)]
pub struct Ledger {
    run: String,
}

impl Ledger {
    /// The run's name, which its events' ids start with.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Events that were sent.
    pub fn sent(&self) -> u64 {
        0
    }

    /// Events that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        0
    }
}
