//! The bytes of all request bodies in memory: one bound for the process, whatever the number of connections.

use crate::error::Refusal;
use metrics::Gauge;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What request bodies may take in memory, over all connections.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    limit: usize,
    taken: AtomicUsize,
    gauge: Gauge,
}

impl BodyBudget {
    /// A budget of `limit` bytes; `gauge` shows what is taken of it.
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self { limit, taken: AtomicUsize::new(0), gauge }
    }

    /// A share of nothing yet, for one body.
    pub(crate) fn share(&self) -> Share<'_> {
        Share { budget: self, bytes: 0 }
    }
}

/// One body's part of the budget, given back when dropped. Keep it for as long as the body.
#[derive(Debug)]
pub(crate) struct Share<'b> {
    budget: &'b BodyBudget,
    bytes: usize,
}

impl Share<'_> {
    /// Sees to it that the share holds `bytes` in all; never waits.
    pub(crate) fn cover(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let budget = self.budget;
        // Only the sum matters: nothing else is published with it.
        let fits = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= budget.limit);
        match budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.bytes += more;
                // A gauge is a float; bytes in memory are far below 2^53.
                budget.gauge.increment(more as f64);
                Ok(())
            }
            Err(_) => Err(Refusal::ReadingFull),
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.gauge.decrement(self.bytes as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_stay_within_the_budget_and_give_back_what_they_held() {
        let budget = BodyBudget::new(100, Gauge::noop());
        let (mut first, mut second) = (budget.share(), budget.share());
        assert_eq!(first.cover(60), Ok(()));
        assert_eq!(first.cover(30), Ok(()));
        assert_eq!(second.cover(40), Ok(()));
        assert_eq!(second.cover(41), Err(Refusal::ReadingFull));
        assert_eq!(first.cover(usize::MAX), Err(Refusal::ReadingFull));
        drop(first);
        assert_eq!(second.cover(100), Ok(()));
        drop(second);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }
}
