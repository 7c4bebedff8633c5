//! When a failed delivery is tried again.

use crate::UnixMillis;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// Longest list of delays: a bound on attempts per delivery.
pub const MAX_DELAYS: usize = 64;
/// Longest single delay, in seconds: 30 days, which the retry scheduler's partitions reach.
pub const MAX_DELAY_SECONDS: f64 = 30.0 * 86_400.0;
/// Longest maximum age, in seconds: 90 days, so that the longest delay fits in more than once.
pub const MAX_AGE_SECONDS: f64 = 90.0 * 86_400.0;
/// Shortest delay, in seconds, so that a retry never becomes a busy loop.
pub const MIN_DELAY_SECONDS: f64 = 0.1;
/// Most attempts of one delivery.
pub const MAX_ATTEMPTS: u32 = 200;
/// Largest spread around a delay.
pub const MAX_JITTER: f64 = 0.5;

/// A subscription's schedule: the wait before each retry, how far it is spread, and when to give up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct RetryPolicy {
    /// Seconds to wait before retry 1, 2, …; after the last one the delivery is dead, unless `max_attempts` says otherwise.
    pub delays_seconds: Vec<f64>,
    /// Attempts in total, the first included: fewer than there are delays for, or more, before each of which is the last delay. `None`:
    /// one more than there are delays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Spread of each delay as a share of it, 0 to 0.5: with 0.2 a delay of 10 s becomes 8 to 12 s.
    pub jitter: f64,
    /// Seconds after acceptance at which a delivery is given up, whatever attempts are left.
    pub max_age_seconds: f64,
}

/// A policy outside the bounds above.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum InvalidPolicy {
    /// More delays than [`MAX_DELAYS`].
    #[error("retry.delays_seconds has {0} entries, at most {MAX_DELAYS} are allowed")]
    TooManyDelays(usize),
    /// A delay outside [`MIN_DELAY_SECONDS`] to [`MAX_DELAY_SECONDS`].
    #[error("retry.delays_seconds holds {0}, each must be from {MIN_DELAY_SECONDS} to {MAX_DELAY_SECONDS}")]
    Delay(f64),
    /// Jitter outside 0 to [`MAX_JITTER`].
    #[error("retry.jitter is {0}, it must be from 0 to {MAX_JITTER}")]
    Jitter(f64),
    /// Age outside 1 s to [`MAX_AGE_SECONDS`].
    #[error("retry.max_age_seconds is {0}, it must be from 1 to {MAX_AGE_SECONDS}")]
    MaxAge(f64),
    /// Attempts outside 1 to [`MAX_ATTEMPTS`].
    #[error("retry.max_attempts is {0}, it must be from 1 to {MAX_ATTEMPTS}")]
    MaxAttempts(u32),
    /// Attempts after the first one, and no delay before them.
    #[error("retry.max_attempts is {0} and retry.delays_seconds is empty: there must be a delay to wait")]
    NoDelays(u32),
}

/// The wire form, before its bounds were checked.
#[derive(Deserialize)]
#[serde(default)]
struct Unchecked {
    delays_seconds: Vec<f64>,
    max_attempts: Option<u32>,
    jitter: f64,
    max_age_seconds: f64,
}

impl Default for Unchecked {
    fn default() -> Self {
        let RetryPolicy { delays_seconds, max_attempts, jitter, max_age_seconds } = RetryPolicy::default();
        Self { delays_seconds, max_attempts, jitter, max_age_seconds }
    }
}

impl TryFrom<Unchecked> for RetryPolicy {
    type Error = InvalidPolicy;

    fn try_from(raw: Unchecked) -> Result<Self, Self::Error> {
        let policy = Self::new(raw.delays_seconds, raw.jitter, raw.max_age_seconds)?;
        match raw.max_attempts {
            Some(most) => policy.with_max_attempts(most),
            None => Ok(policy),
        }
    }
}

impl Default for RetryPolicy {
    /// 5 s, 30 s, 2 m, 10 m, 1 h, 4 h, 12 h, 24 h, spread by 20 %, given up after 3 days.
    fn default() -> Self {
        Self {
            delays_seconds: vec![5.0, 30.0, 120.0, 600.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0],
            max_attempts: None,
            jitter: 0.2,
            max_age_seconds: 3.0 * 86_400.0,
        }
    }
}

impl RetryPolicy {
    /// Checks the bounds. An empty list of delays means that the first failure is final.
    pub fn new(delays_seconds: Vec<f64>, jitter: f64, max_age_seconds: f64) -> Result<Self, InvalidPolicy> {
        if delays_seconds.len() > MAX_DELAYS {
            return Err(InvalidPolicy::TooManyDelays(delays_seconds.len()));
        }
        if let Some(&delay) =
            delays_seconds.iter().find(|d| !(MIN_DELAY_SECONDS..=MAX_DELAY_SECONDS).contains(*d))
        {
            return Err(InvalidPolicy::Delay(delay));
        }
        if !(0.0..=MAX_JITTER).contains(&jitter) {
            return Err(InvalidPolicy::Jitter(jitter));
        }
        if !(1.0..=MAX_AGE_SECONDS).contains(&max_age_seconds) {
            return Err(InvalidPolicy::MaxAge(max_age_seconds));
        }
        Ok(Self { delays_seconds, max_attempts: None, jitter, max_age_seconds })
    }

    /// The same policy with so many attempts in total.
    pub fn with_max_attempts(self, most: u32) -> Result<Self, InvalidPolicy> {
        if !(1..=MAX_ATTEMPTS).contains(&most) {
            return Err(InvalidPolicy::MaxAttempts(most));
        }
        if most > 1 && self.delays_seconds.is_empty() {
            return Err(InvalidPolicy::NoDelays(most));
        }
        Ok(Self { max_attempts: Some(most), ..self })
    }

    /// The wait after `attempt` (1 is the first) failed, spread by `random` in `[0, 1)`, and never more than the longest delay. `None`
    /// when no attempt is left.
    pub fn delay_after(&self, attempt: u32, random: f64) -> Option<Duration> {
        let index = usize::try_from(attempt.checked_sub(1)?).ok()?;
        if attempt >= self.max_attempts() {
            return None;
        }
        let base = self.delays_seconds.get(index).or(self.delays_seconds.last())?;
        let spread = base * (1.0 + self.jitter * (2.0 * random - 1.0));
        Some(Duration::from_secs_f64(spread.min(MAX_DELAY_SECONDS)))
    }

    /// When a delivery accepted at `accepted` is too old to be tried.
    pub fn expires_at(&self, accepted: UnixMillis) -> UnixMillis {
        accepted.plus(Duration::from_secs_f64(self.max_age_seconds))
    }

    /// Attempts in total, the first included.
    pub fn max_attempts(&self) -> u32 {
        // At most MAX_DELAYS + 1, which fits.
        self.max_attempts.unwrap_or(self.delays_seconds.len() as u32 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_schedule_is_exponential_and_ends() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.delay_after(1, 0.5), Some(Duration::from_secs(5)));
        assert_eq!(policy.delay_after(8, 0.5), Some(Duration::from_secs(86_400)));
        assert_eq!(policy.delay_after(9, 0.5), None);
        assert_eq!(policy.delay_after(0, 0.5), None);
        assert_eq!(policy.max_attempts(), 9);
    }

    #[test]
    fn out_of_bounds_policies_are_refused_by_name() {
        let refused = |json: &str| serde_json::from_str::<RetryPolicy>(json).unwrap_err().to_string();
        assert!(refused(r#"{"delays_seconds":[0]}"#).contains("delays_seconds holds 0"));
        assert!(refused(r#"{"jitter":0.9}"#).contains("retry.jitter is 0.9"));
        assert!(refused(r#"{"max_age_seconds":0}"#).contains("max_age_seconds is 0"));
        let many = format!("{{\"delays_seconds\":[{}]}}", vec!["1"; 65].join(","));
        assert!(refused(&many).contains("65 entries"));
        assert!(refused(r#"{"delays_seconds":[2592001]}"#).contains("from 0.1 to 2592000"));
        assert!(refused(r#"{"max_age_seconds":7776001}"#).contains("from 1 to 7776000"));
        assert!(refused(r#"{"max_attempts":0}"#).contains("max_attempts is 0, it must be from 1 to 200"));
        assert!(refused(r#"{"max_attempts":201}"#).contains("max_attempts is 201"));
        assert!(refused(r#"{"delays_seconds":[],"max_attempts":2}"#).contains("delays_seconds is empty"));
        assert!(serde_json::from_str::<RetryPolicy>(r#"{"delays_seconds":[],"max_attempts":1}"#).is_ok());
    }

    #[test]
    fn attempts_beyond_the_list_wait_for_its_last_delay_and_fewer_end_it() {
        let policy = RetryPolicy::new(vec![1.0, 2.0], 0.0, 60.0).unwrap();
        let waits = |policy: &RetryPolicy| -> Vec<u64> {
            (1..).map_while(|attempt| policy.delay_after(attempt, 0.5)).map(|wait| wait.as_secs()).collect()
        };
        assert_eq!(waits(&policy), [1, 2]);
        assert_eq!(waits(&policy.clone().with_max_attempts(5).unwrap()), [1, 2, 2, 2]);
        assert_eq!(waits(&policy.clone().with_max_attempts(2).unwrap()), [1]);
        assert_eq!(waits(&policy.with_max_attempts(1).unwrap()), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_schedule_ends_and_its_delays_stay_within_their_bounds(
            seconds in proptest::collection::vec(1u32..=2_592_000, 1..MAX_DELAYS),
            jitter in 0.0..=MAX_JITTER, most in proptest::option::of(1..=MAX_ATTEMPTS), random in 0.0f64..1.0,
        ) {
            let delays = seconds.into_iter().map(f64::from).collect();
            let mut policy = RetryPolicy::new(delays, jitter, MAX_AGE_SECONDS).unwrap();
            if let Some(most) = most {
                policy = policy.with_max_attempts(most).unwrap();
            }
            let mut attempts = 1;
            while let Some(delay) = policy.delay_after(attempts, random) {
                let delay = delay.as_secs_f64();
                prop_assert!((MIN_DELAY_SECONDS * (1.0 - MAX_JITTER) - 1e-6..=MAX_DELAY_SECONDS).contains(&delay), "{}", delay);
                attempts += 1;
            }
            prop_assert_eq!(attempts, policy.max_attempts());
            let json = serde_json::to_string(&policy).unwrap();
            prop_assert_eq!(serde_json::from_str::<RetryPolicy>(&json).unwrap().delays_seconds, policy.delays_seconds);
        }

        #[test]
        fn jitter_stays_within_its_share(attempt in 1u32..9, random in 0.0f64..1.0) {
            let policy = RetryPolicy::default();
            let delay = policy.delay_after(attempt, random).unwrap().as_secs_f64();
            let base = policy.delays_seconds[attempt as usize - 1];
            prop_assert!(delay >= base * 0.8 - 1e-6 && delay <= base * 1.2 + 1e-6);
        }
    }
}
