//! Rates of requests and of events, of a tenant and of a single key: so many per second, and so many at once. Per process:
//! replicas do not share them. A rate that is not set costs nothing.

use crate::error::Refusal;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{fmt::Write, num::NonZeroU32};

/// Rates above this are taken as this: the limiter counts in whole nanoseconds per event.
const MAX_RATE: NonZeroU32 = const { NonZeroU32::new(10_000_000).unwrap() };
/// The fields of the IETF's draft-ietf-httpapi-ratelimit-headers, revision 11.
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Requests and events, of the tenant and of the key.
const MOST_LIMITS: usize = 4;

/// Whose rates they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Of all keys of a tenant together.
    Tenant,
    /// Of one key.
    Key,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Requests,
    Events,
}

/// A limit by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitName {
    pub(crate) scope: Scope,
    pub(crate) unit: Unit,
}

impl LimitName {
    /// As clients read it in the headers.
    pub(crate) fn policy(self) -> &'static str {
        match (self.scope, self.unit) {
            (Scope::Tenant, Unit::Requests) => "tenant-requests",
            (Scope::Tenant, Unit::Events) => "tenant-events",
            (Scope::Key, Unit::Requests) => "key-requests",
            (Scope::Key, Unit::Events) => "key-events",
        }
    }

    /// In a sentence.
    pub(crate) fn owner(self) -> &'static str {
        match self.scope {
            Scope::Tenant => "tenant",
            Scope::Key => "API key",
        }
    }

    /// In a sentence.
    pub(crate) fn unit(self) -> &'static str {
        match self.unit {
            Unit::Requests => "requests",
            Unit::Events => "events",
        }
    }
}

/// Sustained rates per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) requests: Option<NonZeroU32>,
    pub(crate) events: Option<NonZeroU32>,
}

/// The limits of one tenant or key.
#[derive(Debug)]
pub(crate) struct Limits {
    rates: Rates,
    requests: Option<Limit>,
    events: Option<Limit>,
    /// What the limits are, as a header.
    policy: HeaderValue,
}

/// What is left of the limits that a request met: written into its answer.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    met: [Option<Left>; MOST_LIMITS],
    policies: [Option<HeaderValue>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Left {
    of: LimitName,
    count: u32,
    /// Until nothing of the limit is used any more.
    seconds: u32,
}

impl Limits {
    /// Limiters with full bursts; `None` where there is nothing to limit.
    pub(crate) fn new(scope: Scope, rates: Rates, burst_seconds: NonZeroU32) -> Option<Self> {
        let limit = |unit, rate: Option<NonZeroU32>| {
            rate.map(|rate| Limit::new(LimitName { scope, unit }, rate.min(MAX_RATE), burst_seconds))
        };
        let (requests, events) = (limit(Unit::Requests, rates.requests), limit(Unit::Events, rates.events));
        let policies: Vec<_> = [&requests, &events].into_iter().flatten().map(Limit::policy).collect();
        if policies.is_empty() {
            return None;
        }
        // Names and numbers are visible ASCII.
        let policy = HeaderValue::try_from(policies.join(", ")).ok()?;
        Some(Self { rates, requests, events, policy })
    }

    /// The rates they were made with.
    pub(crate) fn rates(&self) -> Rates {
        self.rates
    }

    /// Takes one request.
    pub(crate) fn take_request(&self, standing: &mut Standing) -> Result<(), Refusal> {
        standing.note_policy(&self.policy);
        self.requests.as_ref().map_or(Ok(()), |limit| limit.take(1, standing))
    }

    /// Takes all of `events`, or none of them.
    pub(crate) fn take_events(&self, events: usize, standing: &mut Standing) -> Result<(), Refusal> {
        self.events.as_ref().map_or(Ok(()), |limit| limit.take(events, standing))
    }
}

/// One rate.
#[derive(Debug)]
pub(crate) struct Limit {
    name: LimitName,
    rate: NonZeroU32,
    burst: NonZeroU32,
    burst_seconds: NonZeroU32,
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
}

impl Limit {
    fn new(name: LimitName, rate: NonZeroU32, burst_seconds: NonZeroU32) -> Self {
        let burst = rate.saturating_mul(burst_seconds);
        let limiter = RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)).with_middleware();
        Self { name, rate, burst, burst_seconds, limiter, clock: DefaultClock::default() }
    }

    fn policy(&self) -> String {
        let (name, burst, seconds) = (self.name.policy(), self.burst, self.burst_seconds);
        match self.name.unit {
            // Requests are what is counted when nothing is said.
            Unit::Requests => format!("\"{name}\";q={burst};w={seconds}"),
            Unit::Events => format!("\"{name}\";q={burst};qu=\"events\";w={seconds}"),
        }
    }

    fn take(&self, count: usize, standing: &mut Standing) -> Result<(), Refusal> {
        let too_large = || Refusal::BurstTooLarge { limit: self.burst.get(), of: self.name };
        let Some(count) = NonZeroU32::new(u32::try_from(count).map_err(|_| too_large())?) else {
            return Ok(());
        };
        match self.limiter.check_n(count) {
            Ok(Ok(state)) => {
                standing.note(self.left(state.remaining_burst_capacity()));
                Ok(())
            }
            Ok(Err(not_until)) => {
                let wait = not_until.wait_time_from(self.clock.now());
                // What is missing comes in during the wait; the rest is there.
                let missing = (wait.as_secs_f64() * f64::from(self.rate.get())).ceil();
                standing.note(self.left((f64::from(count.get()) - missing).max(0.0) as u32));
                let retry_after = wait.as_millis().div_ceil(1000).max(1) as u64;
                Err(Refusal::RateLimited { retry_after, of: self.name })
            }
            Err(_insufficient_capacity) => Err(too_large()),
        }
    }

    fn left(&self, count: u32) -> Left {
        let seconds = self.burst.get().saturating_sub(count).div_ceil(self.rate.get());
        Left { of: self.name, count, seconds }
    }
}

impl Standing {
    fn note(&mut self, left: Left) {
        if let Some(free) = self.met.iter_mut().find(|met| met.is_none()) {
            *free = Some(left);
        }
    }

    fn note_policy(&mut self, policy: &HeaderValue) {
        if let Some(free) = self.policies.iter_mut().find(|known| known.is_none()) {
            *free = Some(policy.clone());
        }
    }

    /// Adds the headers to an answer; without limits there are none.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        for policy in self.policies.iter().flatten() {
            headers.append(RATELIMIT_POLICY, policy.clone());
        }
        let mut text = String::new();
        for Left { of, count, seconds } in self.met.iter().flatten() {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to memory cannot fail.
            let _ = write!(text, "{separator}\"{}\";r={count};t={seconds}", of.policy());
        }
        if !text.is_empty()
            && let Ok(value) = HeaderValue::try_from(text)
        {
            headers.insert(RATELIMIT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: LimitName = LimitName { scope: Scope::Tenant, unit: Unit::Events };

    fn limits(scope: Scope, requests: u32, events: u32, burst_seconds: u32) -> Option<Limits> {
        let rates = Rates { requests: NonZeroU32::new(requests), events: NonZeroU32::new(events) };
        Limits::new(scope, rates, NonZeroU32::new(burst_seconds).unwrap())
    }

    fn take(limits: &Limits, events: usize) -> Result<(), Refusal> {
        limits.take_events(events, &mut Standing::default())
    }

    #[test]
    fn a_burst_passes_and_what_follows_waits() {
        let limits = limits(Scope::Tenant, 0, 2, 5).unwrap();
        assert_eq!(take(&limits, 10), Ok(()));
        assert_eq!(take(&limits, 1), Err(Refusal::RateLimited { retry_after: 1, of: EVENTS }));
        assert_eq!(take(&limits, 10), Err(Refusal::RateLimited { retry_after: 5, of: EVENTS }));
    }

    #[test]
    fn a_batch_over_the_burst_can_never_pass() {
        let limits = limits(Scope::Tenant, 0, 2, 5).unwrap();
        assert_eq!(take(&limits, 11), Err(Refusal::BurstTooLarge { limit: 10, of: EVENTS }));
    }

    #[test]
    fn the_largest_rate_lets_everything_pass_and_without_rates_there_is_no_limit() {
        let largest = limits(Scope::Tenant, u32::MAX, u32::MAX, u32::MAX).unwrap();
        assert_eq!(take(&largest, 1_000_000), Ok(()));
        assert!(limits(Scope::Tenant, 0, 0, 1).is_none());
    }

    #[test]
    fn an_answer_tells_the_limits_and_what_is_left_of_them() {
        // So slow that nothing comes in during the test.
        let (tenant, key) =
            (limits(Scope::Tenant, 1, 2, 100).unwrap(), limits(Scope::Key, 3, 0, 100).unwrap());
        let mut standing = Standing::default();
        for limits in [&tenant, &key] {
            limits.take_request(&mut standing).unwrap();
            limits.take_events(150, &mut standing).unwrap();
        }
        let mut headers = HeaderMap::new();
        standing.write(&mut headers);
        let policies: Vec<_> = headers.get_all(RATELIMIT_POLICY).iter().collect();
        let expected = [
            "\"tenant-requests\";q=100;w=100, \"tenant-events\";q=200;qu=\"events\";w=100",
            "\"key-requests\";q=300;w=100",
        ];
        assert_eq!(policies, expected);
        let left = "\"tenant-requests\";r=99;t=1, \"tenant-events\";r=50;t=75, \"key-requests\";r=299;t=1";
        assert_eq!(headers[RATELIMIT], left);
    }

    #[test]
    fn a_refusal_tells_what_is_left_too() {
        let limits = limits(Scope::Tenant, 0, 1, 10).unwrap();
        take(&limits, 6).unwrap();
        let mut standing = Standing::default();
        limits.take_events(8, &mut standing).unwrap_err();
        let mut headers = HeaderMap::new();
        standing.write(&mut headers);
        assert_eq!(headers[RATELIMIT], "\"tenant-events\";r=4;t=6");
        let mut none = HeaderMap::new();
        Standing::default().write(&mut none);
        assert!(none.is_empty());
    }
}
