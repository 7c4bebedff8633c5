//! From records to a batch: sorts out what was handled before, what was written twice, and what cannot be used.

use crate::{
    batch::{Batch, Commanded},
    leases::{Doubt, Leases, State},
    metrics::{Loss, Metrics},
    read::{self, Entry},
    reader::record_millis,
    repeats::{Fingerprint, Repeats},
};
use floodway_runtime::clock;
use floodway_schemas::{due::RetryKey, retry_command::RetryCommand};
use floodway_store::retry;
use rdkafka::{Message, message::BorrowedMessage};
use std::time::Instant;

/// The batch being filled, and what was seen before it.
pub(crate) struct Intake {
    shard: i32,
    /// Id of offset 0.
    first_id: i64,
    /// Commands before this offset may have been read before, with lower ids.
    read_again_to: i64,
    repeats: Repeats,
    /// The deliveries in doubt.
    pub(crate) leases: Leases,
    /// Being filled; its end is the next offset to take.
    pub(crate) open: Batch,
}

impl Intake {
    /// Takes records from the row's next offset on; earlier ones are only remembered.
    pub(crate) fn new(shard: i32, row: &retry::Shard, repeats: Repeats) -> Self {
        let retry::Shard { next_offset, first_id, read_again_to, .. } = *row;
        Self {
            shard,
            first_id,
            read_again_to,
            repeats,
            leases: Leases::default(),
            open: Batch::new(next_offset),
        }
    }

    /// Takes the next record of the log.
    pub(crate) fn take(&mut self, metrics: &Metrics, record: &BorrowedMessage<'_>, now: Instant) {
        let offset = record.offset();
        let value = record.payload().unwrap_or_default();
        let time = record_millis(record);
        if offset < self.open.to {
            self.remember(offset, value, time);
            return;
        }
        if offset > self.open.to {
            let from = self.open.to;
            metrics.log_lost(Loss::Gap);
            tracing::error!(
                shard = self.shard,
                from,
                to = offset,
                "the log of outcomes lacks offsets {from}..{offset}"
            );
        }
        let entry = self.entry(metrics, offset, value, time);
        self.open.push(offset, entry, now);
    }

    /// One line for all records of the batch that cannot be used; offsets only, for what they hold may be a user's.
    pub(crate) fn log_poison(&self) {
        if let Some((offset, reason)) = self.open.poison.first() {
            let (n, reason) = (self.open.poison.len(), reason.as_str());
            let shard = self.shard;
            tracing::warn!(
                shard,
                n,
                offset,
                reason,
                "{n} outcomes cannot be used, the first at {offset}: {reason}"
            );
        }
    }

    /// A record that was stored earlier: known, for the repeats that may come, and for leases that ran on.
    fn remember(&mut self, offset: i64, value: &[u8], time: Option<i64>) {
        if let Some((fingerprint, delivery, doubt)) = read::remember(value)
            && !self.repeats.is_repeat(fingerprint, seen_at(time))
        {
            self.doubt(offset, delivery, &doubt);
        }
    }

    /// Id of what comes from an offset.
    fn id_of(&self, offset: i64) -> i64 {
        self.first_id.saturating_add(offset)
    }

    /// Begins or ends a lease. Returns what the delivery's lease was before.
    fn doubt(&mut self, offset: i64, delivery: Fingerprint, doubt: &Doubt) -> Option<State> {
        match doubt {
            Doubt::Ends => self.leases.end(delivery),
            Doubt::Begins(outcomes) if outcomes.iter().any(|&outcome| self.repeats.has_seen(outcome)) => {
                Some(State::Void)
            }
            Doubt::Begins(_) => {
                self.leases.begin(delivery, self.id_of(offset));
                None
            }
        }
    }

    /// Takes a record that is no outcome and a command to this shard's retries.
    fn take_command(&mut self, offset: i64, value: &[u8]) -> bool {
        let Ok(command) = RetryCommand::decode(value) else { return false };
        let is_ours =
            command.scope.is_valid() && command.scope.retry.is_none_or(|retry| retry.shard == self.shard);
        if is_ours {
            let id = self.id_of(offset);
            // What it was about when it was read first has heeded it.
            let first_id = if offset < self.read_again_to { self.first_id } else { 0 };
            self.open.commands.push(Commanded { offset, id, first_id, command });
        }
        is_ours
    }

    fn entry(&mut self, metrics: &Metrics, offset: i64, value: &[u8], time: Option<i64>) -> Option<Entry> {
        let key = RetryKey { shard: self.shard, id: self.id_of(offset) };
        let (entry, poison) = match read::read(key, offset, value, time) {
            Ok(read) if self.repeats.is_repeat(read.fingerprint, seen_at(time)) => {
                metrics.repeats.increment(1);
                return None;
            }
            Ok(mut read) => {
                match self.doubt(offset, read.delivery, &read.doubt) {
                    // Its own outcome overtook it: there is nothing to wait for.
                    Some(State::Void) if matches!(read.doubt, Doubt::Begins(_)) => read.entry.retry = None,
                    // The delivery goes on from its lease, and is not to go on twice.
                    Some(State::Fired) if !read.is_final => read.entry.retry = None,
                    Some(State::Open | State::Firing) => read.entry.voids = Some(read.delivery),
                    _ => {}
                }
                (Some(read.entry), read.poison)
            }
            Err(_) if self.take_command(offset, value) => return None,
            Err(poison) => (None, Some(poison)),
        };
        if let Some(poison) = poison {
            metrics.poison(poison);
            self.open.poison.push((offset, poison));
        }
        entry
    }
}

/// A record's time for the set of repeats. One of a dispatcher whose clock is ahead would make it forget all others.
fn seen_at(time: Option<i64>) -> i64 {
    time.map_or(i64::MIN, |time| time.min(clock::now().0))
}
