//! One subscription's deliveries: so many at a time, so many waiting and not for long, the rest deferred.
//!
//! A delivery that waits keeps its partition's progress open: what waited for an hour would stop the intake of everybody's
//! events. A lane therefore takes only what it expects to begin within a bound, and puts off what waited longer all the same. What
//! remains is the time of an attempt under way, for which the trackers' windows have room.
//!
//! How many are under way at a time is found out ([`crate::concurrency`]); an endpoint that does not answer gets none for a while
//! ([`crate::breaker`]).
//!
//! A lane is what keeps a slow or hung endpoint from delaying others: its deliveries wait here and nowhere else, and it never
//! holds more than a share of the budget that is free. With `n` lanes full and a share of 1/4, `4 / (4 + n)` of the budget
//! stays free for the others.

use crate::{
    breaker::{Admission, Breaker, BreakerLimits, Turn},
    budget::Amount,
    concurrency::{Concurrency, Fared},
    pace::Pace,
    returns::{Outage, ReturnLimits, Returns},
};
use floodway_schemas::config::Subscription;
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Shortest deferral: a trip through the scheduler is not worth less.
pub(crate) const MIN_DEFERRAL: Duration = Duration::from_secs(1);
/// Deferrals are spread by up to this share of themselves, so that they do not come back as one burst.
const SPREAD: f64 = 0.25;
/// A lane flows when its endpoint answered within this time.
const FLOWING: Duration = Duration::from_secs(1);
/// A lane that was idle may be about to: so long its endpoint is given for its first answer. On a busy machine that takes a while,
/// and nobody else waits meanwhile.
const GRACE: Duration = Duration::from_secs(1);
/// So long a lane counts as held up after a worker's thread was behind with it.
const HELD_UP: Duration = Duration::from_secs(1);
/// What a lane that is held up takes is this part of the longest wait, written as its divisor, and stays for so many times that wait: its
/// rate says how busy the process is, changes quickly, and putting deliveries off would make the process busier.
const HELD_UP_AHEAD: u32 = 4;
const HELD_UP_PATIENCE: u32 = 4;
/// A lane that was full has room again when this part of what waited is left, written as its divisor: offers in between would be for one
/// place each, and all but one partition's in vain.
const ROOM: usize = 2;
/// Weight of the newest interval in the estimate of the drain rate.
const SMOOTHING: f64 = 0.1;

/// What bounds every lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Deliveries under way at a time, at most.
    pub(crate) in_flight: usize,
    /// Deliveries that wait.
    pub(crate) queue: usize,
    /// Divisor of the free budget that the lane may hold.
    pub(crate) share: usize,
    /// Longest wait for a delivery's turn.
    pub(crate) wait: Duration,
    /// Longest deferral while the endpoint gets something.
    pub(crate) max_deferral: Duration,
    /// When the endpoint gets nothing.
    pub(crate) breaker: BreakerLimits,
    /// When what was put off meanwhile comes back.
    pub(crate) returns: ReturnLimits,
    /// Requests per second that this process may make; `None` for as many as the endpoint takes.
    pub(crate) rate: Option<f64>,
}

impl Limits {
    /// The same with what a subscription asks for; `share` is this process's share of its rate.
    pub(crate) fn of(&self, subscription: &Subscription, share: f64) -> Self {
        let rate = subscription.requests_per_second.map(|rate| f64::from(rate.get()) * share);
        let breaker = subscription.breaker.as_ref().map_or(self.breaker, |wanted| self.breaker.with(wanted));
        Self { rate, breaker, ..*self }
    }
}

/// What a lane asks of a delivery.
pub(crate) trait Returning {
    /// Whether it was put off or failed before, and has come back.
    fn came_back(&self) -> bool;
}

/// The lane of one subscription; `T` is a delivery.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    state: Mutex<State<T>>,
    /// Whether it was full when something was last offered, and has not worked off enough since. Written with the state locked.
    is_full: AtomicBool,
}

#[derive(Debug)]
struct State<T> {
    active: usize,
    waiting: VecDeque<Waiting<T>>,
    /// What is under way and waiting takes of the budget: of a batch, each of its events.
    part: Amount,
    drain: Drain,
    concurrency: Concurrency,
    breaker: Breaker,
    /// What was put off since the breaker opened; `None` before anything was, which is how most lanes are.
    returns: Option<Box<Returns>>,
    /// The turns of requests, if their rate is limited.
    pace: Option<Box<Pace>>,
    /// How many waited when the lane was last full.
    full_at: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    part: Amount,
    since: Instant,
}

/// How fast the lane drains, and how much it has put off.
#[derive(Debug, Default)]
struct Drain {
    /// Seconds between the ends of two deliveries, smoothed.
    interval: Option<f64>,
    last: Option<Instant>,
    /// Seconds that a delivery takes, smoothed. Deliveries that time out together look fast by the interval, and not by this.
    service: Option<f64>,
    /// When a delivery last began or ended. Nothing since, although one could have: the lane is stalled.
    moved: Option<Instant>,
    /// When the endpoint last answered.
    answered: Option<Instant>,
    /// When the worker that makes its deliveries was last found to be behind.
    lagged: Option<Instant>,
    /// When the lane was last idle and got something to do.
    began: Option<Instant>,
    /// Deliveries deferred and, as far as the lane can tell, not yet made up for. An estimate: it tells later deferrals how long the
    /// queue is that stands elsewhere. It shrinks with each delivery made and is forgotten when the lane has nothing to do.
    deferred: usize,
}

/// What becomes of a delivery that is offered to its lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer<T> {
    /// It is to be made now; [`Lane::finish`] must follow.
    Start(T),
    /// It waits in the lane.
    Wait,
    /// There is no room, but soon will be: the endpoint works off what the lane holds.
    Full(T),
    /// There is no room: it is to be put off.
    Defer(PutOff<T>),
    /// The endpoint gets nothing at present.
    Refused(T),
}

/// A delivery that its lane does not take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PutOff<T> {
    /// The delivery.
    pub(crate) item: T,
    /// For how long.
    pub(crate) delay: Duration,
    /// Whether the endpoint gets nothing at present; otherwise it is busy.
    pub(crate) is_open: bool,
}

/// What follows the end of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Next<T> {
    /// The delivery to be made in its place; [`Lane::finish`] must follow.
    pub(crate) start: Option<T>,
    /// One more beside that: the endpoint takes more at a time. [`Lane::finish`] must follow.
    pub(crate) more: Option<T>,
    /// What is put off.
    pub(crate) overdue: Vec<PutOff<T>>,
    /// Whether requests to the endpoint stopped or go on.
    pub(crate) turn: Option<Turn>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        let state = State {
            active: 0,
            waiting: VecDeque::new(),
            part: Amount::default(),
            drain: Drain::default(),
            concurrency: Concurrency::default(),
            breaker: Breaker::default(),
            returns: None,
            pace: None,
            full_at: 0,
        };
        Self { state: Mutex::new(state), is_full: AtomicBool::new(false) }
    }
}

impl<T: Returning> Lane<T> {
    /// Offers a delivery that takes `part` of the budget. `free` is what the whole budget has left, `random` is in `[0, 1)`.
    pub(crate) fn offer(
        &self,
        item: T,
        part: Amount,
        free: Amount,
        limits: &Limits,
        now: Instant,
        random: f64,
    ) -> Offer<T> {
        let mut state = self.lock();
        match state.breaker.admit(now) {
            Admission::Free => {}
            Admission::Probe => return state.start(item, part, limits, now),
            Admission::Refused => return Offer::Refused(item),
        }
        let held = state.active + state.waiting.len();
        let bound = state.concurrency.bound(limits.in_flight);
        if state.pace_wait(limits, now) > limits.wait
            && let Some(delay) = state.put_off_by_pace(limits, now)
        {
            return Offer::Defer(PutOff { item, delay, is_open: false });
        }
        // An idle lane always takes one, so that a short budget or a large event never shuts a subscription out.
        if held == 0 {
            state.drain.began = Some(now);
            return state.start(item, part, limits, now);
        }
        let within_share = state.part.count + part.count <= free.count / limits.share
            && state.part.bytes + part.bytes <= free.bytes / limits.share;
        let is_held_up = state.drain.is_held_up(now);
        let ahead = if is_held_up { limits.wait / HELD_UP_AHEAD } else { limits.wait };
        let is_soon = state.expected_wait(limits, now) <= ahead.as_secs_f64();
        if !(within_share && is_soon && held < bound + limits.queue) {
            if ((is_soon || is_held_up) && state.drain.flows(now)) || state.drain.is_young(now) {
                state.full_at = state.waiting.len();
                self.is_full.store(true, Ordering::Relaxed);
                return Offer::Full(item);
            }
            let delay = state.drain.plan(held, bound, limits, now).mul_f64(1.0 + SPREAD * random);
            return Offer::Defer(PutOff { item, delay, is_open: false });
        }
        if state.active < bound {
            return state.start(item, part, limits, now);
        }
        state.part.add(part);
        state.waiting.push_back(Waiting { item, part, since: now });
        Offer::Wait
    }

    /// The wait for a delivery that the lane did not take and that is not to be offered again. `random` is in `[0, 1)`.
    pub(crate) fn put_off(&self, item: T, limits: &Limits, now: Instant, random: f64) -> PutOff<T> {
        let mut state = self.lock();
        if let Some(delay) = state.returns_in(&item, limits, now) {
            return PutOff { item, delay, is_open: true };
        }
        let by_pace = state.put_off_by_pace(limits, now).unwrap_or_default();
        let (held, bound) = (state.active + state.waiting.len(), state.concurrency.bound(limits.in_flight));
        let delay = state.drain.plan(held, bound, limits, now).mul_f64(1.0 + SPREAD * random);
        PutOff { item, delay: delay.max(by_pace), is_open: false }
    }

    /// Ends a delivery of `part` that began at `began`. `random` is in `[0, 1)`.
    pub(crate) fn finish(
        &self,
        part: Amount,
        fared: Fared,
        limits: &Limits,
        began: Instant,
        now: Instant,
        random: f64,
    ) -> Next<T> {
        let mut state = self.lock();
        state.part.remove(part);
        state.active = state.active.saturating_sub(1);
        state.drain.finished(fared, began, now);
        let others = state.active;
        state.concurrency.ended(fared, began, now, others, limits.in_flight);
        let turn = state.breaker.ended(fared, &limits.breaker, now, random);
        if turn == Some(Turn::Closed) {
            state.returns = None;
        }
        let start = state.next(limits, now);
        let more = if start.is_some() { state.next(limits, now) } else { None };
        self.note_room(&state);
        if state.active == 0 {
            // The pause that follows says nothing about how fast the endpoint is, and there is room for whatever comes.
            state.drain.last = None;
            state.drain.deferred = 0;
        }
        Next { start, more, overdue: state.take_overdue(limits, now, random), turn }
    }

    /// Notes that the worker which makes the lane's deliveries is behind.
    pub(crate) fn lagged(&self, now: Instant) {
        self.lock().drain.lagged = Some(now);
    }

    /// Takes what waited for too long out of the lane. `random` is in `[0, 1)`.
    pub(crate) fn take_overdue(&self, limits: &Limits, now: Instant, random: f64) -> Vec<PutOff<T>> {
        let mut state = self.lock();
        let overdue = state.take_overdue(limits, now, random);
        self.note_room(&state);
        overdue
    }

    /// Whether an offer would be in vain, as far as can be told at a glance. What else there may be room for, as when the budget becomes
    /// larger, does not show here: to be asked for a moment only.
    pub(crate) fn is_full(&self) -> bool {
        // Relaxed: the flag stands for itself.
        self.is_full.load(Ordering::Relaxed)
    }

    fn note_room(&self, state: &State<T>) {
        if self.is_full() && state.waiting.len() <= state.full_at / ROOM {
            self.is_full.store(false, Ordering::Relaxed);
        }
    }

    /// When the next request begins of those that were started; `None` when it is not limited.
    pub(crate) fn turn(&self) -> Option<Instant> {
        self.lock().pace.as_mut()?.take()
    }

    /// Forgets what is known of the endpoint's outages: it is another one now.
    pub(crate) fn close_breaker(&self) {
        let mut state = self.lock();
        (state.breaker, state.returns) = (Breaker::default(), None);
    }

    /// Takes everything that waits out of the lane.
    pub(crate) fn take_waiting(&self) -> Vec<T> {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        self.note_room(&state);
        waiting.iter().for_each(|waiting| state.part.remove(waiting.part));
        waiting.into_iter().map(|waiting| waiting.item).collect()
    }

    /// No critical section calls out: a panic elsewhere cannot leave one half done.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Returning> State<T> {
    fn start(&mut self, item: T, part: Amount, limits: &Limits, now: Instant) -> Offer<T> {
        self.give_turn(limits, now);
        self.part.add(part);
        self.active += 1;
        self.drain.moved = Some(now);
        Offer::Start(item)
    }

    /// The next delivery that may begin. Its turn has come, however late: it is made rather than put off.
    fn next(&mut self, limits: &Limits, now: Instant) -> Option<T> {
        if self.active >= self.concurrency.bound(limits.in_flight) || !self.breaker.is_closed() {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.give_turn(limits, now);
        self.active += 1;
        self.drain.moved = Some(now);
        Some(next.item)
    }

    /// Seconds until a delivery offered now would begin, as far as the lane can tell.
    fn expected_wait(&self, limits: &Limits, now: Instant) -> f64 {
        if self.active < self.concurrency.bound(limits.in_flight) {
            return 0.0;
        }
        let by_rate =
            self.drain.service.unwrap_or(0.0) / self.active as f64 * (self.waiting.len() + 1) as f64;
        // What took so long already will not take less.
        by_rate.max(self.drain.stalled(now))
    }

    /// A request that begins has its turn.
    fn give_turn(&mut self, limits: &Limits, now: Instant) {
        match limits.rate {
            Some(rate) => self.pace.get_or_insert_default().give(rate, now),
            // A limit that was lifted leaves no turns behind, which nobody would take.
            None => self.pace = None,
        }
    }

    /// How long a delivery would wait for its turn; no time when the rate is not limited.
    fn pace_wait(&self, limits: &Limits, now: Instant) -> Duration {
        let (Some(rate), Some(pace)) = (limits.rate, &self.pace) else { return Duration::ZERO };
        pace.begins(rate, self.waiting.len(), now).saturating_duration_since(now)
    }

    /// The wait of a delivery that the rate has no room for, if it is limited.
    fn put_off_by_pace(&mut self, limits: &Limits, now: Instant) -> Option<Duration> {
        let rate = limits.rate?;
        let pace = self.pace.get_or_insert_default();
        Some(pace.put_off(rate, self.waiting.len(), limits.returns.longest, now))
    }

    /// While the endpoint gets nothing: the time until a delivery comes back that is put off now.
    fn returns_in(&mut self, item: &T, limits: &Limits, now: Instant) -> Option<Duration> {
        let since = self.breaker.opened_at()?;
        let outage = Outage {
            since,
            probes_at: self.breaker.probes_at(),
            pause: limits.breaker.pause,
            between: limits.breaker.max_pause,
        };
        let returns = self.returns.get_or_insert_default();
        let at = returns.put_off(item.came_back(), &outage, &limits.returns, now);
        Some(at.saturating_duration_since(now))
    }

    fn take_overdue(&mut self, limits: &Limits, now: Instant, random: f64) -> Vec<PutOff<T>> {
        let is_open = !self.breaker.is_closed();
        let is_held_up = self.drain.is_held_up(now) && self.drain.flows(now);
        let longest = if is_held_up { limits.wait * HELD_UP_PATIENCE } else { limits.wait };
        let is_overdue =
            |waiting: &Waiting<T>| is_open || now.saturating_duration_since(waiting.since) > longest;
        let mut overdue = Vec::new();
        while self.waiting.front().is_some_and(is_overdue)
            && let Some(Waiting { item, part, .. }) = self.waiting.pop_front()
        {
            self.part.remove(part);
            let delay = self.returns_in(&item, limits, now).unwrap_or_else(|| {
                let by_pace = self.put_off_by_pace(limits, now).unwrap_or_default();
                let bound = self.concurrency.bound(limits.in_flight);
                self.drain.plan(self.active, bound, limits, now).mul_f64(1.0 + SPREAD * random).max(by_pace)
            });
            overdue.push(PutOff { item, delay, is_open });
        }
        overdue
    }
}

impl Drain {
    fn finished(&mut self, fared: Fared, began: Instant, now: Instant) {
        if fared == Fared::Well {
            self.answered = Some(now);
        }
        let took = now.saturating_duration_since(began).as_secs_f64();
        self.service = Some(self.service.map_or(took, |old| old + SMOOTHING * (took - old)));
        self.moved = Some(now);
        self.deferred = self.deferred.saturating_sub(1);
        if let Some(last) = self.last.replace(now) {
            let newest = now.saturating_duration_since(last).as_secs_f64();
            self.interval = Some(self.interval.map_or(newest, |old| old + SMOOTHING * (newest - old)));
        }
    }

    /// The wait until the lane has drained `backlog` and what it deferred before, at its present rate: so deferrals come back about
    /// as fast as the endpoint takes them, and a passing stall lengthens only the waits that are planned during it.
    fn plan(&mut self, backlog: usize, bound: usize, limits: &Limits, now: Instant) -> Duration {
        let longest = limits.max_deferral.as_secs_f64();
        let interval = self
            .interval
            .unwrap_or(0.0)
            .max(self.service.unwrap_or(0.0) / bound as f64)
            .max(self.stalled(now) / backlog.max(1) as f64);
        let wait = interval * (backlog + self.deferred) as f64;
        // Beyond the longest deferral a longer queue changes nothing; counting on would only make it slow to forget.
        if wait < longest {
            self.deferred += 1;
        }
        Duration::from_secs_f64(wait.min(longest)).max(MIN_DEFERRAL)
    }

    /// Whether the lane got something to do just now, and first answers to it: how fast the endpoint is shows soon.
    fn is_young(&self, now: Instant) -> bool {
        self.began.is_some_and(|began| {
            now.saturating_duration_since(began) <= FLOWING
                && self.answered.is_some_and(|answered| answered >= began)
        })
    }

    /// Whether the endpoint answers at present.
    fn flows(&self, now: Instant) -> bool {
        let is_within = |since: Option<Instant>, longest| {
            since.is_some_and(|since| now.saturating_duration_since(since) <= longest)
        };
        is_within(self.answered, FLOWING) || is_within(self.began, GRACE)
    }

    /// Whether this process is what keeps the lane from draining faster.
    fn is_held_up(&self, now: Instant) -> bool {
        self.lagged.is_some_and(|lagged| now.saturating_duration_since(lagged) <= HELD_UP)
    }

    /// Seconds since a delivery began or ended.
    fn stalled(&self, now: Instant) -> f64 {
        self.moved.map_or(0.0, |moved| now.saturating_duration_since(moved).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        in_flight: 2,
        queue: 3,
        share: 8,
        wait: Duration::from_secs(3600),
        max_deferral: Duration::from_secs(60),
        breaker: BreakerLimits {
            failures: 3,
            percent: 100,
            pause: Duration::from_secs(20),
            max_pause: Duration::from_secs(40),
        },
        returns: ReturnLimits { rate: 10.0, longest: Duration::from_secs(600) },
        rate: None,
    };

    impl Returning for i32 {
        fn came_back(&self) -> bool {
            false
        }
    }

    impl Returning for usize {
        fn came_back(&self) -> bool {
            false
        }
    }

    const PLENTY: Amount = Amount { count: 1_000, bytes: 1_000_000 };

    /// Ends a delivery that took no time.
    fn finish<T: std::fmt::Debug + Returning>(lane: &Lane<T>, now: Instant) -> Option<T> {
        let next = lane.finish(Amount::one(1), Fared::Well, &LIMITS, now, now, 0.0);
        assert!(next.overdue.is_empty() && next.more.is_none() && next.turn.is_none());
        next.start
    }

    /// How long a delivery is put off that finds no room.
    fn put_off<T: std::fmt::Debug + Returning>(
        lane: &Lane<T>,
        item: T,
        free: Amount,
        limits: &Limits,
        now: Instant,
    ) -> Duration {
        match lane.offer(item, Amount::one(1), free, limits, now, 0.0) {
            Offer::Full(item) => lane.put_off(item, limits, now, 0.0).delay,
            Offer::Defer(put_off) => put_off.delay,
            other => panic!("{other:?}"),
        }
    }

    fn busy<T>(item: T, delay: Duration) -> Offer<T> {
        Offer::Defer(PutOff { item, delay, is_open: false })
    }

    #[test]
    fn a_full_lane_says_so_until_half_of_what_waited_is_worked_off() {
        let (lane, now) = (Lane::default(), Instant::now());
        let limits = Limits { queue: 4, ..LIMITS };
        let offer = |number: i32| lane.offer(number, Amount::one(1), PLENTY, &limits, now, 0.0);
        let finish = || lane.finish(Amount::one(1), Fared::Well, &limits, now, now, 0.0).start;
        while !matches!(offer(0), Offer::Full(_)) {
            assert!(!lane.is_full());
        }
        assert!(lane.is_full());
        finish();
        assert!(lane.is_full());
        finish();
        assert!(!lane.is_full(), "two of four are left");
        assert_eq!(offer(0), Offer::Wait);
        while !matches!(offer(0), Offer::Full(_)) {}
        assert_eq!(lane.take_waiting().len(), 4);
        assert!(!lane.is_full());
    }

    #[test]
    fn a_lane_starts_then_queues_then_defers() {
        let lane = Lane::default();
        let now = Instant::now();
        let offer = |item| lane.offer(item, Amount::one(1), PLENTY, &LIMITS, now, 0.0);
        assert_eq!(offer(1), Offer::Start(1));
        assert_eq!(offer(2), Offer::Start(2));
        for item in 3..=5 {
            assert_eq!(offer(item), Offer::Wait);
        }
        // It has only just begun.
        assert_eq!(offer(6), Offer::Full(6));
        let later = now + 2 * GRACE;
        assert_eq!(lane.offer(6, Amount::one(1), PLENTY, &LIMITS, later, 0.0), busy(6, 2 * GRACE));
        assert_eq!(finish(&lane, now), Some(3));
        assert_eq!(offer(7), Offer::Wait);
        // The endpoint answers: there will be room soon.
        assert_eq!(offer(8), Offer::Full(8));
        assert_eq!(lane.take_waiting(), [4, 5, 7]);
        assert_eq!(finish(&lane, now), None);
        assert_eq!(finish(&lane, now), None);
        assert_eq!(offer(8), Offer::Start(8));
    }

    #[test]
    fn a_lane_holds_no_more_than_its_share_of_what_is_free() {
        let lane = Lane::default();
        let now = Instant::now();
        let scarce = Amount { count: 8, bytes: 80 };
        assert!(matches!(lane.offer(1, Amount::one(50), scarce, &LIMITS, now, 0.0), Offer::Start(_)));
        assert!(matches!(lane.offer(2, Amount::one(1), scarce, &LIMITS, now, 0.0), Offer::Full(_)));
        let large = Amount { count: 1_000, bytes: 480 };
        assert!(matches!(lane.offer(3, Amount::one(20), large, &LIMITS, now, 0.0), Offer::Full(_)));
        assert!(matches!(lane.offer(4, Amount::one(10), large, &LIMITS, now, 0.0), Offer::Start(_)));
    }

    #[test]
    fn a_batch_counts_as_much_as_its_events() {
        let lane = Lane::default();
        let now = Instant::now();
        let batch = Amount { count: 100, bytes: 1 };
        assert!(matches!(lane.offer(1, batch, PLENTY, &LIMITS, now, 0.0), Offer::Start(_)));
        // An eighth of a thousand is the lane's share.
        assert!(matches!(lane.offer(2, batch, PLENTY, &LIMITS, now, 0.0), Offer::Full(_)));
        assert!(matches!(lane.offer(2, Amount::one(1), PLENTY, &LIMITS, now, 0.0), Offer::Start(_)));
        lane.finish(batch, Fared::Well, &LIMITS, now, now, 0.0);
        assert!(matches!(lane.offer(3, batch, PLENTY, &LIMITS, now, 0.0), Offer::Start(_)));
    }

    #[test]
    fn deferrals_follow_the_drain_rate_and_do_not_bunch() {
        let lane = Lane::default();
        let start = Instant::now();
        for item in 0..5 {
            lane.offer(item, Amount::one(1), PLENTY, &LIMITS, start, 0.0);
        }
        // One delivery per 2 s, so five of them take 10 s.
        for second in [2, 4, 6] {
            let now = start + Duration::from_secs(second);
            finish(&lane, now);
            lane.offer(9, Amount::one(1), PLENTY, &LIMITS, now, 0.0);
        }
        let now = start + Duration::from_secs(6);
        let mut delays = (0..3).map(|item| put_off(&lane, item, PLENTY, &LIMITS, now).as_secs());
        assert_eq!((delays.next(), delays.next(), delays.next()), (Some(10), Some(12), Some(14)));
    }

    #[test]
    fn a_stall_that_passed_does_not_lengthen_later_deferrals() {
        let lane = Lane::default();
        let start = Instant::now();
        let limits = Limits { queue: 1_000, ..LIMITS };
        let plenty = Amount { count: 100_000, bytes: 1_000_000 };
        for item in 0..1_002 {
            lane.offer(item, Amount::one(1), plenty, &limits, start, 0.0);
        }
        let defer = |now| put_off(&lane, 0, plenty, &limits, now);
        // One delivery after 40 s, then one per millisecond.
        let mut now = start + Duration::from_secs(40);
        finish(&lane, start);
        finish(&lane, now);
        for _ in 0..500 {
            lane.offer(0, Amount::one(1), plenty, &limits, now, 0.0);
        }
        assert_eq!(defer(now), limits.max_deferral);
        for _ in 0..600 {
            now += Duration::from_millis(1);
            finish(&lane, now);
            lane.offer(0, Amount::one(1), plenty, &limits, now, 0.0);
        }
        assert!(defer(now) < Duration::from_secs(3), "{:?}", defer(now));
    }

    /// Lanes of two with room for many, in which nothing is to wait for more than five seconds.
    const SHORT: Limits = Limits { queue: 10_000, wait: Duration::from_secs(5), ..LIMITS };
    const VAST: Amount = Amount { count: 1_000_000, bytes: 1_000_000_000 };

    #[test]
    fn what_waits_at_an_endpoint_that_hangs_is_deferred_before_long_and_no_more_is_taken() {
        let lane = Lane::default();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let offer = |item, second| lane.offer(item, Amount::one(1), VAST, &SHORT, at(second), 0.0);
        for item in 0..2 {
            assert!(matches!(offer(item, 0), Offer::Start(_)));
        }
        assert_eq!(offer(2, 1), Offer::Wait);
        assert_eq!(offer(3, 4), Offer::Wait);
        // Nothing ended in six seconds.
        assert!(matches!(offer(4, 6), Offer::Defer(_)));
        let items =
            |overdue: Vec<PutOff<i32>>| overdue.into_iter().map(|put_off| put_off.item).collect::<Vec<_>>();
        assert_eq!(items(lane.take_overdue(&SHORT, at(6), 0.0)), [0; 0]);
        assert_eq!(items(lane.take_overdue(&SHORT, at(7), 0.0)), [2]);
        assert!(matches!(offer(5, 7), Offer::Defer(put_off) if put_off.delay > SHORT.wait));
        // Both time out at the same instant, which does not make the endpoint fast.
        let finish = || lane.finish(Amount::one(1), Fared::Unknown, &SHORT, at(0), at(15), 0.0);
        assert_eq!(finish(), Next { start: Some(3), more: None, overdue: Vec::new(), turn: None });
        assert_eq!(finish().start, None);
        assert!(matches!(offer(6, 15), Offer::Start(_)));
        assert!(matches!(offer(7, 15), Offer::Defer(_)));
    }

    #[test]
    fn an_endpoint_that_is_just_slow_is_taken_as_much_for_as_it_does_in_the_longest_wait() {
        let lane = Lane::default();
        let start = Instant::now();
        for item in 0..2 {
            lane.offer(item, Amount::one(1), VAST, &SHORT, start, 0.0);
        }
        let now = start + Duration::from_secs(1);
        for item in [2, 3] {
            lane.finish(Amount::one(1), Fared::Well, &SHORT, start, now, 0.0);
            assert!(matches!(lane.offer(item, Amount::one(1), VAST, &SHORT, now, 0.0), Offer::Start(_)));
        }
        // Two at a time, each takes a second: ten in five seconds.
        let waiting = (0..100)
            .filter(|&item| lane.offer(item, Amount::one(1), VAST, &SHORT, now, 0.0) == Offer::Wait)
            .count();
        assert_eq!(waiting, 10);
        // A finish takes along what waited for too long.
        let late = now + Duration::from_secs(6);
        let next = lane.finish(Amount::one(1), Fared::Well, &SHORT, now, late, 0.0);
        assert_eq!((next.start, next.overdue.len()), (Some(0), 9));
    }

    #[test]
    fn an_endpoint_that_does_not_answer_gets_one_probe_after_a_pause_and_the_rest_is_put_off() {
        let lane = Lane::default();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let fail = |second| lane.finish(Amount::one(1), Fared::Badly, &LIMITS, start, at(second), 0.0);
        let offer = |item, second| lane.offer(item, Amount::one(1), PLENTY, &LIMITS, at(second), 0.0);
        for item in 0..5 {
            offer(item, 0);
        }
        // The bound shrinks to one: nothing begins in the place of the first.
        assert_eq!(fail(1).start, None);
        assert_eq!(fail(1).start, Some(2));
        let opened = fail(1);
        assert_eq!((opened.start, opened.turn), (None, Some(Turn::Opened)));
        let put_off = |item, tenths| {
            let delay = LIMITS.breaker.pause + Duration::from_millis(100) * tenths;
            PutOff { item, delay, is_open: true }
        };
        // The first one comes back for the probe, the others after it, one after the other.
        assert_eq!(opened.overdue, [put_off(3, 0), put_off(4, 0)]);
        assert_eq!(offer(5, 1), Offer::Refused(5));
        assert_eq!(lane.put_off(5, &LIMITS, at(1), 0.0), put_off(5, 1));
        assert_eq!(offer(6, 21), Offer::Start(6));
        assert_eq!(offer(7, 21), Offer::Refused(7));
        assert!(lane.put_off(7, &LIMITS, at(21), 0.0).is_open);
        let closed = lane.finish(Amount::one(1), Fared::Well, &LIMITS, at(21), at(22), 0.0);
        assert_eq!(closed.turn, Some(Turn::Closed));
        assert_eq!(offer(8, 22), Offer::Start(8));
    }

    #[test]
    fn a_lane_with_a_rate_gives_turns_and_puts_off_what_has_none_soon() {
        let limits = Limits { in_flight: 4, rate: Some(2.0), wait: Duration::from_secs(5), ..LIMITS };
        let lane = Lane::default();
        let now = Instant::now();
        let offer = |item| lane.offer(item, Amount::one(1), VAST, &limits, now, 0.0);
        for item in 0..4 {
            assert_eq!(offer(item), Offer::Start(item));
        }
        let turns: Vec<u128> = (0..4).map(|_| lane.turn().unwrap().duration_since(now).as_millis()).collect();
        assert_eq!(turns, [0, 400, 900, 1_400]);
        assert_eq!(lane.turn(), None);
        // Three of them wait for room; the rest, although there is room for more, for five seconds and more.
        for item in 4..7 {
            assert_eq!(offer(item), Offer::Wait);
        }
        let limits = Limits { queue: 100, ..limits };
        let offer = |item| lane.offer(item, Amount::one(1), VAST, &limits, now, 0.0);
        let mut item = 7;
        let put_off = loop {
            match offer(item) {
                Offer::Defer(put_off) => break put_off,
                other => assert_eq!(other, Offer::Wait),
            }
            item += 1;
        };
        // The burst included.
        assert_eq!((item, put_off.is_open), (11, false));
        assert!(put_off.delay > limits.wait);
        let Offer::Defer(next) = offer(item) else { panic!("there is no room") };
        assert_eq!(next.delay, put_off.delay + Duration::from_millis(500));
        // The next one begins in its turn.
        let next = lane.finish(Amount::one(1), Fared::Well, &limits, now, now, 0.0);
        assert_eq!(next.start, Some(4));
        assert_eq!(lane.turn().unwrap().duration_since(now).as_millis(), 1_900);
    }

    #[test]
    fn a_breaker_opens_as_its_subscription_asks_for() {
        let golden = include_str!("../../schemas/golden/config-subscription.json");
        let mut json: serde_json::Value = serde_json::from_str(golden).unwrap();
        json["breaker"] = serde_json::json!({"failures": 1, "pause_ms": 90_000});
        json["requests_per_second"] = 8.into();
        let limits = LIMITS.of(&serde_json::from_value(json).unwrap(), 0.25);
        assert_eq!((limits.rate, limits.breaker.failures, limits.breaker.percent), (Some(2.0), 1, 100));
        // The installation's longest pause is shorter than the first one of this.
        assert_eq!(
            (limits.breaker.pause, limits.breaker.max_pause),
            (Duration::from_secs(90), Duration::from_secs(90))
        );
        let lane = Lane::default();
        let now = Instant::now();
        lane.offer(0, Amount::one(1), PLENTY, &limits, now, 0.0);
        let next = lane.finish(Amount::one(1), Fared::Badly, &limits, now, now, 0.0);
        assert_eq!(next.turn, Some(Turn::Opened));
        assert_eq!(lane.put_off(1, &limits, now, 0.0).delay, Duration::from_secs(90));
        lane.close_breaker();
        assert_eq!(lane.offer(1, Amount::one(1), PLENTY, &LIMITS, now, 0.0), Offer::Start(1));
    }

    #[test]
    fn more_begin_as_the_endpoint_takes_more_at_a_time() {
        let lane = Lane::default();
        let limits = Limits { in_flight: 64, queue: 1_000, ..LIMITS };
        let now = Instant::now();
        let mut under_way = (0..200)
            .filter(|&item| {
                matches!(lane.offer(item, Amount::one(1), VAST, &limits, now, 0.0), Offer::Start(_))
            })
            .count();
        assert_eq!(under_way, 8);
        for _ in 0..20 {
            let next = lane.finish(Amount::one(1), Fared::Well, &limits, now, now, 0.0);
            under_way = under_way - 1 + usize::from(next.start.is_some()) + usize::from(next.more.is_some());
        }
        assert_eq!(under_way, 28);
    }

    proptest! {
        #[test]
        fn deferrals_stay_within_their_bounds(finishes in proptest::collection::vec(0u64..100_000, 0..20), offers in 1usize..200, random in 0.0f64..1.0) {
            let lane = Lane::default();
            let mut now = Instant::now();
            for item in 0..5 {
                lane.offer(item, Amount::one(1), PLENTY, &LIMITS, now, random);
            }
            for millis in finishes {
                now += Duration::from_millis(millis);
                finish(&lane, now);
                lane.offer(0, Amount::one(1), PLENTY, &LIMITS, now, random);
            }
            for item in 0..offers {
                let delay = match lane.offer(item, Amount::one(1), PLENTY, &LIMITS, now, random) {
                    Offer::Full(item) => lane.put_off(item, &LIMITS, now, random).delay,
                    Offer::Defer(put_off) => put_off.delay,
                    Offer::Start(_) | Offer::Wait | Offer::Refused(_) => continue,
                };
                prop_assert!(delay >= MIN_DEFERRAL && delay <= LIMITS.max_deferral.mul_f64(1.0 + SPREAD));
            }
        }
    }
}
