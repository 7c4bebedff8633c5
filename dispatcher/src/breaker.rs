//! When an endpoint gets no requests at all. Pure: time and randomness are arguments.
//!
//! ```text
//! closed ──failures──▶ open until a time ──time is up──▶ half open: one probe
//!    ▲                        ▲                               │
//!    └────────answered────────┼───────────────────────────────┤
//!                             └─────────failed: for longer────┘
//! ```

use crate::concurrency::Fared;
use floodway_schemas::breaker_policy::BreakerPolicy;
use std::time::{Duration, Instant};

/// Outcomes that are looked at for the share of failures: as many as a word has bits.
const REMEMBERED: u32 = 64;
/// Pauses are spread by up to this share of themselves.
const SPREAD: f64 = 0.2;

/// When breakers open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerLimits {
    /// Failures in a row that open it, at most [`BreakerLimits::MOST_FAILURES`]; 0 for never.
    pub(crate) failures: u32,
    /// Percentage of failures among the last 64 requests that opens it.
    pub(crate) percent: u32,
    /// First pause; each failed probe doubles it.
    pub(crate) pause: Duration,
    /// Longest pause.
    pub(crate) max_pause: Duration,
}

impl BreakerLimits {
    /// What is remembered at most.
    pub(crate) const MOST_FAILURES: u32 = REMEMBERED;

    /// The same with what a subscription asks for.
    pub(crate) fn with(self, wanted: &BreakerPolicy) -> Self {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        let pause = wanted.pause_ms.map_or(self.pause, millis);
        Self {
            failures: wanted.failures.unwrap_or(self.failures).min(Self::MOST_FAILURES),
            percent: wanted.percent.unwrap_or(self.percent),
            pause,
            max_pause: wanted.max_pause_ms.map_or(self.max_pause, millis).max(pause),
        }
    }
}

/// The breaker of one endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Breaker {
    /// The last requests, the newest in the lowest bit; a failure is a one.
    history: u64,
    /// How many of them there were.
    remembered: u32,
    state: State,
    /// Times that it opened since it was last closed.
    opened: u32,
    /// When it did so first.
    opened_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    /// No request before this time.
    Open(Instant),
    /// One request is under way.
    Probing,
}

/// Whether a request may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may.
    Free,
    /// It may, as the only one.
    Probe,
    /// It may not.
    Refused,
}

impl Breaker {
    /// Whether a request may be made now. A probe counts as made.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed => Admission::Free,
            State::Open(until) if now >= until => {
                self.state = State::Probing;
                Admission::Probe
            }
            State::Open(_) | State::Probing => Admission::Refused,
        }
    }

    /// Whether requests are made freely.
    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// When it lets a probe through, while it is open.
    pub(crate) fn probes_at(&self) -> Option<Instant> {
        match self.state {
            State::Open(until) => Some(until),
            State::Closed | State::Probing => None,
        }
    }

    /// Since when it has not been closed.
    pub(crate) fn opened_at(&self) -> Option<Instant> {
        self.opened_at
    }

    /// Takes in how a request fared; returns whether the breaker opened or closed by that. `random` is in `[0, 1)`.
    pub(crate) fn ended(
        &mut self,
        fared: Fared,
        limits: &BreakerLimits,
        now: Instant,
        random: f64,
    ) -> Option<Turn> {
        let failed = match fared {
            Fared::Well => false,
            Fared::Badly => true,
            // The next one is to find out.
            Fared::Unknown => {
                if self.state == State::Probing {
                    self.state = State::Open(now);
                }
                return None;
            }
        };
        self.history = self.history << 1 | u64::from(failed);
        self.remembered = (self.remembered + 1).min(REMEMBERED);
        match self.state {
            State::Closed if failed && self.is_too_much(limits) => self.open(limits, now, random),
            State::Closed => None,
            // What began before it opened tells of before.
            State::Open(_) if failed => None,
            State::Probing if failed => self.open(limits, now, random),
            State::Open(_) | State::Probing => {
                *self = Self::default();
                Some(Turn::Closed)
            }
        }
    }

    fn is_too_much(&self, limits: &BreakerLimits) -> bool {
        let in_a_row = self.history.trailing_ones();
        let share_is_known = self.remembered == REMEMBERED;
        limits.failures > 0
            && (in_a_row >= limits.failures
                || (share_is_known && self.history.count_ones() * 100 >= limits.percent * REMEMBERED))
    }

    fn open(&mut self, limits: &BreakerLimits, now: Instant, random: f64) -> Option<Turn> {
        let pause = limits.pause.saturating_mul(1 << self.opened.min(16)).min(limits.max_pause);
        self.state = State::Open(now + pause.mul_f64(1.0 + SPREAD * random));
        let turn = (self.opened == 0).then_some(Turn::Opened);
        self.opened = self.opened.saturating_add(1);
        self.opened_at.get_or_insert(now);
        turn
    }
}

/// A change of a breaker that is worth counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Requests stopped.
    Opened,
    /// Requests go on.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        failures: 5,
        percent: 75,
        pause: Duration::from_secs(5),
        max_pause: Duration::from_secs(60),
    };

    fn fail(breaker: &mut Breaker, times: usize, now: Instant) -> Option<Turn> {
        (0..times).map(|_| breaker.ended(Fared::Badly, &LIMITS, now, 0.0)).fold(None, Option::or)
    }

    #[test]
    fn failures_in_a_row_open_it_one_probe_at_a_time_decides_and_pauses_grow() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        let mut now = start;
        assert_eq!(fail(&mut breaker, 4, now), None);
        breaker.ended(Fared::Well, &LIMITS, now, 0.0);
        assert_eq!(fail(&mut breaker, 4, now), None);
        assert_eq!(breaker.admit(now), Admission::Free);
        assert_eq!(fail(&mut breaker, 1, now), Some(Turn::Opened));
        for pause in [5, 10, 20, 40, 60, 60] {
            let until = now + Duration::from_secs(pause);
            assert_eq!((breaker.admit(now), breaker.probes_at()), (Admission::Refused, Some(until)));
            now = until;
            assert_eq!(breaker.admit(now), Admission::Probe);
            assert_eq!((breaker.admit(now), breaker.probes_at()), (Admission::Refused, None));
            assert_eq!(fail(&mut breaker, 1, now), None);
        }
        now += LIMITS.max_pause;
        assert_eq!(breaker.admit(now), Admission::Probe);
        assert_eq!(breaker.opened_at(), Some(start));
        assert_eq!(breaker.ended(Fared::Well, &LIMITS, now, 0.0), Some(Turn::Closed));
        assert_eq!((breaker.admit(now), breaker.opened_at()), (Admission::Free, None));
        assert_eq!(fail(&mut breaker, 4, now), None);
    }

    #[test]
    fn a_share_of_failures_opens_it_and_never_before_enough_is_known() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        let mut requests = 0;
        while breaker.is_closed() {
            // Three of four fail, never five in a row.
            let fared = if requests % 4 == 0 { Fared::Well } else { Fared::Badly };
            breaker.ended(fared, &LIMITS, now, 0.0);
            requests += 1;
        }
        assert_eq!(requests, 64);
    }

    #[test]
    fn a_probe_that_says_nothing_is_followed_by_another_and_zero_failures_never_open() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        fail(&mut breaker, 5, now);
        let later = now + LIMITS.pause;
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.ended(Fared::Unknown, &LIMITS, later, 0.0);
        assert_eq!(breaker.admit(later), Admission::Probe);
        let never = BreakerLimits { failures: 0, ..LIMITS };
        let mut breaker = Breaker::default();
        for _ in 0..200 {
            breaker.ended(Fared::Badly, &never, now, 0.0);
        }
        assert!(breaker.is_closed());
    }

    proptest! {
        #[test]
        fn an_open_breaker_lets_one_request_through_per_pause_at_most(
            steps in proptest::collection::vec((any::<bool>(), 0u64..4_000), 1..200), random in 0.0f64..1.0,
        ) {
            let mut breaker = Breaker::default();
            let mut now = Instant::now();
            fail(&mut breaker, 5, now);
            let mut last = now;
            for (answered, millis) in steps {
                now += Duration::from_millis(millis);
                match breaker.admit(now) {
                    Admission::Probe => {
                        prop_assert!(now >= last + LIMITS.pause);
                        last = now;
                        let fared = if answered { Fared::Well } else { Fared::Badly };
                        breaker.ended(fared, &LIMITS, now, random);
                        if answered {
                            prop_assert_eq!(breaker.admit(now), Admission::Free);
                            return Ok(());
                        }
                    }
                    Admission::Refused => {
                        let until = breaker.probes_at().unwrap();
                        prop_assert!(until > now && until <= last + LIMITS.max_pause.mul_f64(1.0 + SPREAD));
                    }
                    Admission::Free => prop_assert!(false, "closed without an answer"),
                }
            }
        }
    }
}
