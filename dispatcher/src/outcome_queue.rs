//! What waits to be given to the producer of outcomes: deliveries just settled, and records that Kafka did not take.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long the first one waits for others to be written with. Each request and each wake-up of the client's threads costs as much
/// CPU as a delivery, and nothing but the next commit waits for an outcome.
const LINGER: Duration = Duration::from_millis(100);
/// So many are written without waiting for more.
const BURST: usize = 512;
/// With so many that the client had no room for, no new record is taken. They are few enough not to count beside the client's own
/// queue, and some hundredths of a second of work.
const CROWDED: usize = 4096;
/// Room that is kept when the queue is empty.
const KEPT: usize = 2 * BURST;

/// Deliveries settled and records not taken, in the order in which they came. Bounded by the budget of deliveries.
/// `S` is such a delivery, `U` such a record.
pub(crate) struct OutcomeQueue<S, U> {
    state: Mutex<State<S, U>>,
    changed: Condvar,
    /// Settled deliveries that the client does not have.
    unsent: AtomicUsize,
    /// Records that Kafka did not take, until it has them. Those on their way again count as well, or records would be taken with
    /// every try.
    refused: AtomicUsize,
}

struct State<S, U> {
    settled: VecDeque<S>,
    untaken: VecDeque<U>,
    /// Nothing waits for others.
    is_hurried: bool,
    is_ended: bool,
}

/// What the writing thread took out of the queue.
pub(crate) struct Work<S, U> {
    /// Deliveries to write.
    pub(crate) settled: VecDeque<S>,
    /// Records to produce again.
    pub(crate) untaken: VecDeque<U>,
}

impl<S, U> Default for OutcomeQueue<S, U> {
    fn default() -> Self {
        let (settled, untaken) = (VecDeque::new(), VecDeque::new());
        Self {
            state: Mutex::new(State { settled, untaken, is_hurried: false, is_ended: false }),
            changed: Condvar::new(),
            unsent: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }
}

impl<S, U> OutcomeQueue<S, U> {
    /// Adds a settled delivery.
    pub(crate) fn settle(&self, settled: S) {
        self.unsent.fetch_add(1, Ordering::AcqRel);
        let mut state = self.lock();
        state.settled.push_back(settled);
        // The thread waits for a first one, or for a burst.
        if matches!(state.settled.len(), 1 | BURST) {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Adds a record that was not taken.
    pub(crate) fn give_back(&self, untaken: U) {
        let mut state = self.lock();
        state.untaken.push_back(untaken);
        if state.untaken.len() == 1 {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Adds what is there to `work`; when that is empty, waits for something to do and for what comes with it. With work left, it
    /// waits for `pause` at most. `false` when the thread is to end.
    pub(crate) fn take(&self, work: &mut Work<S, U>, pause: Duration) -> bool {
        let mut state = self.lock();
        if !work.is_empty() {
            let has_settled = !work.settled.is_empty();
            state =
                self.wait(state, pause, |state| (has_settled || state.settled.is_empty()) && !state.is_ended);
        } else if state.is_empty() && !state.is_ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if work.settled.is_empty() && !state.settled.is_empty() {
            state = self.wait(state, LINGER, |state| {
                state.settled.len() < BURST && !state.is_hurried && !state.is_ended
            });
        }
        append(&mut work.settled, &mut state.settled);
        work.untaken.append(&mut state.untaken);
        !state.is_ended
    }

    /// A settled delivery is with the client, or given up.
    pub(crate) fn sent(&self) {
        self.unsent.fetch_sub(1, Ordering::AcqRel);
    }

    /// A record was not taken for the first time.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::AcqRel);
    }

    /// A record that was not taken at first is acknowledged.
    pub(crate) fn accepted(&self) {
        self.refused.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether there are records that Kafka did not take.
    pub(crate) fn is_stalled(&self) -> bool {
        self.refused.load(Ordering::Acquire) > 0
    }

    /// Whether more is settled than is written.
    pub(crate) fn is_crowded(&self) -> bool {
        self.unsent.load(Ordering::Acquire) >= CROWDED
    }

    /// Whether the client has everything, and nothing of it was refused.
    pub(crate) fn is_empty(&self) -> bool {
        self.unsent.load(Ordering::Acquire) == 0 && !self.is_stalled()
    }

    /// From here on nothing waits for others.
    pub(crate) fn hurry(&self) {
        self.lock().is_hurried = true;
        self.changed.notify_all();
    }

    /// Tells the thread to end.
    pub(crate) fn end(&self) {
        self.lock().is_ended = true;
        self.changed.notify_all();
    }

    fn wait<'q>(
        &self,
        state: MutexGuard<'q, State<S, U>>,
        longest: Duration,
        waits: impl Fn(&State<S, U>) -> bool,
    ) -> MutexGuard<'q, State<S, U>> {
        let waits = |state: &mut State<S, U>| waits(state);
        self.changed.wait_timeout_while(state, longest, waits).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Each critical section is a few operations of the lists: a panic elsewhere cannot leave them half done.
    fn lock(&self) -> MutexGuard<'_, State<S, U>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S, U> State<S, U> {
    fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.untaken.is_empty()
    }
}

impl<S, U> Default for Work<S, U> {
    fn default() -> Self {
        Self { settled: VecDeque::new(), untaken: VecDeque::new() }
    }
}

impl<S, U> Work<S, U> {
    fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.untaken.is_empty()
    }
}

/// Moves what is in `from` to the end of `to`, mostly without a copy, and gives back the memory of a crowd that is gone.
fn append<T>(to: &mut VecDeque<T>, from: &mut VecDeque<T>) {
    if to.is_empty() {
        to.shrink_to(KEPT);
        mem::swap(to, from);
    } else {
        to.append(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that the tests wait for takes so long.
    const LONG: Duration = Duration::from_secs(3600);

    type Queue = OutcomeQueue<usize, &'static str>;

    fn taken(queue: &Queue) -> Vec<usize> {
        let mut work = Work::default();
        assert!(queue.take(&mut work, LONG));
        work.settled.into()
    }

    #[test]
    fn what_comes_within_the_linger_is_taken_together_and_in_order() {
        let queue = Queue::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..BURST).for_each(|number| queue.settle(number)));
            let mut all = Vec::new();
            while all.len() < BURST {
                all.extend(taken(&queue));
            }
            assert!(all.into_iter().eq(0..BURST));
        });
        assert!(!queue.is_empty());
        (0..BURST).for_each(|_| queue.sent());
        assert!(queue.is_empty());
    }

    #[test]
    fn what_is_settled_does_not_wait_for_records_that_were_not_taken() {
        let queue = Queue::default();
        queue.refused();
        queue.give_back("record");
        let mut work = Work::default();
        assert!(queue.take(&mut work, LONG));
        assert_eq!(work.untaken, ["record"]);
        assert!(queue.is_stalled() && !queue.is_empty());
        std::thread::scope(|scope| {
            scope.spawn(|| queue.settle(1));
            assert!(queue.take(&mut work, LONG));
        });
        assert_eq!((&work.settled, &work.untaken), (&VecDeque::from([1]), &VecDeque::from(["record"])));
        queue.sent();
        queue.accepted();
        assert!(queue.is_empty());
    }

    #[test]
    fn what_the_client_had_no_room_for_goes_first() {
        let queue = Queue::default();
        let mut work = Work::default();
        queue.settle(1);
        queue.settle(2);
        assert!(queue.take(&mut work, LONG));
        assert_eq!(work.settled.pop_front(), Some(1));
        queue.settle(3);
        assert!(queue.take(&mut work, Duration::ZERO));
        assert_eq!(work.settled, [2, 3]);
    }

    #[test]
    fn it_is_crowded_until_the_client_has_most_of_it() {
        let queue = Queue::default();
        (0..CROWDED).for_each(|number| queue.settle(number));
        assert!(queue.is_crowded());
        assert_eq!(taken(&queue).len(), CROWDED);
        assert!(queue.is_crowded());
        queue.sent();
        assert!(!queue.is_crowded());
    }

    #[test]
    fn the_thread_is_told_to_end_whatever_it_waits_for() {
        for work in [Work::default(), Work { settled: VecDeque::from([1]), ..Work::default() }] {
            let queue = Queue::default();
            let mut work = work;
            std::thread::scope(|scope| {
                scope.spawn(|| queue.end());
                assert!(!queue.take(&mut work, LONG));
            });
        }
    }
}
