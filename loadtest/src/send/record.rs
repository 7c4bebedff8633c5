//! What became of every event of a run: 9 bytes each, written without locks while the run goes on.

use super::answer::Fate;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Most events of one run: about 1 GB of record.
pub const MAX_EVENTS: u64 = 100_000_000;

const NOT_SENT: u8 = 0;
const IN_FLIGHT: u8 = 1;
const ACCEPTED: u8 = 2;
const REFUSED: u8 = 3;
const NOT_PERSISTED: u8 = 4;
const UNKNOWN: u8 = 5;

/// The record of one run. Events are known by their number; their ids are `<run>-<number>`.
pub struct SendRecord {
    run: String,
    started: Instant,
    /// Microseconds after `started` at which the event was first sent, plus one; 0 before.
    sent_at: Box<[AtomicU64]>,
    states: Box<[AtomicU8]>,
    accepted: AtomicU64,
    requests: AtomicU64,
    repeats: AtomicU64,
    refusals: Mutex<BTreeMap<u16, u64>>,
    throttled: AtomicU64,
}

/// How many events ended how.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Acknowledged.
    pub accepted: u64,
    /// Refused for good, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Never acknowledged, and certainly not stored.
    pub not_persisted: u64,
    /// Never acknowledged; they may be stored all the same.
    pub unknown: u64,
    /// Never sent, because the run ended early.
    pub not_sent: u64,
    /// Requests made.
    pub requests: u64,
    /// Events sent again, counted once per repetition.
    pub repeats: u64,
    /// Answers of 429, or with an event refused so.
    pub throttled: u64,
}

impl Tally {
    /// Events that were sent, and neither acknowledged nor refused.
    pub fn unacknowledged(&self) -> u64 {
        self.not_persisted + self.unknown
    }
}

impl SendRecord {
    /// An empty record for a run of this many events, bounded by [`MAX_EVENTS`].
    pub fn new(run: impl Into<String>, events: u64) -> Self {
        let events = events.min(MAX_EVENTS) as usize;
        Self {
            run: run.into(),
            started: Instant::now(),
            sent_at: std::iter::repeat_with(AtomicU64::default).take(events).collect(),
            states: std::iter::repeat_with(AtomicU8::default).take(events).collect(),
            accepted: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
            refusals: Mutex::default(),
            throttled: AtomicU64::new(0),
        }
    }

    /// The run's name, which its events' ids start with.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Events of the run.
    pub fn events(&self) -> u64 {
        self.states.len() as u64
    }

    /// Events acknowledged so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Whether an event was acknowledged.
    pub fn is_accepted(&self, number: u64) -> bool {
        self.state(number) == ACCEPTED
    }

    /// When the first request with this event began.
    pub fn sent_at(&self, number: u64) -> Option<Instant> {
        let micros = self.sent_at.get(usize::try_from(number).ok()?)?.load(Relaxed).checked_sub(1)?;
        Some(self.started + Duration::from_micros(micros))
    }

    /// The number in an event id of this run.
    pub fn number_of(&self, event_id: &str) -> Option<u64> {
        let number = event_id.strip_prefix(self.run.as_str())?.strip_prefix('-')?.parse().ok()?;
        (number < self.events()).then_some(number)
    }

    /// Sums of what is known so far; meant for the end of a run.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally {
            accepted: self.accepted(),
            refused: self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            requests: self.requests.load(Relaxed),
            repeats: self.repeats.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            ..Tally::default()
        };
        for state in &self.states {
            match state.load(Relaxed) {
                NOT_SENT => tally.not_sent += 1,
                NOT_PERSISTED => tally.not_persisted += 1,
                IN_FLIGHT | UNKNOWN => tally.unknown += 1,
                _ => {}
            }
        }
        tally
    }

    /// Notes that a request with these events begins.
    pub(crate) fn sending(&self, numbers: &[u64], now: Instant) {
        self.requests.fetch_add(1, Relaxed);
        let micros = now.saturating_duration_since(self.started).as_micros() as u64 + 1;
        for &number in numbers {
            if self.sent_at[number as usize].compare_exchange(0, micros, Relaxed, Relaxed).is_err() {
                self.repeats.fetch_add(1, Relaxed);
            }
            // Once nobody knows whether an event is stored, only an acknowledgement can settle that.
            let state = &self.states[number as usize];
            if state.load(Relaxed) != UNKNOWN {
                state.store(IN_FLIGHT, Relaxed);
            }
        }
    }

    /// Notes what became of an event in a request.
    pub(crate) fn settle(&self, number: u64, fate: Fate) {
        let slot = &self.states[number as usize];
        let state = match fate {
            Fate::Accepted => {
                self.accepted.fetch_add(1, Relaxed);
                ACCEPTED
            }
            Fate::Refused(status) => {
                let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
                *refusals.entry(status).or_default() += 1;
                REFUSED
            }
            Fate::NotPersisted(_) if slot.load(Relaxed) != UNKNOWN => NOT_PERSISTED,
            Fate::NotPersisted(_) | Fate::Unknown(_) => UNKNOWN,
        };
        slot.store(state, Relaxed);
    }

    /// Notes an answer that asked to slow down.
    pub(crate) fn throttled(&self) {
        self.throttled.fetch_add(1, Relaxed);
    }

    fn state(&self, number: u64) -> u8 {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.states.get(number))
            .map_or(NOT_SENT, |s| s.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_ends_in_exactly_one_place() {
        let record = SendRecord::new("run", 6);
        record.sending(&[0, 1, 2, 3], Instant::now());
        record.sending(&[1, 4], Instant::now());
        for (number, fate) in [
            (0, Fate::Accepted),
            (1, Fate::Refused(413)),
            (2, Fate::NotPersisted(503)),
            (3, Fate::Unknown(0)),
        ] {
            record.settle(number, fate);
        }
        let tally = record.tally();
        assert_eq!((tally.accepted, tally.not_persisted, tally.not_sent), (1, 1, 1));
        assert_eq!(tally.unknown, 2, "an event whose answer never came is unknown");
        assert_eq!(tally.refused, BTreeMap::from([(413, 1)]));
        assert_eq!((tally.requests, tally.repeats), (2, 1));
        assert!(record.is_accepted(0) && !record.is_accepted(1) && !record.is_accepted(99));
        assert!(record.sent_at(4).is_some() && record.sent_at(5).is_none());
    }

    #[test]
    fn an_event_that_may_be_stored_stays_unknown_until_it_is_acknowledged() {
        let record = SendRecord::new("run", 1);
        for (fate, unknown) in [(Fate::Unknown(503), 1), (Fate::NotPersisted(429), 1), (Fate::Accepted, 0)] {
            record.sending(&[0], Instant::now());
            record.settle(0, fate);
            assert_eq!(record.tally().unknown, unknown, "after {fate:?}");
        }
        assert!(record.is_accepted(0));
    }

    #[test]
    fn ids_of_other_runs_have_no_number() {
        let record = SendRecord::new("run", 3);
        assert_eq!(record.number_of("run-2"), Some(2));
        for other in ["run-3", "run-", "run2", "other-1", "run-x"] {
            assert_eq!(record.number_of(other), None, "{other}");
        }
    }
}
