//! Deliveries in doubt: handed over by a dispatcher while their attempt is under way, so that its progress need not wait.
//!
//! Such an outcome is stored as a retry that is due after the attempt's deadline: its *lease*. Normally the attempt's own outcome
//! comes before that; then the lease is void, and its row is passed over when its time comes. Otherwise the dispatcher died, and the
//! attempt is made again.
//!
//! Rows are never changed, so what is void is known here only, by the rows' ids. Like the set of repeats it follows from the log: a new
//! owner reads the last minutes again. An id belongs to one row for ever, also if the log was made anew. Beyond the bound the oldest are forgotten. A lease that is forgotten fires, and its delivery is
//! made once more, which at-least-once delivery allows. So does one that a new owner takes for open although it fired.

use crate::repeats::Fingerprint;
use std::collections::{BTreeMap, HashMap};

/// Leases of a shard that are known, about 150 bytes each. A dispatcher has fewer deliveries in all.
const MAX_LEASES: usize = 65_536;

/// What an outcome means for leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It begins one, unless one of these outcomes of the same delivery was seen: then it was overtaken by it.
    Begins(Vec<Fingerprint>),
    /// It ends one, if there is one.
    Ends,
}

/// The leases of one shard. Pure.
#[derive(Debug)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    by_delivery: HashMap<Fingerprint, i64>,
    most: usize,
}

#[derive(Debug)]
struct Lease {
    delivery: Fingerprint,
    state: State,
}

/// What becomes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The attempt's own outcome is not known.
    Open,
    /// It is: the row is not to fire.
    Void,
    /// The row was produced, and Kafka has not acknowledged it yet.
    Firing,
    /// The row fired before it was: the delivery goes on from there.
    Fired,
}

impl Default for Leases {
    fn default() -> Self {
        Self::of(MAX_LEASES)
    }
}

impl Leases {
    fn of(most: usize) -> Self {
        Self { by_id: BTreeMap::new(), by_delivery: HashMap::new(), most }
    }

    /// A delivery is in doubt; its row has this id. Ids grow.
    pub(crate) fn begin(&mut self, delivery: Fingerprint, id: i64) {
        if self.by_id.len() >= self.most
            && let Some((oldest, lease)) = self.by_id.pop_first()
            && self.by_delivery.get(&lease.delivery) == Some(&oldest)
        {
            self.by_delivery.remove(&lease.delivery);
        }
        self.by_delivery.insert(delivery, id);
        self.by_id.insert(id, Lease { delivery, state: State::Open });
    }

    /// The delivery's own outcome is known. Returns what its lease was before, if there is one. One that is just being produced is
    /// void, too, for it may not arrive: at worst the delivery is made once more.
    pub(crate) fn end(&mut self, delivery: Fingerprint) -> Option<State> {
        let lease = self.by_id.get_mut(self.by_delivery.get(&delivery)?)?;
        let before = lease.state;
        if matches!(before, State::Open | State::Firing) {
            lease.state = State::Void;
        }
        Some(before)
    }

    /// What ended the delivery's lease could not be stored: the lease is open again. `false` if its row was passed over already.
    pub(crate) fn reopen(&mut self, delivery: Fingerprint) -> bool {
        let Some(lease) = self.by_delivery.get(&delivery).and_then(|id| self.by_id.get_mut(id)) else {
            return false;
        };
        if lease.state == State::Void {
            lease.state = State::Open;
        }
        true
    }

    /// The row with this id is due: whether it is to fire; [`Leases::fired`] follows if it arrives. `None` when it is no lease that is
    /// known.
    pub(crate) fn fire(&mut self, id: i64) -> Option<bool> {
        let lease = self.by_id.get_mut(&id)?;
        if lease.state != State::Void {
            lease.state = State::Firing;
            return Some(true);
        }
        // It is passed over for good.
        if let Some(lease) = self.by_id.remove(&id)
            && self.by_delivery.get(&lease.delivery) == Some(&id)
        {
            self.by_delivery.remove(&lease.delivery);
        }
        Some(false)
    }

    /// The row with this id was acknowledged.
    pub(crate) fn fired(&mut self, id: i64) {
        if let Some(lease) = self.by_id.get_mut(&id)
            && lease.state == State::Firing
        {
            lease.state = State::Fired;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn print(delivery: u128) -> Fingerprint {
        Fingerprint::for_tests(delivery)
    }

    #[test]
    fn a_lease_fires_unless_its_delivery_has_an_outcome() {
        let mut leases = Leases::of(10);
        leases.begin(print(1), 5);
        leases.begin(print(2), 6);
        assert_eq!(leases.end(print(1)), Some(State::Open));
        assert_eq!((leases.fire(5), leases.fire(6), leases.fire(7)), (Some(false), Some(true), None));
        // One that could not be produced is tried again.
        assert_eq!(leases.fire(6), Some(true));
        leases.fired(6);
        assert_eq!(leases.end(print(2)), Some(State::Fired));
        assert_eq!(leases.end(print(3)), None);
    }

    #[test]
    fn a_lease_that_was_not_acknowledged_is_void_once_its_delivery_has_an_outcome() {
        let mut leases = Leases::of(10);
        leases.begin(print(1), 5);
        assert_eq!(leases.fire(5), Some(true));
        // Its own outcome is kept, whoever owns the shard after this: the row may never arrive.
        assert_eq!(leases.end(print(1)), Some(State::Firing));
        leases.fired(5);
        assert_eq!(leases.end(print(1)), Some(State::Void));
        assert_eq!(leases.fire(5), Some(false));
    }

    #[test]
    fn a_lease_whose_end_could_not_be_stored_fires() {
        let mut leases = Leases::of(10);
        leases.begin(print(1), 5);
        leases.begin(print(2), 6);
        assert_eq!(leases.end(print(1)), Some(State::Open));
        assert!(leases.reopen(print(1)));
        assert_eq!(leases.fire(5), Some(true));
        leases.end(print(2));
        assert_eq!(leases.fire(6), Some(false));
        assert!(!leases.reopen(print(2)), "too late");
    }

    proptest! {
        #[test]
        fn a_lease_without_an_outcome_always_fires_and_the_bound_holds(
            steps in proptest::collection::vec((0u128..20, 0u8..3), 1..300), most in 1usize..15,
        ) {
            let mut leases = Leases::of(most);
            let mut ended = std::collections::HashMap::new();
            for (id, (delivery, step)) in (0i64..).zip(steps) {
                match step {
                    0 => {
                        leases.begin(print(delivery), id);
                        ended.insert(id, (delivery, false));
                    }
                    1 => {
                        leases.end(print(delivery));
                        for known in ended.values_mut().filter(|known| known.0 == delivery) {
                            known.1 = true;
                        }
                    }
                    _ => {
                        let due = id - i64::try_from(delivery).unwrap();
                        if let Some(false) = leases.fire(due) {
                            prop_assert!(ended[&due].1, "passed over without an outcome");
                        }
                    }
                }
                prop_assert!(leases.by_id.len() <= most && leases.by_delivery.len() <= most);
            }
        }
    }
}
