//! What became of every event of a run: at most one bit per event, for its connection numbers its events.
//!
//! A hundred million acknowledged events take about 14 MB.

use super::{
    bitmap::Bitmap,
    event_id::{EventId, Keys},
};
use crate::send::answer::Fate;

/// The ledger of a run. Every connection numbers its events from 0; an event's id is
/// `<run>-<connection>-<number>`.
#[derive(Debug)]
pub struct Ledger {
    run: String,
    pub(super) keys: Keys,
    pub(super) connections: Vec<ConnectionLedger>,
}

/// The events of one connection. Each that was sent is in exactly one of the sets.
#[derive(Debug, Default)]
pub(super) struct ConnectionLedger {
    /// Events sent; the number of the next one.
    pub(super) sent: u64,
    pub(super) acknowledged: Bitmap,
    /// Certainly not stored: refused, or never handed to the server.
    pub(super) refused: Bitmap,
    /// Nobody knows whether it is stored.
    pub(super) unknown: Bitmap,
}

impl Ledger {
    /// A ledger of these connections, in the order of their numbers.
    pub(super) fn new(run: String, keys: Keys, connections: Vec<ConnectionLedger>) -> Self {
        Self { run, keys, connections }
    }

    /// The run's name, which its events' ids start with.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Events that were sent, warm-up included.
    pub fn sent(&self) -> u64 {
        self.connections.iter().map(|connection| connection.sent).sum()
    }

    /// Events that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.connections.iter().map(|connection| connection.acknowledged.len()).sum()
    }

    /// Events that are certainly not stored.
    pub fn refused(&self) -> u64 {
        self.connections.iter().map(|connection| connection.refused.len()).sum()
    }

    /// Events of which nobody knows whether they are stored.
    pub fn unknown(&self) -> u64 {
        self.connections.iter().map(|connection| connection.unknown.len()).sum()
    }

    /// Whether an event with this id was acknowledged.
    pub fn is_acknowledged(&self, event_id: &str) -> bool {
        super::event_id::read(event_id, &self.run).is_some_and(|EventId { connection, number }| {
            let connection = self.connections.get(connection as usize);
            connection.is_some_and(|connection| connection.acknowledged.contains(number))
        })
    }
}

impl ConnectionLedger {
    /// Notes the end of a request whose events all ended alike.
    pub(super) fn settle_all(&mut self, first: u64, count: u64, fate: Fate) {
        self.set(fate).insert_range(first, count);
    }

    /// Notes the end of a request's events one by one.
    pub(super) fn settle_each(&mut self, first: u64, fates: &[Fate]) {
        for (number, &fate) in (first..).zip(fates) {
            self.set(fate).insert(number);
        }
    }

    fn set(&mut self, fate: Fate) -> &mut Bitmap {
        match fate {
            Fate::Accepted => &mut self.acknowledged,
            Fate::Refused(_) | Fate::NotPersisted(_) => &mut self.refused,
            Fate::Unknown(_) => &mut self.unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_that_was_sent_is_in_one_set() {
        let mut connection = ConnectionLedger { sent: 1004, ..ConnectionLedger::default() };
        connection.settle_all(0, 1000, Fate::Accepted);
        connection.settle_each(
            1000,
            &[Fate::Accepted, Fate::Refused(400), Fate::NotPersisted(429), Fate::Unknown(503)],
        );
        let connections = vec![ConnectionLedger::default(), connection];
        let ledger = Ledger::new("run".to_owned(), Keys::new(0, 2), connections);
        assert_eq!((ledger.sent(), ledger.acknowledged()), (1004, 1001));
        assert_eq!((ledger.refused(), ledger.unknown()), (2, 1));
        let id = |connection, number| EventId { connection, number }.text("run");
        assert!(ledger.is_acknowledged(&id(1, 1000)));
        assert!(!ledger.is_acknowledged(&id(1, 1001)) && !ledger.is_acknowledged(&id(7, 0)));
    }
}
