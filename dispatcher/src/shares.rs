//! Which share of the group's work this process has: of what a subscription limits for all dispatchers together, it uses no more.
//!
//! Deliveries come from three topics, and each process has some partitions of each. Its share is the mean of its shares of them: over all
//! processes that adds up to one, however the partitions are spread, and where they are spread evenly it is what it has of `events`.

use floodway_schemas::topic::Topic;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The topics that deliveries come from.
const TOPICS: [Topic; 3] = [Topic::Events, Topic::Due, Topic::Replays];

/// What this process owns of them.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<State>);

#[derive(Debug)]
struct State {
    parts: [Part; TOPICS.len()],
    share: f64,
}

/// Partitions of one topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Part {
    owned: usize,
    /// 0 while that is not known.
    all: usize,
}

impl Default for State {
    fn default() -> Self {
        let parts = [Part::default(); TOPICS.len()];
        Self { parts, share: mean(&parts) }
    }
}

impl Shares {
    /// Takes in how many partitions of a topic this process owns, of how many.
    pub(crate) fn own(&self, topic: Topic, owned: usize, all: usize) {
        let mut state = self.lock();
        if let Some(at) = TOPICS.iter().position(|known| *known == topic) {
            state.parts[at] = Part { owned, all: all.max(owned) };
            state.share = mean(&state.parts);
        }
    }

    /// This process's share, above 0 and at most 1.
    pub(crate) fn share(&self) -> f64 {
        self.lock().share
    }

    /// Critical sections are plain assignments: a panic elsewhere cannot leave one half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mean share of the topics of which something is known. What is still under way when nothing is owned any more goes on at the share
/// of one partition.
fn mean(parts: &[Part]) -> f64 {
    let known = || parts.iter().filter(|part| part.all > 0);
    let count = known().count();
    let Some(least) = known().map(|part| 1.0 / part.all as f64).reduce(f64::min) else { return 1.0 };
    let sum: f64 = known().map(|part| part.owned as f64 / part.all as f64).sum();
    (sum / count as f64).max(least / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_even_part_of_all_topics_is_that_share_and_a_process_alone_has_all() {
        let shares = Shares::default();
        assert!((shares.share() - 1.0).abs() < 1e-9);
        for (topic, all) in [(Topic::Events, 24), (Topic::Due, 12), (Topic::Replays, 4)] {
            shares.own(topic, all, all);
            assert!((shares.share() - 1.0).abs() < 1e-9);
        }
        for (topic, all) in [(Topic::Events, 24), (Topic::Due, 12), (Topic::Replays, 4)] {
            shares.own(topic, all / 4, all);
        }
        assert!((shares.share() - 0.25).abs() < 1e-9);
        shares.own(Topic::Outcomes, 5, 5);
        assert!((shares.share() - 0.25).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn the_shares_of_a_group_add_up_to_one_and_none_is_zero(
            members in 1usize..6, owners in proptest::array::uniform3(proptest::collection::vec(0usize..6, 1..40)),
        ) {
            let group: Vec<Shares> = (0..members).map(|_| Shares::default()).collect();
            for (topic, owners) in TOPICS.into_iter().zip(&owners) {
                for (member, shares) in group.iter().enumerate() {
                    let owned = owners.iter().filter(|owner| *owner % members == member).count();
                    shares.own(topic, owned, owners.len());
                }
            }
            let shares: Vec<f64> = group.iter().map(Shares::share).collect();
            prop_assert!(shares.iter().all(|share| *share > 0.0 && *share <= 1.0));
            // Members that own nothing get nothing to deliver; the rest is exact.
            let owning = |member: usize| owners.iter().flatten().any(|owner| owner % members == member);
            let sum: f64 = (0..members).filter(|member| owning(*member)).map(|member| shares[member]).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{:?}", shares);
        }
    }
}
