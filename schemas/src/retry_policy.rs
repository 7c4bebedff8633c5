//! When a failed delivery is tried again.

use crate::UnixMillis;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// Longest list of delays: a bound on attempts per delivery.
pub const MAX_DELAYS: usize = 64;
/// Longest single delay and longest maximum age, in seconds: 30 days.
pub const MAX_DELAY_SECONDS: f64 = 30.0 * 86_400.0;
/// Shortest delay, in seconds, so that a retry never becomes a busy loop.
pub const MIN_DELAY_SECONDS: f64 = 0.1;
/// Largest spread around a delay.
pub const MAX_JITTER: f64 = 0.5;

/// A subscription's schedule: the wait before each retry, how far it is spread, and when to give up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct RetryPolicy {
    /// Seconds to wait before retry 1, 2, …; after the last one the delivery is dead.
    pub delays_seconds: Vec<f64>,
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
    /// Age outside 1 s to [`MAX_DELAY_SECONDS`].
    #[error("retry.max_age_seconds is {0}, it must be from 1 to {MAX_DELAY_SECONDS}")]
    MaxAge(f64),
}

/// The wire form, before its bounds were checked.
#[derive(Deserialize)]
#[serde(default)]
struct Unchecked {
    delays_seconds: Vec<f64>,
    jitter: f64,
    max_age_seconds: f64,
}

impl Default for Unchecked {
    fn default() -> Self {
        let RetryPolicy { delays_seconds, jitter, max_age_seconds } = RetryPolicy::default();
        Self { delays_seconds, jitter, max_age_seconds }
    }
}

impl TryFrom<Unchecked> for RetryPolicy {
    type Error = InvalidPolicy;

    fn try_from(raw: Unchecked) -> Result<Self, Self::Error> {
        Self::new(raw.delays_seconds, raw.jitter, raw.max_age_seconds)
    }
}

impl Default for RetryPolicy {
    /// 5 s, 30 s, 2 m, 10 m, 1 h, 4 h, 12 h, 24 h, spread by 20 %, given up after 3 days.
    fn default() -> Self {
        Self {
            delays_seconds: vec![5.0, 30.0, 120.0, 600.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0],
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
        if !(1.0..=MAX_DELAY_SECONDS).contains(&max_age_seconds) {
            return Err(InvalidPolicy::MaxAge(max_age_seconds));
        }
        Ok(Self { delays_seconds, jitter, max_age_seconds })
    }

    /// The wait after `attempt` (1 is the first) failed, spread by `random` in `[0, 1)`. `None` when no attempt is left.
    pub fn delay_after(&self, attempt: u32, random: f64) -> Option<Duration> {
        let index = usize::try_from(attempt.checked_sub(1)?).ok()?;
        let base = self.delays_seconds.get(index)?;
        Some(Duration::from_secs_f64(base * (1.0 + self.jitter * (2.0 * random - 1.0))))
    }

    /// When a delivery accepted at `accepted` is too old to be tried.
    pub fn expires_at(&self, accepted: UnixMillis) -> UnixMillis {
        accepted.plus(Duration::from_secs_f64(self.max_age_seconds))
    }

    /// Attempts in total, the first included.
    pub fn max_attempts(&self) -> u32 {
        // At most MAX_DELAYS + 1, which fits.
        self.delays_seconds.len() as u32 + 1
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
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_share(attempt in 1u32..9, random in 0.0f64..1.0) {
            let policy = RetryPolicy::default();
            let delay = policy.delay_after(attempt, random).unwrap().as_secs_f64();
            let base = policy.delays_seconds[attempt as usize - 1];
            prop_assert!(delay >= base * 0.8 - 1e-6 && delay <= base * 1.2 + 1e-6);
        }
    }
}
