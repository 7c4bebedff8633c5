//! Ids and keys of events: digits of fixed width, written in place and read back without parsing JSON. Pure.

use memchr::memmem;

/// Digits of a connection's number in an id.
pub(super) const CONNECTION_DIGITS: usize = 5;
/// Digits of an event's number in an id: a connection at a million events per second fills it in eleven days.
pub(super) const NUMBER_DIGITS: usize = 12;
/// Digits of a partition key.
pub(super) const KEY_DIGITS: usize = 10;
/// Most connections of a run: their numbers have [`CONNECTION_DIGITS`].
pub(super) const MAX_CONNECTIONS: usize = 99_999;
/// Most partition keys of a run; with their last numbers in memory they take 800 MB in a reconciliation.
pub(super) const MAX_KEYS: u64 = 100_000_000;

/// One event of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventId {
    /// Its connection.
    pub(super) connection: u32,
    /// Its place among the connection's events, from 0.
    pub(super) number: u64,
}

impl EventId {
    /// As it is written in events.
    pub(super) fn text(self, run: &str) -> String {
        format!("{run}-{:05}-{:012}", self.connection, self.number)
    }
}

/// Which key an event has. Keys belong to one connection as long as there are as many keys as connections, so that
/// their order is defined by the order in which that connection sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys {
    /// Different keys; 0 for none.
    keys: u64,
    connections: u64,
}

impl Keys {
    pub(super) fn new(keys: u64, connections: usize) -> Self {
        Self { keys, connections: connections.max(1) as u64 }
    }

    /// Connections of the run.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    /// Keys of one connection; at least 1 if there are any.
    pub(super) fn of_connection(&self, connection: u32) -> u64 {
        if self.keys == 0 {
            return 0;
        }
        let own =
            self.keys / self.connections + u64::from(u64::from(connection) < self.keys % self.connections);
        own.max(1)
    }

    /// The key of an event among those of its connection; call it only if there are keys.
    pub(super) fn slot(&self, id: EventId) -> u64 {
        id.number % self.of_connection(id.connection).max(1)
    }

    /// The key of the connection's `slot`.
    pub(super) fn key(&self, connection: u32, slot: u64) -> u64 {
        (u64::from(connection) + self.connections * slot) % self.keys.max(1)
    }
}

/// Writes a number as digits that fill the slice; digits that do not fit are lost.
pub(super) fn write_digits(out: &mut [u8], mut value: u64) {
    const PAIRS: [[u8; 2]; 100] = {
        let mut pairs = [[b'0'; 2]; 100];
        let mut value = 0;
        while value < 100 {
            pairs[value] = [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
            value += 1;
        }
        pairs
    };
    let mut pairs = out.rchunks_exact_mut(2);
    for pair in &mut pairs {
        pair.copy_from_slice(&PAIRS[(value % 100) as usize]);
        value /= 100;
    }
    if let [first] = pairs.into_remainder() {
        *first = b'0' + (value % 10) as u8;
    }
}

/// Finds a run's ids in records.
pub(super) struct IdFinder {
    /// `"id":"<run>-`
    prefix: memmem::Finder<'static>,
}

impl IdFinder {
    /// For the ids of this run.
    pub(super) fn new(run: &str) -> Self {
        Self { prefix: memmem::Finder::new(&format!("\"id\":\"{run}-")).into_owned() }
    }

    /// The id in a record's JSON; `None` if it is of another run.
    pub(super) fn find(&self, record: &[u8]) -> Option<EventId> {
        let start = self.prefix.find(record)? + self.prefix.needle().len();
        let (id, rest) = read_numbers(&record[start..])?;
        rest.starts_with(b"\"").then_some(id)
    }
}

/// The id in its text; `None` if it is of another run.
pub(super) fn read(text: &str, run: &str) -> Option<EventId> {
    let (id, rest) = read_numbers(text.strip_prefix(run)?.strip_prefix('-')?.as_bytes())?;
    rest.is_empty().then_some(id)
}

/// `00000-000000000000`, and what follows.
fn read_numbers(text: &[u8]) -> Option<(EventId, &[u8])> {
    let (connection, rest) = text.split_at_checked(CONNECTION_DIGITS)?;
    let (number, rest) = rest.strip_prefix(b"-")?.split_at_checked(NUMBER_DIGITS)?;
    // Five digits fit.
    Some((EventId { connection: read_digits(connection)? as u32, number: read_digits(number)? }, rest))
}

fn read_digits(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |value: u64, digit| digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn an_id_is_found_in_a_record_of_its_run_only() {
        let finder = IdFinder::new("load-1f");
        let record =
            |id: &str| format!(r#"{{"specversion":"1.0","id":"{id}","type":"x","data":{{"id":"y"}}}}"#);
        let found = |id: &str| finder.find(record(id).as_bytes());
        let id = EventId { connection: 17, number: 42 };
        assert_eq!(found(&id.text("load-1f")), Some(id));
        assert_eq!(read(&id.text("load-1f"), "load-1f"), Some(id));
        for other in [
            "load-2f-00017-000000000042",
            "load-1f-00017-00000000004",
            "load-1f-00017-0000000000421",
            "load-1f-0001x-000000000042",
            "load-1f-00017_000000000042",
            "load-1f-",
            "",
        ] {
            assert_eq!(found(other), None, "{other}");
            assert_eq!(read(other, "load-1f"), None, "{other}");
        }
        assert_eq!(finder.find(b"\"id\":\"load-1f-00017-00000"), None, "a record that is cut off");
    }

    #[test]
    fn every_key_is_used_and_belongs_to_one_connection() {
        for (count, connections) in [(1, 1), (7, 3), (10, 10), (1000, 7)] {
            let keys = Keys::new(count, connections);
            let mut owners = BTreeMap::new();
            for connection in 0..connections as u32 {
                for number in 0..2 * count {
                    let slot = keys.slot(EventId { connection, number });
                    assert!(slot < keys.of_connection(connection));
                    assert_eq!(*owners.entry(keys.key(connection, slot)).or_insert(connection), connection);
                }
            }
            assert_eq!(owners.keys().copied().collect::<BTreeSet<_>>(), (0..count).collect());
        }
        let shared = Keys::new(2, 5);
        assert_eq!((0..5).map(|connection| shared.key(connection, 0)).collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
        assert_eq!(Keys::new(0, 5).of_connection(3), 0);
    }

    proptest! {
        #[test]
        fn digits_are_those_of_the_number(value in 0u64..1_000_000_000_000, width in 1usize..13) {
            let mut out = vec![b'x'; width];
            write_digits(&mut out, value);
            let text = format!("{value:012}");
            prop_assert_eq!(&out, &text.as_bytes()[12 - width..]);
        }

        #[test]
        fn arbitrary_bytes_have_an_id_or_none(record in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = IdFinder::new("r").find(&record);
            let _ = read_numbers(&record);
        }
    }
}
