//! One try at a time while the database is away.
//!
//! Every shard of a process notices by itself that the database does not answer. Were each to ask for itself when it is
//! back, a server that is just starting, or has no connection to spare, would be asked by all shards of all processes.
//! So the first one asks for all: while it does, and while it waits between two tries, the others wait for it.

use crate::{shared::lock, stop::Stop};
use floodway_runtime::backoff::Backoff;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Waits between two tries, jittered.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Longest try. Only a thread that died has the turn for longer.
const LONGEST_TRY: Duration = Duration::from_secs(60);

/// Longest wait for a turn before the caller looks after its other work.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a shard that waits looks whether the database is back.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Between shards of a process and the database.
#[derive(Debug)]
pub(crate) struct Circuit(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the next try is due; `None` while the database answers.
    next_try: Option<Instant>,
    /// Until when somebody has the turn to try.
    tried_until: Option<Instant>,
    backoff: Backoff,
}

/// What a shard may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Ask: the database answers, as far as is known.
    Free,
    /// Ask for everybody, and tell what came of it.
    Probe,
    /// Not yet.
    Wait,
}

impl Circuit {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            next_try: None,
            tried_until: None,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        }))
    }

    /// Waits for a while, or until the caller may ask or is to end.
    pub(crate) fn wait(&self, stop: &Stop) -> Turn {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            if stop.requested().is_some() || now >= deadline {
                return Turn::Wait;
            }
            let turn = self.turn(now);
            if turn != Turn::Wait {
                return turn;
            }
            stop.wait(LOOK_INTERVAL);
        }
    }

    /// What the caller may do now. Whoever gets to probe must tell what came of it.
    pub(crate) fn turn(&self, now: Instant) -> Turn {
        let mut state = lock(&self.0);
        match state.next_try {
            None => Turn::Free,
            Some(at) if at <= now && state.tried_until.is_none_or(|until| until <= now) => {
                state.tried_until = Some(now + LONGEST_TRY);
                Turn::Probe
            }
            Some(_) => Turn::Wait,
        }
    }

    /// The database answered.
    pub(crate) fn closed(&self) {
        let mut state = lock(&self.0);
        state.next_try = None;
        state.tried_until = None;
        state.backoff.reset();
    }

    /// The database did not answer to somebody whose turn it was.
    pub(crate) fn failed(&self, turn: Turn, now: Instant, random: f64) {
        let mut state = lock(&self.0);
        if turn == Turn::Probe {
            state.tried_until = None;
        } else if state.next_try.is_some() {
            // Asked before it was known; whoever probes has it in hand.
            return;
        }
        state.next_try = Some(now + state.backoff.next(random));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asks_for_all_and_ever_more_rarely() {
        let circuit = Circuit::new();
        let start = Instant::now();
        assert_eq!([circuit.turn(start), circuit.turn(start)], [Turn::Free, Turn::Free]);
        circuit.failed(Turn::Free, start, 1.0);
        circuit.failed(Turn::Free, start, 1.0);
        assert_eq!(circuit.turn(start), Turn::Wait);
        let later = start + FIRST_WAIT;
        assert_eq!([circuit.turn(later), circuit.turn(later)], [Turn::Probe, Turn::Wait]);
        circuit.failed(Turn::Probe, later, 1.0);
        assert_eq!(circuit.turn(later + FIRST_WAIT), Turn::Wait, "twice as long");
        assert_eq!(circuit.turn(later + LONGEST_WAIT), Turn::Probe);
        circuit.closed();
        assert_eq!([circuit.turn(later), circuit.turn(later)], [Turn::Free, Turn::Free]);
    }
}
