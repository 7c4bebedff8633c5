//! A tenant's rate of events: so many per second, and so many at once. Per process: replicas do not share it.

use crate::error::Refusal;
use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};
use std::num::NonZeroU32;

/// Rates above this are taken as this: the limiter counts in whole nanoseconds per event.
const MAX_RATE: NonZeroU32 = const { NonZeroU32::new(10_000_000).unwrap() };

/// The limiter of one tenant.
#[derive(Debug)]
pub(crate) struct EventLimit {
    rate: Option<NonZeroU32>,
    limiter: Option<(DefaultDirectRateLimiter, u32)>,
    clock: DefaultClock,
}

impl EventLimit {
    /// A limiter with a full burst; without a rate it lets everything pass.
    pub(crate) fn new(rate: Option<NonZeroU32>, burst_seconds: NonZeroU32) -> Self {
        let limiter = rate.map(|rate| {
            let rate = rate.min(MAX_RATE);
            let burst = rate.saturating_mul(burst_seconds);
            (DefaultDirectRateLimiter::direct(Quota::per_second(rate).allow_burst(burst)), burst.get())
        });
        Self { rate, limiter, clock: DefaultClock::default() }
    }

    /// The rate it was made with.
    pub(crate) fn rate(&self) -> Option<NonZeroU32> {
        self.rate
    }

    /// Takes all of `events` from the tenant's rate, or none of them.
    pub(crate) fn take(&self, events: usize) -> Result<(), Refusal> {
        let Some((limiter, burst)) = &self.limiter else { return Ok(()) };
        let too_large = || Refusal::BurstTooLarge { limit: *burst };
        let Some(events) = NonZeroU32::new(u32::try_from(events).map_err(|_| too_large())?) else {
            return Ok(());
        };
        match limiter.check_n(events) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                let wait = not_until.wait_time_from(self.clock.now());
                Err(Refusal::RateLimited { retry_after: wait.as_millis().div_ceil(1000).max(1) as u64 })
            }
            Err(_insufficient_capacity) => Err(too_large()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u32, burst_seconds: u32) -> EventLimit {
        EventLimit::new(NonZeroU32::new(rate), NonZeroU32::new(burst_seconds).unwrap())
    }

    #[test]
    fn a_burst_passes_and_what_follows_waits() {
        let limit = limit(2, 5);
        assert_eq!(limit.take(10), Ok(()));
        assert_eq!(limit.take(1), Err(Refusal::RateLimited { retry_after: 1 }));
        assert_eq!(limit.take(10), Err(Refusal::RateLimited { retry_after: 5 }));
    }

    #[test]
    fn a_batch_over_the_burst_can_never_pass() {
        assert_eq!(limit(2, 5).take(11), Err(Refusal::BurstTooLarge { limit: 10 }));
    }

    #[test]
    fn the_largest_rate_and_no_rate_let_everything_pass() {
        assert_eq!(limit(u32::MAX, u32::MAX).take(1_000_000), Ok(()));
        assert_eq!(limit(0, 1).take(1_000_000), Ok(()));
    }
}
