//! When an endpoint that does not answer gets no requests for a while, by its subscription's wish.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use thiserror::Error;

/// Failures in a row that stop requests, up to as many as are remembered; 0 is for never.
pub const BREAKER_FAILURES: RangeInclusive<u32> = 0..=64;
/// Percentage of failures that stops requests.
pub const BREAKER_PERCENT: RangeInclusive<u32> = 1..=100;
/// Milliseconds without requests: shorter ones are none, and after an hour nobody would notice that the endpoint is back.
pub const BREAKER_PAUSE_MS: RangeInclusive<u32> = 100..=3_600_000;

/// What a subscription asks for instead of the installation's values. Absent fields leave it to those.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct BreakerPolicy {
    /// Failures in a row, within [`BREAKER_FAILURES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// Percentage of failures among the last 64 attempts, within [`BREAKER_PERCENT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// First pause, within [`BREAKER_PAUSE_MS`]; each probe that fails doubles it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u32>,
    /// Longest pause, within [`BREAKER_PAUSE_MS`], and not below the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pause_ms: Option<u32>,
}

/// A policy outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidBreakerPolicy {
    /// A field out of its bounds.
    #[error("breaker.{name} is {value}, it must be from {least} to {most}")]
    Bounds {
        /// The field.
        name: &'static str,
        /// What it is.
        value: u32,
        /// Its least value.
        least: u32,
        /// Its greatest value.
        most: u32,
    },
    /// The longest pause is below the first.
    #[error(
        "breaker.max_pause_ms is {max_pause_ms}, it must not be below breaker.pause_ms, which is {pause_ms}"
    )]
    Pauses {
        /// The first one.
        pause_ms: u32,
        /// The longest one.
        max_pause_ms: u32,
    },
}

/// The wire form, before its bounds were checked.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unchecked {
    failures: Option<u32>,
    percent: Option<u32>,
    pause_ms: Option<u32>,
    max_pause_ms: Option<u32>,
}

impl TryFrom<Unchecked> for BreakerPolicy {
    type Error = InvalidBreakerPolicy;

    fn try_from(raw: Unchecked) -> Result<Self, Self::Error> {
        let Unchecked { failures, percent, pause_ms, max_pause_ms } = raw;
        Self { failures, percent, pause_ms, max_pause_ms }.checked()
    }
}

impl BreakerPolicy {
    /// Checks the bounds.
    ///
    /// # Errors
    /// Which field is out of which bounds.
    pub fn checked(self) -> Result<Self, InvalidBreakerPolicy> {
        let fields = [
            ("failures", self.failures, BREAKER_FAILURES),
            ("percent", self.percent, BREAKER_PERCENT),
            ("pause_ms", self.pause_ms, BREAKER_PAUSE_MS),
            ("max_pause_ms", self.max_pause_ms, BREAKER_PAUSE_MS),
        ];
        for (name, value, bounds) in fields {
            if let Some(value) = value.filter(|value| !bounds.contains(value)) {
                let (least, most) = (*bounds.start(), *bounds.end());
                return Err(InvalidBreakerPolicy::Bounds { name, value, least, most });
            }
        }
        match (self.pause_ms, self.max_pause_ms) {
            (Some(pause_ms), Some(max_pause_ms)) if max_pause_ms < pause_ms => {
                Err(InvalidBreakerPolicy::Pauses { pause_ms, max_pause_ms })
            }
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_outside_its_bounds_is_refused_by_name() {
        let table = [
            (r#"{"failures":65}"#, "breaker.failures is 65, it must be from 0 to 64"),
            (r#"{"percent":0}"#, "breaker.percent is 0, it must be from 1 to 100"),
            (r#"{"pause_ms":99}"#, "breaker.pause_ms is 99, it must be from 100 to 3600000"),
            (r#"{"max_pause_ms":3600001}"#, "breaker.max_pause_ms is 3600001"),
            (r#"{"pause_ms":2000,"max_pause_ms":1000}"#, "must not be below breaker.pause_ms, which is 2000"),
        ];
        for (json, reason) in table {
            let error = serde_json::from_str::<BreakerPolicy>(json).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
        let some: BreakerPolicy = serde_json::from_str(r#"{"failures":0,"pause_ms":100}"#).unwrap();
        assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"failures":0,"pause_ms":100}"#);
        assert_eq!(serde_json::from_str::<BreakerPolicy>("{}").unwrap(), BreakerPolicy::default());
    }
}
