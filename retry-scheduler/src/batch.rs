//! Outcomes on their way into one transaction, and what becomes of their rows there.

use crate::{
    admission::Admission,
    clamp::{self, Limits},
    publish::Acks,
    read::{Count, Entry, Letter, Poison},
};
use floodway_schemas::retry_command::RetryCommand;
use floodway_store::{
    DbInstant,
    dead_letters::NewDeadLetter,
    deliveries::{CountDelta, NewDelivery},
    retry::{NewRetry, Position},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Consecutive outcomes of a shard: everything from offset `from` up to, not including, `to`.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) letters: Letters,
    /// Commands to pending retries among the records.
    pub(crate) commands: Vec<Commanded>,
    /// What became of them, in the last try to store the batch.
    pub(crate) admission: Admission,
    /// Records that cannot be used, for one line in the log.
    pub(crate) poison: Vec<(i64, Poison)>,
    records: usize,
    bytes: usize,
    opened: Option<Instant>,
}

/// A command to pending retries.
#[derive(Debug)]
pub(crate) struct Commanded {
    pub(crate) offset: i64,
    /// The id that an outcome in its place would have.
    pub(crate) id: i64,
    /// The lowest id that it covers; not 0 if it may have been read before, see [`crate::takeover`].
    pub(crate) first_id: i64,
    pub(crate) command: RetryCommand,
}

/// How far the dead letters of a batch are on their way to their topic, where they must be before they are stored.
#[derive(Debug)]
pub(crate) enum Letters {
    /// Not sent, or not again until this instant.
    Unsent(Option<Instant>),
    /// Waiting for acknowledgements.
    Sent(Arc<Acks>),
    /// All acknowledged.
    Done,
}

impl Batch {
    /// An empty batch that starts at `from`.
    pub(crate) fn new(from: i64) -> Self {
        Self {
            from,
            to: from,
            entries: Vec::new(),
            letters: Letters::Unsent(None),
            commands: Vec::new(),
            admission: Admission::default(),
            poison: Vec::new(),
            records: 0,
            bytes: 0,
            opened: None,
        }
    }

    /// A record was read at `offset`; it becomes `entry`, or nothing.
    pub(crate) fn push(&mut self, offset: i64, entry: Option<Entry>, now: Instant) {
        self.opened.get_or_insert(now);
        self.to = offset + 1;
        self.records += 1;
        if let Some(entry) = entry {
            self.bytes += entry.bytes;
            self.entries.push(entry);
        }
    }

    /// When the batch is to be stored even if it is not full; `None` while it is empty.
    pub(crate) fn deadline(&self, linger: Duration) -> Option<Instant> {
        self.opened.map(|opened| opened + linger)
    }

    /// Whether no more may be added.
    pub(crate) fn is_full(&self, rows: usize, bytes: usize) -> bool {
        self.records >= rows || self.bytes >= bytes
    }

    /// Two batches in place of this one, to find the record whose rows the database refuses; itself when it has no more than one.
    pub(crate) fn split(mut self) -> Result<(Self, Self), Box<Self>> {
        let of_entries = self.entries.iter().map(|entry| entry.offset);
        let mut offsets: Vec<i64> =
            of_entries.chain(self.commands.iter().map(|command| command.offset)).collect();
        offsets.sort_unstable();
        offsets.dedup();
        if offsets.len() < 2 {
            return Err(Box::new(self));
        }
        let middle = offsets[offsets.len() / 2];
        let is_first = |offset: i64| offset < middle;
        let (entries, second) = self.entries.into_iter().partition(|entry| is_first(entry.offset));
        let (first_commands, commands) =
            self.commands.into_iter().partition(|command| is_first(command.offset));
        (self.entries, self.commands) = (entries, first_commands);
        let rest =
            Self { to: self.to, entries: second, letters: Letters::Done, commands, ..Self::new(middle) };
        Ok((Self { to: middle, letters: Letters::Done, ..self }, rest))
    }

    /// Leaves out the commands of a batch without outcomes. `false` when there are none, or it is not their rows that are refused.
    pub(crate) fn leave_out_commands(&mut self) -> bool {
        self.entries.is_empty() && self.commands.drain(..).count() > 0
    }

    /// Leaves out the history of a single outcome: the database refuses a row, and this one matters least. `false` when there
    /// is none to leave out.
    pub(crate) fn leave_out_history(&mut self) -> bool {
        match self.entries.as_mut_slice() {
            [entry] => entry.delivery.take().is_some(),
            _ => false,
        }
    }

    /// The dead letters, for their topic.
    pub(crate) fn letters(&self) -> Vec<&Letter> {
        self.entries.iter().filter_map(|entry| entry.letter.as_ref()).collect()
    }
}

/// The rows of a batch, by table.
#[derive(Debug, Default)]
pub(crate) struct Rows<'e> {
    pub(crate) retries: Vec<&'e NewRetry>,
    pub(crate) deliveries: Vec<&'e NewDelivery>,
    pub(crate) dead_letters: Vec<&'e NewDeadLetter>,
    pub(crate) counts: Vec<CountDelta>,
}

/// Decides when the retries among `entries` are due, by the clock that was read in their transaction.
pub(crate) fn place(entries: &mut [Entry], db_now: DbInstant, floor: Position, limits: Limits) {
    for entry in entries {
        let Some(later) = &mut entry.retry else { continue };
        let counts_from = later.produced_at.unwrap_or(db_now.to_millis());
        let wanted = clamp::wanted(db_now, later.delay, counts_from, limits);
        let due = clamp::clamp(wanted, db_now, floor);
        later.row.position = Position { due, ..later.row.position };
        if let Some(delivery) = &mut entry.delivery {
            delivery.next_at = Some(due);
        }
    }
}

/// Sorts rows by their table, and counts.
pub(crate) fn rows(entries: &[Entry]) -> Rows<'_> {
    let mut rows = Rows::default();
    let mut counts: BTreeMap<Count, i64> = BTreeMap::new();
    for entry in entries {
        *counts.entry(entry.count).or_default() += entry.events;
        rows.retries.extend(entry.retry.iter().map(|later| &later.row));
        rows.deliveries.extend(&entry.delivery);
        rows.dead_letters.extend(entry.letter.iter().map(|letter| &letter.row));
    }
    rows.counts = counts
        .into_iter()
        .map(|(Count { tenant, subscription, kind }, n)| CountDelta { tenant, subscription, kind, n })
        .collect();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{
        UnixMillis,
        ids::{RetryCommandId, TenantId},
        retry_command::{RETRY_COMMAND_VERSION, RetryAction, RetryScope},
    };
    use uuid::Uuid;

    fn entry(offset: i64, kind: &'static str) -> Entry {
        let count = Count { tenant: Uuid::nil(), subscription: Uuid::nil(), kind };
        Entry { offset, voids: None, bytes: 10, count, events: 1, retry: None, delivery: None, letter: None }
    }

    #[test]
    fn a_batch_closes_by_rows_by_bytes_or_by_age() {
        let now = Instant::now();
        let mut batch = Batch::new(7);
        assert_eq!(batch.deadline(Duration::from_millis(20)), None);
        batch.push(7, Some(entry(7, "retry")), now);
        batch.push(9, None, now + Duration::from_millis(5));
        assert_eq!((batch.from, batch.to), (7, 10));
        assert_eq!(batch.deadline(Duration::from_millis(20)), Some(now + Duration::from_millis(20)));
        assert!(batch.is_full(2, 100) && batch.is_full(5, 10) && !batch.is_full(3, 11));
    }

    #[test]
    fn the_halves_of_a_batch_cover_its_offsets() {
        let now = Instant::now();
        let mut batch = Batch::new(3);
        for offset in [3, 5, 8] {
            batch.push(offset, Some(entry(offset, "retry")), now);
        }
        batch.push(9, None, now);
        let (first, second) = batch.split().unwrap();
        assert_eq!(((first.from, first.to), (second.from, second.to)), ((3, 5), (5, 10)));
        assert!(first.split().is_err());
    }

    fn commanded(offset: i64) -> Commanded {
        let command = RetryCommand {
            v: RETRY_COMMAND_VERSION,
            command: RetryCommandId(Uuid::nil()),
            action: RetryAction::Now,
            tenant: TenantId(Uuid::nil()),
            scope: RetryScope::default(),
            at: UnixMillis(0),
        };
        Commanded { offset, id: offset, first_id: 0, command }
    }

    #[test]
    fn a_command_is_told_apart_from_the_outcomes_around_it_and_can_be_left_out() {
        let now = Instant::now();
        let mut batch = Batch::new(3);
        batch.push(3, Some(entry(3, "retry")), now);
        for offset in [4, 5] {
            batch.push(offset, None, now);
            batch.commands.push(commanded(offset));
        }
        let (mut first, rest) = batch.split().unwrap();
        assert_eq!(((first.from, first.to), (rest.from, rest.to)), ((3, 4), (4, 6)));
        assert!(!first.leave_out_commands() && first.split().is_err());
        let (second, mut third) = rest.split().unwrap();
        assert_eq!(((second.from, second.to), (third.from, third.to)), ((4, 5), (5, 6)));
        assert!(third.leave_out_commands() && !third.leave_out_commands());
        assert_eq!(second.split().unwrap_err().commands.len(), 1);
    }

    #[test]
    fn outcomes_are_counted_per_subscription_and_kind() {
        let entries = [entry(1, "retry"), entry(2, "delivered"), entry(3, "retry")];
        let rows = rows(&entries);
        let counts: Vec<_> = rows.counts.iter().map(|count| (count.kind, count.n)).collect();
        assert_eq!(counts, [("delivered", 1), ("retry", 2)]);
    }
}
