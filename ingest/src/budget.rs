//! The bytes of all request bodies in memory: one bound for the process, whatever the number of connections.

use crate::error::Refusal;
use metrics::Gauge;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One tenant takes at most this fraction of the budget, written as its divisor: announcing bodies costs it nothing, and
/// the others must go on.
const TENANT_SHARE: usize = 2;

/// What request bodies may take in memory, over all connections.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    limit: usize,
    tenant_limit: usize,
    taken: AtomicUsize,
    gauge: Gauge,
}

/// What one tenant's bodies take.
#[derive(Debug, Default)]
pub(crate) struct TenantBytes(AtomicUsize);

impl BodyBudget {
    /// A budget of `limit` bytes, in which each tenant has room for a body of `max_body` bytes; `gauge` shows what is
    /// taken of it.
    pub(crate) fn new(limit: usize, max_body: usize, gauge: Gauge) -> Self {
        let tenant_limit = max_body.max(limit / TENANT_SHARE);
        Self { limit, tenant_limit, taken: AtomicUsize::new(0), gauge }
    }

    /// A share of nothing yet, for one body.
    pub(crate) fn share<'b>(&'b self, tenant: &'b TenantBytes) -> Share<'b> {
        Share { budget: self, tenant, bytes: 0 }
    }
}

/// One body's part of the budget, given back when dropped. Keep it for as long as the body.
#[derive(Debug)]
pub(crate) struct Share<'b> {
    budget: &'b BodyBudget,
    tenant: &'b TenantBytes,
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
        if !take(&self.tenant.0, more, budget.tenant_limit) {
            return Err(Refusal::ReadingFull);
        }
        if !take(&budget.taken, more, budget.limit) {
            self.tenant.0.fetch_sub(more, Ordering::Relaxed);
            return Err(Refusal::ReadingFull);
        }
        self.bytes += more;
        // A gauge is a float; bytes in memory are far below 2^53.
        budget.gauge.increment(more as f64);
        Ok(())
    }
}

/// Only the sum matters: nothing else is published with it.
fn take(taken: &AtomicUsize, more: usize, limit: usize) -> bool {
    let fits = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= limit);
    taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.tenant.0.fetch_sub(self.bytes, Ordering::Relaxed);
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
        let (budget, one, other) =
            (BodyBudget::new(100, 90, Gauge::noop()), TenantBytes::default(), TenantBytes::default());
        let (mut first, mut second) = (budget.share(&one), budget.share(&other));
        assert_eq!(first.cover(60), Ok(()));
        assert_eq!(first.cover(30), Ok(()));
        assert_eq!(second.cover(40), Ok(()));
        assert_eq!(second.cover(41), Err(Refusal::ReadingFull));
        assert_eq!(first.cover(usize::MAX), Err(Refusal::ReadingFull));
        drop(first);
        assert_eq!(second.cover(90), Ok(()));
        drop(second);
        let left = [&budget.taken, &one.0, &other.0].map(|taken| taken.load(Ordering::Relaxed));
        assert_eq!(left, [0; 3]);
    }

    #[test]
    fn one_tenant_leaves_room_for_the_others() {
        let (budget, one, other) =
            (BodyBudget::new(100, 10, Gauge::noop()), TenantBytes::default(), TenantBytes::default());
        let mut held: Vec<_> = (0..6).map(|_| budget.share(&one)).collect();
        let taken = held.iter_mut().filter_map(|share| share.cover(10).ok()).count();
        assert_eq!(taken, 5);
        assert_eq!(budget.share(&other).cover(50), Ok(()));
    }
}
