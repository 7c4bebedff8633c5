//! One thread's share of the requests: which is due next, and which wait for a connection. Pure: time is an argument,
//! counted from the start of the run.

use super::schedule::Schedule;
use std::{collections::VecDeque, time::Duration};

/// What a free connection gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A request that was due at this time.
    Due(Duration),
    /// Nothing yet.
    Wait,
    /// Nothing more.
    Over,
}

/// Where requests come from.
#[derive(Debug)]
pub(super) enum Arrivals {
    /// Whoever asks gets one.
    Closed {
        /// End of the warm-up.
        warmup: Duration,
        /// What ends the run.
        until: Until,
    },
    /// The schedule decides.
    Open(Backlog),
}

/// What ends a closed loop.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// This time.
    Time(Duration),
    /// So many requests after the warm-up.
    Requests(u64),
}

/// Requests of an open loop that are due and have no connection, in the order in which they were due.
#[derive(Debug)]
pub(super) struct Backlog {
    schedule: Schedule,
    /// Number, over all threads, of the next request that is not due yet.
    next: u64,
    /// This thread has every so-manieth request.
    step: u64,
    /// The first number beyond the run.
    end: u64,
    next_due: Duration,
    waiting: VecDeque<Duration>,
    limit: usize,
    /// Only what was due after it counts as dropped.
    warmup: Duration,
    dropped: u64,
}

impl Arrivals {
    /// The next request for a connection that is free at `now`.
    pub(super) fn take(&mut self, now: Duration) -> Next {
        match self {
            Self::Closed { until: Until::Time(end), .. } => {
                if now < *end {
                    Next::Due(now)
                } else {
                    Next::Over
                }
            }
            Self::Closed { warmup, .. } if now < *warmup => Next::Due(now),
            Self::Closed { until: Until::Requests(left), .. } => match left.checked_sub(1) {
                Some(fewer) => {
                    *left = fewer;
                    Next::Due(now)
                }
                None => Next::Over,
            },
            Self::Open(backlog) => {
                backlog.advance(now);
                backlog.take()
            }
        }
    }

    /// Ends the run early: what still waits is dropped.
    pub(super) fn end(&mut self) {
        match self {
            Self::Closed { warmup, until } => {
                *warmup = Duration::ZERO;
                *until = Until::Requests(0);
            }
            Self::Open(backlog) => {
                backlog.next = backlog.end;
                let waiting = std::mem::take(&mut backlog.waiting);
                waiting.into_iter().for_each(|due| backlog.drop_request(due));
            }
        }
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Closed { .. } => 0,
            Self::Open(backlog) => backlog.waiting.len(),
        }
    }

    /// Measured requests that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        match self {
            Self::Closed { .. } => 0,
            Self::Open(backlog) => backlog.dropped,
        }
    }

    /// When the next request will be due; `None` if there is none, or whenever somebody asks.
    pub(super) fn next_due(&self) -> Option<Duration> {
        match self {
            Self::Closed { .. } => None,
            Self::Open(backlog) => (backlog.next < backlog.end).then_some(backlog.next_due),
        }
    }
}

impl Backlog {
    /// The share of thread `first` of `step` threads in the requests before number `end`.
    pub(super) fn new(
        schedule: Schedule,
        (first, step): (u64, u64),
        end: u64,
        limit: usize,
        warmup: Duration,
    ) -> Self {
        let next_due = schedule.due(first);
        Self {
            schedule,
            next: first,
            step,
            end,
            next_due,
            waiting: VecDeque::new(),
            limit,
            warmup,
            dropped: 0,
        }
    }

    /// Takes in what has become due.
    pub(super) fn advance(&mut self, now: Duration) {
        while self.next < self.end && self.next_due <= now {
            if self.waiting.len() < self.limit {
                self.waiting.push_back(self.next_due);
            } else {
                self.drop_request(self.next_due);
            }
            self.next += self.step;
            self.next_due = self.schedule.due(self.next);
        }
    }

    fn take(&mut self) -> Next {
        match self.waiting.pop_front() {
            Some(due) => Next::Due(due),
            None if self.next < self.end => Next::Wait,
            None => Next::Over,
        }
    }

    fn drop_request(&mut self, due: Duration) {
        self.dropped += u64::from(due >= self.warmup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn open(share: (u64, u64), limit: usize) -> Arrivals {
        // One per millisecond for a second; the first 100 are warm-up.
        Arrivals::Open(Backlog::new(Schedule::constant(1000.0), share, 1000, limit, millis(100)))
    }

    #[test]
    fn what_was_due_long_ago_keeps_its_due_time() {
        let mut arrivals = open((0, 1), 1000);
        assert_eq!(arrivals.take(millis(0)), Next::Due(millis(0)));
        assert_eq!(arrivals.take(millis(0)), Next::Wait);
        assert_eq!(arrivals.next_due(), Some(millis(1)));
        // Nobody asked for half a second.
        assert_eq!(arrivals.take(millis(500)), Next::Due(millis(1)));
        assert_eq!(arrivals.waiting(), 499);
        assert_eq!(arrivals.take(millis(500)), Next::Due(millis(2)));
    }

    #[test]
    fn a_full_backlog_drops_what_becomes_due_and_counts_it_after_the_warm_up() {
        let mut arrivals = open((0, 1), 50);
        assert_eq!(arrivals.take(millis(149)), Next::Due(millis(0)));
        // 150 were due, 50 fit; of the dropped ones 50 to 149 those from 100 on are measured.
        assert_eq!((arrivals.dropped(), arrivals.waiting()), (50, 49));
        arrivals.end();
        assert_eq!(arrivals.dropped(), 50, "those that waited were warm-up");
        assert_eq!(arrivals.take(millis(150)), Next::Over);
        assert_eq!(arrivals.next_due(), None);
    }

    #[test]
    fn a_closed_loop_ends_at_its_time_or_after_its_requests() {
        let mut timed = Arrivals::Closed { warmup: millis(10), until: Until::Time(millis(20)) };
        assert_eq!(timed.take(millis(19)), Next::Due(millis(19)));
        assert_eq!(timed.take(millis(20)), Next::Over);
        let mut counted = Arrivals::Closed { warmup: millis(10), until: Until::Requests(1) };
        assert_eq!(counted.take(millis(9)), Next::Due(millis(9)));
        assert_eq!(counted.take(millis(10)), Next::Due(millis(10)));
        assert_eq!(counted.take(millis(10)), Next::Over);
        let mut stopped = Arrivals::Closed { warmup: millis(10), until: Until::Time(millis(20)) };
        stopped.end();
        assert_eq!(stopped.take(millis(5)), Next::Over);
    }

    proptest! {
        #[test]
        fn threads_share_a_schedule_without_gap_or_overlap(threads in 1u64..9, looks in proptest::collection::vec(1u64..400, 1..30)) {
            let mut taken = Vec::new();
            for thread in 0..threads {
                let mut arrivals = open((thread, threads), 1000);
                let mut now = Duration::ZERO;
                for look in looks.iter().copied().chain([1000]) {
                    now += millis(look);
                    while let Next::Due(due) = arrivals.take(now) {
                        prop_assert!(due <= now);
                        taken.push(due);
                    }
                }
                prop_assert_eq!(arrivals.take(now), Next::Over);
                prop_assert_eq!(arrivals.dropped(), 0);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..1000).map(millis).collect::<Vec<_>>());
        }
    }
}
